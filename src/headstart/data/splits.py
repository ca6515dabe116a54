"""Stratified, group-aware, seeded assignment to test and folds, whatever the order of the pictures."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def thinned(labels: NDArray[np.int64], most: int, each: int = 20) -> NDArray[np.int64]:
    """Positions (M,) of about `most` of N pictures, of each class its share, but no fewer than `each` while it has as many; all of
    them where there are no more. Of each class the first are taken: give them in an order that means nothing."""
    if len(labels) <= most:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    quota = np.maximum(np.ceil(counts * most / len(labels)), np.minimum(counts, each))
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.flatnonzero(rank < quota[labels])


def least_each(most: int, classes: int) -> int:
    """Pictures of each class that a sample of about `most` holds at least: 20, or of very many classes fewer, but one for each of five
    folds."""
    return min(20, max(5, most // classes))


@dataclass(frozen=True)
class _Group:
    """Pictures that stay together: their indices, and how many of each class."""

    members: tuple[int, ...]
    counts: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return len(self.members)


def assign_test(
    labels: NDArray[np.int64], groups: NDArray[np.int64], contents: Sequence[str], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Which pictures are sealed for the test.

    Groups are walked in an order drawn from seed and content. A group goes to the test set where every class
    in it still lacks that many test pictures; what groups too large for that leave lacking is then filled
    with the groups that bring the counts nearer to their goals. No class gives its last training picture; a
    class of one or two pictures gives none; a class of three or more gives at least one where its groups
    allow.

    Args:
        labels: (N,) class of each picture.
        groups: (N,) group of each picture.
        contents: N content digests; with the seed they alone decide the order.
        fraction: share of each class to seal, in (0, 1).

    Returns:
        (N,) bool.
    """
    totals = Counter(labels.tolist())
    goals = {label: _goal(count, fraction) for label, count in totals.items()}
    taken: Counter[int] = Counter()
    test = np.zeros(len(labels), dtype=bool)
    ordered = _ordered(labels, groups, contents, seed)

    def take(group: _Group) -> None:
        taken.update(dict(group.counts))
        test[list(group.members)] = True

    left = []
    for group in ordered:
        if all(taken[label] + count <= goals[label] for label, count in group.counts):
            take(group)
        else:
            left.append(group)
    for group in sorted(left, key=lambda group: group.size):  # stable: equal sizes stay in the drawn order
        trainable = all(taken[label] + count < totals[label] for label, count in group.counts)
        nearer = sum(abs(goals[c] - taken[c] - n) - abs(goals[c] - taken[c]) for c, n in group.counts) < 0
        first = any(taken[label] == 0 and goals[label] > 0 for label, _ in group.counts)
        small = all(2 * (taken[label] + count) <= totals[label] for label, count in group.counts)
        if trainable and (nearer or (first and small)):
            take(group)
    return test


def assign_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], contents: Sequence[str], folds: int, seed: int
) -> NDArray[np.int64]:
    """Fold of each picture, 0 to folds - 1.

    Groups, the largest first, go one by one to the fold that holds the smallest share of their classes; ties
    go to the smaller fold. So a class whose groups hold no other class stands in at least min(folds, its
    groups) folds.

    Args:
        labels, groups, contents: as for `assign_test`.
        folds: at least 2.

    Returns:
        (N,) int64.
    """
    totals = np.bincount(labels, minlength=1)
    held = np.zeros((len(totals), folds))
    sizes = np.zeros(folds)
    fold = np.zeros(len(labels), dtype=np.int64)
    for group in sorted(_ordered(labels, groups, contents, seed), key=lambda group: -group.size):
        # Adding n pictures of a class to a fold with h of them raises the sum of squares by 2 h n + n^2.
        crowding = sum((held[label] * (count / totals[label]) for label, count in group.counts), np.zeros(folds))
        chosen = int(np.lexsort((sizes, np.round(crowding, 9)))[0])
        for label, count in group.counts:
            held[label, chosen] += count
        sizes[chosen] += group.size
        fold[list(group.members)] = chosen
    return fold


def by_likeness(labels: NDArray[np.int64], fold: NDArray[np.int64]) -> NDArray[np.int64]:
    """The folds, those first whose classes are nearest to the shares that all have: of (N,) labels and their folds (N,). A fold that
    holds a large group may hold little else, and should not be the one that judges. What differs by less than a twentieth counts as
    equal, and equals stay in order."""
    numbers, place = np.unique(fold, return_inverse=True)
    held = np.zeros((len(numbers), int(labels.max(initial=0)) + 1))
    np.add.at(held, (place, labels), 1.0)
    apart = np.abs(held - held.mean(0)).sum(1) / max(1.0, held.sum() / max(1, len(numbers)))
    return np.asarray(numbers[np.argsort(np.round(apart, 1), kind="stable")], np.int64)


def fold_count(labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int) -> int:
    """As many folds as asked for, but no more than the groups of the richest class, and at least 2."""
    pairs = {(int(label), int(group)) for label, group in zip(labels, groups, strict=True)}
    richest = max(Counter(label for label, _ in pairs).values(), default=0)
    return max(2, min(folds, richest))


def _goal(count: int, fraction: float) -> int:
    if count < 3:
        return 0
    return min(count - 1, max(1, math.floor(count * fraction + 0.5)))


def _ordered(labels: NDArray[np.int64], groups: NDArray[np.int64], contents: Sequence[str], seed: int) -> list[_Group]:
    """The groups in an order that seed and contents decide, whatever the numbering of the pictures."""
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    keyed = []
    for indices in members.values():
        content = min(f"{contents[index]} {labels[index]}" for index in indices)
        key = hashlib.blake2b(f"{seed} {content}".encode(), digest_size=16).digest()
        counts = Counter(int(labels[index]) for index in indices)
        keyed.append((key, _Group(tuple(indices), tuple(sorted(counts.items())))))
    return [group for _, group in sorted(keyed, key=lambda pair: pair[0])]
