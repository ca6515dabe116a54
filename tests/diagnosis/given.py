"""Data sets and races that the tests of this room are made of: labels, folds and features as a test wants them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Particulars
from headstart.data.sources import ArrayImages
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import Score
from headstart.race import Race

Labels = NDArray[np.int64]


def dataset_of(
    labels: Labels,
    *,
    pictures: NDArray[np.uint8] | None = None,
    tested: NDArray[np.bool_] | None = None,
    folds: Labels | None = None,
    groups: tuple[str, ...] | None = None,
    together: Labels | None = None,
    sizes: Labels | None = None,
    formats: tuple[str, ...] | None = None,
) -> Dataset:
    """N pictures with these labels (N,); five folds in turn, and no test set unless it is said which are `tested` (N,); each
    alone unless `together` (N,) says which groups they are of, whoever found them."""
    count, classes = len(labels), int(labels.max()) + 1
    pixels = np.zeros((count, 1, 1, 3), np.uint8) if pictures is None else pictures
    sealed = np.zeros(count, bool) if tested is None else tested
    return Dataset(
        ArrayImages(pixels, tuple(f"picture {place}" for place in range(count)), tuple(range(count))),
        labels,
        tuple("abcdefghij"[:classes]),
        np.where(sealed, "test", "train"),
        np.where(sealed, -1, np.arange(count) // classes % 5 if folds is None else folds),
        np.arange(count) if together is None else together,
        tuple(hashlib.blake2b(f"{place:09d}".encode(), digest_size=32).hexdigest() for place in range(count)),
        "made up",
        particulars=Particulars(
            np.full((count, 2), 64) if sizes is None else sizes,
            ("PNG, RGB",) * count if formats is None else formats,
            ("",) * count if groups is None else groups,
        ),
    )


def raced(dataset: Dataset, right: float = 0.9) -> Race:
    """A race whose winner is right for this share of the training pictures, out of fold."""
    pool, classes = dataset.indices("train"), len(dataset.classes)
    labels = dataset.labels[pool]
    wrong = np.arange(len(pool)) >= round(right * len(pool))
    logits = 4 * np.eye(classes, dtype=np.float32)[(labels + wrong) % classes]
    best = Score("logistic", (0,), 1e-4, right, 0.01, 0.3, 0.01, logits)
    return Race((best,), best, best, (best,), right, "", pool)


def featured(dataset: Dataset, raw: NDArray[np.float32], store: Store) -> Features:
    """Features (N, D) of one stage."""
    table = store.table("pooled", {"made": "up"}, "float32", raw.shape[1])
    table.append(dataset.digests, raw)
    return Features(table, table.locate(dataset.digests), (raw.shape[1],))
