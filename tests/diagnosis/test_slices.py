"""Slices: what is answered surely worse is named, with its limit; chance, repeats and nameless groups are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from headstart.diagnosis.slices import slices, upper
from tests.diagnosis.given import dataset_of


def answered(labels: NDArray[np.int64], shares: NDArray[np.float64], seed: int = 0) -> NDArray[np.int64]:
    """Answers (N,) that are right with the chance `shares` (N,)."""
    wrong = np.random.default_rng(seed).random(len(labels)) >= shares
    return (labels + wrong) % (labels.max() + 1)


def test_the_worst_class_is_named_with_its_numbers() -> None:
    labels = np.arange(200) % 4
    answers = labels.copy()
    answers[np.flatnonzero(labels == 2)[:30]] = 0
    (found,) = slices(dataset_of(labels), np.arange(200), answers)
    assert (found.kind, found.severity, found.total) == ("weak_class", "warning", 1)
    assert "The class 'c' is answered worse than the rest: 40.0 % of its 50 tested pictures are right" in found.message
    assert "of all tested pictures 85.0 %" in found.message
    limit = float(found.message.split("at most ")[1].split(" %")[0]) / 100
    assert binom.cdf(20, 50, limit) == pytest.approx(0.05 / 4, abs=5e-4)


def test_a_class_that_is_surely_but_hardly_worse_is_a_note() -> None:
    labels = np.arange(20_000) % 2
    (found,) = slices(dataset_of(labels), np.arange(20_000), answered(labels, np.where(labels == 1, 0.94, 0.98)))
    assert found.severity == "note"


def test_chance_names_no_class() -> None:
    labels = np.arange(150) % 5
    dataset = dataset_of(labels)
    named = [len(slices(dataset, np.arange(150), answered(labels, np.full(150, 0.85), seed))) for seed in range(300)]
    assert sum(named) <= 15


def test_repeats_of_a_picture_count_as_one_picture() -> None:
    labels, indices = np.arange(24) % 2, np.tile(np.arange(24), 3)
    answers = np.where(np.arange(24) % 4 == 1, 0, labels)  # half of the twelve pictures of one class
    dataset = dataset_of(labels)
    assert slices(dataset, np.arange(24), answers) == slices(dataset, indices, np.tile(answers, 3)) == ()
    assert slices(dataset_of(np.arange(72) % 2), np.arange(72), np.tile(answers, 3)) != (), "72 pictures would be sure"


def test_groups_of_pictures_that_are_right_together_name_no_class_by_chance() -> None:
    """Twenty shots of each of twenty things: a class is four of them."""
    labels, together = np.arange(400) // 20 % 5, np.arange(400) // 20
    dataset, alone = dataset_of(labels, together=together), dataset_of(labels)
    named, naive = 0, 0
    for seed in range(300):
        ease = np.random.default_rng(seed).beta(2.1, 0.23, 20)[together]
        answers = answered(labels, ease, seed)
        named += bool(slices(dataset, np.arange(400), answers))
        naive += bool(slices(alone, np.arange(400), answers))
    assert named <= 15 < 100 < naive


def test_of_groups_the_worst_class_is_named_with_its_numbers() -> None:
    labels, together = np.arange(400) // 2 % 4, np.arange(400) // 2
    answers = np.where((labels == 2) & (together % 20 < 12), 0, labels)
    (found,) = slices(dataset_of(labels, together=together), np.arange(400), answers)
    assert "40.0 % of its 100 tested pictures are right" in found.message
    assert found.message.endswith("Pictures of one group count as one: it has 50 groups.")
    assert found.items[0].startswith("c: 40.0 % of 100 right in 50 groups, at most ")
    limit = float(found.message.split("at most ")[1].split(" %")[0]) / 100
    assert binom.cdf(20, 50, limit) == pytest.approx(0.05 / 4, abs=5e-4)


def test_groups_that_a_person_gave_are_looked_at_where_enough_of_them_were_tested() -> None:
    labels = np.arange(120) % 2
    answers = labels.copy()
    dark = (np.arange(120) // 2) % 6 == 0
    answers[np.flatnonzero(dark)[:14]] = 1 - labels[dark][:14]
    names = tuple("dark" if here else "light" for here in dark)
    (found,) = slices(dataset_of(labels, groups=names), np.arange(120), answers)
    assert found.kind == "weak_group" and "The group 'dark' is answered worse" in found.message
    assert slices(dataset_of(labels), np.arange(120), answers) == (), "near-duplicates are no groups of a person's"
    few = tuple("dark" if here and place < 30 else "light" for place, here in enumerate(dark))
    assert slices(dataset_of(labels, groups=few), np.arange(120), answers) == (), "six pictures are too few"


@pytest.mark.parametrize("count", [2, 8])
def test_tiny_data_are_survived(count: int) -> None:
    labels = np.arange(count) % 2
    assert slices(dataset_of(labels), np.arange(count), 1 - labels) == ()


def test_limits_by_hand() -> None:
    hits, counts = np.array([0.0, 3.0, 5.0]), np.array([5, 5, 5])
    found = upper(hits, counts, 0.05)
    assert found[0] == pytest.approx(1 - 0.05 ** (1 / 5)) and found[2] == 1.0
    assert binom.cdf(3, 5, found[1]) == pytest.approx(0.05)
