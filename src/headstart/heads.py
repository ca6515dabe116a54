"""Linear heads on frozen features: how each is fitted, and how it does out of fold.

Every head here ends as one linear layer on pooled features of some stages (`taps`), so that whichever wins can be saved,
served and used as the start of fine-tuning. How they are solved is in `solvers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.features.extract import Features, columns
from headstart.features.table import Table
from headstart.solvers import (
    BLOCK,
    Axes,
    Rows,
    centroids,
    logistic_path,
    one_hot,
    principal_axes,
    ridge_by_gram,
    ridge_by_hat,
)
from headstart.tasks.classification import fit_temperature

Kind = Literal["logistic", "ridge", "centroid", "blend"]
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

    def answers(self, features: Features, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (M, K) of pictures whose features are in the store, read block by block."""
        blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]
        empty = np.empty((0, len(self.bias)), np.float32)
        return np.concatenate([empty, *(self.logits(features.stages(self.taps, block)) for block in blocks)])


@dataclass(frozen=True, eq=False)
class Score:
    """How one candidate did out of fold.

    `accuracy` and `log_loss` are means over the training pool with standard errors `accuracy_se`, `log_loss_se`, over pictures here
    and over groups of them once a race has been run;
    `logits` (N, K) float32 are out-of-fold logits in the order of the pool, divided by `temperature` where the head's scores
    are no log-probabilities. A blend has `parts`: heads, each with the temperature that calibrates it. `views`: how many augmented
    views of each picture the head is fitted to, beside the clean one; it is judged on clean ones.
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
    parts: tuple[tuple[Score, float], ...] = ()
    views: int = 0


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


def logistic_scores(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
    views: int = 0,
    strengths: tuple[float, ...] = LOGISTIC_STRENGTHS,
) -> list[Score]:
    """Out-of-fold scores of L2-logistic regression at several strengths, the one with the least out-of-fold log-loss first.

    `labels` and `folds` are (N,) int64. The axes are of N pictures, or of them and then of as many in each of the `views`; all views
    of a picture lie in its fold, and only the first is judged.
    """
    axes, targets = axes.leading(), one_hot(np.tile(labels, 1 + views), classes, axes.z.device)
    numbers, clean = [int(fold) for fold in np.unique(folds)], axes.z[: len(labels)]
    inside = (
        torch.from_numpy(np.stack([np.tile(folds != fold, 1 + views) for fold in numbers])).float().to(clean.device)
    )
    scores: list[Score] = []
    for strength, (w, b) in zip(strengths, logistic_path(axes, targets, inside, strengths), strict=False):
        logits = torch.empty(len(labels), classes, device=clean.device)
        for place, fold in enumerate(numbers):
            out = torch.from_numpy(folds == fold).to(clean.device)
            logits[out] = clean[out] @ w[place] + b[place]
        scores.append(replace(_score("logistic", taps, strength, logits, labels), views=views))
        if scores[-1].log_loss > min(score.log_loss for score in scores) + 0.5 * scores[-1].log_loss_se:
            break  # strengths are tried in order; past the valley of the loss nothing better comes
    return sorted(scores, key=lambda score: score.log_loss)


def ridge_scores(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
    views: int = 0,
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
) -> list[Score]:
    """Out-of-fold scores of ridge regression onto one-hot targets at several strengths, the most accurate first.

    No fold is solved anew: with the hat matrix H of all rows, a fold's residuals without its own rows are (I − H_ff)⁻¹ times
    its residuals with them. Where folds are larger than the features are wide, its part of the Gram matrix is taken off instead.
    Views as in `logistic_scores`.
    """
    targets = one_hot(np.tile(labels, 1 + views), classes, axes.z.device)
    outs = [torch.from_numpy(np.tile(folds == fold, 1 + views)).to(axes.z.device) for fold in np.unique(folds)]
    penalties = [strength * len(targets) for strength in strengths]
    by = ridge_by_hat if max(int(out.sum()) for out in outs) <= axes.z.shape[1] else ridge_by_gram
    found = [logits[: len(labels)] for logits in by(axes, targets, outs, penalties)]
    scores = [
        replace(_score("ridge", taps, strength, logits, labels, _temperature(logits, labels)), views=views)
        for strength, logits in zip(strengths, found, strict=True)
    ]
    return sorted(scores, key=lambda score: (-score.accuracy, score.log_loss))


def centroid_scores(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
    views: int = 0,
) -> list[Score]:
    """Out-of-fold score of the nearest class mean in standardised features; strong where a class has few images.

    Views as in `logistic_scores`.
    """
    targets, clean = one_hot(np.tile(labels, 1 + views), classes, axes.z.device), axes.z[: len(labels)]
    logits = torch.empty(len(labels), classes, device=clean.device)
    for fold in np.unique(folds):
        outs = torch.from_numpy(np.tile(folds == fold, 1 + views)).to(clean.device)
        seen = targets[~outs].sum(0)
        w, b = centroids(axes.z[~outs].T @ targets[~outs], seen)
        out = outs[: len(labels)]
        found = clean[out] @ w + b
        # A class without a mean comes behind the farthest, by no more: its pictures must not set the temperature alone.
        found[:, seen == 0] = found[:, seen > 0].amin(1, keepdim=True) - 1e-3
        logits[out] = found
    return [replace(_score("centroid", taps, 0.0, logits, labels, _temperature(logits, labels)), views=views)]


def blended(scores: Sequence[Score], labels: NDArray[np.int64]) -> Score:
    """The score of the mean of calibrated logits, which is the geometric mean of probabilities; still one linear layer.

    Averaged heads err less than each of them where they read different stages (logarithmic opinion pool, Heskes 1997).
    """
    heats = [fit_temperature(score.logits, labels) for score in scores]
    mean = np.mean([score.logits / np.float32(heat) for score, heat in zip(scores, heats, strict=True)], axis=0)
    taps = tuple(sorted({tap for score in scores for tap in score.taps}))
    found = _score("blend", taps, 0.0, torch.from_numpy(mean), labels)
    return replace(found, parts=tuple(zip(scores, heats, strict=True)))


def leaves(score: Score, share: float = 1.0) -> list[tuple[Score, float]]:
    """The heads that a blend is made of, down to single ones, and the factor of each one's logits in their sum."""
    if not score.parts:
        return [(score, share)]
    return [leaf for part, heat in score.parts for leaf in leaves(part, share / (heat * len(score.parts)))]


