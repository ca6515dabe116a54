"""Intervals of measured values at 95 %, and the sign test: from resamples, and exact where these tell too little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import bdtr, betaincinv, expit, logit, stdtrit

from headstart.tasks import classification

_TAIL = 0.025
_BORROWED = 2.0  # pictures of the overall accuracy that a class counts where its own say little of how it varies
_CALIBRATED = 1000  # draws of what a perfectly calibrated model would show, fewer of very many pictures


class Interval(BaseModel):
    """A measured value with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


def widest(found: Sequence[Interval]) -> Interval:
    """Of several of one value, from the least end to the greatest."""
    return Interval(value=found[0].value, low=min(each.low for each in found), high=max(each.high for each in found))


def percentiles(value: float, draws: NDArray[np.float64]) -> Interval:
    """Of `draws`, the value on resamples; it always takes the value in."""
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def unshifted(value: float, draws: NDArray[np.float64]) -> Interval:
    """Percentiles less the bias of resampling, for macro-F1, which loses with every rare class that a resample lacks."""
    found = percentiles(value, draws - (draws.mean() - value))
    return Interval(value=value, low=max(0.0, found.low), high=min(1.0, found.high))


def calibration(value: float, draws: NDArray[np.float64], chance: NDArray[np.float64]) -> Interval:
    """Of an error of calibration, in which |noise| never cancels: every resample overstates the value, and the value as much again.

    `chance`: what a perfectly calibrated model shows. Where that is as much as the value, nothing speaks against an error of 0.
    """
    bias = float(draws.mean()) - value
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL])
    below = 0.0 if value <= np.quantile(chance, 1 - _TAIL) else max(0.0, float(low) - 2 * bias)
    return Interval(value=value, low=min(value, below), high=min(1.0, max(value, float(high) - bias)))


def by_chance(belief: NDArray[np.floating], seed: int) -> NDArray[np.float64]:
    """The ECE of perfectly calibrated models as confident as `belief` (N, K): one for each draw of which answers are right."""
    confidence = belief.max(1).astype(np.float64)
    place = classification.confidence_bin(confidence)
    bins = np.zeros((classification.ECE_BINS, len(place)))
    bins[place, np.arange(len(place))] = 1.0
    draw, wanted = np.random.default_rng(seed), min(_CALIBRATED, max(100, 20_000_000 // len(place)))
    block = max(1, 4_000_000 // len(place))
    found = []
    for start in range(0, wanted, block):
        right = draw.random((len(place), min(block, wanted - start))) < confidence[:, None]
        found.append(np.abs(bins @ (right - confidence[:, None])).sum(0) / len(place))
    return np.concatenate(found)


def independent(right: NDArray[np.float64], unit: NDArray[np.int64]) -> float:
    """As how many independent pictures those of a few groups count in an exact interval of their share.

    Between n² / Σ m², where each group of m pictures is right or wrong together, and n (the design effect's count, Korn & Graubard
    1998). That few groups tell little of how alike their pictures are is in the count, too: it falls with the quantile of Student's t
    for G - 1 degrees of freedom.

    right (N,) how often each picture was answered right; unit (N,) its group, 0 to G - 1.
    """
    sizes = np.bincount(unit)
    pictures, groups = len(unit), len(sizes)
    if groups == pictures:
        return float(pictures)
    least = pictures**2 / float((sizes**2).sum())
    off = right - right.mean()
    if groups == 1 or not off.any():  # nothing tells how alike the pictures of a group are
        return least
    apart, together = (off**2).sum() / (1 - 1 / pictures), (np.bincount(unit, off) ** 2).sum() / (1 - 1 / groups)
    surer = (stdtrit(pictures - 1, 1 - _TAIL) / stdtrit(groups - 1, 1 - _TAIL)) ** 2
    return float(np.clip(pictures * apart / max(apart, together) * surer, least, pictures))


def balanced(right: NDArray[np.float64], labels: NDArray[np.int64], counted: float) -> Interval:
    """Mean recall of how often each picture was answered right (N,), with an interval on the logit's scale.

    A recall of two pictures varies by more than they show: its variance counts `_BORROWED` more, of the overall accuracy. The pictures
    tell as much as `counted` independent ones.
    """
    count = np.bincount(labels)
    hits, count = np.bincount(labels, right)[count > 0], count[count > 0]
    value, overall = float((hits / count).mean()), (hits.sum() + 1) / (count.sum() + 2)
    shrunk = (hits + _BORROWED * overall) / (count + _BORROWED)
    error = float((shrunk * (1 - shrunk) / count).sum() * len(labels) / counted) ** 0.5 / len(count)
    inner = float(np.clip(value, 0.5 / count.sum(), 1 - 0.5 / count.sum()))
    reach = 1.96 * error / (inner * (1 - inner))
    low, high = expit(logit(inner) - reach), expit(logit(inner) + reach)
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def exact_share(right: float, count: float) -> tuple[float, float]:
    """The exact 95 % interval of a share of which `right` of `count` speak (Clopper & Pearson 1934)."""
    low = betaincinv(right, count - right + 1, _TAIL) if right > 0 else 0.0
    high = betaincinv(right + 1, count - right, 1 - _TAIL) if right < count else 1.0
    return float(low), float(high)


def exact_tail(units: int) -> float:
    """The least share that still gives `units` of `units` with a chance of 2.5 %."""
    return float(_TAIL ** (1 / units))


def balanced_tail(counts: NDArray[np.int64]) -> float:
    """The least mean of shares p, one for each of the `counts` n, that still gives all of all with a chance of 2.5 %.

    Σ n log p is bounded, and the mean is convex in log p, so that it is least where every p is as many times n, and 1 at most.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        chance = float(counts @ np.log(np.minimum(1.0, middle * counts)))
        low, high = (middle, high) if chance < np.log(_TAIL) else (low, middle)
    return float(np.minimum(1.0, high * counts).mean())


def sign_test(wins: int, losses: int) -> float:
    """Two-sided mid-p value of `wins` against `losses` where both are equally likely (Lancaster 1961)."""
    number, fewer = wins + losses, min(wins, losses)
    # P(X ≤ k) + P(X < k) = 2 P(X ≤ k) − P(X = k): twice the mid-p tail.
    return float(min(1.0, bdtr(fewer, number, 0.5) + (bdtr(fewer - 1, number, 0.5) if fewer else 0.0)))
