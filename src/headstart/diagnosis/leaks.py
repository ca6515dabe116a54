"""Leak suspicion: pictures that are far more like a training picture of their class than such pictures are like each other.

Likeness is measured twice: by the angle between pooled features, and by the places that two pictures share (overlap.py), which also
tells parts of one texture or scene. Where pictures of a class are spread smoothly, the gaps between the distances to the nearest,
the next and so on, on a logarithmic scale and times their rank, are equally long on average, whatever the dimension (Levina &
Bickel 2004, Maximum Likelihood Estimation of Intrinsic Dimension; Facco et al. 2017, doi 10.1038/s41598-017-11873-y); so are those
between the largest counts of shared places (Rényi 1953, on spacings of an exponential tail). Near-copies across a split make the
first gap longer, bursts one of the first few. Measured: the nearest neighbour's answers never come out surely ahead of a linear
head's, leak or not, so they are not asked.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.data.audit import Finding, finding, plural
from headstart.data.dataset import Dataset
from headstart.data.splits import thinned
from headstart.diagnosis.neighbours import nearest
from headstart.diagnosis.overlap import shared_places
from headstart.features.engine import Engine
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.race import RACED, Race
from headstart.solvers import spread

BURST = 5  # a gap is looked at behind each of so many nearest
FEWEST = 20  # pictures whose gaps are averaged at least
SURE = 3.0  # standard errors by which a gap exceeds the next two; without a leak it is shorter than they are
LONGER = 1.2  # times the next two that a gap is at least, however sure that it exceeds them
COMPARED = 160  # pictures that are compared place by place with their nearest; half of them of the test, where there are as many
FEW_PLACES = 10  # that a pair shares which is listed: chance gives as many where pictures of a class are alike
RARE = 0.01  # chance of a gap as long as that of a picture that is listed, were there no leak


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training and test pictures `rows` (R,) and their nearest training pictures of the same class, of those in another fold, of each
    group one: `mates` (R, BURST + 3), the nearest first, and the `angles` to them; infinite where there are no more."""

    rows: NDArray[np.int64]
    mates: NDArray[np.int64]
    angles: NDArray[np.float64]

    @classmethod
    def of(cls, dataset: Dataset, heads: Race, features: Features) -> Neighbours:
        """Of all pictures that heads were raced on, and of as many of the test."""
        pool, labels, tested = heads.pool, dataset.labels, dataset.indices("test")
        rows = np.concatenate([pool, tested[thinned(labels[tested], RACED)]])
        seen = directions(features, pool, rows)
        mates = np.repeat(rows[:, None], BURST + 3, axis=1)
        angles = np.full(mates.shape, np.inf)
        for label in np.unique(labels[pool]):
            # The pool comes first in `rows`, so that its places count in `seen`.
            here, there = np.flatnonzero(labels[rows] == label), np.flatnonzero(labels[pool] == label)
            # Shots of one thing lie close together: as so many neighbours they would make a gap behind them, leak or not.
            found, which = nearest(
                seen[here],
                seen[there],
                BURST + 3,
                dataset.fold[rows[here]],
                dataset.fold[pool[there]],
                dataset.groups[pool[there]],
            )
            angles[here], mates[here] = np.maximum(found, 1e-3), pool[there[which]]
        return cls(rows, mates, angles)


@dataclass(frozen=True, eq=False)
class Closeness:
    """How far the nearest stand apart from the next: `errors`, in standard errors, and `times`, as many times as the next gaps.

    `looked_at` (N,) pictures, those of the test among them; `pairs` (P, 2) the listed ones of them, the most striking first, each
    with the nearest training picture. `shared`: places, where that is what was counted.
    """

    errors: float
    times: float
    looked_at: NDArray[np.int64]
    pairs: NDArray[np.int64]
    shared: bool = False

    @property
    def sure(self) -> bool:
        """Whether that is a reason for suspicion."""
        return self.errors >= SURE and len(self.pairs) > 0

    @property
    def told(self) -> tuple[tuple[int, int], ...]:
        """The pairs, each once: two pictures may each be the other's nearest."""
        first: dict[frozenset[int], tuple[int, int]] = {}
        for one, other in self.pairs.tolist() if self.sure else ():
            first.setdefault(frozenset((one, other)), (one, other))
        return tuple(first.values())


def suspected(
    dataset: Dataset,
    heads: Race,
    features: Features,
    engine: Engine,
    store: Store,
    *,
    deadline: float = math.inf,
    progress: runtime.Progress = runtime.silent,
) -> Closeness:
    """The nearest by whichever of the two measures is surer that they stand apart; past the deadline, by features alone."""
    near = Neighbours.of(dataset, heads, features)
    found = closeness(near)
    if time.monotonic() > deadline:
        return found
    return surer(found, overlaps(near, dataset, engine, store, progress))


