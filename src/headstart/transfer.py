"""The whole path, from labelled pictures to a proven classifier, from top to bottom. This is the documentation of the system.

Dataset -> Backbone -> Features -> Head -> Plan -> Model -> Result -> Run
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headstart import proof, runtime
from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.catalog import first_and_others, load_backbone
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
from headstart.lineup import answering, line_up
from headstart.model import Model
from headstart.options import Options
from headstart.plan import Plan
from headstart.race import Race, race
from headstart.run import Run, keep, keep_model
from headstart.story import Story
from headstart.tasks.classification import fit_temperature
from headstart.unknown import Unknown, learn
from headstart.views import more_views
from headstart.winner import fit_winner


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
    with story.phase("network"):
        weights = None if options.weights is None else Path(options.weights)
        name, others = first_and_others(options.backbone)
        backbone = load_backbone(name if module is None else module, weights=weights, input=input)
        engine = Engine(backbone, precision=options.precision, runner=options.engine)
    with story.phase("extract"):
        unsealed = np.flatnonzero(dataset.split != "test")
        features = extract(backbone, dataset, store, engine=engine, only=unsealed, ahead=ahead, progress=progress)
        story.engine(settle(engine, dataset, store))
    with story.phase("head"):
        pool, classes = dataset.indices("train"), len(dataset.classes)
        labels, folds, groups = dataset.labels[pool], dataset.fold[pool], dataset.groups[pool]

        def raced(found: Features) -> Race:
            return race(found, labels, folds, classes, pool, groups=groups, store=store, progress=progress)

        heads = raced(features)
        story.heads(heads)
        model = on_frozen([engine], heads, features, dataset, store)
        first = not folder.holds_model(dataset.digest)  # a resumed or repeated run may have left a better one
        if first:
            folder.begin()
            keep_model(folder, story, model, dataset)  # whatever comes now takes longer, and may be interrupted
            folder.is_of(dataset.digest)
    engines: Sequence[Engine] = (engine,)
    entrants, tried = engines, features
    if others and module is None and weights is None:
        with story.phase("backbones"):
            lineup = line_up(
                engine,
                features,
                dataset,
                store,
                others,
                lambda name: Engine(load_backbone(name), precision=options.precision, runner=options.engine),
                deadline=deadline,
                budget=options.budget,
                pair=options.pair,
                progress=progress,
            )
            story.lineup(lineup)
            if lineup.engines[0] is not engine:
                story.engine(settle(lineup.engines[0], dataset, store))
            engines, features, heads = lineup.engines, lineup.features, lineup.heads
            entrants, tried = lineup.entrants, lineup.tried
            model = on_frozen(engines, heads, features, dataset, store)
            if first and engines != (engine,):
                keep_model(folder, story, model, dataset)
    with story.phase("views"):
        how: dict[str, Any] = {"seed": options.seed, "progress": progress}
        limits: dict[str, Any] = {"deadline": deadline, "budget": options.budget}
        cuts = cached_ahead(dataset, engines, heads, options, store)
        features, why, cached = more_views(features, engines, dataset, store, cuts=cuts, **limits, **how)
        if views := len(features.views):
            engines, features, heads = answering(engines, features, raced)
            model = on_frozen(engines, heads, features, dataset, store)
            if first:
                keep_model(folder, story, model, dataset)
            if not len(dataset.indices("test")):
                tried = with_views(tried, entrants, dataset, store, views, only=pool, **how)
        story.views(heads, views, why)
    with story.phase("plan"):
        plan = planned(dataset, engines, heads, features, options, store, given=given, cached=cached, spent=story.total)
        story.plan(plan)
    with story.phase("finetune"):
        # The network from scratch is given the time that transfer took, so transfer may use half of what is left.
        halfway = time.monotonic() + 0.5 * (deadline - time.monotonic())
        tuned = finetune(
            engines[0], heads, features, dataset, plan, store, deadline=halfway, pair=options.pair, progress=progress
        )
        story.finetuned(tuned, plan)
        rungs = [rung for rung in plan.rungs if rung not in tuned.left_out]
        plan = plan.model_copy(update={"rungs": rungs, "judgings": tuned.judgings or plan.judgings})
        if tuned.together:  # the second of the two is the original network, whose stages no rung has touched
            engines, features = (engines[0], engines[0]), together([features, features])
        if tuned.kept:
            model = finetuned(engines, tuned, dataset)
        if tuned.kept or not first:
            keep_model(folder, story, model, dataset)  # before anything can go wrong with what tells unknown pictures
    with story.phase("unknown"):
        model.unknown = knowing(heads, tuned, features, dataset, model.temperature, store)
        keep_model(folder, story, model, dataset)
    with story.phase("baselines"):
        against = proof.baselines(dataset, store, plan, tuned, deadline=deadline, seed=options.seed, progress=progress)
    with story.phase("evaluate"):  # the sealed test set is opened here, once
        if len(dataset.indices("test")):
            features = together(extract_all(engines, dataset, store, progress=progress))
            features = tried = with_views(features, engines, dataset, store, views, only=pool, **how)
        result = proof.prove(model, heads, tuned, tried, dataset, against, store, seed=options.seed, progress=progress)
    with story.phase("diagnose"):
        diagnosis = diagnose(
            engines[0],
            dataset,
            features,
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


def on_frozen(engines: Sequence[Engine], heads: Race, features: Features, dataset: Dataset, store: Store) -> Model:
    """The model whose head won the race, on the backbones as they are; the temperature calibrates its out-of-fold answers."""
    pool = dataset.indices("train")
    head = fit_winner(heads.best, features, dataset.labels[pool], len(dataset.classes), pool, store)
    heat = fit_temperature(heads.best.logits, dataset.labels[heads.pool])
    return _model(engines[0].backbone, engines, head, dataset, heat)


def finetuned(engines: Sequence[Engine], tuned: Finetuned, dataset: Dataset) -> Model:
    """The model that the ladder ended with; the temperature calibrates its held-out answers."""
    heat = fit_temperature(tuned.logits, dataset.labels[tuned.held])
    return _model(tuned.backbone, engines, tuned.head, dataset, heat)


def knowing(
    heads: Race, tuned: Finetuned, features: Features, dataset: Dataset, heat: float, store: Store
) -> Unknown | None:
    """What tells unknown pictures: the stages that no rung has trained, and calibrated answers to held-out pictures."""
    frozen = min([result.rung.cut for result in tuned.kept], default=len(features.own))
    frozen = 0 if tuned.together else frozen  # the original network beside the trained one has them all
    held, logits = (tuned.held, tuned.logits) if tuned.kept else (heads.pool, heads.best.logits)
    return learn(features, dataset, frozen, heads.pool, held, logits / np.float32(heat), store)


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
