"""Single-label classification: its loss, its metrics as plain NumPy, and temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.tasks.task import Metric

if TYPE_CHECKING:
    from torch import Tensor

ECE_BINS = 15
# Models compute in float32, where no step at 1 is smaller; it bounds the log-loss of a sample by 16.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
TEMPERATURES = (0.02, 50.0)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits (N, K) to probabilities (N, K) float64, after division by `temperature`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Share of samples whose most probable class is the label. labels (N,), probabilities (N, K)."""
    return float((probabilities.argmax(1) == labels).mean())


def balanced_accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Mean recall over the classes present in the labels. labels (N,), probabilities (N, K)."""
    hits, support, _ = class_counts(labels, probabilities.argmax(1), probabilities.shape[1])
    present = support > 0
    return float((hits[present] / support[present]).mean())


def macro_f1(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Mean F1 over the classes present in the labels. labels (N,), probabilities (N, K)."""
    hits, support, predicted = class_counts(labels, probabilities.argmax(1), probabilities.shape[1])
    present = support > 0
    # F1 = 2 P R / (P + R) with P = hits/predicted and R = hits/support.
    return float((2 * hits[present] / (support + predicted)[present]).mean())


def log_loss(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Mean negative log-probability of the label, in nats. labels (N,), probabilities (N, K)."""
    return float(surprise(labels, probabilities).mean())


def ece(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Expected calibration error of the top label in 15 bins of equal width.

    labels (N,), probabilities (N, K). Guo et al. 2017, arXiv 1706.04599:
    Σ over bins of |Σ (right − confidence)| / N.
    """
    confidence = probabilities.max(1)
    gaps = (probabilities.argmax(1) == labels) - confidence
    return float(np.abs(np.bincount(confidence_bin(confidence), gaps, ECE_BINS)).sum() / len(labels))


def class_counts(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Per class: samples rightly predicted, samples labelled, samples predicted; each (K,) int64."""
    return (
        np.bincount(labels[labels == predicted], minlength=classes),
        np.bincount(labels, minlength=classes),
        np.bincount(predicted, minlength=classes),
    )


def surprise(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Negative log-probability (N,) of each label, in nats, clipped at `SMALLEST_PROBABILITY`."""
    held = np.asarray(probabilities[np.arange(len(labels)), labels], dtype=np.float64)
    return np.asarray(-np.log(np.clip(held, SMALLEST_PROBABILITY, 1.0)))


def confidence_bin(confidence: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bin (N,) int64 of each confidence (N,): bin m of M holds ((m−1)/M, m/M], counted from 0."""
    edges = np.arange(1, ECE_BINS) / ECE_BINS
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature T within `TEMPERATURES` that minimises the log-loss of softmax(logits / T).

    logits (N, K) held out or out of fold, labels (N,). Guo et al. 2017, section 4.2, with the prior of
    Platt (1999): one more sample whose label is unknown. Returns 1 where the temperature changes nothing.
    """
    from scipy.optimize import minimize_scalar

    # Only gaps to the label's logit matter: the loss of class k is log Σ_j exp((z_j − z_k) / T).
    given = np.asarray(logits, dtype=np.float64)
    gaps = given - given[np.arange(len(labels)), labels][:, None]
    if not gaps.any():
        return 1.0
    # Where every answer is right, the likelihood alone would ask for T = 0, and one later mistake would be
    # scored as if it could not happen. The unknown sample costs the mean over classes, and
    # loss_k − loss_label = −gap_k / T.
    unknown = float(-gaps.mean()) / (len(labels) + 1)

    def loss(log_temperature: float) -> float:
        scaled = gaps / np.exp(log_temperature)
        top = scaled.max(1)
        likelihood = float((top + np.log(np.exp(scaled - top[:, None]).sum(1))).mean())
        return likelihood + unknown / float(np.exp(log_temperature))

    # Convex in 1/T, hence with one valley in log T.
    low, high = (float(np.log(bound)) for bound in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "log_loss": log_loss,
        "ece": ece,
    }
)


@dataclass(frozen=True)
class Classification:
    """Each sample has exactly one of K classes."""

    name: str = "classification"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return _METRICS

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of logits (N, K) against targets (N,) int64, `smoothing` of it spread evenly."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, label_smoothing=smoothing)

    def probabilities(self, logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
        """Softmax of logits (N, K) after division by `temperature`."""
        return softmax(logits, temperature)

    def fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
        """See `fit_temperature`."""
        return fit_temperature(logits, labels)
