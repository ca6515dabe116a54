"""Linear layers in closed form or by a bound: the numerics of the heads.

Features are standardised and rotated into their principal axes once per choice of stages; there the curvature bound of
logistic regression is diagonal, so that all folds are solved together by one accelerated majorise-minimise run (Böhning
1992 for the bound, Nesterov 1983 for the speed), and ridge regression has its K-fold residuals in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from headstart import runtime

STEPS = 50  # measured: the out-of-fold loss moves by less than its standard error from here to 1,500
STEPS_ON = 40  # from the solution at a ten times stronger penalty
# Half of the axes, and all together hardly 1 % of the variance. Logistic regression does as well without them, in half of the time
# (measured on seven data sets: 93.36 % out of fold with all axes and without the weak ones); ridge regression needs some of them.
WEAK = 1e-5
# What a solution that is remembered hangs on, beside pictures and strengths.
SOLVER = (STEPS, STEPS_ON, WEAK, torch.__version__)
BLOCK = 4096  # rows that are read at a time where they are streamed
HELD = 512 * 2**20  # bytes of streamed rows on their leading axes that are held in memory


class Rows(Protocol):
    """Standardised features of N pictures in principal axes, as the solvers need them. `power` (r,) sums of squares along them."""

    @property
    def power(self) -> Tensor: ...
    def leading(self) -> Rows:
        """The axes along which the mean square is more than `WEAK`."""
        ...

    def moment(self, targets: Tensor) -> Tensor:
        """Zᵀ targets: (N, K) to (r, K)."""
        ...

    def slopes(self, w: Tensor, b: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of cross-entropy, for B problems together: w (K, B, r), b (K, B), truth (K, 1, N), weights (B, N) to those of w and b."""
        ...

    def raw(self, w: Tensor, b: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A layer (r, K), (K,) on the axes as weight (D, K) and bias (K,) on raw features: standardisation folded in."""
        ...


@dataclass(frozen=True, eq=False)
class Axes:
    """`Rows` in memory, in principal axes, the weakest first: `z` (N, r). `onto` takes a layer (r, K) on the axes to one (D, K) on
    standardised features; to raw ones by `mean` (D,) and `scale` (D,)."""

    z: Tensor
    power: Tensor
    mean: Tensor
    scale: Tensor
    onto: Callable[[Tensor], Tensor]

    def leading(self) -> Axes:
        weak = int((self.power <= WEAK * len(self.z)).sum())
        if not weak:
            return self
        z = self.z[:, weak:].contiguous()
        return replace(self, z=z, power=self.power[weak:], onto=lambda w: self.onto(pad(w, (0, 0, weak, 0))))

    def moment(self, targets: Tensor) -> Tensor:
        return self.z.T @ targets

    def slopes(self, w: Tensor, b: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return _slopes(self.z, w, b, truth, weights)

    def raw(self, w: Tensor, b: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return _on_raw(self.onto(w), b, self.mean, self.scale)


@dataclass(frozen=True, eq=False)
class Streamed:
    """`Rows` that are read block by block whenever they are needed, so that memory does not grow with their number.

    `read(start, stop)` gives raw features (M, D) float32; `directions` (D, r).
    """

    read: Callable[[int, int], NDArray[np.float32]]
    count: int
    directions: Tensor
    power: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, read: Callable[[int, int], NDArray[np.float32]], count: int) -> Streamed:
        """Three passes: mean, variance, and the Gram matrix, whose eigenvectors are the principal axes."""

        def total(of: Callable[[Tensor], Tensor]) -> Tensor:
            parts = (of(_tensor(read(rows.start, rows.stop))) for rows in _blocks(count))
            return reduce(torch.add, (part.double() for part in parts))

        mean = (total(lambda x: x.sum(0, dtype=torch.float64)) / count).float()
        variance = total(lambda x: (x - mean).square().sum(0, dtype=torch.float64)) / count
        scale = _spread(variance.float()) * len(mean) ** 0.5

        def gram(x: Tensor) -> Tensor:
            x = (x - mean) / scale
            return x.T @ x

        power, directions = torch.linalg.eigh(total(gram))
        keep = _meant(power)
        return cls(read, count, directions[:, keep].float(), power[keep].float(), mean, scale)

    def _standardised(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in _blocks(self.count):
            yield rows, (_tensor(self.read(rows.start, rows.stop)) - self.mean) / self.scale

    def leading(self) -> Rows:
        """The axes along which the mean square is more than `WEAK`; the rows on them are held in memory where they fit."""
        weak = int((self.power <= WEAK * self.count).sum())
        chosen = replace(self, directions=self.directions[:, weak:].contiguous(), power=self.power[weak:])
        if self.count * len(chosen.power) * 4 > HELD:
            return chosen
        z = torch.empty(self.count, len(chosen.power), device=self.power.device)
        for rows, x in self._standardised():
            z[rows] = x @ chosen.directions
        return Axes(z, chosen.power, self.mean, self.scale, lambda w: chosen.directions @ w)

    def moment(self, targets: Tensor) -> Tensor:
        found = torch.zeros(len(self.mean), targets.shape[1], dtype=torch.float64, device=targets.device)
        for rows, x in self._standardised():
            found += x.T @ targets[rows]
        return self.directions.T @ found.float()

    def slopes(self, w: Tensor, b: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        onto = w @ self.directions.T  # (K, B, D): cheaper than to rotate every row
        slope, total = torch.zeros_like(onto), torch.zeros_like(b)
        for rows, x in self._standardised():
            more, sums = _slopes(x, onto, b, truth[:, :, rows], weights[:, rows])
            slope, total = slope + more, total + sums
        return slope @ self.directions, total

    def raw(self, w: Tensor, b: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return _on_raw(self.directions @ w, b, self.mean, self.scale)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def _tensor(features: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(runtime.device())


def _slopes(z: Tensor, w: Tensor, b: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    # Classes come first within: a softmax over the first axis is many times as fast as one over a short last one.
    (k, count), n = b.shape, len(z)
    logits = (w.reshape(k * count, -1) @ z.T).view(k, count, n) + b[:, :, None]
    residual = (torch.softmax(logits, dim=0) - truth) * weights
    return (residual.view(k * count, n) @ z).view(k, count, -1), residual.sum(2)


def _on_raw(weight: Tensor, b: Tensor, mean: Tensor, scale: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight = weight / scale[:, None]
    return weight.float().cpu().numpy(), (b - mean @ weight).float().cpu().numpy()


def spread(x: Tensor) -> Tensor:
    """What each feature of (N, D) is divided by: √(its variance + the mean variance of all), (D,).

    Plain standard deviations blow up features that hardly move, so that a picture in which one of them does move is thrown
    far off; scores out of fold then promise more than unseen pictures keep (`benchmarks/standardisation.py`).
    """
    return _spread(x.var(0, correction=0))


def _spread(variance: Tensor) -> Tensor:
    return (variance + variance.mean().clamp(min=1e-12)).sqrt()


def principal_axes(features: NDArray[np.float32]) -> Axes:
    """Standardise (N, D), divide by √D so that strengths mean the same for every width, rotate into principal axes."""
    x = _tensor(features)
    mean = x.mean(0)
    scale = spread(x) * x.shape[1] ** 0.5
    x = (x - mean) / scale
    n, d = x.shape
    if d <= n:
        power, rotation = torch.linalg.eigh(x.T @ x)
        z = x @ rotation[:, _meant(power)]
    else:
        power, left = torch.linalg.eigh(x @ x.T)
        keep = _meant(power)
        z = left[:, keep] * power[keep].clamp(min=0).sqrt()
    power = z.square().sum(0).clamp(min=1e-30)  # nothing may be divided by zero where all rows are the same
    # The directions are xᵀz over the power: they need not be formed.
    return Axes(z, power, mean, scale, lambda w: x.T @ (z @ (w / power[:, None])))


def _meant(power: Tensor) -> Tensor:
    """Which eigenvalues, in ascending order, are more than rounding; the largest always, so that there is one axis."""
    meant = power > 1e-6 * power.max().clamp(min=1e-30)
    meant[-1] = True
    return meant


def solve_logistic(
    axes: Rows,
    targets: Tensor,
    weights: Tensor,
    strengths: Tensor,
    steps: int = STEPS,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise Σ weights·cross-entropy + ½·strength·Σweights·‖W‖² for B problems together.

    targets (N, K) one-hot; weights (B, N) ≥ 0, at most 1; strengths (B,). Returns W (B, r, K) and b (B, K). `start` is such a
    pair, for a stronger penalty.
    """
    k, count, device = targets.shape[1], len(strengths), targets.device
    totals = weights.sum(1)
    penalty = strengths * totals  # (B,)
    # The Hessian of the loss is at most ½ZᵀZ on every axis, whichever rows a fold leaves out (Böhning 1992).
    step_w = 1.0 / (0.5 * axes.power + penalty[:, None])  # (B, r)
    step_b = 1.0 / (0.5 * totals)  # (B,)
    truth = targets.T[:, None, :]  # (K, 1, N)
    if start is None:
        prior = torch.log(((weights @ targets) + 0.5) / (totals + 0.5 * k)[:, None]).T  # (K, B)
        w, b = torch.zeros(k, count, len(axes.power), device=device), prior - prior.mean(0)
    else:
        w, b = start[0].permute(2, 0, 1).contiguous(), start[1].T.contiguous()
    ahead_w, ahead_b, momentum = w, b, torch.ones(count, device=device)
    for _ in range(steps):
        slope, slope_b = axes.slopes(ahead_w, ahead_b, truth, weights)
        slope = slope + penalty[:, None] * ahead_w
        next_w = ahead_w - step_w * slope
        next_b = ahead_b - step_b * slope_b
        # Where the last move turns against the slope, momentum starts anew (O'Donoghue & Candès 2015).
        turned = (slope * (next_w - w)).sum((0, 2)) > 0
        momentum = torch.where(turned, torch.ones_like(momentum), momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        push = torch.where(turned, torch.zeros_like(momentum), (momentum - 1) / following)
        ahead_w = next_w + push[:, None] * (next_w - w)
        ahead_b = next_b + push * (next_b - b)
        w, b, momentum = next_w, next_b, following
    return w.permute(1, 2, 0), b.T


def logistic_path(
    axes: Rows, targets: Tensor, weights: Tensor, strengths: Iterable[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`solve_logistic` at one strength after the other, the strongest first, each from the solution before it."""
    solved: tuple[Tensor, Tensor] | None = None
    for strength in strengths:
        penalties = torch.full((len(weights),), strength, device=targets.device)
        solved = solve_logistic(axes, targets, weights, penalties, STEPS if solved is None else STEPS_ON, solved)
        yield solved


def one_hot(labels: NDArray[np.int64], classes: int, device: torch.device) -> Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels), classes).float().to(device)


def ridge_by_hat(axes: Axes, targets: Tensor, outs: list[Tensor], penalties: list[float]) -> list[Tensor]:
    """Out-of-fold logits (N, K) per penalty, from the hat matrix of all rows."""
    count, moment, mean = len(targets), axes.z.T @ targets, targets.mean(0)
    logits = [torch.empty_like(targets) for _ in penalties]
    for out in outs:
        z, target = axes.z[out], targets[out]
        one = torch.eye(len(z), dtype=torch.float64, device=z.device)
        for place, penalty in enumerate(penalties):
            # The axes are orthogonal, so the Gram matrix is diagonal; 1/N is the part of the intercept, which is not penalised.
            weighted = z / (axes.power + penalty)
            hat = (weighted @ z.T + 1.0 / count).double()
            residual = (target - (weighted @ moment + mean)).double()
            logits[place][out] = target - torch.linalg.solve(one - hat, residual).float()
    return logits


def ridge_by_gram(axes: Axes, targets: Tensor, outs: list[Tensor], penalties: list[float]) -> list[Tensor]:
    """The same from the Gram matrix of all rows less that of a fold's own: cheaper for folds larger than the features are wide."""
    z = torch.cat([axes.z, torch.ones_like(axes.z[:, :1])], dim=1)  # the last axis is the intercept, not penalised
    gram, moment = z.T @ z, z.T @ targets
    logits = [torch.empty_like(targets) for _ in penalties]
    for out in outs:
        inner_gram, inner_moment = gram - z[out].T @ z[out], moment - z[out].T @ targets[out]
        for place, penalty in enumerate(penalties):
            logits[place][out] = z[out] @ solve_ridge(inner_gram, inner_moment, penalty)
    return logits


def solve_ridge(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """Solve (gram + penalty·I) W = moment with the last axis, the intercept, left free; (r + 1, K)."""
    diagonal = torch.full((len(gram),), penalty, device=gram.device, dtype=torch.float64)
    diagonal[-1] = 1e-6
    solved: Tensor = torch.linalg.solve(gram.double() + torch.diag(diagonal), moment.double())
    return solved.float()


def centroids(moment: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """−‖z − c‖² up to a term that all classes share, as a linear layer, from the sums (r, K) of the images of each class and their
    numbers (K,); a class without images is never nearest."""
    means = moment / counts.clamp(min=1)  # (r, K)
    empty = torch.where(counts > 0, 0.0, -1e4)
    return 2 * means, empty - means.square().sum(0)
