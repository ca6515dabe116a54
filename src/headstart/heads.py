"""Linear heads on frozen features, and the race that picks one by cross-validation.

Every head here ends as one linear layer on pooled features of some stages (`taps`), so that whichever wins can be saved,
served and used as the start of fine-tuning. The pooled features are standardised and rotated into their principal axes
once per choice of taps; there the curvature bound of logistic regression is diagonal, so that all strengths and all folds
are solved together by one accelerated majorise-minimise run (Böhning 1992 for the bound, Nesterov 1983 for the speed),
and ridge regression has its K-fold residuals in closed form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store
from headstart.tasks.classification import fit_temperature

Kind = Literal["logistic", "ridge", "centroid"]
# Weight on ½‖W‖² for standardised features divided by √D, times the number of images: scale-free in N and D.
LOGISTIC_STRENGTHS = (1e-3, 1e-4, 1e-5, 1e-6)
RIDGE_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_STEPS = 100  # measured: the out-of-fold loss moves by less than its standard error from here to 1,500


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
    `logits` (N, K) float32 are out-of-fold logits in the order of the pool.
    """

    kind: Kind
    taps: tuple[int, ...]
    strength: float
    accuracy: float
    accuracy_se: float
    log_loss: float
    log_loss_se: float
    logits: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Race:
    """All candidates, the winner, the last-stage reference and the depth profile (one ridge score per stage)."""

    candidates: tuple[Score, ...]
    best: Score
    last: Score
    profile: tuple[Score, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Axes:
    """Features in principal axes: `z` (N, r); back to raw by `rotation` (D, r), `mean` (D,), `scale` (D,)."""

    z: Tensor
    power: Tensor  # (r,) sums of squares along the axes
    rotation: Tensor
    mean: Tensor
    scale: Tensor

    def head(self, kind: Kind, taps: tuple[int, ...], strength: float, w: Tensor, b: Tensor) -> Head:
        weight = (self.rotation @ w) / self.scale[:, None]
        bias = b - self.mean @ weight
        return Head(kind, taps, strength, weight.float().cpu().numpy(), bias.float().cpu().numpy())


def principal_axes(features: NDArray[np.float32]) -> Axes:
    """Standardise (N, D), divide by √D so that strengths mean the same for every width, rotate into principal axes."""
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(runtime.device())
    mean = x.mean(0)
    # A feature that never moves tells nothing; a floor keeps the noise in it from being blown up.
    spread = x.std(0, correction=0)
    scale = torch.clamp(spread, min=float(1e-3 * spread.mean().clamp(min=1e-12))) * x.shape[1] ** 0.5
    x = (x - mean) / scale
    n, d = x.shape
    if d <= n:
        power, rotation = torch.linalg.eigh(x.T @ x)
        keep = power > 1e-6 * power.max().clamp(min=1e-30)
        rotation = rotation[:, keep]
    else:
        power, left = torch.linalg.eigh(x @ x.T)
        keep = power > 1e-6 * power.max().clamp(min=1e-30)
        rotation = x.T @ (left[:, keep] / power[keep].sqrt())
    z = x @ rotation
    return Axes(z, z.square().sum(0), rotation, mean, scale)


def _logistic(
    axes: Axes, targets: Tensor, weights: Tensor, strengths: Tensor, steps: int = _STEPS
) -> tuple[Tensor, Tensor]:
    """Minimise Σ weights·cross-entropy + ½·strength·Σweights·‖W‖² for B problems together.

    targets (N, K) one-hot; weights (B, N) ≥ 0, at most 1; strengths (B,). Returns W (B, r, K) and b (B, K).
    """
    z, (n, k), count = axes.z, targets.shape, len(strengths)
    totals = weights.sum(1)
    penalty = strengths * totals  # (B,)
    # The Hessian of the loss is at most ½ZᵀZ on every axis, whichever rows a fold leaves out (Böhning 1992).
    step_w = 1.0 / (0.5 * axes.power[None, :] + penalty[:, None])  # (B, r)
    step_b = 1.0 / (0.5 * totals)  # (B,)
    prior = torch.log(((weights @ targets) + 0.5) / (totals + 0.5 * k)[:, None])  # (B, K)
    w = torch.zeros(count, z.shape[1], k, device=z.device)
    b = prior - prior.mean(1, keepdim=True)
    ahead_w, ahead_b, momentum = w, b, torch.ones(count, device=z.device)
    for _ in range(steps):
        flat = ahead_w.permute(1, 0, 2).reshape(z.shape[1], count * k)
        logits = (z @ flat).view(n, count, k) + ahead_b
        residual = (torch.softmax(logits, dim=2) - targets[:, None, :]) * weights.T[:, :, None]
        slope_w = (z.T @ residual.view(n, count * k)).view(z.shape[1], count, k).permute(1, 0, 2)
        slope_w = slope_w + penalty[:, None, None] * ahead_w
        next_w = ahead_w - step_w[:, :, None] * slope_w
        next_b = ahead_b - step_b[:, None] * residual.sum(0)
        # Where the last move turns against the slope, momentum starts anew (O'Donoghue & Candès 2015).
        turned = (slope_w * (next_w - w)).sum((1, 2)) > 0
        momentum = torch.where(turned, torch.ones_like(momentum), momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        push = torch.where(turned, torch.zeros_like(momentum), (momentum - 1) / following)
        ahead_w = next_w + push[:, None, None] * (next_w - w)
        ahead_b = next_b + push[:, None] * (next_b - b)
        w, b, momentum = next_w, next_b, following
    return w, b


def _one_hot(labels: NDArray[np.int64], classes: int, device: torch.device) -> Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels), classes).float().to(device)


