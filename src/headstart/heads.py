"""Linear heads on frozen features, and the race that picks one by cross-validation.

Every head here ends as one linear layer on pooled features of some stages (`taps`), so that whichever wins can be saved,
served and used as the start of fine-tuning. How they are solved is in `solvers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store, Table
from headstart.solvers import (
    STEPS,
    STEPS_ON,
    Axes,
    centroids,
    logistic_path,
    one_hot,
    principal_axes,
    ridge_by_gram,
    ridge_by_hat,
)
from headstart.tasks.classification import fit_temperature

Kind = Literal["logistic", "ridge", "centroid"]
# Weight on ½‖W‖² for standardised features divided by √D, times the number of images: scale-free in N and D.
LOGISTIC_STRENGTHS = (1e-4, 1e-5, 1e-6)
RIDGE_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer on the pooled outputs of the stages `taps`, side by side.

    `weight` (D, K) and `bias` (K,) float32 apply to raw pooled features: the standardisation is folded in.
    """

    kind: Kind
    taps: tuple[int, ...]
    strength: float
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw pooled features (N, D) to logits (N, K)."""
        return np.asarray(features @ self.weight + self.bias, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Score:
    """How one candidate did out of fold.

    `accuracy` and `log_loss` are means over the training pool with standard errors `accuracy_se`, `log_loss_se`;
    `logits` (N, K) float32 are out-of-fold logits in the order of the pool, divided by `temperature` where the head's scores
    are no log-probabilities.
    """

    kind: Kind
    taps: tuple[int, ...]
    strength: float
    accuracy: float
    accuracy_se: float
    log_loss: float
    log_loss_se: float
    logits: NDArray[np.float32]
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Race:
    """All candidates, the winner, the last-stage reference and the depth profile (one ridge score per stage)."""

    candidates: tuple[Score, ...]
    best: Score
    last: Score
    profile: tuple[Score, ...]
    reason: str


def _score(
    kind: Kind,
    taps: tuple[int, ...],
    strength: float,
    logits: Tensor,
    labels: NDArray[np.int64],
    temperature: float = 1.0,
) -> Score:
    logits = logits / temperature
    target = torch.from_numpy(labels).to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none").double().cpu().numpy()
    right = (logits.argmax(1) == target).double().cpu().numpy()
    root = max(1, len(labels)) ** 0.5
    return Score(
        kind,
        taps,
        strength,
        float(right.mean()),
        float(right.std() / root),
        float(losses.mean()),
        float(losses.std() / root),
        logits.float().cpu().numpy(),
        temperature,
    )


def score_logistic(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
    strengths: tuple[float, ...] = LOGISTIC_STRENGTHS,
) -> Score:
    """Out-of-fold score of L2-logistic regression, at the strength with the least out-of-fold log-loss.

    `labels` and `folds` are (N,) int64.
    """
    targets = one_hot(labels, classes, axes.z.device)
    numbers = [int(fold) for fold in np.unique(folds)]
    inside = torch.from_numpy(np.stack([folds != fold for fold in numbers])).float().to(axes.z.device)
    scores: list[Score] = []
    for strength, (w, b) in zip(strengths, logistic_path(axes, targets, inside, strengths), strict=False):
        logits = torch.empty_like(targets)
        for place, fold in enumerate(numbers):
            out = torch.from_numpy(folds == fold).to(axes.z.device)
            logits[out] = axes.z[out] @ w[place] + b[place]
        scores.append(_score("logistic", taps, strength, logits, labels))
        if scores[-1].log_loss > min(score.log_loss for score in scores) + 0.5 * scores[-1].log_loss_se:
            break  # strengths are tried in order; past the valley of the loss nothing better comes
    return min(scores, key=lambda score: score.log_loss)


def score_ridge(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
) -> Score:
    """Out-of-fold score of ridge regression onto one-hot targets, at its best strength by accuracy.

    No fold is solved anew: with the hat matrix H of all rows, a fold's residuals without its own rows are (I − H_ff)⁻¹ times
    its residuals with them. Where folds are larger than the features are wide, its part of the Gram matrix is taken off instead.
    """
    targets = one_hot(labels, classes, axes.z.device)
    outs = [torch.from_numpy(folds == fold).to(axes.z.device) for fold in np.unique(folds)]
    if max(int(out.sum()) for out in outs) <= axes.z.shape[1]:
        found = [ridge_by_hat(axes, targets, outs, strength * len(labels)) for strength in RIDGE_STRENGTHS]
    else:
        found = ridge_by_gram(axes, targets, outs, [strength * len(labels) for strength in RIDGE_STRENGTHS])
    scores = [
        _score("ridge", taps, strength, logits, labels, _temperature(logits, labels))
        for strength, logits in zip(RIDGE_STRENGTHS, found, strict=True)
    ]
    return max(scores, key=lambda score: (score.accuracy, -score.log_loss))


def score_centroid(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
) -> Score:
    """Out-of-fold score of the nearest class mean in standardised features; strong where a class has few images."""
    targets = one_hot(labels, classes, axes.z.device)
    logits = torch.empty_like(targets)
    for fold in np.unique(folds):
        out = torch.from_numpy(folds == fold).to(axes.z.device)
        w, b = centroids(axes.z[~out], targets[~out])
        logits[out] = axes.z[out] @ w + b
    return _score("centroid", taps, 0.0, logits, labels, _temperature(logits, labels))


def _temperature(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """What scores that are no log-probabilities are divided by to serve as such."""
    return float(fit_temperature(logits.cpu().numpy(), labels))


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    kind: Kind,
    taps: tuple[int, ...],
    strength: float,
    temperature: float | None = None,
) -> Head:
    """Fit one head on all rows given: (N, D) float32, (N,) int64.

    Scores of ridge and centroid heads are divided by `temperature`: that of the out-of-fold score, or else the one that suits
    the rows given, which is too sure where they are few.
    """
    return _solved(principal_axes(features), labels, classes, kind, taps, strength, temperature)


def _solved(
    axes: Axes,
    labels: NDArray[np.int64],
    classes: int,
    kind: Kind,
    taps: tuple[int, ...],
    strength: float,
    temperature: float | None,
) -> Head:
    targets = one_hot(labels, classes, axes.z.device)
    if kind == "logistic":
        everyone = torch.ones(1, len(labels), device=axes.z.device)
        stronger = [other for other in LOGISTIC_STRENGTHS if other > strength]  # by the way that the race took
        *_, (w, b) = logistic_path(axes, targets, everyone, [*stronger, strength])
        return Head(kind, taps, strength, *axes.raw(w[0], b[0]))
    if kind == "ridge":
        # The axes are centred and orthogonal: every weight is a quotient, and the intercept is the mean.
        w1 = (axes.z.T @ targets) / (axes.power + strength * len(labels))[:, None]
        b1 = targets.mean(0)
    else:
        w1, b1 = centroids(axes.z, targets)
    if temperature is None:
        temperature = _temperature(axes.z @ w1 + b1, labels)
    return Head(kind, taps, strength, *axes.raw(w1 / temperature, b1 / temperature))


def fit_winner(
    score: Score, features: Features, labels: NDArray[np.int64], classes: int, pool: NDArray[np.int64], store: Store
) -> Head:
    """The head that `score` speaks of, fitted on the pictures `pool` (M,) with their `labels` (M,), once per store."""
    memo = _memo(store, score, features, labels, classes, pool)
    stored = memo.load()
    if stored is not None:
        return Head(score.kind, score.taps, score.strength, stored[1]["weight"], stored[1]["bias"])
    axes = principal_axes(features.stages(score.taps, pool))
    return _kept(memo, _solved(axes, labels, classes, score.kind, score.taps, score.strength, score.temperature))


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


def subject(
    table: Table, rows: NDArray[np.int64], labels: NDArray[np.int64], classes: int, *more: NDArray[np.int64]
) -> dict[str, Any]:
    """What a head is fitted to, as part of a key: rows (M,) of a table, their labels, and other numbers of each."""
    given = b"".join(array.tobytes() for array in (labels, *more))
    return {
        "features": table.folder.name,
        "pictures": table.content(rows),
        "labels": hashlib.blake2b(given, digest_size=16).hexdigest(),
        "classes": classes,
    }


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
            _kept(kept, _solved(axes, labels, classes, score.kind, score.taps, score.strength, score.temperature))
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


Scorer = Callable[[Axes, NDArray[np.int64], NDArray[np.int64], int, tuple[int, ...]], Score]


def _rank(score: Score) -> tuple[float, float]:
    return score.accuracy, -score.log_loss


def _words(score: Score) -> str:
    where = f"stage {score.taps[0] + 1}" if len(score.taps) == 1 else f"stages {score.taps[0] + 1}–{score.taps[-1] + 1}"
    return f"a {score.kind} head on {where}"


def paired_gain(a: Score, b: Score, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard error of the difference in accuracy, picture by picture, of two out-of-fold scores."""
    difference = (a.logits.argmax(1) == labels).astype(float) - (b.logits.argmax(1) == labels).astype(float)
    return float(difference.mean()), float(difference.std() / max(1, len(labels)) ** 0.5)
