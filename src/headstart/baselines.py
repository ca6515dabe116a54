"""What a person would have without a pretrained network: the majority class, and a linear model on pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.data.images import Transform
from headstart.data.splits import thinned
from headstart.features.extract import batches
from headstart.features.store import Store
from headstart.features.table import Table
from headstart.heads import Head, Kind, fit_head, logistic_scores, ridge_scores, subject
from headstart.solvers import SOLVER, principal_axes
from headstart.tasks.classification import fit_temperature

_STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the L2 penalty on pixels, which are less to the point than features
PIXELS = 20_000  # pictures that the linear model on pixels is fitted to at most: it has 769 numbers a class to learn
# Pictures times classes up to which that is logistic regression: 600 classes of four pictures would take it minutes.
ANSWERS = 250_000
_STRENGTH = 1e-3  # of ridge regression, beyond: the best of 1e-2 to 1e-6 on four data sets of five


def majority_logits(labels: NDArray[np.int64], classes: int, count: int) -> NDArray[np.float32]:
    """Logits (count, K) of always answering with the class shares of the training labels."""
    shares = np.bincount(labels, minlength=classes) + 0.5
    return np.tile(np.log(shares / shares.sum()).astype(np.float32), (count, 1))


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small squares of every picture, kept in the store: `rows` (N,) in a table of side² × 3 uint8 values."""

    table: Table
    rows: NDArray[np.int64]
    side: int

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures (M, side, side, 3) uint8."""
        return self.table.read(self.rows[indices]).reshape(-1, self.side, self.side, 3)


def thumbnails(
    dataset: Dataset, store: Store, *, side: int = 64, progress: runtime.Progress = runtime.silent
) -> Thumbnails:
    """Every picture at `side` × `side` pixels, centre-cropped to a square; decoded once per content."""
    transform = Transform(size=(side, side), interpolation="bilinear", crop=1.0)
    table = store.table("thumbnails", {"transform": transform.fingerprint}, "uint8", side * side * 3)
    missing = table.missing(dataset.digests)
    if missing:
        with progress("Making thumbnails", len(missing)) as advance:
            for chunk, pictures in batches(dataset.images, missing, [transform], lambda x: x, size=128):
                table.append([dataset.digests[i] for i in chunk], pictures.reshape(len(chunk), -1))
                advance(len(chunk))
    return Thumbnails(table, table.locate(dataset.digests), side)


def pixel_features(pictures: NDArray[np.uint8], side: int = 16) -> NDArray[np.float32]:
    """Square pictures (N, S, S, 3) uint8 averaged to (N, side² · 3) float32 in [0, 1]."""
    n, size = pictures.shape[0], pictures.shape[1]
    block = size // side
    small = pictures.reshape(n, side, block, side, block, 3).mean(axis=(2, 4), dtype=np.float32)
    return np.asarray(small.reshape(n, -1) / np.float32(255), dtype=np.float32)


def fit_pixels(
    thumbs: Thumbnails,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    store: Store,
    progress: runtime.Progress = runtime.silent,
) -> tuple[Head, float]:
    """L2-logistic regression on 16 × 16 pixels of up to `PIXELS` pictures, its strength cross-validated; the head, and the
    temperature that suits its out-of-fold answers. Ridge regression at one strength, which is solved at once, where that is more than
    `ANSWERS`."""
    chosen = thinned(labels, PIXELS)
    labels, folds, pool = labels[chosen], folds[chosen], pool[chosen]
    many = len(labels) * classes > ANSWERS
    kind: Kind = "ridge" if many else "logistic"
    spec = {
        **subject(thumbs.table, thumbs.rows[pool], labels, classes, folds),
        "solver": [_STRENGTH if many else _STRENGTHS, *SOLVER],
    }
    memo = store.artifact("pixels", spec)
    stored = memo.load()
    if stored is not None:
        record, arrays = stored
        return Head(kind, (0,), record["strength"], arrays["weight"], arrays["bias"]), record["temperature"]
    with progress("Linear model on pixels", 2, "fits") as advance:
        features = pixel_features(thumbs.read(pool))
        given = principal_axes(features), labels, folds, classes, (0,)
        found = ridge_scores(*given, strengths=(_STRENGTH,)) if many else logistic_scores(*given, strengths=_STRENGTHS)
        score = found[0]
        advance(1)
        head = fit_head(features, labels, classes, kind, (0,), score.strength, score.temperature)
        heat = fit_temperature(score.logits, labels)
        advance(1)
    memo.save({"strength": score.strength, "temperature": heat}, {"weight": head.weight, "bias": head.bias})
    return head, heat
