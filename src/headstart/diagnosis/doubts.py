"""Labels worth a second look: training pictures that the best frozen head answers against their label, not having seen them.

Ranked by the probability out of fold of the label that was given ("self-confidence", Northcutt et al. 2021, Confident Learning,
arXiv 1911.00068). By the same work an answer against a label is confident where the class is at least as probable as it is, on the
mean, for the pictures that have it as their label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.race import Race
from headstart.tasks.classification import fit_temperature, softmax

_SURE = 0.75  # three to one against all other classes: where the head is weak, what is usual says little

FLOOD = 0.2  # share of the pictures beyond which it is the head that is to be doubted, and not their labels


@dataclass(frozen=True)
class Doubt:
    """A picture of the data set, by its `index`: calibrated probability of the label it has, and of the class that it looks like;
    whether that one is answered with confidence."""

    index: int
    label_probability: float
    suggested: int
    suggested_probability: float
    confident: bool


def doubts(heads: Race, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> tuple[Doubt, ...]:
    """The doubtful ones among the pictures that raced, the most doubtful first; `labels` and `folds` (N,) are those of the whole
    data set.

    Some are wrong labels, more so where the answer is confident; the others are hard pictures: only a person can tell. A class that
    lies in one fold is never answered for its own pictures: that says nothing about their labels, nor how probable it usually is.
    """
    given = labels[heads.pool]
    logits = heads.best.logits
    shares = softmax(logits.astype(np.float64) / fit_temperature(logits, given))
    own, answered = shares[np.arange(len(given)), given], shares.argmax(1)
    fold, classes = folds[heads.pool], range(int(given.max(initial=-1)) + 1)
    known = np.array([len(np.unique(fold[given == label])) > 1 for label in classes], bool)
    usual = np.array([shares[given == label, label].mean() if known[label] else np.inf for label in classes])
    against = np.flatnonzero((answered != given) & known[given])
    return tuple(
        Doubt(
            int(heads.pool[place]),
            float(own[place]),
            int(answered[place]),
            float(shares[place].max()),
            bool(shares[place].max() >= max(_SURE, usual[answered[place]])),
        )
        for place in against[np.argsort(own[against], kind="stable")]
    )


def listed(found: tuple[Doubt, ...], heads: Race, labels: NDArray[np.int64]) -> tuple[Doubt, ...]:
    """Of all doubtful ones those that are worth a look: the confident ones alone where all would be a `FLOOD`, and none where the head
    is no better than the commonest class; `labels` (N,) are those of the whole data set."""
    if not knows(heads, labels):
        return ()
    return tuple(doubt for doubt in found if doubt.confident or len(found) <= FLOOD * len(heads.pool))


def knows(heads: Race, labels: NDArray[np.int64]) -> bool:
    """Whether the best frozen head is right more often than the commonest class would be; `labels` (N,) as above."""
    return bool(heads.accuracy > np.bincount(labels[heads.pool]).max(initial=0) / max(1, len(heads.pool)))
