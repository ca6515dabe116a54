from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.data.splits import assign_folds, assign_test, by_likeness, fold_count, thinned

Case = tuple[NDArray[np.int64], NDArray[np.int64], list[str]]


@st.composite
def cases(draw: st.DrawFn, grouped: bool = True, mixed: bool = True) -> Case:
    """Labels, groups and contents of up to 80 pictures; `mixed` groups may hold several classes."""
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=2, max_size=80)), dtype=np.int64)
    count = len(labels)
    groups = np.arange(count)
    if grouped:
        groups = np.array(draw(st.lists(st.integers(0, 30), min_size=count, max_size=count)), dtype=np.int64)
        if not mixed:
            groups = groups * 6 + labels
    return labels, groups, [f"{number:064x}" for number in draw(st.permutations(range(count)))]


def straddles(groups: NDArray[np.int64], side: NDArray[np.generic]) -> bool:
    return any(len(set(side[groups == group].tolist())) > 1 for group in set(groups.tolist()))


@given(cases(), st.floats(0.05, 0.6), st.integers(0, 5))
def test_groups_never_straddle_and_every_class_can_be_learnt(case: Case, fraction: float, seed: int) -> None:
    labels, groups, contents = case
    test = assign_test(labels, groups, contents, fraction, seed)
    assert (test.shape, test.dtype) == (labels.shape, np.bool_)
    assert not straddles(groups, test)
    assert set(labels[test].tolist()) <= set(labels[~test].tolist())
    folds = assign_folds(labels, groups, contents, 4, seed)
    assert (folds.shape, folds.dtype) == (labels.shape, np.int64)
    assert folds.min() >= 0
    assert folds.max() < 4
    assert not straddles(groups, folds)


