"""The head that a score speaks of, fitted: once per store, and piece by piece where pictures are many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headstart.data.splits import thinned
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store
from headstart.heads import LOGISTIC_STRENGTHS, Head, Score, leaves, merged, on_same_rows, solved, subject
from headstart.solvers import SOLVER, Axes, Rows, Streamed, principal_axes

IN_MEMORY = 6000  # pictures whose features are held in memory at most


def fit_winner(
    score: Score, features: Features, labels: NDArray[np.int64], classes: int, pool: NDArray[np.int64], store: Store
) -> Head:
    """The head that `score` speaks of, fitted on the pictures `pool` (M,) with their `labels` (M,), once per store."""
    fitted: dict[Score, Head] = {}
    for alike in on_same_rows([leaf for leaf, _ in leaves(score)]):
        first, own = _backbone(alike[0], features)
        rows: Rows | None = None
        for leaf in alike:
            here = shifted(leaf, -first)
            stored = _memo(store, here, own, labels, classes, pool).load()
            if stored is not None:
                head = Head(here.kind, here.taps, here.strength, stored[1]["weight"], stored[1]["bias"])
            else:
                rows = rows or _rows(own, here, pool)
                head = solve(here, rows, own, labels, classes, pool, store)
            fitted[leaf] = replace(head, taps=leaf.taps)

    def whole(score: Score) -> Head:
        if not score.parts:
            return fitted[score]
        return merged([(whole(part), heat) for part, heat in score.parts], features.widths)

    return whole(score)


def held_out(
    score: Score,
    raced: NDArray[np.int64],
    features: Features,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    store: Store,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pictures (M,) that a head like the winner has not seen, and its answers to them, logits (M, K): those of the race where all of
    the `pool` (N,) have `raced`, whose `labels` and `folds` (N,) are given. Where a sample has, one fold is asked of a head that is
    fitted to the others: who has learnt from more pictures is surer than the race knows.
    """
    if len(raced) == len(pool):
        return raced, score.logits
    out = folds == folds.min()
    held = pool[out][thinned(labels[out], IN_MEMORY)]
    head = fit_winner(score, features, labels[~out], classes, pool[~out], store)
    return held, head.answers(features, held)


def solve(
    score: Score,
    rows: Rows,
    features: Features,
    labels: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    store: Store,
) -> Head:
    """A single head on one backbone, solved on the rows of the pictures `pool` (M,) in the views that it is fitted to, and kept."""
    given = np.tile(labels, 1 + score.views)
    head = solved(rows, given, classes, score.kind, score.taps, score.strength, score.temperature)
    _memo(store, score, features, labels, classes, pool).save({}, {"weight": head.weight, "bias": head.bias})
    return head


def axes_of(features: Features, taps: tuple[int, ...], pool: NDArray[np.int64], views: int) -> Axes:
    """The stages `taps` of the pictures `pool` (M,), as they are, then in each of the augmented `views`, in their principal axes."""
    rows = features.in_views(taps, pool, views)
    return principal_axes(rows.reshape(-1, rows.shape[-1]))


def shifted(score: Score, by: int) -> Score:
    """The same score, its stages counted on from those of other backbones."""
    parts = tuple((shifted(part, by), heat) for part, heat in score.parts)
    return replace(score, taps=tuple(tap + by for tap in score.taps), parts=parts)


def _backbone(score: Score, features: Features) -> tuple[int, Features]:
    """Where the stages of the backbone begin that a single head reads, and its features alone."""
    spans = features.spans
    place = next(place for place, span in enumerate(spans) if score.taps[0] in span)
    return spans[place].start, features.of(place)


def _rows(features: Features, score: Score, pool: NDArray[np.int64]) -> Rows:
    if len(pool) > IN_MEMORY:
        return Streamed.of(lambda start, stop: features.stages(score.taps, pool[start:stop]), len(pool))
    return axes_of(features, score.taps, pool, score.views)


def _memo(
    store: Store,
    score: Score,
    features: Features,
    labels: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
) -> Artifact:
    how = {
        "head": [score.kind, score.taps, score.strength, score.temperature],
        "solver": [LOGISTIC_STRENGTHS, *SOLVER],
        "views": [features.views[view].table.folder.name for view in range(score.views)],
    }
    return store.artifact("head", {**subject(features.table, features.rows[pool], labels, classes), **how})
