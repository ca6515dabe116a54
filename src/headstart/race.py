"""The race: every stage and some combinations of them get heads, cross-validation picks one, and it is kept with its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store
from headstart.heads import (
    LOGISTIC_STRENGTHS,
    RIDGE_STRENGTHS,
    Head,
    Score,
    score_centroid,
    score_logistic,
    score_ridge,
    solved,
    subject,
)
from headstart.solvers import STEPS, STEPS_ON, Axes, principal_axes

Scorer = Callable[[Axes, NDArray[np.int64], NDArray[np.int64], int, tuple[int, ...]], Score]


@dataclass(frozen=True, eq=False)
class Race:
    """All candidates, the winner, the last-stage reference and the depth profile (one ridge score per stage)."""

    candidates: tuple[Score, ...]
    best: Score
    last: Score
    profile: tuple[Score, ...]
    reason: str


def race(
    features: Features,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    *,
    store: Store | None = None,
    progress: runtime.Progress = runtime.silent,
) -> Race:
    """Cross-validate heads per stage and combined; `labels` and `folds` (M,) belong to the pictures `pool` (M,).

    Ridge scores every stage (the depth profile) and the combinations, cheaply; the last stage, the best stage and the best
    combination go on to logistic regression. The last stage wins unless another beats it by more than one standard error
    of the paired difference. With a store, the same race is run once.
    """
    candidates = None
    known: dict[tuple[int, ...], Axes] = {}
    if store is not None:
        spec = {
            **subject(features.table, features.rows[pool], labels, classes, folds),
            "solver": [LOGISTIC_STRENGTHS, RIDGE_STRENGTHS, STEPS, STEPS_ON, torch.__version__, 2],
        }
        memo = store.artifact("race", spec)
        candidates = _recalled(memo)
    if candidates is None:
        candidates = _compete(features, labels, folds, classes, pool, known, progress)
        if store is not None:
            rows = [{name: getattr(score, name) for name in _PLAIN} for score in candidates]
            memo.save({"scores": rows}, {str(place): score.logits for place, score in enumerate(candidates)})
    last = next(score for score in candidates if score.kind == "logistic" and score.taps == (len(features.widths) - 1,))
    best = max(candidates, key=_rank)
    gain, error = paired_gain(best, last, labels)
    if gain > max(error, 1.5 / len(labels)):  # one picture more, and none lost, always exceeds its own standard error
        reason = f"{_words(best)} beats the last stage by {100 * gain:.1f} ± {100 * error:.1f} points out of fold"
    else:
        reason = f"no head beats the last stage by more than one standard error ({100 * gain:.1f} ± {100 * error:.1f} points)"
        best = last
    if store is not None and known:  # both will be asked for, and here the factorisations are at hand
        for score in (best, last):
            kept = _memo(store, score, features, labels, classes, pool)
            axes = known[score.taps]
            _kept(kept, solved(axes, labels, classes, score.kind, score.taps, score.strength, score.temperature))
    profile = tuple(score for score in candidates if score.kind == "ridge" and len(score.taps) == 1)
    return Race(candidates, best, last, profile, reason)


_PLAIN = ("kind", "taps", "strength", "accuracy", "accuracy_se", "log_loss", "log_loss_se", "temperature")


def _recalled(memo: Artifact) -> tuple[Score, ...] | None:
    stored = memo.load()
    if stored is None:
        return None
    record, arrays = stored
    return tuple(
        Score(**{**row, "taps": tuple(row["taps"])}, logits=arrays[str(place)])
        for place, row in enumerate(record["scores"])
    )


def _compete(
    features: Features,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    known: dict[tuple[int, ...], Axes],
    progress: runtime.Progress,
) -> tuple[Score, ...]:
    stages = len(features.widths)
    combined = sorted(
        {tuple(range(start, stages)) for start in (0, stages // 2, stages - 3) if 0 <= start < stages - 1}
    )
    with progress("Racing heads", stages + len(combined) + 4, "heads") as advance:

        def scored(how: Scorer, taps: tuple[int, ...]) -> Score:
            if taps not in known:  # the factorisation is most of the work, and scorers share it
                known[taps] = principal_axes(features.stages(taps, pool))
            score = how(known[taps], labels, folds, classes, taps)
            advance(1)
            return score

        profile = [scored(score_ridge, (stage,)) for stage in range(stages)]
        ridges = [scored(score_ridge, taps) for taps in combined]
        last = scored(score_logistic, (stages - 1,))
        finalists = {max(profile, key=_rank).taps} | ({max(ridges, key=_rank).taps} if ridges else set())
        others = [scored(score_logistic, taps) for taps in sorted(finalists - {last.taps})]
        few = scored(score_centroid, (stages - 1,))
    return (last, *others, few, *profile, *ridges)


def _rank(score: Score) -> tuple[float, float]:
    return score.accuracy, -score.log_loss


def _words(score: Score) -> str:
    where = f"stage {score.taps[0] + 1}" if len(score.taps) == 1 else f"stages {score.taps[0] + 1}–{score.taps[-1] + 1}"
    return f"a {score.kind} head on {where}"


def paired_gain(a: Score, b: Score, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard error of the difference in accuracy, picture by picture, of two out-of-fold scores."""
    difference = (a.logits.argmax(1) == labels).astype(float) - (b.logits.argmax(1) == labels).astype(float)
    return float(difference.mean()), float(difference.std() / max(1, len(labels)) ** 0.5)


def fit_winner(
    score: Score, features: Features, labels: NDArray[np.int64], classes: int, pool: NDArray[np.int64], store: Store
) -> Head:
    """The head that `score` speaks of, fitted on the pictures `pool` (M,) with their `labels` (M,), once per store."""
    memo = _memo(store, score, features, labels, classes, pool)
    stored = memo.load()
    if stored is not None:
        return Head(score.kind, score.taps, score.strength, stored[1]["weight"], stored[1]["bias"])
    axes = principal_axes(features.stages(score.taps, pool))
    return _kept(memo, solved(axes, labels, classes, score.kind, score.taps, score.strength, score.temperature))


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
        "solver": [STEPS, STEPS_ON, torch.__version__],
    }
    return store.artifact("head", {**subject(features.table, features.rows[pool], labels, classes), **how})


def _kept(memo: Artifact, head: Head) -> Head:
    memo.save({}, {"weight": head.weight, "bias": head.bias})
    return head
