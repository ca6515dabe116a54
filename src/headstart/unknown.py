"""Pictures of none of the classes: told by being less like the training pictures than nearly all of these are.

Two sorts of things are looked at. What is altogether different has features far from those of the training pictures, in stages that no
training has touched (Mahalanobis distance, Lee et al. 2018, arXiv 1807.03888). What resembles a class has an answer that is undecided,
by its entropy, or whose logits lie between those of the classes rather than with one of them (relative Mahalanobis distance, Ren et
al. 2021, arXiv 2106.09022). Each is scaled by what it is on pictures that the judge has not seen; what is beyond the usual adds up,
within a sort and then over both, to the strangeness of a picture. How strange known pictures are is taken from the same held-out
pictures, so that about a chosen share of known ones is lost. For that a new picture has to be judged as they were: by those who saw
four folds of five, each in turn (in the manner of Barber et al. 2021, Predictive Inference with the Jackknife+, arXiv 1905.02928).
`benchmarks/unknown.py` sets this beside other scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.data.splits import thinned
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import subject
from headstart.race import RACED
from headstart.solvers import principal_axes
from headstart.tasks.classification import softmax

LOST = 0.05  # share of known pictures that may be taken for unknown
_VERSION = 2  # of what is learnt, as a store remembers it
SHRINKAGE = 0.1  # of variances along the axes, towards their mean
AXES = 64  # along which a variance is known; across all others they are taken to be equal
_TURNS = 5  # parts of the held-out pictures, each judged by the logits of the others
Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Cloud:
    """One stage's Gaussians, one for each of F folds, around the rows of the others: D numbers a row, k axes.

    `mean` and `scale` (F, D), `axes` (F, D, k) orthonormal after scaling, and `weights` (F, k + 1): one over the variance along each
    axis, and across all others. All are float32.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    axes: NDArray[np.float32]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Floats, folds: NDArray[np.int64]) -> Cloud:
        """Around rows (N, D), leaving out each fold (N,) in turn."""
        each, sizes = np.unique(folds, return_counts=True)
        axes = min(AXES, rows.shape[1], len(rows) - int(sizes.max()) - 1)
        found = [_gaussian(rows[folds != fold], axes) for fold in each]
        return cls(*(np.ascontiguousarray(np.stack(part), np.float32) for part in zip(*found, strict=True)))

    def squared(self, rows: Floats) -> NDArray[np.float64]:
        """Squared Mahalanobis distances (F, N) of rows (N, D), divided by D."""
        found = np.empty((len(self.mean), len(rows)))
        for fold, (mean, scale, axes, weights) in enumerate(
            zip(self.mean, self.scale, self.axes, self.weights, strict=True)
        ):
            apart = np.asarray((rows - mean) / scale, np.float32)
            # By torch: NumPy's own threads would fight with those that predict.
            along = np.square((torch.from_numpy(apart) @ torch.from_numpy(axes)).numpy())
            across = np.maximum(np.square(apart).sum(1) - along.sum(1), 0.0)
            found[fold] = (along @ weights[:-1] + across * weights[-1]) / rows.shape[1]
        return found


def _gaussian(rows: Floats, axes: int) -> tuple[NDArray[np.floating], ...]:
    """Mean, scale, axes and weights of rows (N, D); an axis along which nothing varies is zero."""
    found, width = principal_axes(rows), rows.shape[1]
    count, freedom = min(axes, len(found.power)), max(1, len(rows) - 1)
    directions, along = np.zeros((width, axes)), np.zeros(axes)
    directions[:, :count] = found.onto(torch.eye(len(found.power), device=found.z.device)[:, -count:]).cpu()
    along[:count] = found.power[-count:].cpu() / freedom
    whole = float(found.power.sum()) / freedom
    across = max(0.0, whole - along.sum()) / max(1, width - axes)
    variances = (1 - SHRINKAGE) * np.append(along, across) + SHRINKAGE * whole / width
    return found.mean.cpu().numpy(), found.scale.cpu().numpy(), directions, 1.0 / np.maximum(variances, 1e-12)


