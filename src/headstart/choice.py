"""Choosing among heads: when one is better than another beyond chance, and what to expect of the best of many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headstart.tasks.classification import fit_temperature, softmax, surprise

Logits = NDArray[np.float32]
_DRAWS = 400  # bootstrap samples; the choice among heads is made anew in each


def paired_gain(a: Logits, b: Logits, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard error of the difference in accuracy, picture by picture, of logits `a` (N, K) over `b`."""
    difference = (a.argmax(1) == labels).astype(float) - (b.argmax(1) == labels).astype(float)
    return float(difference.mean()), float(difference.std() / max(1, len(labels)) ** 0.5)


def clearly_better(a: Logits, b: Logits, labels: NDArray[np.int64], errors: float = 1.0) -> bool:
    """Whether logits `a` (N, K) are right more often than `b`, by more than `errors` standard errors and three pictures."""
    gain, error = paired_gain(a, b, labels)
    return bool(gain > max(errors * error, 2.5 / len(labels)))


def likelier(a: Logits, b: Logits, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard error of the difference in log-likelihood of the labels, in nats, picture by picture: logits `a` (N, K) less
    `b`, both calibrated."""
    losses = [surprise(labels, softmax(logits, fit_temperature(logits, labels))) for logits in (b, a)]
    gain = losses[0] - losses[1]
    return float(gain.mean()), float(gain.std() / max(1, len(labels)) ** 0.5)


def clearly_likelier(a: Logits, b: Logits, labels: NDArray[np.int64], errors: float = 1.0) -> bool:
    """Whether logits `a` (N, K), calibrated, make the labels likelier than `b` do, by more than `errors` standard errors."""
    gain, error = likelier(a, b, labels)
    return gain > errors * error


def choice_out_of_bag(right: NDArray[np.bool_], loss: NDArray[np.float32], draws: int = _DRAWS) -> float:
    """Accuracy of choosing the best of C candidates, on pictures that did not choose.

    `right` and `loss` (N, C): whether each candidate's out-of-fold answer is right, and its log-loss. Each bootstrap sample of
    the pictures picks the candidate that ranks first on it, and sees how that one does on the pictures left out (bootstrap
    bias-corrected cross-validation: Tsamardinos, Greasidou & Borboudakis 2018, doi 10.1007/s10994-018-5714-4).
    """
    count, draw = len(right), np.random.default_rng(0)
    hits, losses, found = right.astype(np.float32), loss.astype(np.float32), []
    for _ in range(draws):
        inside = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float32)
        outside = inside == 0
        if outside.any():
            pick = np.lexsort((inside @ losses, -(inside @ hits)))[0]
            found.append(right[outside, pick].mean())
    return float(np.mean(found))
