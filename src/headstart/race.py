"""The race: every stage and some combinations of them get heads, cross-validation picks one, and it is kept with its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from headstart import runtime
from headstart.data.splits import thinned
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store
from headstart.heads import (
    LOGISTIC_STRENGTHS,
    RIDGE_STRENGTHS,
    Head,
    Kind,
    Score,
    centroid_scores,
    logistic_scores,
    ridge_scores,
    solved,
    subject,
)
from headstart.solvers import STEPS, STEPS_ON, WEAK, Axes, Rows, Streamed, principal_axes

Scorer = Callable[[Axes, NDArray[np.int64], NDArray[np.int64], int, tuple[int, ...]], list[Score]]
_Entrant = tuple[Kind, tuple[int, ...]]
_SCORERS: dict[Kind, Scorer] = {"ridge": ridge_scores, "logistic": logistic_scores, "centroid": centroid_scores}
RACED = 6000  # pictures that race at most, and that are held in memory: more cost time and tell no head from another
_DRAWS = 400  # bootstrap samples; the choice among heads is made anew in each


@dataclass(frozen=True, eq=False)
class Race:
    """All candidates, the winner, the last-stage reference and the depth profile (one ridge score per stage).

    `accuracy` is what to expect of the winner: its own score is the best of many, and this one is cleared of that. `pool` (M,)
    are the pictures that the scores are of, in the order of their logits.
    """

    candidates: tuple[Score, ...]
    best: Score
    last: Score
    profile: tuple[Score, ...]
    accuracy: float
    reason: str
    pool: NDArray[np.int64]


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
    of the paired difference. Of more than `RACED` pictures a sample races. With a store, the same race is run once.
    """
    count, sample = len(pool), thinned(labels, RACED)
    labels, folds, pool = labels[sample], folds[sample], pool[sample]
    raced = None
    known: dict[tuple[int, ...], Axes] = {}
    if store is not None:
        spec = {
            **subject(features.table, features.rows[pool], labels, classes, folds),
            "solver": [LOGISTIC_STRENGTHS, RIDGE_STRENGTHS, STEPS, STEPS_ON, WEAK, torch.__version__, 3],
        }
        memo = store.artifact("race", spec)
        raced = _recalled(memo)
    if raced is None:
        raced = _compete(features, labels, folds, classes, pool, known, progress)
        if store is not None:
            rows = [{name: getattr(score, name) for name in _PLAIN} for score in raced.candidates]
            arrays = {str(place): score.logits for place, score in enumerate(raced.candidates)}
            memo.save({"scores": rows, "accuracy": raced.accuracy, "gain": raced.gain}, arrays)
    candidates = raced.candidates
    last, best = candidates[0], max(candidates, key=_rank)
    gain, error = paired_gain(best, last, labels)
    if gain > max(error, 1.5 / len(labels)):  # one picture more, and none lost, always exceeds its own standard error
        accuracy = min(raced.accuracy, best.accuracy)
        reason = (
            f"{_words(best)} is {100 * gain:.1f} ± {100 * error:.1f} points ahead of the last stage out of fold, "
            f"{100 * min(gain, raced.gain):.1f} once cleared of being the best of many"
        )
    else:
        reason = f"no head beats the last stage by more than one standard error ({100 * gain:.1f} ± {100 * error:.1f} points)"
        best, accuracy = last, last.accuracy
    if store is not None and known and len(pool) == count:  # both will be asked for, and their axes are at hand
        for score in (best, last):
            kept = _memo(store, score, features, labels, classes, pool)
            axes = known[score.taps]
            _kept(kept, solved(axes, labels, classes, score.kind, score.taps, score.strength, score.temperature))
    profile = tuple(score for score in candidates if score.kind == "ridge" and len(score.taps) == 1)
    return Race(candidates, best, last, profile, accuracy, reason, pool)


_PLAIN = ("kind", "taps", "strength", "accuracy", "accuracy_se", "log_loss", "log_loss_se", "temperature")


@dataclass(frozen=True, eq=False)
class _Raced:
    """The candidates, the last stage's logistic head first; accuracy of choosing the best, and its gain over that one."""

    candidates: tuple[Score, ...]
    accuracy: float
    gain: float