@given(cases(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_and_numbering_of_pictures_do_not_matter(case: Case, seed: int, random: object) -> None:
    labels, groups, contents = case
    order = np.random.default_rng(seed).permutation(len(labels))
    renumbered = (groups.max() + 3 - groups)[order]
    shuffled = [contents[i] for i in order]
    test = assign_test(labels, groups, contents, 0.25, seed)
    assert np.array_equal(test[order], assign_test(labels[order], renumbered, shuffled, 0.25, seed))
    folds = assign_folds(labels, groups, contents, 3, seed)
    assert np.array_equal(folds[order], assign_folds(labels[order], renumbered, shuffled, 3, seed))


@given(cases(grouped=False), st.floats(0.05, 0.6), st.integers(0, 5))
def test_without_groups_proportions_are_exact(case: Case, fraction: float, seed: int) -> None:
    labels, groups, contents = case
    test = assign_test(labels, groups, contents, fraction, seed)
    for label, count in Counter(labels.tolist()).items():
        goal = 0 if count < 3 else min(count - 1, max(1, int(count * fraction + 0.5)))
        assert int(test[labels == label].sum()) == goal
    folds = assign_folds(labels, groups, contents, 5, seed)
    for label in set(labels.tolist()):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(folds, minlength=5)) <= len(set(labels.tolist()))


@given(cases(mixed=False), st.integers(2, 6), st.integers(0, 5))
def test_a_class_with_two_groups_stands_in_two_folds(case: Case, folds: int, seed: int) -> None:
    labels, groups, contents = case
    fold = assign_folds(labels, groups, contents, folds, seed)
    for label in set(labels.tolist()):
        own = len(set(groups[labels == label].tolist()))
        assert len(set(fold[labels == label].tolist())) == min(folds, own)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_with_small_groups_proportions_are_near(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    groups = np.sort(random.integers(0, 400 // size, 400))
    labels = groups % 4
    contents = [f"{number:064x}" for number in random.permutation(400)]
    test = assign_test(labels, groups, contents, 0.2, seed)
    largest = np.bincount(groups).max()
    for label in range(4):
        count = int((labels == label).sum())
        assert abs(int(test[labels == label].sum()) - 0.2 * count) <= largest / 2 + 1
    sizes = np.bincount(assign_folds(labels, groups, contents, 5, seed), minlength=5)
    assert np.ptp(sizes) <= 4 * largest


def test_seeds_matter_and_repeat() -> None:
    labels, groups = np.arange(100) % 2, np.arange(100)
    contents = [f"{number:064x}" for number in range(100)]
    first = assign_test(labels, groups, contents, 0.2, 0)
    assert np.array_equal(first, assign_test(labels, groups, contents, 0.2, 0))
    assert not np.array_equal(first, assign_test(labels, groups, contents, 0.2, 1))
    folds = assign_folds(labels, groups, contents, 5, 0)
    assert not np.array_equal(folds, assign_folds(labels, groups, contents, 5, 1))


def test_adding_a_picture_of_one_class_hardly_moves_the_others() -> None:
    labels, groups = np.arange(200) % 2, np.arange(200)
    contents = [f"{number:064x}" for number in range(200)]
    before = assign_test(labels, groups, contents, 0.2, 0)
    after = assign_test(np.append(labels, 1), np.arange(201), [*contents, "f" * 64], 0.2, 0)
    assert np.array_equal(before[labels == 0], after[:200][labels == 0])
    assert (before != after[:200]).sum() <= 2


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([10, 10, 10], 0.2, 10), ([30], 0.2, 0), ([30], 0.9, 0), ([29, 1], 0.2, 1), ([15, 15], 0.2, 15),
        ([25, 2, 2, 1], 0.2, 5), ([1] * 30, 0.2, 6),
    ],
)  # fmt: skip
def test_few_large_groups_give_what_can_be_given(sizes: list[int], fraction: float, expected: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.zeros(30, dtype=np.int64)
    contents = [f"{number:064x}" for number in range(30)]
    assert int(assign_test(labels, groups, contents, fraction, 0).sum()) == expected


def test_the_fold_of_a_large_group_does_not_judge_first() -> None:
    labels = np.repeat([0, 1, 2], 300)
    groups = np.arange(900)
    groups[:150] = 0  # one burst
    fold = assign_folds(labels, groups, [f"{n:064x}" for n in range(900)], 5, seed=0)
    crowded = fold[0]
    assert (fold[:150] == crowded).all() and (fold == crowded).sum() > 200
    order = by_likeness(labels, fold)
    assert order[-1] == crowded and sorted(order) == [0, 1, 2, 3, 4]
    assert list(order[:4]) == [n for n in range(5) if n != crowded], "those that are alike stay in order"


@given(cases(grouped=False), st.integers(2, 5))
def test_every_fold_comes_once(case: Case, folds: int) -> None:
    labels, groups, contents = case
    fold = assign_folds(labels, groups, contents, folds, seed=1)
    assert sorted(by_likeness(labels, fold)) == np.unique(fold).tolist()


def test_no_more_folds_than_the_richest_class_has_groups() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    assert fold_count(labels, np.arange(5), 5) == 3
    assert fold_count(labels, np.array([0, 0, 0, 1, 2]), 5) == 2
    assert fold_count(np.array([0]), np.array([0]), 5) == 2
    assert fold_count(np.zeros(50, np.int64), np.arange(50), 5) == 5


@given(st.lists(st.integers(0, 5), min_size=1, max_size=400), st.integers(1, 300), st.integers(1, 30))
def test_a_sample_holds_of_every_class_its_share(drawn: list[int], most: int, each: int) -> None:
    labels = np.array(drawn, dtype=np.int64)
    chosen = thinned(labels, most, each)
    assert np.array_equal(chosen, np.unique(chosen))
    assert len(labels) > most or len(chosen) == len(labels)
    for label, count in Counter(drawn).items():
        inside, share = np.flatnonzero(labels == label), count * min(1.0, most / len(labels))
        held = int((labels[chosen] == label).sum())
        assert max(share - 1e-9, min(count, each)) <= held <= max(share + 1, min(count, each))
        assert np.array_equal(chosen[labels[chosen] == label], inside[:held]), "the first of each class"