def _score(kind: Kind, taps: tuple[int, ...], strength: float, logits: Tensor, labels: NDArray[np.int64]) -> Score:
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
    )


def score_logistic(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
) -> Score:
    """Out-of-fold score of L2-logistic regression, at the strength with the least out-of-fold log-loss.

    `labels` and `folds` are (N,) int64.
    """
    targets = _one_hot(labels, classes, axes.z.device)
    numbers = [int(fold) for fold in np.unique(folds)]
    inside = torch.from_numpy(np.stack([folds != fold for fold in numbers])).float().to(axes.z.device)
    scores: list[Score] = []
    for strength in LOGISTIC_STRENGTHS:
        w, b = _logistic(axes, targets, inside, torch.full((len(numbers),), strength, device=axes.z.device))
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
    targets = _one_hot(labels, classes, axes.z.device)
    outs = [torch.from_numpy(folds == fold).to(axes.z.device) for fold in np.unique(folds)]
    if max(int(out.sum()) for out in outs) <= axes.z.shape[1]:
        found = [_ridge_by_hat(axes, targets, outs, strength * len(labels)) for strength in RIDGE_STRENGTHS]
    else:
        found = _ridge_by_gram(axes, targets, outs, [strength * len(labels) for strength in RIDGE_STRENGTHS])
    scores = [
        _score("ridge", taps, strength, _tempered(logits, labels), labels)
        for strength, logits in zip(RIDGE_STRENGTHS, found, strict=True)
    ]
    return max(scores, key=lambda score: (score.accuracy, -score.log_loss))


def _ridge_by_hat(axes: Axes, targets: Tensor, outs: list[Tensor], penalty: float) -> Tensor:
    count = len(targets)
    # The axes are orthogonal, so the Gram matrix is diagonal; 1/N is the part of the intercept, which is not penalised.
    weighted = axes.z / (axes.power + penalty)
    fitted = weighted @ (axes.z.T @ targets) + targets.mean(0)
    logits = torch.empty_like(targets)
    for out in outs:
        hat = (weighted[out] @ axes.z[out].T + 1.0 / count).double()
        residual = (targets[out] - fitted[out]).double()
        left = torch.linalg.solve(torch.eye(len(hat), dtype=torch.float64, device=hat.device) - hat, residual)
        logits[out] = targets[out] - left.float()
    return logits


def _ridge_by_gram(axes: Axes, targets: Tensor, outs: list[Tensor], penalties: list[float]) -> list[Tensor]:
    z = torch.cat([axes.z, torch.ones_like(axes.z[:, :1])], dim=1)  # the last axis is the intercept, not penalised
    gram, moment = z.T @ z, z.T @ targets
    logits = [torch.empty_like(targets) for _ in penalties]
    for out in outs:
        inner_gram, inner_moment = gram - z[out].T @ z[out], moment - z[out].T @ targets[out]
        for place, penalty in enumerate(penalties):
            logits[place][out] = z[out] @ _ridge(inner_gram, inner_moment, penalty)
    return logits


