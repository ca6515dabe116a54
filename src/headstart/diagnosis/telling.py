"""How well unknown pictures are told: how many known ones that costs, and how many pictures of a class that was not taught are told.

One class at a time is left out of training, and its pictures are shown to what was learnt from the others. The head that stands in for
the race's is a ridge regression on the same stages, whose weights without any of the pictures are known in closed form; only the
scale of the features and the temperature have seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import subject
from headstart.intervals import exact_share
from headstart.model import Model
from headstart.proof import Proof
from headstart.race import Race
from headstart.solvers import BLOCK, one_hot, principal_axes, ridge_by_hat
from headstart.tasks.classification import fit_temperature
from headstart.unknown import Unknown, fit_unknown

SHOWN = 4  # classes that are left out in turn, the largest
FEWEST = 5  # pictures of such a class
EACH = 150  # and so many at most, where there are more than `MOST` in all
MOST = 1000  # pictures that take part
VERSION = 2  # of what is remembered


@dataclass(frozen=True)
class LeftOut:
    """A class that was left out of training, and the share of its `pictures` that are told as unknown."""

    name: str
    pictures: int
    told: float


@dataclass(frozen=True)
class Telling:
    """A picture is unknown where its strangeness is above `threshold`, so that about a share `wanted` of known ones is lost.

    `lost` is the share of the `tested` sealed pictures, None where there are none; `left_out` are classes, one at a time: none where
    there are too few, or too few pictures of each.
    """

    wanted: float
    threshold: float
    lost: float | None
    tested: int
    left_out: tuple[LeftOut, ...]

    @property
    def sentence(self) -> str:
        """Both shares in words."""
        found = []
        if self.lost is not None:
            lost = round(self.lost * self.tested)
            low, high = exact_share(lost, self.tested)
            found.append(
                f"loses {lost:,} of the {self.tested:,} sealed test pictures ({100 * low:.1f} to {100 * high:.1f} %)"
            )
        if self.left_out:
            found.append(self._of_others())
        words = f"A picture is unknown where at most {100 * self.wanted:g} % of known ones are as strange"
        return f"{words}: that {' and '.join(found)}." if found else f"{words}."

    def _of_others(self) -> str:
        told = [each.told for each in self.left_out]
        if len(told) == 1:
            return f"tells {100 * told[0]:.0f} % of the pictures of a class that was left out of training"
        return (
            f"tells {100 * float(np.mean(told)):.0f} % of the pictures of a class that was left out of training, on average over "
            f"{len(told)} classes left out in turn, {100 * min(told):.0f} to {100 * max(told):.0f} %"
        )


def telling(
    model: Model, heads: Race, features: Features, dataset: Dataset, proof: Proof, store: Store
) -> Telling | None:
    """How well the model tells unknown pictures; None where there were too few pictures to learn it from."""
    known, tested = model.unknown, len(dataset.indices("test"))
    if known is None:
        return None
    lost = None
    if tested:
        logits = proof.rivals["final"].calibrated
        unlike = 0
        for start in range(0, len(proof.indices), BLOCK):
            part = slice(start, start + BLOCK)
            seen = features.apart(known.taps, proof.indices[part])
            unlike += int((known.typicality(seen, logits[part]) <= known.lost).sum())
        lost = unlike / len(proof.indices)
    return Telling(known.lost, known.threshold, lost, tested, left_out(known, heads, features, dataset, store))


def left_out(known: Unknown, heads: Race, features: Features, dataset: Dataset, store: Store) -> tuple[LeftOut, ...]:
    """Leave out the largest classes, one at a time, and see how many of their pictures are told; found out once per store."""
    pool = heads.pool[_some(dataset.labels[heads.pool])]
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    counts, classes = np.bincount(labels), len(dataset.classes)
    chosen = [int(label) for label in np.argsort(-counts, kind="stable")[:SHOWN] if counts[label] >= FEWEST]
    if (counts > 0).sum() < 3:
        return ()
    ridge = max((score for score in heads.candidates if score.kind == "ridge"), key=lambda score: score.accuracy)
    spec = {
        **subject(features.table, features.rows[pool], labels, classes, folds),
        "beside": [other.table.folder.name for other in features.beside],
        "taps": known.taps, "read": heads.best.taps, "strength": ridge.strength, "lost": known.lost, "version": VERSION,
        "torch": torch.__version__,
    }  # fmt: skip
    memo = store.artifact("left_out", spec)
    stored = memo.load()
    if stored is None:
        told = _told(chosen, known, heads.best.taps, ridge.strength, features, (pool, labels, folds))
        memo.save({}, {"told": told})
    else:
        told = stored[1]["told"]
    return tuple(
        LeftOut(dataset.classes[label], int(counts[label]), float(share))
        for label, share in zip(chosen, told, strict=True)
        if not np.isnan(share)
    )


def _some(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of at most `MOST` of N pictures: the largest classes have their share, `EACH` at most, the others what is left."""
    if len(labels) <= MOST:
        return np.arange(len(labels))
    largest = np.argsort(-np.bincount(labels), kind="stable")[:SHOWN]
    first = np.concatenate([np.flatnonzero(labels == label)[:EACH] for label in largest])
    rest = np.flatnonzero(~np.isin(labels, largest))
    room = min(len(rest), MOST - len(first))
    return np.sort(np.concatenate([first, rest[np.arange(room) * len(rest) // max(1, room)]]))


def _told(
    chosen: Sequence[int],
    known: Unknown,
    taps: Sequence[int],
    strength: float,
    features: Features,
    pictures: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.float64]:
    """The share of each chosen class that is told, NaN where nothing could be learnt without it; a ridge of that strength, on the
    stages `taps`, answers."""
    pool, labels, folds = pictures
    seen, axes = features.apart(known.taps, pool), principal_axes(features.stages(taps, pool))
    targets = one_hot(labels, int(labels.max()) + 1, axes.z.device)
    parts = [folds == fold for fold in np.unique(folds)]

    def answers(outs: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
        """To the rows of each of `outs` by a regression on all others; the last answer counts."""
        places = [torch.from_numpy(np.flatnonzero(out)) for out in outs]
        (logits,) = ridge_by_hat(axes, targets, places, [strength * len(labels)])
        return logits.cpu().double().numpy()

    heat = fit_temperature(answers(parts), labels)
    found = np.full(len(chosen), np.nan)
    for place, label in enumerate(chosen):
        out = labels == label
        logits = np.delete(answers([*(part | out for part in parts), out]) / heat, label, axis=1)
        rest, apart = ([rows[part] for rows in seen] for part in (~out, out))
        learnt = fit_unknown(known.taps, rest, folds[~out], rest, folds[~out], logits[~out], labels[~out], known.lost)
        if learnt is not None:
            found[place] = (learnt.typicality(apart, logits[out]) <= known.lost).mean()
    return found
