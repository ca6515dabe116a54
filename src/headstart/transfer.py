"""The whole path, from labelled pictures to a proven classifier, from top to bottom. This is the documentation of the system.

Dataset -> Backbone -> Features -> Head -> Plan -> Model -> Result -> Run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headstart import proof, runtime
from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.catalog import first_and_others, load_backbone
from headstart.cost import TRANSFER_SHARE
from headstart.data.ahead import Ahead
from headstart.data.dataset import Dataset
from headstart.diagnosis.diagnosis import diagnose
from headstart.evidence import cached_ahead, planned
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, extract_all, together, with_views
from headstart.features.settle import settle
from headstart.features.store import Store
from headstart.folder import Folder
from headstart.heads import Head
from headstart.ladder import Finetuned, finetune
from headstart.lineup import Lineup, line_up
from headstart.model import Model
from headstart.options import Options
from headstart.plan import Plan
from headstart.race import Race, race
from headstart.run import Run, keep, keep_model
from headstart.story import Story
from headstart.tasks.classification import fit_temperature
from headstart.unknown import Unknown, learn
from headstart.views import more_views
from headstart.winner import fit_winner, held_out


def transfer(
    dataset: Dataset,
    options: Options,
    story: Story,
    folder: Folder,
    store: Store,
    *,
    deadline: float,
    module: nn.Module | None = None,
    input: InputSpec | None = None,
    given: Plan | None = None,
    ahead: Ahead | None = None,
    progress: runtime.Progress = runtime.silent,
) -> Run:
    """From an audited data set to a kept run; `deadline` is on `time.monotonic`, `given` a plan that was read from a file (which this
    run may replace), `ahead` holds pictures decoded already."""
    runtime.seed_everything(options.seed)
    pool = dataset.indices("train")

    def engine_of(backbone: Backbone) -> Engine:
        return Engine(backbone, precision=options.precision, runner=options.engine)

    def raced(found: Features) -> Race:
        labels, folds, groups = dataset.labels[pool], dataset.fold[pool], dataset.groups[pool]
        classes = len(dataset.classes)
        return race(found, labels, folds, classes, pool, groups=groups, store=store, progress=progress)

    with story.phase("network"):
        weights = None if options.weights is None else Path(options.weights)
        name, others = first_and_others(options.backbone)
        engine = engine_of(load_backbone(name if module is None else module, weights=weights, input=input))
    with story.phase("extract"):
        unsealed = np.flatnonzero(dataset.split != "test")
        features = extract(
            engine.backbone, dataset, store, engine=engine, only=unsealed, ahead=ahead, progress=progress
        )
        story.engine(settle(engine, dataset, store))
    with story.phase("head"):
        lineup = Lineup.alone(engine, features, raced(features))
        story.heads(lineup.heads, len(pool))
        model = on_frozen(lineup, dataset, store)
        first = not folder.holds_model(dataset.digest)  # a resumed or repeated run may have left a better one
        if first:
            folder.begin()
            keep_model(folder, story, model, dataset)  # whatever comes now takes longer, and may be interrupted
            folder.is_of(dataset.digest)
    if others and module is None and weights is None:
        with story.phase("backbones"):
            lineup = line_up(
                engine,
                features,
                dataset,
                store,
                others,
                lambda other: engine_of(load_backbone(other)),
                deadline=deadline,
                budget=options.budget,
                pair=options.pair,
                progress=progress,
            )
            story.lineup(lineup)
            if lineup.engines[0] is not engine:
                story.engine(settle(lineup.engines[0], dataset, store))
            if lineup.engines != (engine,):
                model = on_frozen(lineup, dataset, store)
                if first:
                    keep_model(folder, story, model, dataset)
    with story.phase("views"):
        lineup, why, cached = _in_views(lineup, dataset, options, store, raced, deadline, progress)
        views = len(lineup.features.views)
        if views:
            model = on_frozen(lineup, dataset, store)
            if first:
                keep_model(folder, story, model, dataset)
        story.views(lineup.heads, views, why)
    heads = lineup.heads
    with story.phase("plan"):
        plan = planned(
            dataset,
            lineup.engines,
            heads,
            lineup.features,
            options,
            store,
            given=given,
            cached=cached,
            spent=story.total,
            progress=progress,
        )
        story.plan(plan)
    with story.phase("finetune"):
        now = time.monotonic()
        tuned = finetune(
            lineup.engines[0],
            heads,
            lineup.features,
            dataset,
            plan,
            store,
            deadline=now + TRANSFER_SHARE * (deadline - now),
            pair=options.pair,
            progress=progress,
        )
        story.finetuned(tuned, plan)
        plan = tuned.carried_out(plan)
        if tuned.together:
            lineup = lineup.doubled()
        if tuned.kept:
            model = finetuned(lineup, tuned, dataset)
        if tuned.kept or not first:
            keep_model(folder, story, model, dataset)  # before anything can go wrong with what tells unknown pictures
    with story.phase("unknown"):
        model.unknown = knowing(tuned, lineup, dataset, model.temperature, store)
        keep_model(folder, story, model, dataset)
    with story.phase("baselines"):
        against = proof.baselines(dataset, store, plan, tuned, deadline=deadline, seed=options.seed, progress=progress)
    with story.phase("evaluate"):  # the sealed test set is opened here, once
        if len(dataset.indices("test")):
            every = together(extract_all(lineup.engines, dataset, store, progress=progress))
            every = with_views(
                every, lineup.engines, dataset, store, views, only=pool, seed=options.seed, progress=progress
            )
            lineup = replace(lineup, features=every, tried=every)
        result = proof.prove(
            model, heads, tuned, lineup.tried, dataset, against, store, seed=options.seed, progress=progress
        )
    with story.phase("diagnose"):
        diagnosis = diagnose(
            lineup.engines[0],
            dataset,
            lineup.features,
            against.thumbs,
            heads,
            tuned,
            model,
            result,
            store,
            deadline=deadline,
            progress=progress,
        )
    return keep(folder, story, dataset, heads, plan, tuned, model, result, diagnosis)


def _in_views(
    lineup: Lineup,
    dataset: Dataset,
    options: Options,
    store: Store,
    raced: Callable[[Features], Race],
    deadline: float,
    progress: runtime.Progress,
) -> tuple[Lineup, str, list[int]]:
    """The line-up whose heads are fitted to augmented views as well, where that pays; why, and the cuts whose activations the same
    pass cached."""
    engines, pool = lineup.engines, dataset.indices("train")
    features, why, cached = more_views(
        lineup.features,
        engines,
        dataset,
        store,
        cuts=cached_ahead(dataset, engines, lineup.heads, options, store),
        deadline=deadline,
        budget=options.budget,
        seed=options.seed,
        progress=progress,
    )
    if not features.views:
        return lineup, why, cached
    seen = replace(lineup, features=features).narrowed(raced)
    if not len(dataset.indices("test")):
        tried = with_views(
            lineup.tried,
            lineup.entrants,
            dataset,
            store,
            len(features.views),
            only=pool,
            seed=options.seed,
            progress=progress,
        )
        seen = replace(seen, tried=tried)
    return seen, why, cached


def on_frozen(lineup: Lineup, dataset: Dataset, store: Store) -> Model:
    """The model whose head won the race, on the backbones as they are; the temperature calibrates its out-of-fold answers."""
    pool, heads = dataset.indices("train"), lineup.heads
    head = fit_winner(heads.best, lineup.features, dataset.labels[pool], len(dataset.classes), pool, store)
    held, logits = _held_out(lineup, dataset, store)
    temperature = fit_temperature(logits, dataset.labels[held])
    return _model(lineup.engines[0].backbone, lineup.engines, head, dataset, temperature)


def _held_out(lineup: Lineup, dataset: Dataset, store: Store) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    pool, heads, classes = dataset.indices("train"), lineup.heads, len(dataset.classes)
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    return held_out(heads.best, heads.pool, lineup.features, labels, folds, classes, pool, store)


def finetuned(lineup: Lineup, tuned: Finetuned, dataset: Dataset) -> Model:
    """The model that the ladder ended with; the temperature calibrates its held-out answers."""
    temperature = fit_temperature(tuned.logits, dataset.labels[tuned.held])
    return _model(tuned.backbone, lineup.engines, tuned.head, dataset, temperature)


def knowing(tuned: Finetuned, lineup: Lineup, dataset: Dataset, temperature: float, store: Store) -> Unknown | None:
    """What tells unknown pictures: the stages that no rung has trained, and calibrated answers to held-out pictures."""
    heads, features = lineup.heads, lineup.features
    frozen = min([result.rung.cut for result in tuned.kept], default=len(features.own))
    frozen = 0 if tuned.together else frozen  # the original network beside the trained one has them all
    held, logits = (tuned.held, tuned.logits) if tuned.kept else _held_out(lineup, dataset, store)
    return learn(features, dataset, frozen, heads.pool, held, logits / np.float32(temperature), store)


def _model(backbone: Backbone, engines: Sequence[Engine], head: Head, dataset: Dataset, temperature: float) -> Model:
    """A model whose first backbone, perhaps a fine-tuned one, runs as the first engine does."""
    return Model(
        backbone,
        head,
        dataset.classes,
        temperature=temperature,
        precision=engines[0].settled or "float32",
        exact=engines[0].exact,
        beside=[
            Engine(other.backbone, precision=other.settled or "float32", exact=other.exact) for other in engines[1:]
        ],
        mirror=dataset.mirror,
    )
