"""What a plan is decided from: what the heads found, how far the pictures lie from the source, how fast this machine is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.features.activations import activation_bytes
from headstart.features.engine import Engine
from headstart.features.extract import Features, decode_seconds
from headstart.features.settle import settle
from headstart.features.shift import shift
from headstart.features.store import Artifact, Store
from headstart.forecast import forecast
from headstart.options import Options
from headstart.plan import Budget, Evidence, Plan, load_plan
from headstart.planner import MODES, RULES, decide, foreseen
from headstart.race import Race
from headstart.scratch import scratch_seconds
from headstart.suffix import fastest, stage_seconds
from headstart.views import VIEWS


def planned(
    dataset: Dataset,
    engines: Sequence[Engine],
    heads: Race,
    features: Features,
    options: Options,
    store: Store,
    *,
    given: Plan | None = None,
    cached: Sequence[int] = (),
    spent: float = 0.0,
    progress: runtime.Progress = runtime.silent,
) -> Plan:
    """The plan: from a file, which may have been read already, or decided from the evidence; options on the same data, with the same
    heads, keep their plan.

    What is decided depends on measured speeds and on the time already spent. Were it decided anew by a run that goes on after
    an interruption, that run could end with another result.

    Raises:
        PlanError: where the plan file does not fit.
    """
    backbone = engines[0].backbone
    mode = next((mode for mode in MODES if mode == options.plan), None)
    if mode is None:
        given = load_plan(
            Path(options.plan),
            read=given,
            backbone=backbone.origin.name,
            stages=list(backbone.names),
            tested=len(dataset.indices("test")) > 0,
            given_val=len(dataset.indices("val")) > 0,
        )
        # Its budget is that of another run, perhaps: its rungs are tried while there is time.
        return given.model_copy(update={"budget": None})
    found = {"weights": [each.backbone.digest() for each in engines], "head": [heads.accuracy, heads.best.log_loss]}
    spec = {"data": dataset.digest, **found, "options": asdict(options), "rules": RULES}
    memo = store.artifact("plan", spec)
    stored = memo.load()
    if stored is not None:
        return Plan.model_validate(stored[0]["plan"])
    hopeful = mode == "auto" and (options.budget is None or spent < options.budget)
    far = shift(backbone, dataset, features.of(0), store, progress).distance if hopeful else None
    evidence = measured(dataset, engines, heads, store, cached=cached, far=far, progress=progress)
    budget = Budget(seconds=options.budget, spent_seconds=spent, store_bytes=_room(options, store))
    plan = decide(evidence, budget, backbone=backbone.origin.name, mode=mode, seed=options.seed)
    memo.save({"plan": plan.model_dump(mode="json")}, {})
    return plan


def measured(
    dataset: Dataset,
    engines: Sequence[Engine],
    heads: Race,
    store: Store,
    *,
    cached: Sequence[int],
    far: float | None,
    progress: runtime.Progress = runtime.silent,
) -> Evidence:
    """What is known before any rung; `far` is how far the pictures lie from the source, None where that was not looked at."""
    engine, backbone = engines[0], engines[0].backbone
    pool, counts, loss = dataset.indices("train"), dataset.counts("train"), heads.best.log_loss
    gains = None
    if far is not None:
        gains = forecast(loss, far, len(pool), len(dataset.classes), backbone=backbone.origin.name)
    forward, training, scratch, *beside = _speeds(engines, store, progress)
    return Evidence(
        images=len(pool),
        classes=len(dataset.classes),
        smallest_class=int(counts.min()),
        tested=len(dataset.indices("test")),
        validation=len(dataset.indices("val")),
        head=f"{heads.best.kind}, {heads.reason}",
        head_accuracy=heads.accuracy,
        head_accuracy_se=heads.best.accuracy_se,
        last_stage_accuracy=heads.last.accuracy,
        profile=[score.accuracy for score in heads.profile],
        stages=list(backbone.names),
        flops=list(backbone.flops),
        activation_bytes=[
            activation_bytes(backbone, cut, engine.settled or "float32") for cut in range(1, len(backbone.names) + 1)
        ],
        activation_dtype=engine.settled or "float32",
        forward_seconds=forward.tolist(),
        training_seconds=training.tolist(),
        decode_seconds=decode_seconds(dataset, engine.backbone),
        scratch_seconds=float(scratch[0]),
        views=heads.last.views,
        cached=list(cached),
        folds=len(np.unique(dataset.fold[pool])),
        head_log_loss=loss,
        shift=far,
        forecast=gains,
        beside_seconds=float(sum(each.sum() for each in beside)),
    )


def cached_ahead(dataset: Dataset, engines: Sequence[Engine], heads: Race, options: Options, store: Store) -> list[int]:
    """The cuts that rungs will train from, where the pass that heads' views take may cache what enters them.

    None where a plan is given, where several networks share decoded pictures, where a compiler runs one, which gives nothing but
    pooled outputs, and where all views take more than half of the room in the store: the plan then says what comes in less.
    """
    engine, pool = engines[0], dataset.indices("train")
    way = settle(engine, dataset, store)
    if options.plan != "auto" or len(engines) > 1 or way.runner != "eager":
        return []
    cuts = foreseen(
        engine.backbone.flops,
        len(pool),
        tested=len(dataset.indices("test")),
        validation=len(dataset.indices("val")),
        folds=len(np.unique(dataset.fold[pool])),
        accuracy=heads.accuracy,
    )
    room = _room(options, store)
    needed = len(pool) * (VIEWS + 1) * sum(activation_bytes(engine.backbone, cut, way.precision) for cut in cuts)
    return cuts if room is None or needed <= 0.5 * room else []


def _room(options: Options, store: Store) -> int | None:
    """Bytes that the store has room for; None where it is not limited."""
    return None if options.store_limit is None else max(0, options.store_limit - store.in_use())


def _speeds(engines: Sequence[Engine], store: Store, progress: runtime.Progress) -> list[NDArray[np.float64]]:
    """Seconds per picture on this machine: of each stage of the first network, run and then trained; of the small network's training;
    of each stage of every other network. Measured once and remembered."""
    first = engines[0]
    measures: list[tuple[Engine, str, Callable[[], Sequence[float]]]] = [
        (first, "forward", first.stage_seconds),
        (first, "training", lambda: stage_seconds(first.backbone, first.device)),
        (first, "scratch", lambda: [scratch_seconds()]),
        *((other, "forward", other.stage_seconds) for other in engines[1:]),
    ]
    memos = [_speed(engine, store, what) for engine, what, _ in measures]
    known = {place: stored[1]["seconds"] for place, memo in enumerate(memos) if (stored := memo.load()) is not None}
    unknown = [place for place in range(len(measures)) if place not in known]
    if unknown:
        with progress("Timing this machine", len(unknown), "speeds") as advance:
            for place in unknown:
                known[place] = np.array(measures[place][2]())
                memos[place].save({}, {"seconds": known[place]})
                advance(1)
    return [known[place] for place in range(len(measures))]


def _speed(engine: Engine, store: Store, what: str) -> Artifact:
    """Where a speed of `engine` on this machine is remembered."""
    spec = {
        "what": what,
        "stages": list(engine.backbone.names),
        "name": engine.backbone.origin.name,
        "precision": str(engine.way),
        "machine": runtime.machine(),
        "threads": torch.get_num_threads(),
        "device": str(engine.device),
        "training": fastest(engine.device),
        "torch": torch.__version__,
        "version": 2,
    }
    return store.artifact("speed", spec)
