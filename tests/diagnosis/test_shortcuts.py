"""Shortcuts: traits that were planted are suspected by name, natural ones and tiny data are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.baselines import Thumbnails, thumbnails
from headstart.data.dataset import Dataset
from headstart.diagnosis.shortcuts import Recognition, set_apart, shortcuts
from headstart.features.store import Store
from tests.diagnosis.given import dataset_of, raced
from tests.toys import stripes

Pixels = NDArray[np.uint8]
PICTURES, LABELS = stripes(150)


def suspected(dataset: Dataset, store: Store, right: float = 0.9) -> list[str]:
    return [found.kind for found in shortcuts(dataset, raced(dataset, right), thumbs(dataset, store))]


def thumbs(dataset: Dataset, store: Store) -> Thumbnails:
    return thumbnails(dataset, store, side=32)


@pytest.mark.parametrize("seed", range(5))
def test_natural_pictures_are_not_suspected(store: Store, seed: int) -> None:
    pictures, labels = stripes(120, seed=seed)
    sizes = np.random.default_rng(seed).integers(200, 900, (120, 2))
    formats = tuple(np.random.default_rng(seed).choice(["PNG, RGB", "JPEG, RGB"], 120).tolist())
    dataset = dataset_of(labels, pictures=pictures, sizes=sizes, formats=formats)
    assert suspected(dataset, store) == []


def test_a_size_for_each_class_is_suspected_with_its_numbers(store: Store) -> None:
    sizes = np.array([(640, 480), (320, 240), (500, 500)])[LABELS]
    dataset = dataset_of(LABELS, pictures=PICTURES, sizes=sizes)
    (found,) = shortcuts(dataset, raced(dataset), thumbs(dataset, store))
    assert (found.kind, found.severity, found.total) == ("shortcut_size", "warning", 3)
    assert "The size of a picture alone tells 'a' and 2 other classes from the rest" in found.message
    assert found.items[0] == "a: 50 of 50 are 640 x 480 pixels" and found.items[0] in found.message
    assert found.next_step.startswith("Save the pictures of all classes with one size")


def test_one_class_that_came_another_way_is_enough(store: Store) -> None:
    """All of ten classes but one are alike: the trait alone is hardly more accurate than guessing, and yet gives that class away."""
    labels = np.arange(150) % 10
    formats = tuple("PNG, RGB" if label == 7 else "JPEG, RGB" for label in labels)
    dataset = dataset_of(labels, pictures=PICTURES, formats=formats)
    (found,) = shortcuts(dataset, raced(dataset), thumbs(dataset, store))
    assert found.kind == "shortcut_format" and found.items == ("h: 15 of 15 are PNG, RGB",)


def test_a_border_is_suspected_and_what_lies_inside_is_not(store: Store) -> None:
    bordered, inner = PICTURES.copy(), PICTURES.copy()
    for place, label in enumerate(LABELS):
        bordered[place, :2] = bordered[place, -2:] = bordered[place, :, :2] = bordered[place, :, -2:] = 100 * label
        inner[place, 12:20, 12:20] = 100 * label
    assert suspected(dataset_of(LABELS, pictures=bordered), store) == ["shortcut_border"]
    assert suspected(dataset_of(LABELS, pictures=inner), Store(store.root.parent / "other")) == []


def tinted(strength: NDArray[np.float64]) -> Dataset:
    """Pictures in light of another colour for each class, as strong as is said of each of them."""
    hue = 1 + strength[LABELS][:, None] * np.eye(3)[LABELS]
    return dataset_of(LABELS, pictures=np.clip(PICTURES * hue[:, None, None], 0, 255).astype(np.uint8))


def test_colour_is_suspected_only_where_it_tells_nearly_as_much_as_the_head(store: Store, tmp_path: Path) -> None:
    everyone, one = tinted(np.array([0.9, 0.9, 0.9])), tinted(np.array([0.9, 0, 0]))
    (found,) = shortcuts(everyone, raced(everyone, 0.95), thumbs(everyone, store))
    assert found.kind == "shortcut_colour" and found.total == 3
    assert "the best head on frozen features is right in 94.7 %" in found.message
    assert "the commonest class is 33.3 % of them" in found.message
    other = Store(tmp_path)
    assert suspected(one, other, right=0.95) == [], "it tells one class of three"
    assert suspected(one, other, right=0.6) == ["shortcut_colour"], "the head tells no more"


@pytest.mark.parametrize("labels", [np.arange(8), np.arange(8) % 2, np.zeros(30, np.int64), np.arange(10).repeat(3)])
def test_tiny_data_are_survived(store: Store, labels: NDArray[np.int64]) -> None:
    assert suspected(dataset_of(labels, pictures=PICTURES[: len(labels)]), store) == []


def test_informedness_by_hand() -> None:
    labels, answers = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    told = Recognition.of(answers, labels, 2)
    assert np.allclose(told.recognised, [4 / 6, 2 / 4]) and np.allclose(told.mistaken, [2 / 4, 2 / 6])
    assert np.allclose(told.informedness, [1 / 6, 1 / 6])


@pytest.mark.parametrize(("count", "apart"), [(7, [0]), (12, [0, 1])])
def test_a_class_of_few_pictures_is_not_set_apart(count: int, apart: list[int]) -> None:
    labels = np.array([1] * count + [0] * 60)
    assert sorted(set_apart(labels.copy(), labels, 2)) == apart


def test_a_border_must_tell_more_than_what_lies_further_in() -> None:
    labels = np.arange(100) % 2
    half = np.where(np.arange(100) < 70, labels, 1 - labels)
    assert len(set_apart(labels, labels, 2, half)) == 2
    assert len(set_apart(labels, labels, 2, labels)) == 0