def _ridge(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """Solve (gram + penalty·I) W = moment with the last axis, the intercept, left free; (r + 1, K)."""
    diagonal = torch.full((len(gram),), penalty, device=gram.device, dtype=torch.float64)
    diagonal[-1] = 1e-6
    solved: Tensor = torch.linalg.solve(gram.double() + torch.diag(diagonal), moment.double())
    return solved.float()


def score_centroid(
    axes: Axes,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    taps: tuple[int, ...],
) -> Score:
    """Out-of-fold score of the nearest class mean in standardised features; strong where a class has few images."""
    targets = _one_hot(labels, classes, axes.z.device)
    logits = torch.empty_like(targets)
    for fold in np.unique(folds):
        out = torch.from_numpy(folds == fold).to(axes.z.device)
        w, b = _centroids(axes.z[~out], targets[~out])
        logits[out] = axes.z[out] @ w + b
    return _score("centroid", taps, 0.0, _tempered(logits, labels), labels)


def _centroids(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−‖z − c‖² up to a term that all classes share, as a linear layer; a class without images is never nearest."""
    counts = targets.sum(0)
    means = (z.T @ targets) / counts.clamp(min=1)  # (r, K)
    empty = torch.where(counts > 0, 0.0, -1e4)
    return 2 * means, empty - means.square().sum(0)


def _tempered(logits: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """Scores that are no log-probabilities, divided by the temperature at which they serve as such."""
    return logits / fit_temperature(logits.cpu().numpy(), labels)


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    kind: Kind,
    taps: tuple[int, ...],
    strength: float,
) -> Head:
    """Fit one head on all rows given: (N, D) float32, (N,) int64."""
    axes = principal_axes(features)
    targets = _one_hot(labels, classes, axes.z.device)
    if kind == "logistic":
        everyone = torch.ones(1, len(labels), device=axes.z.device)
        w, b = _logistic(axes, targets, everyone, torch.tensor([strength], device=axes.z.device))
        return axes.head(kind, taps, strength, w[0], b[0])
    if kind == "ridge":
        z = torch.cat([axes.z, torch.ones_like(axes.z[:, :1])], dim=1)
        solved = _ridge(z.T @ z, z.T @ targets, strength * len(labels))
        w1, b1 = solved[:-1], solved[-1]
    else:
        w1, b1 = _centroids(axes.z, targets)
    temperature = fit_temperature((axes.z @ w1 + b1).cpu().numpy(), labels)
    return axes.head(kind, taps, strength, w1 / temperature, b1 / temperature)


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
    if store is not None:
        spec = {
            "features": features.table.folder.name,
            "pictures": features.table.content(features.rows[pool]),
            "labels": hashlib.blake2b(labels.tobytes() + folds.tobytes(), digest_size=16).hexdigest(),
            "classes": classes,
            "solver": [LOGISTIC_STRENGTHS, RIDGE_STRENGTHS, _STEPS, torch.__version__],
        }
        memo = store.artifact("race", spec)
        candidates = _recalled(memo)
    if candidates is None:
        candidates = _compete(features, labels, folds, classes, pool, progress)
        if store is not None:
            rows = [{name: getattr(score, name) for name in _PLAIN} for score in candidates]
            memo.save({"scores": rows}, {str(place): score.logits for place, score in enumerate(candidates)})
    last = next(score for score in candidates if score.kind == "logistic" and score.taps == (len(features.widths) - 1,))
    best = max(candidates, key=_rank)
    gain, error = paired_gain(best, last, labels)
    if gain > error:
        reason = f"{_words(best)} beats the last stage by {100 * gain:.1f} ± {100 * error:.1f} points out of fold"
    else:
        reason = f"no head beats the last stage by more than one standard error ({100 * gain:.1f} ± {100 * error:.1f} points)"
        best = last
    profile = tuple(score for score in candidates if score.kind == "ridge" and len(score.taps) == 1)
    return Race(candidates, best, last, profile, reason)


_PLAIN = ("kind", "taps", "strength", "accuracy", "accuracy_se", "log_loss", "log_loss_se")


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
    progress: runtime.Progress,
) -> tuple[Score, ...]:
    stages = len(features.widths)
    combined = sorted(
        {tuple(range(start, stages)) for start in (0, stages // 2, stages - 3) if 0 <= start < stages - 1}
    )
    with progress("Racing heads", stages + len(combined) + 4, "heads") as advance:
        known: dict[tuple[int, ...], Axes] = {}  # the factorisation is most of the work, and scorers share it

        def scored(how: Scorer, taps: tuple[int, ...]) -> Score:
            if taps not in known:
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
