"""How well unknown pictures are told: how many known ones that costs, and how many pictures of a class that was not taught are told.

One class at a time is left out of training, and its pictures are shown to what was learnt from the others. The head that stands in for
the race's is a ridge regression on the same stages: what it answers without any of the pictures is known in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.dataset import Dataset
from headstart.data.splits import thinned
from headstart.features.extract import Features
from headstart.heads import leaves
from headstart.model import Model
from headstart.proof import Proof
from headstart.race import Race
from headstart.solvers import one_hot, spread
from headstart.tasks.classification import fit_temperature
from headstart.unknown import Unknown, learn

SHOWN = 4  # classes that are left out in turn, the largest
FEWEST = 5  # pictures of such a class
MOST = 1000  # pictures that take part


@dataclass(frozen=True)
class LeftOut:
    """A class that was left out of training, and the share of its `pictures` that are told as unknown."""

    name: str
    pictures: int
    told: float


@dataclass(frozen=True)
class Telling:
    """A picture is unknown where its strangeness is above `threshold`, so that no more than a share `wanted` of known ones is lost.

    `lost` is the share of the `tested` sealed pictures, None where there are none; `left_out` are classes, one at a time: none where
    there are fewer than three.
    """

    wanted: float
    threshold: float
    lost: float | None
    tested: int
    left_out: tuple[LeftOut, ...]

    @property
    def sentence(self) -> str:
        """Both shares in words."""
        words = f"A picture is unknown where at most {100 * self.wanted:g} % of known ones are as strange"
        if self.lost is not None:
            words += f": that loses {100 * self.lost:.1f} % of the {self.tested:,} sealed test images"
        if self.left_out:
            told = float(np.mean([each.told for each in self.left_out]))
            words += f", and tells {100 * told:.0f} % of the pictures of a class that was left out of training"
        return f"{words}."


def telling(model: Model, heads: Race, features: Features, dataset: Dataset, proof: Proof) -> Telling | None:
    """How well the model tells unknown pictures; None where there were too few pictures to learn it from."""
    known, tested = model.unknown, len(dataset.indices("test"))
    if known is None:
        return None
    lost = None
    if tested:
        seen = [features.stages((tap,), proof.indices) for tap in known.taps]
        lost = float((known.typicality(seen, proof.rivals["final"].calibrated) <= known.lost).mean())
    return Telling(known.lost, known.threshold, lost, tested, left_out(known, heads, features, dataset))


def left_out(known: Unknown, heads: Race, features: Features, dataset: Dataset) -> tuple[LeftOut, ...]:
    """Leave out the largest classes, one at a time, and see how many of their pictures are told as unknown."""
    pool = heads.pool[thinned(dataset.labels[heads.pool], MOST)]
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    counts = np.bincount(labels)
    chosen = [int(label) for label in np.argsort(-counts, kind="stable")[:SHOWN] if counts[label] >= FEWEST]
    if (counts > 0).sum() < 3:
        return ()
    ridge, seen = _Ridge.of(heads, features, labels, pool), [features.stages((tap,), pool) for tap in known.taps]
    parts = [folds == fold for fold in np.unique(folds)]
    heat = fit_temperature(ridge.apart(parts), labels)
    found = []
    for label in chosen:
        out = labels == label
        logits = ridge.apart([*(part | out for part in parts), out]) / heat
        logits = np.delete(logits, label, axis=1)
        rest, apart = ([rows[part] for rows in seen] for part in (~out, out))
        learnt = learn(known.taps, rest, folds[~out], rest, folds[~out], logits[~out], labels[~out], known.lost)
        if learnt is not None:
            told = (learnt.typicality(apart, logits[out]) <= known.lost).mean()
            found.append(LeftOut(dataset.classes[label], int(out.sum()), float(told)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Ridge:
    """Ridge regression on N pictures: the hat matrix (N, N), one-hot targets (N, K) and residuals (N, K)."""

    hat: Tensor
    targets: Tensor
    residuals: Tensor

    @classmethod
    def of(cls, heads: Race, features: Features, labels: NDArray[np.int64], pool: NDArray[np.int64]) -> _Ridge:
        """On the stages that the race's winner reads; where it is made of several heads, each has the same say."""
        read = [leaf.taps for leaf, _ in leaves(heads.best)]
        gram = torch.zeros(len(pool), len(pool))
        for taps in read:
            rows = torch.from_numpy(features.stages(taps, pool))
            rows = (rows - rows.mean(0)) / (spread(rows) * rows.shape[1] ** 0.5)
            gram += rows @ rows.T / len(read)
        best = max((score for score in heads.candidates if score.kind == "ridge"), key=lambda score: score.accuracy)
        penalty, one = best.strength * len(pool), torch.eye(len(pool), dtype=torch.float64)
        # The rows are centred, so that the intercept, which is not penalised, adds 1/N.
        hat = one - penalty * torch.linalg.inv(gram.double() + penalty * one) + 1.0 / len(pool)
        targets = one_hot(labels, int(labels.max()) + 1, hat.device).double()
        return cls(hat, targets, targets - hat @ targets)

    def apart(self, outs: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
        """What is answered (N, K) for the rows of each of `outs` (N,) by a regression on all others; the last answer counts."""
        found = torch.empty_like(self.targets)
        for out in outs:
            rows = torch.from_numpy(np.flatnonzero(out))
            left = torch.eye(len(rows), dtype=torch.float64) - self.hat[rows][:, rows]
            found[rows] = self.targets[rows] - torch.linalg.solve(left, self.residuals[rows])
        return np.asarray(found.numpy())