def on_same_rows(scores: Iterable[Score]) -> list[list[Score]]:
    """Single heads, those together that are fitted to the same stages in as many views: their rows are factorised once for all, and
    let go before the next."""
    groups: dict[tuple[tuple[int, ...], int], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.taps, score.views), []).append(score)
    return list(groups.values())


def merged(heads: Sequence[tuple[Head, float]], widths: Sequence[int]) -> Head:
    """One linear layer that answers with the mean of the heads' logits, each divided by its temperature.

    `widths` are those of all stages that taps count.
    """
    taps = tuple(sorted({tap for head, _ in heads for tap in head.taps}))
    rows = columns(widths, taps)
    weight = np.zeros((len(rows), len(heads[0][0].bias)), np.float32)
    bias = np.zeros(weight.shape[1], np.float32)
    for head, heat in heads:
        share = np.float32(1.0 / (heat * len(heads)))
        weight[np.searchsorted(rows, columns(widths, head.taps))] += share * head.weight
        bias += share * head.bias
    return Head("blend", taps, 0.0, weight, bias)


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

    Raises:
        ValueError: of a blend, which is fitted part by part (`winner.fit_winner`).
    """
    axes = principal_axes(features)
    head = solved(axes, labels, classes, kind, taps, strength, 1.0 if temperature is None else temperature)
    if temperature is not None or kind == "logistic":
        return head
    heat = np.float32(fit_temperature(head.logits(features), labels))
    return replace(head, weight=head.weight / heat, bias=head.bias / heat)


def solved(
    axes: Rows,
    labels: NDArray[np.int64],
    classes: int,
    kind: Kind,
    taps: tuple[int, ...],
    strength: float,
    temperature: float,
) -> Head:
    """`fit_head` on features that are in their principal axes."""
    if kind == "blend":
        raise ValueError("A blend is fitted part by part, each on its own stages: see winner.fit_winner.")
    targets = one_hot(labels, classes, axes.power.device)
    if kind == "logistic":
        axes, everyone = axes.leading(), torch.ones(1, len(labels), device=targets.device)
        stronger = [other for other in LOGISTIC_STRENGTHS if other > strength]  # by the way that the race took
        *_, (w, b) = logistic_path(axes, targets, everyone, [*stronger, strength])
        return Head(kind, taps, strength, *axes.raw(w[0], b[0]))
    moment = axes.moment(targets)
    if kind == "ridge":
        # The axes are centred and orthogonal: every weight is a quotient, and the intercept is the mean.
        w1, b1 = moment / (axes.power + strength * len(labels))[:, None], targets.mean(0)
    else:
        w1, b1 = centroids(moment, targets.sum(0))
    return Head(kind, taps, strength, *axes.raw(w1 / temperature, b1 / temperature))


def subject(
    table: Table, rows: NDArray[np.int64], labels: NDArray[np.int64], classes: int, *more: NDArray[Any]
) -> dict[str, Any]:
    """What a head is fitted to, as part of a key: rows (M,) of a table, their labels, and other numbers of each."""
    given = b"".join(array.tobytes() for array in (labels, *more))
    return {
        "features": table.folder.name,
        "pictures": table.content(rows),
        "labels": hashlib.blake2b(given, digest_size=16).hexdigest(),
        "classes": classes,
    }
