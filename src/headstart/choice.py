"""Choosing among ways of answering: when one is better than another beyond chance, and how much having been chosen flatters it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.tasks.classification import fit_temperature, softmax, surprise

Logits = NDArray[np.float32]
Weights = NDArray[np.float64]
SURE_GROUPS = 5  # of pictures: what fewer say may be said of them alone
_DRAWS = 400  # bootstrap samples; a choice is made anew in each


def numbered(groups: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Groups (N,) in any numbers, from 0 on; None where each picture stands alone."""
    group = np.unique(groups, return_inverse=True)[1]
    return None if group.max(initial=-1) + 1 == len(groups) else group


def mean_and_error(
    values: NDArray[np.float64], weight: Weights | None = None, group: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Mean of the values (N,) of pictures, and its standard error: over groups (N,), from 0 on, where there are any, and no less than
    over pictures. Fewer than `SURE_GROUPS` tell nothing for sure: the error is then no less than the mean."""
    if weight is None and group is None:
        return float(values.mean()), float(values.std() / max(1, len(values)) ** 0.5)
    weight = np.ones(len(values)) if weight is None else weight
    count = weight.sum()
    mean = weight @ values / count
    apart = values - mean
    error = float((weight @ apart**2) ** 0.5 / count)
    if group is not None:  # those of a group weigh the same
        first = np.unique(group, return_index=True)[1]
        several = len(first) / max(1, len(first) - 1)
        error = max(error, float((several * (weight[first] @ np.bincount(group, apart) ** 2)) ** 0.5 / count))
        if len(first) < SURE_GROUPS:
            error = max(error, abs(float(mean)))
    return float(mean), error


def paired_gain(
    a: Logits, b: Logits, labels: NDArray[np.int64], group: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Mean and standard error of the difference in accuracy, picture by picture, of logits `a` (N, K) over `b`; over groups (N,), from
    0 on, where there are any."""
    return mean_and_error((a.argmax(1) == labels).astype(float) - (b.argmax(1) == labels), None, group)


def clearly_better(a: Logits, b: Logits, labels: NDArray[np.int64], group: NDArray[np.int64] | None = None) -> bool:
    """Whether logits `a` (N, K) are right more often than `b`, by more than two standard errors and three pictures, or groups (N,),
    from 0 on, where there are any. The best of many is often ahead by one, and seldom stays so."""
    gain, error = paired_gain(a, b, labels, group)
    count = len(labels) if group is None else int(group.max(initial=0)) + 1
    return bool(gain > max(2 * error, 2.5 / count))


@dataclass(frozen=True, eq=False)
class Ways:
    """How C ways of answering do on N pictures, both (C, N) float64: which answers are `right`, and the `loss`, how surprised each is
    by the label, in nats.

    A `weight` (N,) says how often a picture counts: once without it, or as often as it was drawn in a bootstrap sample. Pictures of
    one `group` (N,), from 0 on, are right or wrong together: they are drawn together, and standard errors are over groups. None: each
    stands alone.
    """

    right: NDArray[np.float64]
    loss: NDArray[np.float64]
    group: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, logits: Sequence[Logits], labels: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> Ways:
        """Of logits (N, K) each, calibrated by the temperature that suits all of these pictures; `groups` (N,) in any numbers."""
        loss = [surprise(labels, softmax(each, fit_temperature(each, labels))) for each in logits]
        group = None if groups is None else numbered(groups)
        return cls(np.stack([(each.argmax(1) == labels).astype(float) for each in logits]), np.stack(loss), group)

    def gain(self, one: int, other: int, weight: Weights | None = None) -> tuple[float, float]:
        """Mean and standard error of the difference in accuracy, picture by picture."""
        return mean_and_error(self.right[one] - self.right[other], weight, self.group)

    def likelier(self, one: int, other: int, weight: Weights | None = None) -> tuple[float, float]:
        """By how many nats the first makes the labels likelier than the second, and the standard error."""
        return mean_and_error(self.loss[other] - self.loss[one], weight, self.group)

    def clearly_likelier(self, one: int, other: int, weight: Weights | None = None, errors: float = 1.0) -> bool:
        """Whether the first makes the labels likelier by more than `errors` standard errors."""
        gain, error = self.likelier(one, other, weight)
        return gain > errors * error

    def best(self, weight: Weights | None = None) -> int:
        """The way that is right most often, of equals the one that is least surprised."""
        count = np.ones(self.right.shape[1]) if weight is None else weight
        return int(np.lexsort((self.loss @ count, -(self.right @ count)))[0])

    def optimism(self, choose: Callable[[Weights | None], int]) -> tuple[float, float]:
        """Of the way that `choose` takes, in accuracy and in nats, at least 0: how much better it does, on pictures left out of
        bootstrap samples, than what these samples choose (`out_of_bag`)."""
        chosen = choose(None)
        right, loss = out_of_bag(
            choose, self.right - self.right[chosen], self.loss - self.loss[chosen], group=self.group
        )
        return max(0.0, -right), max(0.0, loss)


def out_of_bag(
    choose: Callable[[Weights], int], *values: NDArray[np.floating], group: NDArray[np.int64] | None = None
) -> list[float]:
    """Means of each of the `values` (C, N), of the way that is chosen, on pictures that did not choose; those of a `group` (N,) are
    drawn together.

    `choose` takes one of C ways by how often each picture was drawn (N,); what it takes is looked at on the pictures left out of that
    bootstrap sample (bootstrap bias-corrected cross-validation: Tsamardinos, Greasidou & Borboudakis 2018,
    doi 10.1007/s10994-018-5714-4).
    """
    size, draw = values[0].shape[1], np.random.default_rng(0)
    group = np.arange(size) if group is None else group
    count = int(group.max(initial=-1)) + 1
    found: list[list[float]] = []
    for _ in range(_DRAWS):
        inside = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float64)[group]
        outside = inside == 0
        if outside.any():
            pick = choose(inside)
            found.append([float(value[pick, outside].mean()) for value in values])
    if not found:  # a single picture is left out of no sample
        found.append([float(value[choose(np.ones(size))].mean()) for value in values])
    return [float(mean) for mean in np.mean(found, axis=0)]