def surer(one: Closeness, other: Closeness) -> Closeness:
    """Of two measures, the one that is surer that the nearest stand apart."""
    return max(one, other, key=lambda each: (each.sure, each.errors))


def leaks(dataset: Dataset, found: Closeness) -> tuple[Finding, ...]:
    """A warning where pictures of one thing seem to stand on both sides of the split, or of the folds."""
    if not found.sure:
        return ()
    near, sides, names = found.pairs[:, 0], dataset.split, dataset.names
    counts = [
        f"{int((sides[near] == side).sum()):,} of {plural(int((sides[found.looked_at] == side).sum()), word)}"
        for side, word in (("test", "test picture"), ("train", "training picture"))
        if side in sides[near]
    ]
    beyond = "the split" if "test" in sides[near] else "the folds of cross-validation"
    more, than = ("share far more places with", "with") if found.shared else ("lie far nearer to", "to")
    message = (
        f"{' and '.join(counts)} {more} one or a few training pictures of their class beyond {beyond} than {than} the rest: "
        f"that gap is {found.times:.1f} times those behind it ({found.errors:.1f} standard errors). Pictures of one scene, object or "
        f"recording may stand on both sides of {beyond}; the accuracy is then too good."
    )
    next_step = "Look at the pairs. Where they show one thing, name it in the 'group' column of a table and fit again: "
    next_step += (
        "leave out the given splits then, which part groups as they are laid out."
        if dataset.given
        else "groups are never parted."
    )
    told = (f"{names[one]} ~ {names[other]}" for one, other in found.told)
    return (finding("near_copies", "warning", message, next_step, told),)


def closeness(near: Neighbours) -> Closeness:
    """The gaps behind the nearest, by the angle between pooled features."""
    return _apart(np.log(near.angles), near.rows, near.mates[:, 0])


def overlaps(
    near: Neighbours, dataset: Dataset, engine: Engine, store: Store, progress: runtime.Progress = runtime.silent
) -> Closeness:
    """The same, by the places that some pictures share with their nearest."""
    by_content = sorted(range(len(near.rows)), key=lambda place: dataset.digests[near.rows[place]])
    tested, trained = (
        [place for place in by_content if (dataset.split[near.rows[place]] == "test") == wanted]
        for wanted in (True, False)
    )
    tested = tested[: max(COMPARED // 2, COMPARED - len(trained))]
    chosen = np.array([*trained[: COMPARED - len(tested)], *tested], np.int64)
    chosen = chosen[np.isfinite(near.angles[chosen]).all(1)]
    rows, mates = near.rows[chosen], near.mates[chosen]
    shared = shared_places(engine, dataset, rows, mates, store, progress)
    if shared is None:
        return Closeness(0.0, 1.0, rows, np.empty((0, 2), np.int64))
    order = np.argsort(-shared, axis=1, kind="stable")
    far, mates = (np.take_along_axis(each, order, axis=1) for each in (-shared.astype(float), mates))
    found = _apart(far, rows, mates[:, 0], least=1.0)
    most = dict(zip(rows.tolist(), -far[:, 0], strict=True))
    listed = [most[one] >= FEW_PLACES for one, _ in found.pairs.tolist()]
    return replace(found, pairs=found.pairs[listed], shared=True)


def _apart(
    far: NDArray[np.float64], rows: NDArray[np.int64], mates: NDArray[np.int64], least: float = 1e-9
) -> Closeness:
    """Where the nearest stand apart: `far` (R, B), ascending, tells how far `rows` (R,) are from others, of which `mates` (R,) are the
    nearest, on a scale on which steps times their rank are exponentially distributed where nothing leaks, and `least` on the mean."""
    with np.errstate(invalid="ignore"):
        gaps = np.diff(far) * np.arange(1, far.shape[1])
    best = Closeness(0.0, 1.0, rows, np.empty((0, 2), np.int64))
    for rank in range(BURST):
        usual = gaps[:, rank + 1 : rank + 3].mean(1)
        known = np.flatnonzero(np.isfinite(usual))
        if len(known) < FEWEST:
            continue
        longer, scale = gaps[known, rank] - usual[known], max(float(usual[known].mean()), least)
        errors = float(longer.mean() / max(longer.std() / len(known) ** 0.5, 1e-9))
        times = 1 + float(longer.mean()) / scale
        if errors > best.errors and times >= LONGER:
            striking = known[gaps[known, rank] > -np.log(RARE) * scale]
            order = striking[np.argsort(-gaps[striking, rank], kind="stable")]
            best = Closeness(errors, times, rows, np.stack([rows[order], mates[order]], 1))
    return best


def directions(features: Features, pool: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The last stage's features of `rows` (R, D), standardised as they are in the pool, at length one: distances are angles."""
    last = (len(features.own) - 1,)
    known = features.stages(last, pool)
    z = (features.stages(last, rows) - known.mean(0)) / spread(torch.from_numpy(known)).numpy()
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12), np.float32)
