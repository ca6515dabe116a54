"""Leak suspicion: pictures that lie far nearer to a training picture of their class than such pictures lie to each other.

Where pictures of a class are spread smoothly, the gaps between the distances to the nearest, the next and so on, on a logarithmic
scale and times their rank, are equally long on average, whatever the dimension (Levina & Bickel 2004, Maximum Likelihood Estimation
of Intrinsic Dimension; Facco et al. 2017, doi 10.1038/s41598-017-11873-y). Near-copies across a split make the first of them longer,
bursts one of the first few. Measured: the nearest neighbour's answers never come out surely ahead of a linear head's, leak or not, so
they are not asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.audit import Finding, finding, plural
from headstart.data.dataset import Dataset
from headstart.data.splits import thinned
from headstart.diagnosis.neighbours import nearest
from headstart.features.extract import Features
from headstart.race import RACED, Race

BURST = 5  # a gap is looked at behind each of so many nearest
FEWEST = 20  # pictures whose gaps are averaged at least
SURE = 3.0  # standard errors by which a gap exceeds the next two; without a leak it is shorter than they are
LONGER = 1.2  # times the next two that a gap is at least, however sure that it exceeds them
RARE = 0.01  # chance of a gap as long as that of a picture that is listed, were there no leak


@dataclass(frozen=True, eq=False)
class Closeness:
    """How far the nearest stand apart from the next: `errors`, in standard errors, and `times`, as many times as the next gaps.

    `looked_at` (N,) pictures, those of the test among them; `pairs` (P, 2) the listed ones of them, the most striking first, each
    with the nearest training picture.
    """

    errors: float
    times: float
    looked_at: NDArray[np.int64]
    pairs: NDArray[np.int64]


def leaks(dataset: Dataset, heads: Race, features: Features) -> tuple[Finding, ...]:
    """A warning where pictures of one thing seem to stand on both sides of the split, or of the folds."""
    found = closeness(dataset, heads, features)
    if found.errors < SURE or not len(found.pairs):
        return ()
    near, sides, names = found.pairs[:, 0], dataset.split, dataset.names
    counts = [
        f"{int((sides[near] == side).sum()):,} of {plural(int((sides[found.looked_at] == side).sum()), word)}"
        for side, word in (("test", "test picture"), ("train", "training picture"))
        if side in sides[near]
    ]
    beyond = "the split" if "test" in sides[near] else "the folds of cross-validation"
    message = (
        f"{' and '.join(counts)} lie far nearer to one or a few training pictures of their class beyond {beyond} than to the rest: "
        f"that gap is {found.times:.1f} times those behind it ({found.errors:.1f} standard errors). Pictures of one scene, object or "
        f"recording may stand on both sides of {beyond}; the accuracy is then too good."
    )
    next_step = (
        "Look at the pairs. Where they show one thing, name it in the 'group' column of a table and fit again: "
        "groups are never parted."
    )
    # Two pictures may each be the other's nearest: the pair is told once.
    pairs = {tuple(sorted(pair)): f"{names[pair[0]]} ~ {names[pair[1]]}" for pair in reversed(found.pairs.tolist())}
    return (finding("near_copies", "warning", message, next_step, reversed(pairs.values())),)


def closeness(dataset: Dataset, heads: Race, features: Features) -> Closeness:
    """The gaps behind the nearest of the same class: of training pictures in other folds, of test pictures among all of training."""
    pool, tested = heads.pool, dataset.indices("test")
    rows = np.concatenate([pool, tested[thinned(dataset.labels[tested], RACED)]])
    apart, mates = _neighbours(dataset, features, pool, rows)
    with np.errstate(invalid="ignore"):
        gaps = np.diff(np.log(apart)) * np.arange(1, apart.shape[1])
    best = Closeness(0.0, 1.0, rows, np.empty((0, 2), np.int64))
    for rank in range(BURST):
        usual = gaps[:, rank + 1 : rank + 3].mean(1)
        known = np.flatnonzero(np.isfinite(usual))
        if len(known) < FEWEST:
            continue
        longer, scale = gaps[known, rank] - usual[known], float(usual[known].mean())
        errors = float(longer.mean() / max(longer.std() / len(known) ** 0.5, 1e-9))
        times = 1 + float(longer.mean()) / max(scale, 1e-9)
        if errors > best.errors and times >= LONGER:
            # Gaps are exponentially distributed where nothing leaks.
            striking = known[gaps[known, rank] > -np.log(RARE) * scale]
            order = striking[np.argsort(-gaps[striking, rank], kind="stable")]
            best = Closeness(errors, times, rows, np.stack([rows[order], mates[order]], 1))
    return best


def _neighbours(
    dataset: Dataset, features: Features, pool: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances (R, BURST + 3) of `rows` (R,), which begin with the pool, to the nearest of their class in it; the nearest (R,)."""
    z = directions(features, pool, rows)
    apart, mates = np.full((len(rows), BURST + 3), np.inf), rows.copy()
    labels = dataset.labels[rows]
    for label in np.unique(labels[: len(pool)]):
        here, there = np.flatnonzero(labels == label), np.flatnonzero(labels[: len(pool)] == label)
        found, which = nearest(z[here], z[there], BURST + 3, dataset.fold[rows[here]], dataset.fold[pool[there]])
        apart[here], mates[here] = np.maximum(found, 1e-3), pool[there[which[:, 0]]]
    return apart, mates


def directions(features: Features, pool: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The last stage's features of `rows` (R, D), standardised as they are in the pool, at length one: distances are angles."""
    last = (len(features.own) - 1,)
    known = features.stages(last, pool)
    mean, variance = known.mean(0), known.var(0)
    z = (features.stages(last, rows) - mean) / (np.sqrt(variance + variance.mean()) + 1e-12)
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12), np.float32)