@dataclass(frozen=True, eq=False)
class Answers:
    """Gaussians around logits: one of each of C classes, with one covariance, and one around all together. K logits a picture.

    The `mean` (K,) of all logits is taken; after `within` and `together` (K, K) the covariances are one, and `centres` (C, K) are
    after `within`. All are float32.
    """

    mean: NDArray[np.float32]
    centres: NDArray[np.float32]
    within: NDArray[np.float32]
    together: NDArray[np.float32]

    @classmethod
    def of(cls, logits: Floats, labels: NDArray[np.int64]) -> Answers:
        """Around logits (N, K) of labels (N,)."""
        rows = _centred(logits)
        mean, (_, place) = rows.mean(0), np.unique(labels, return_inverse=True)
        rows = rows - mean
        centres = np.stack([rows[place == each].mean(0) for each in range(place.max() + 1)])
        within = _whitening(rows - centres[place], len(centres))
        found = (mean, centres @ within, within, _whitening(rows, 1))
        return cls(*(np.ascontiguousarray(part, np.float32) for part in found))

    def relative(self, logits: Floats) -> NDArray[np.float64]:
        """Squared distance (N,) of logits (N, K) from the nearest class less that from all together."""
        rows = _centred(logits) - self.mean
        points, centres = rows @ self.within, self.centres.astype(np.float64)
        apart = np.square(points).sum(1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(1)
        return np.asarray(apart.min(1) - np.square(rows @ self.together).sum(1))


def _centred(logits: Floats) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    return np.asarray(rows - rows.mean(1, keepdims=True))


def _whitening(rest: NDArray[np.float64], centres: int) -> NDArray[np.float64]:
    """What makes the covariance of rows (N, K), from which so many centres were taken, one; shrunk towards equal variances."""
    covariance = rest.T @ rest / max(1, len(rest) - centres)
    evenly = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * evenly * np.eye(len(covariance))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)).T)


