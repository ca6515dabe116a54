"""The whole path, from labelled pictures to a proven classifier, on one screen. This is the documentation of the system.

Dataset -> Backbone -> Features -> Head -> Plan -> Model -> Result -> Run
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import nn

from headstart import proof, runtime
from headstart.backbones.backbone import InputSpec
from headstart.backbones.catalog import DEFAULT_BACKBONE, load_backbone
from headstart.baselines import scratch_seconds
from headstart.data.audit import Audit
from headstart.data.dataset import Dataset
from headstart.data.facts import RECORD_BYTES
from headstart.data.load import audit, load_dataset
from headstart.errors import TooLittleData
from headstart.features.engine import Engine
from headstart.features.extract import activation_bytes, decode_seconds, extract
from headstart.features.store import Recall, Store
from headstart.finetune import Finetuned, finetune
from headstart.model import Model
from headstart.plan import Budget, Evidence, Mode, Plan, decide, load_plan
from headstart.race import Race, race
from headstart.run import Folder, Run
from headstart.story import Story
from headstart.tasks.classification import fit_temperature


@dataclass(frozen=True)
class Options:
    """What a person may say about a run; the same options on the same data give the same run.

    `backbone` a name, see `headstart backbones`; `weights` a local file for it. `plan` "auto", "head", "full" or a plan file.
    `budget` wall time in seconds, None for no bound. `store_limit` bytes. `unreadable` "skip" or "error"; `rare` what to do
    with a class of one image: "train" on it untested, "drop" it, "error". Column names apply to tables.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    plan: str = "auto"
    budget: float | None = 600.0
    store_limit: int | None = 20_000_000_000
    test_fraction: float = 0.2
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    unreadable: Literal["skip", "error"] = "skip"
    rare: Literal["train", "drop", "error"] = "train"
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"


def fit(
    source: object,
    out: str | Path | None = None,
    options: Options | None = None,
    *,
    module: nn.Module | None = None,
    input: InputSpec | None = None,
    overwrite: bool = False,
    progress: runtime.Progress = runtime.silent,
    tell: Any = None,
    command: str | None = None,
) -> Run:
    """The main job: the best classifier that a pretrained network can honestly be made into, with proof.

    `source` is a folder, a table, IDX or NPZ files, arrays or a Hugging Face data set; `out` the run folder, None to keep the run
    in memory; `module` a network of your own instead of a named backbone, and `input` the preprocessing that it expects; `tell`
    is called with each line of the log; `command` is what the report says was typed, where it was no `headstart fit`.

    Raises:
        HeadstartError: with what was got, what was expected, and what to do next.
    """
    options = options or Options()
    story = Story(tell)
    folder = Folder.claim(out, source, options, overwrite=overwrite, command=command)
    with folder, story.to(folder.path):
        if folder.resumed:
            story.say("an unfinished run with the same options lies here: going on with it")
        deadline = math.inf if options.budget is None else time.monotonic() + options.budget
        store = Store(limit=options.store_limit)
        runtime.seed_everything(options.seed)
        with story.phase("audit"):
            dataset = audited(source, options, store, progress)
            story.dataset(dataset)
        with story.phase("extract"):
            weights = None if options.weights is None else Path(options.weights)
            backbone = load_backbone(options.backbone if module is None else module, weights=weights, input=input)
            engine = Engine(backbone, precision=options.precision)
            unsealed = np.flatnonzero(dataset.split != "test")
            features = extract(backbone, dataset, store, engine=engine, only=unsealed, progress=progress)
        with story.phase("head"):
            pool = dataset.indices("train")
            heads = race(
                features,
                dataset.labels[pool],
                dataset.fold[pool],
                len(dataset.classes),
                pool,
                store=store,
                progress=progress,
            )
            story.heads(heads)
        with story.phase("plan"):
            plan = planned(dataset, engine, heads, options, store, spent=story.total)
            story.plan(plan)
        with story.phase("finetune"):
            # The network from scratch is given the time that transfer took, so transfer may use half of what is left.
            halfway = time.monotonic() + 0.5 * (deadline - time.monotonic())
            tuned = finetune(engine, heads, features, dataset, plan, store, deadline=halfway, progress=progress)
            story.finetuned(tuned)
            model = finished(engine, heads, tuned, dataset)
            folder.keep_model(story, model, dataset)
        with story.phase("baselines"):
            against = proof.baselines(
                dataset, store, plan, tuned, deadline=deadline, seed=options.seed, progress=progress
            )
        with story.phase("evaluate"):  # the sealed test set is opened here, once
            features = extract(engine.backbone, dataset, store, engine=engine, progress=progress)
            result = proof.prove(
                model, heads, tuned, features, dataset, against, store, seed=options.seed, progress=progress
            )
        return folder.keep(story, options, dataset, heads, plan, tuned, model, result)


