"""The worst slice: a class, or a group that the person gave, that the final model answers surely worse than the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from headstart.data.audit import Finding, Severity, finding, plural
from headstart.data.dataset import Dataset
from headstart.verdict import percent

LEVEL = 0.05  # chance of naming any slice, were all answered equally well
FEWEST = 10  # tested pictures of a group that is looked at
FAR = 0.10  # share by which a slice lies below all pictures from which it is a warning


def slices(dataset: Dataset, indices: NDArray[np.int64], answers: NDArray[np.int64]) -> tuple[Finding, ...]:
    """The classes and the given groups that lie surely below the accuracy on all tested pictures.

    `indices` (M,) are the tested pictures, once per repeat, and `answers` (M,) what the final model took them for. Shots of one thing
    are right or wrong together: what a class has in one group counts once. Of a group that a person gave each picture counts: the
    question is about that group, and not about others like it.
    """
    right = (answers == dataset.labels[indices]).astype(float)
    # Repeated cross-validation answers each picture several times: it counts as one picture, right in a share of them.
    tested, place = np.unique(indices, return_inverse=True)
    share = np.bincount(place, right) / np.bincount(place)
    found = _worst("class", _once(dataset.labels[tested], dataset.groups[tested], share), dataset.classes, 1)
    if dataset.particulars is not None and any(dataset.particulars.groups):
        names, group = np.unique(np.array(dataset.particulars.groups)[tested], return_inverse=True)
        found += _worst("group", _Units(group, share, np.ones(len(share))), names.tolist(), FEWEST)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Units:
    """What counts once (U,): the slice that it is `of`, by number, the `share` of right answers, and of how many `pictures`."""

    of: NDArray[np.int64]
    share: NDArray[np.float64]
    pictures: NDArray[np.float64]


def _once(of: NDArray[np.int64], group: NDArray[np.int64], share: NDArray[np.float64]) -> _Units:
    """Pictures (N,) of a slice that share a group, as one unit."""
    pairs, unit = np.unique(np.stack([of, group]), axis=1, return_inverse=True)
    pictures = np.bincount(unit.reshape(-1)).astype(float)
    return _Units(pairs[0], np.bincount(unit.reshape(-1), share) / pictures, pictures)


def _worst(what: str, units: _Units, names: Sequence[str], fewest: int) -> list[Finding]:
    """The slices, by name, that have at least the `fewest` units and lie surely below the mean of all."""
    counts = np.bincount(units.of, minlength=len(names))
    pictures, hits = (np.bincount(units.of, each, len(names)).astype(float) for each in (units.pictures, units.share))
    looked_at = np.array([bool(name) and count >= fewest for name, count in zip(names, counts, strict=True)])
    if looked_at.sum() < 2:
        return []
    high, overall = upper(hits, counts, LEVEL / int(looked_at.sum())), float(units.share.mean())
    rates = hits / np.maximum(counts, 1)
    low = sorted(np.flatnonzero(looked_at & (high < overall)).tolist(), key=lambda k: rates[k])
    if not low:
        return []
    worst = low[0]
    severity: Severity = "warning" if overall - rates[worst] >= FAR else "note"
    grouped = bool(len(units.of) < units.pictures.sum())
    rows = [
        f"{names[k]}: {percent(rates[k])} of {pictures[k]:,.0f} right{f' in {counts[k]:,} groups' * grouped}, "
        f"at most {percent(high[k])}"
        for k in low
    ]
    many = "classes" if what == "class" else "groups"
    message = (
        f"The {what} '{names[worst]}' is answered worse than the rest: {percent(rates[worst])} of its {pictures[worst]:,.0f} tested "
        f"pictures are right (at most {percent(high[worst])}, as one of {int(looked_at.sum()):,} {many}), of all tested pictures "
        f"{percent(overall)}."
    )
    if grouped:
        message += f" Pictures of one group count as one: it has {plural(int(counts[worst]), 'group')}."
    next_step = (
        "See in the report what it is taken for. Label more pictures of it, or merge it with what it cannot be told from."
        if what == "class"
        else "See what is different there: camera, light or place. Add pictures of it to the training side."
    )
    return [finding(f"weak_{what}", severity, message, next_step, rows)]


def upper(hits: NDArray[np.floating], counts: NDArray[np.integer], level: float) -> NDArray[np.float64]:
    """One-sided upper limits (K,) of shares `hits / counts` that hold with a chance of 1 - `level` (Clopper & Pearson 1934)."""
    missed = counts - hits
    return np.asarray(np.where(missed > 0, betaincinv(hits + 1, np.maximum(missed, 1e-9), 1 - level), 1.0))