@dataclass(frozen=True, eq=False)
class Unknown:
    """What known pictures are like: a cloud for each of the stages `taps`, counted through all backbones, and their answers.

    `scales` (taps + 4, 2): the median of each thing that is looked at, and how far from there the share `lost` of held-out pictures
    begins; the things are the distance at each stage, entropy and relative distance of the logits, and the sums of both sorts.
    `held` (M,): the strangeness of held-out pictures in ascending order. Both are float32.
    """

    taps: tuple[int, ...]
    lost: float
    clouds: tuple[Cloud, ...]
    answers: Answers
    scales: NDArray[np.float32]
    held: NDArray[np.float32]

    @classmethod
    def of(cls, taps: tuple[int, ...], lost: float, arrays: Mapping[str, NDArray[np.float32]]) -> Unknown:
        """What `arrays` came from."""
        clouds = tuple(Cloud(*(arrays[f"{tap}.{part}"] for part in _parts(Cloud))) for tap in taps)
        answers = Answers(*(arrays[f"answers.{part}"] for part in _parts(Answers)))
        return cls(taps, lost, clouds, answers, arrays["scales"], arrays["held"])

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All numbers by name."""
        named = [*zip(map(str, self.taps), self.clouds, strict=True), ("answers", self.answers)]
        parts = {f"{name}.{part}": getattr(each, part) for name, each in named for part in _parts(type(each))}
        return {**parts, "scales": self.scales, "held": self.held}

    @property
    def threshold(self) -> float:
        """The strangeness above which a picture is unknown."""
        # The share of held-out pictures above it is so chosen that one more known picture lies there with probability `lost` at most.
        return float(self.held[int(np.ceil((len(self.held) + 1) * (1 - self.lost))) - 1])

    def strangeness(self, stages: Sequence[Floats], logits: Floats) -> NDArray[np.float32]:
        """How unlike known pictures N pictures are (N,), from their pooled features at each tap and calibrated logits (N, K)."""
        distances = [cloud.squared(rows).mean(0) for cloud, rows in zip(self.clouds, stages, strict=True)]
        looked = np.stack([*distances, _entropy(logits), self.answers.relative(logits)], 1)
        sorts = _sorts(looked, self.scales[:-2])
        return _beyond(sorts, self.scales[-2:]).astype(np.float32)

    def typicality(self, stages: Sequence[Floats], logits: Floats) -> NDArray[np.float64]:
        """The share (N,) of known pictures that are at least as strange; a picture is unknown where it is `lost` or less."""
        above = len(self.held) - np.searchsorted(self.held, self.strangeness(stages, logits), side="left")
        return np.asarray((1 + above) / (1 + len(self.held)))


def looked_at(untouched: Sequence[range]) -> tuple[int, ...]:
    """The stages whose features are looked at: of those of each backbone that no training has touched, the later half.

    Features of a stage that was trained lie closer together on pictures that trained it than on any others.
    """
    return tuple(tap for stages in untouched for tap in stages[len(stages) // 2 :])


def learn(
    features: Features,
    dataset: Dataset,
    frozen: int,
    pool: NDArray[np.int64],
    held: NDArray[np.int64],
    logits: Floats,
    store: Store,
) -> Unknown | None:
    """What known pictures are like, from training pictures `pool` (N,) and calibrated logits (M, K) of held-out ones `held` (M,).

    Both are indices into the data set. The first `frozen` stages of the first backbone, and all of others, are untouched. Learnt once
    per store.
    """
    if len(held) > RACED:
        some = thinned(dataset.labels[held], RACED)
        held, logits = held[some], logits[some]
    taps = looked_at([range(frozen), *features.spans[1:]])
    labels, folds, held_folds = dataset.labels[held], dataset.fold[pool], dataset.fold[held]
    spec = {
        **subject(features.table, features.rows[held], labels, len(dataset.classes), held_folds, logits),
        "trained": features.table.content(features.rows[pool]), "folds": folds.tolist(), "taps": taps, "lost": LOST,
        "beside": [other.table.folder.name for other in features.beside], "version": _VERSION, "torch": torch.__version__,
    }  # fmt: skip
    memo = store.artifact("unknown", spec)
    stored = memo.load()
    if stored is not None:
        return Unknown.of(taps, LOST, stored[1]) if stored[1] else None
    trained = features.apart(taps, pool)
    asked = trained if held is pool else features.apart(taps, held)
    known = fit_unknown(taps, trained, folds, asked, held_folds, logits, labels)
    memo.save({}, {} if known is None else known.arrays)
    return known


def fit_unknown(
    taps: tuple[int, ...],
    trained: Sequence[Floats],
    folds: NDArray[np.int64],
    held: Sequence[Floats],
    held_folds: NDArray[np.int64],
    logits: Floats,
    labels: NDArray[np.int64],
    lost: float = LOST,
) -> Unknown | None:
    """What known pictures are like, from held-out answers; None where there are too few of them to lose so small a share.

    `trained` and `held` are pooled features at each of the stages `taps`, (N, D) and (M, D) each, with the folds (N,) and (M,) that
    they lie in; -1 where a held-out picture is no training picture. Calibrated `logits` (M, K) and `labels` (M,) are of the held-out
    pictures.
    """
    sizes = np.unique(folds, return_counts=True)[1]
    if (len(logits) + 1) * lost < 1 or len(folds) - sizes.max() < 2:
        return None
    # A training picture is judged by the one Gaussian that has not seen it, as the head that answered had not.
    unseen = held_folds[None, :] == np.unique(folds)[:, None]
    unseen |= ~unseen.any(0)
    clouds = tuple(Cloud.of(rows, folds) for rows in trained)
    distances = [
        np.average(cloud.squared(rows), axis=0, weights=unseen) for cloud, rows in zip(clouds, held, strict=True)
    ]
    relative, turn = np.empty(len(labels)), np.arange(len(labels)) % _TURNS
    for each in range(_TURNS):
        relative[turn == each] = Answers.of(logits[turn != each], labels[turn != each]).relative(logits[turn == each])
    looked = np.stack([*distances, _entropy(logits), relative], 1)
    scales = _scales(looked, lost)
    sorts = _sorts(looked, scales)
    both = _scales(sorts, lost)
    known = np.sort(_beyond(sorts, both).astype(np.float32))
    return Unknown(taps, lost, clouds, Answers.of(logits, labels), np.concatenate([scales, both]), known)


def _parts(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _entropy(logits: Floats) -> NDArray[np.float64]:
    """Of the answers, in nats: (N,)."""
    probabilities = softmax(logits.astype(np.float64))
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))).sum(1))


def _scales(found: NDArray[np.float64], lost: float) -> NDArray[np.float32]:
    """The median of each thing (N, T), and how far from there the share `lost` begins: (T, 2)."""
    middle = np.median(found, axis=0)
    reach = np.maximum(np.quantile(found, 1 - lost, axis=0) - middle, 1e-6)
    return np.stack([middle, reach], 1).astype(np.float32)


def _beyond(found: NDArray[np.float64], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    """What is above the median of each thing (N, T), in units of where the share that may be lost begins, added up: (N,)."""
    return np.asarray(np.maximum((found - scales[:, 0]) / scales[:, 1], 0.0).sum(1))


def _sorts(looked: NDArray[np.float64], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    """What features and what answers have beyond the usual: (N, 2). The last two things that are looked at are of answers."""
    return np.stack([_beyond(looked[:, part], scales[part]) for part in (slice(-2), slice(-2, None))], 1)