def _recalled(memo: Artifact) -> _Raced | None:
    stored = memo.load()
    if stored is None:
        return None
    record, arrays = stored
    candidates = tuple(
        Score(**{**row, "taps": tuple(row["taps"])}, logits=arrays[str(place)])
        for place, row in enumerate(record["scores"])
    )
    return _Raced(candidates, record["accuracy"], record["gain"])


def _compete(
    features: Features,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    known: dict[tuple[int, ...], Axes],
    progress: runtime.Progress,
) -> _Raced:
    stages = len(features.widths)
    combined = sorted(
        {tuple(range(start, stages)) for start in (0, stages // 2, stages - 3) if 0 <= start < stages - 1}
    )
    singles, last = [(stage,) for stage in range(stages)], (stages - 1,)
    scores: dict[_Entrant, list[Score]] = {}  # of every strength that was tried, the chosen one first
    with progress("Racing heads", len(singles) + len(combined) + 4, "heads") as advance:

        def ran(tasks: Sequence[_Entrant]) -> None:
            def scored(task: _Entrant) -> tuple[Axes, list[Score]]:
                kind, taps = task
                axes = known.get(taps) or principal_axes(features.stages(taps, pool))
                return axes, _SCORERS[kind](axes, labels, folds, classes, taps)

            # Side by side: eigenvectors and narrow products hardly gain from a second core.
            for task, (axes, found) in zip(tasks, runtime.parallel(scored, tasks), strict=True):
                known[task[1]] = axes  # the factorisation is most of the work, and scorers share it
                scores[task] = found
                advance(1)

        def best(among: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
            return max(among, key=lambda taps: _rank(scores["ridge", taps][0]))

        ran([("ridge", taps) for taps in (*combined, *reversed(singles))])  # the longest first
        finalists = {best(singles), *([best(combined)] if combined else [])} - {last}
        for taps in known.keys() - {last, *finalists}:
            del known[taps]  # no other can win, and they are large
        order: list[_Entrant] = [("logistic", taps) for taps in (last, *sorted(finalists))]
        order.append(("centroid", last))
        ran(order)
    order += [("ridge", taps) for taps in (*singles, *combined)]
    tried = [score for key in order for score in scores[key]]
    right = np.stack([score.logits.argmax(1) == labels for score in tried], 1)
    loss = np.stack([-log_softmax(score.logits, axis=1)[np.arange(len(labels)), labels] for score in tried], 1)
    return _Raced(tuple(scores[key][0] for key in order), *choice_out_of_bag(right, loss))


def choice_out_of_bag(right: NDArray[np.bool_], loss: NDArray[np.float32], draws: int = _DRAWS) -> tuple[float, float]:
    """Accuracy of choosing the best of C candidates, and its gain over the first of them, on pictures that did not choose.

    `right` and `loss` (N, C): whether each candidate's out-of-fold answer is right, and its log-loss. Each bootstrap sample of
    the pictures picks the candidate that ranks first on it, and sees how that one does on the pictures left out (bootstrap
    bias-corrected cross-validation: Tsamardinos, Greasidou & Borboudakis 2018, doi 10.1007/s10994-018-5714-4).
    """
    count, draw = len(right), np.random.default_rng(0)
    hits, losses, found = right.astype(np.float32), loss.astype(np.float32), []
    for _ in range(draws):
        inside = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float32)
        outside = inside == 0
        if outside.any():
            pick = np.lexsort((inside @ losses, -(inside @ hits)))[0]
            found.append((right[outside, pick].mean(), right[outside, 0].mean()))
    chosen, first = np.array(found).mean(0)
    return float(chosen), float(chosen - first)


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
    axes: Rows
    if len(pool) > RACED:
        axes = Streamed.of(lambda start, stop: features.stages(score.taps, pool[start:stop]), len(pool))
    else:
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
        "solver": [STEPS, STEPS_ON, WEAK, torch.__version__],
    }
    return store.artifact("head", {**subject(features.table, features.rows[pool], labels, classes), **how})


def _kept(memo: Artifact, head: Head) -> Head:
    memo.save({}, {"weight": head.weight, "bias": head.bias})
    return head
