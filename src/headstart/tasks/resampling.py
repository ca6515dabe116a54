"""The metrics of classification on thousands of bootstrap resamples at once.

Every metric is a function of sums over images. So a resample is a vector that counts how often it holds each
image, a block of resamples is a matrix, and all metrics of a model come from one sparse product per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from headstart.tasks.classification import ECE_BINS, confidence_bin, surprise

Beliefs = Mapping[str, NDArray[np.floating]]
Draws = Mapping[str, NDArray[np.float64]]
_BLOCK = 4_000_000  # numbers in the counts of one block of resamples: 32 MB


def bootstrap(
    labels: NDArray[np.int64], beliefs: Beliefs, raw: Beliefs, groups: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Draws]:
    """Every metric of every model on the same resamples of the images: name -> metric -> (resamples,).

    labels (N,) int64; beliefs, and raw for "ece_uncalibrated", (N, K); row i belongs to image i mod M. `groups` (M,) int64, from 0
    on: images of a group are drawn together (cluster bootstrap, Davison & Hinkley 1997, 3.8).
    """
    images, together = len(groups), int(groups.max()) + 1
    classes = next(iter(beliefs.values())).shape[1]
    place = np.arange(len(labels)) % images
    by_class = sparse.csr_array((np.ones(len(labels)), (labels, place)), shape=(classes, images))
    sums = {name: _columns(labels, belief, place, images) for name, belief in beliefs.items()}
    gaps = {name: _gaps(labels, belief, place, images) for name, belief in raw.items()}
    drawn: dict[str, dict[str, list[NDArray[np.float64]]]] = {name: {} for name in beliefs}
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, _BLOCK // max(images, 2 * classes)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # counts[i, r]: how often resample r holds image i.
        flat = rng.integers(0, together, (size, together)) * size + np.arange(size)[:, None]
        drawn_groups = np.bincount(flat.ravel(), minlength=together * size).reshape(together, size)
        counts = drawn_groups.astype(np.float64)[groups]
        support = by_class @ counts
        for name in beliefs:
            found = _metrics(sums[name] @ counts, support)
            if name in gaps:
                found["ece_uncalibrated"] = np.abs(gaps[name] @ counts).sum(0) / support.sum(0)
            for metric, values in found.items():
                drawn[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(parts) for metric, parts in metrics.items()} for name, metrics in drawn.items()
    }


def _columns(labels: NDArray[np.int64], belief: NDArray[Any], place: NDArray[np.int64], images: int) -> Any:
    """Sparse (1 + bins + 2 K, images): log-loss, confidence gaps, hits per class, predictions per class."""
    classes, predicted = belief.shape[1], belief.argmax(1)
    right = np.flatnonzero(predicted == labels)
    losses = sparse.csr_array((surprise(labels, belief), (np.zeros(len(labels), int), place)), shape=(1, images))
    hits = sparse.csr_array((np.ones(len(right)), (labels[right], place[right])), shape=(classes, images))
    calls = sparse.csr_array((np.ones(len(labels)), (predicted, place)), shape=(classes, images))
    return sparse.vstack([losses, _gaps(labels, belief, place, images), hits, calls], format="csr")


def _gaps(labels: NDArray[np.int64], belief: NDArray[Any], place: NDArray[np.int64], images: int) -> Any:
    """Sparse (bins, images): right minus confidence, in the row of the confidence's bin."""
    confidence = belief.max(1).astype(np.float64)
    gap = (belief.argmax(1) == labels) - confidence
    bins = confidence_bin(confidence)
    return sparse.csr_array((gap, (bins, place)), shape=(ECE_BINS, images))


def _metrics(sums: NDArray[np.float64], support: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """From sums (1 + bins + 2 K, R) and class support (K, R) to metrics (R,) each."""
    classes, bins, rows = len(support), ECE_BINS, support.sum(0)
    hits, calls = sums[1 + bins : 1 + bins + classes], sums[1 + bins + classes :]
    present = (support > 0).sum(0)  # a class that a resample lacks has no hits: it adds 0 to the sums below
    return {
        "accuracy": hits.sum(0) / rows,
        "balanced_accuracy": (hits / np.maximum(support, 1)).sum(0) / present,
        "macro_f1": (2 * hits / np.maximum(support + calls, 1)).sum(0) / present,
        "log_loss": sums[0] / rows,
        "ece": np.abs(sums[1 : 1 + bins]).sum(0) / rows,
    }
