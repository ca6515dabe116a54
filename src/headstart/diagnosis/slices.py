"""The worst slice: a class, or a group that the person gave, that the final model answers surely worse than the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from headstart.data.audit import Finding, Severity, finding
from headstart.data.dataset import Dataset
from headstart.verdict import percent

LEVEL = 0.05  # chance of naming any slice, were all answered equally well
FEWEST = 10  # tested pictures of a group that is looked at
FAR = 0.10  # share by which a slice lies below all pictures from which it is a warning


def slices(dataset: Dataset, indices: NDArray[np.int64], answers: NDArray[np.int64]) -> tuple[Finding, ...]:
    """The classes and the given groups that lie surely below the accuracy on all tested pictures.

    `indices` (M,) are the tested pictures, once per repeat, and `answers` (M,) what the final model took them for.
    """
    right = (answers == dataset.labels[indices]).astype(float)
    # Repeated cross-validation answers each picture several times: it counts as one picture, right in a share of them.
    tested, place = np.unique(indices, return_inverse=True)
    share = np.bincount(place, right) / np.bincount(place)
    found = _worst("class", dataset.labels[tested], dataset.classes, share, 1)
    if dataset.particulars is not None and any(dataset.particulars.groups):
        names, group = np.unique(np.array(dataset.particulars.groups)[tested], return_inverse=True)
        found += _worst("group", group, names.tolist(), share, FEWEST)
    return tuple(found)


def _worst(
    what: str, member: NDArray[np.int64], names: Sequence[str], share: NDArray[np.float64], fewest: int
) -> list[Finding]:
    """`member` (N,) numbers the slice of each picture by its name, `share` (N,) says how often it was answered rightly."""
    counts = np.bincount(member, minlength=len(names))
    hits = np.bincount(member, share, minlength=len(names)).astype(float)
    looked_at = np.array([bool(name) and count >= fewest for name, count in zip(names, counts, strict=True)])
    if looked_at.sum() < 2:
        return []
    high, overall = upper(hits, counts, LEVEL / int(looked_at.sum())), float(share.mean())
    rates = hits / np.maximum(counts, 1)
    low = sorted(np.flatnonzero(looked_at & (high < overall)).tolist(), key=lambda k: rates[k])
    if not low:
        return []
    worst = low[0]
    severity: Severity = "warning" if overall - rates[worst] >= FAR else "note"
    rows = [f"{names[k]}: {percent(rates[k])} of {counts[k]:,} right, at most {percent(high[k])}" for k in low]
    many = "classes" if what == "class" else "groups"
    message = (
        f"The {what} '{names[worst]}' is answered worse than the rest: {percent(rates[worst])} of its {counts[worst]:,} tested "
        f"pictures are right (at most {percent(high[worst])}, as one of {int(looked_at.sum()):,} {many}), of all tested pictures "
        f"{percent(overall)}."
    )
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
