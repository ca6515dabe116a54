"""What the run tells beside its verdict: labels worth a second look, what more pictures would add, how well unknown pictures are
told, how far the data lie from the source, and what to be careful about, each with its evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headstart import runtime
from headstart.baselines import Thumbnails
from headstart.data.audit import Finding, gravest_first
from headstart.data.dataset import Dataset
from headstart.diagnosis.doubts import Doubt, doubts, listed
from headstart.diagnosis.exactness import Exactness, exactness
from headstart.diagnosis.gap import gap
from headstart.diagnosis.growth import Growth, growth
from headstart.diagnosis.leaks import leaks, suspected
from headstart.diagnosis.overfit import drift, overfit
from headstart.diagnosis.shortcuts import shortcuts
from headstart.diagnosis.similarity import Similarity, similarity
from headstart.diagnosis.slices import slices
from headstart.diagnosis.telling import Telling, telling
from headstart.features.engine import Engine
from headstart.features.extract import Features
from headstart.features.shift import shift
from headstart.features.store import Store
from headstart.ladder import Finetuned
from headstart.model import Model
from headstart.proof import Proof
from headstart.race import Race


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Labels of `looked_at` training pictures that are worth a look, the most doubtful first; findings, each with a next step, the
    gravest first; the learning curve, None where it could not be drawn; how well unknown pictures are told, None where they are not;
    how much the data set is like what the backbone was trained on; the pairs of pictures that a suspected leak is about; and what
    bfloat16 does to answers, None where that was not looked at."""

    doubts: tuple[Doubt, ...]
    looked_at: int
    findings: tuple[Finding, ...] = ()
    growth: Growth | None = None
    telling: Telling | None = None
    similarity: Similarity | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    exactness: Exactness | None = None


def diagnose(
    engine: Engine,
    dataset: Dataset,
    features: Features,
    thumbs: Thumbnails,
    heads: Race,
    tuned: Finetuned,
    model: Model,
    proof: Proof,
    store: Store,
    *,
    deadline: float = math.inf,
    progress: runtime.Progress = runtime.silent,
) -> Diagnosis:
    """Look at what the run has computed, once the test set is open; nothing here changes the model. `engine` runs the backbone as it
    came; past `deadline` (on `time.monotonic`'s clock) no picture is run any more to look for leaks, or in float32, and no long
    learning curve drawn."""
    near = suspected(dataset, heads, features, engine, store, deadline=deadline, progress=progress)
    exact = exactness(model, dataset, proof, store, deadline=deadline)
    findings = (
        *([] if exact is None else exact.findings),
        *gap(heads, dataset, proof.report),
        *leaks(dataset, near),
        *shortcuts(dataset, heads, thumbs),
        *slices(dataset, proof.indices, proof.rivals["final"].calibrated.argmax(1)),
        *overfit(tuned, model.backbone.names),
        *drift(model, features, tuned, dataset, store),
    )
    return Diagnosis(
        listed(doubts(heads, dataset.labels, dataset.fold), heads, dataset.labels),
        len(heads.pool),
        gravest_first(findings),
        growth(heads, features, dataset, store, progress, deadline),
        telling(model, heads, features, dataset, proof, store),
        similarity(
            shift(engine.backbone, dataset, features.of(0), store), heads, tuned, dataset, engine.backbone.names
        ),
        near.told,
        exact,
    )