def audited(source: object, options: Options, store: Store, progress: runtime.Progress = runtime.silent) -> Dataset:
    """The data set, audited, de-duplicated and split; what was measured about each picture is remembered by content.

    Raises:
        DataError: where it cannot be read, or holds too little.
    """
    dataset = load_dataset(source, **_reading(options, store), progress=progress)
    pool = dataset.indices("train")
    if len(np.unique(dataset.fold[pool])) < 2 or len(pool) < 8:
        raise TooLittleData(
            f"{dataset.source}: {len(pool)} usable training images of {len(dataset.classes)} classes. "
            "Headstart needs at least 8, with two or more in some class, to cross-validate anything; add images."
        )
    return dataset


def examined(source: object, options: Options, *, progress: runtime.Progress = runtime.silent) -> Audit:
    """The audit alone, also where the data cannot be used as they are."""
    return audit(source, **_reading(options, Store()), progress=progress)


def _reading(options: Options, store: Store) -> dict[str, Any]:
    return {
        "label": options.label_column, "path": options.path_column, "split": options.split_column,
        "group": options.group_column, "unreadable": options.unreadable, "rare": options.rare,
        "test_fraction": options.test_fraction, "seed": options.seed,
        "memory": Recall(store, "facts", {"pillow": PIL.__version__}, RECORD_BYTES),
    }  # fmt: skip


def planned(
    dataset: Dataset, engine: Engine, heads: Race, options: Options, store: Store, *, spent: float = 0.0
) -> Plan:
    """The plan: from a file, or decided from the evidence; the same options on the same data keep the plan they had.

    What is decided depends on measured speeds and on the time already spent. Were it decided anew by a run that goes on after
    an interruption, that run could end with another result.

    Raises:
        PlanError: where the plan file does not fit.
    """
    backbone = engine.backbone
    modes: dict[str, Mode] = {"auto": "auto", "head": "head", "full": "full"}
    mode = modes.get(options.plan)
    if mode is None:
        return load_plan(
            Path(options.plan),
            backbone=backbone.origin.name,
            stages=list(backbone.names),
            tested=len(dataset.indices("test")) > 0,
            given_val=len(dataset.indices("val")) > 0,
        )
    memo = store.artifact("plan", {"data": dataset.digest, "weights": backbone.digest(), "options": asdict(options)})
    stored = memo.load()
    if stored is not None:
        return Plan.model_validate(stored[0]["plan"])
    speed = _speed(engine, store)
    pool = dataset.indices("train")
    counts = dataset.counts("train")
    evidence = Evidence(
        images=len(pool),
        classes=len(dataset.classes),
        smallest_class=int(counts.min()),
        tested=len(dataset.indices("test")),
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
        forward_seconds=speed["forward"].tolist(),
        training_seconds=speed["training"].tolist(),
        decode_seconds=decode_seconds(dataset, engine.backbone),
        scratch_seconds=float(speed["scratch"]),
    )
    budget = Budget(seconds=options.budget, spent_seconds=spent, store_bytes=options.store_limit)
    plan = decide(
        evidence,
        budget,
        backbone=backbone.origin.name,
        mode=mode,
        given_val=bool(len(dataset.indices("val"))),
        seed=options.seed,
    )
    memo.save({"plan": plan.model_dump(mode="json")}, {})
    return plan


def _speed(engine: Engine, store: Store) -> dict[str, NDArray[np.float64]]:
    """Seconds per picture on this machine, per stage and of the small network; measured once and remembered."""
    spec = {
        "stages": list(engine.backbone.names),
        "name": engine.backbone.origin.name,
        "precision": engine.settled,
        "machine": runtime.environment()["processor"],
        "threads": torch.get_num_threads(),
        "device": str(engine.device),
        "torch": torch.__version__,
    }
    memo = store.artifact("speed", spec)
    stored = memo.load()
    if stored is not None:
        return stored[1]
    forward, training = engine.stage_seconds()
    measured = {"forward": np.array(forward), "training": np.array(training), "scratch": np.array(scratch_seconds())}
    memo.save({}, measured)
    return measured


def finished(engine: Engine, heads: Race, tuned: Finetuned, dataset: Dataset) -> Model:
    """The model as it will be saved: chosen weights, and the temperature that calibrates it on held-out logits."""
    if tuned.kept:
        logits, labels = tuned.logits, dataset.labels[tuned.held]
    else:
        logits, labels = heads.best.logits, dataset.labels[dataset.indices("train")]
    return Model(
        tuned.backbone,
        tuned.head,
        dataset.classes,
        temperature=fit_temperature(logits, labels),
        precision=engine.settled or "float32",
    )
