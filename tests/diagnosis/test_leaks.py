"""Leaks: near-copies and bursts across the split are suspected and paired; smooth classes, groups and tiny data are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.diagnosis.leaks import Closeness, Neighbours, closeness, leaks
from headstart.features.store import Store
from tests.diagnosis.given import dataset_of, featured, raced
from tests.toys import clouds


def shots(scenes: int, each: int, seed: int, apart: float = 0.1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scenes of three classes, `each` shot several times: one after the other, hence in different folds."""
    features, labels = clouds(scenes, width=16, seed=seed)
    spread = features.std(0)
    many = np.repeat(features, each, 0)
    noise = np.random.default_rng(seed).standard_normal(many.shape)
    return (many + apart * spread * noise).astype(np.float32), np.repeat(labels, each)


def looked_at(dataset: Dataset, features: NDArray[np.float32], store: Store) -> Closeness:
    return closeness(Neighbours.of(dataset, raced(dataset), featured(dataset, features, store)))


@pytest.mark.parametrize("seed", range(8))
def test_smooth_classes_are_not_suspected(store: Store, seed: int) -> None:
    features, labels = clouds(240, width=16, seed=seed)
    dataset = dataset_of(labels, tested=np.arange(240) % 6 == 0)
    assert leaks(dataset, looked_at(dataset, features, store)) == ()


@pytest.mark.parametrize("each", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_shots_of_one_scene_are_suspected_and_paired(store: Store, seed: int, each: int) -> None:
    features, labels = shots(240 // each, each, seed)
    dataset = dataset_of(labels, tested=np.arange(240) % 6 == 1, folds=np.arange(240) % 5)
    seen = looked_at(dataset, features, store)
    (found,) = leaks(dataset, seen)
    assert (found.kind, found.severity) == ("near_copies", "warning")
    assert " of 40 test pictures and " in found.message and " of 200 training pictures lie" in found.message
    assert "'group' column" in found.next_step and "groups are never parted" in found.next_step
    (laid_out,) = leaks(replace(dataset, given=frozenset({"train", "test"})), seen)
    assert "leave out the given splits then" in laid_out.next_step
    pairs = seen.pairs
    assert np.mean(pairs[:, 0] // each == pairs[:, 1] // each) > 0.95, "pairs are of one scene"
    assert (dataset.split[pairs[:, 1]] == "train").all() and not set(dataset.fold[pairs].T[1].tolist()) & {-1}
    assert all(dataset.fold[a] != dataset.fold[b] for a, b in pairs)
    first, second = (int(name.split()[-1]) for name in found.items[0].split(" ~ "))
    assert first // each == second // each
    assert found.total == len(seen.told) == len(set(map(frozenset, pairs.tolist()))) <= len(pairs)


def test_pairs_are_told_once_in_the_order_of_how_striking_they_are() -> None:
    nobody = np.empty(0, np.int64)
    pairs = np.array([[5, 6], [1, 2], [6, 5], [3, 2], [2, 1]])
    assert Closeness(4.0, 2.0, nobody, pairs).told == ((5, 6), (1, 2), (3, 2))
    assert Closeness(2.0, 2.0, nobody, pairs).told == ()


def test_shots_that_a_fold_keeps_together_are_not_suspected(store: Store) -> None:
    features, labels = shots(120, 2, 0)
    dataset = dataset_of(labels, folds=np.arange(240) // 2 % 5)
    assert leaks(dataset, looked_at(dataset, features, store)) == ()


@pytest.mark.parametrize("seed", range(3))
def test_shots_that_are_named_as_groups_are_not_suspected(store: Store, seed: int) -> None:
    features, labels = shots(80, 3, seed)
    apart = dataset_of(labels, tested=np.arange(240) // 3 % 5 == 0, folds=np.arange(240) // 3 % 5)
    named = replace(apart, groups=np.arange(240) // 3)
    assert leaks(named, looked_at(named, features, store)) == ()
    assert leaks(apart, looked_at(apart, features, store)), "three shots of each are as many neighbours"


def test_without_a_test_set_only_folds_are_spoken_of(store: Store) -> None:
    features, labels = shots(45, 2, 1)
    dataset = dataset_of(labels, folds=np.arange(90) % 5)
    (found,) = leaks(dataset, looked_at(dataset, features, store))
    assert "test" not in found.message and "beyond the folds of cross-validation" in found.message


@pytest.mark.parametrize("labels", [np.arange(8), np.arange(8) % 2, np.zeros(30, np.int64)])
def test_tiny_data_are_survived(store: Store, labels: NDArray[np.int64]) -> None:
    features = np.zeros((len(labels), 4), np.float32)  # no spread at all
    dataset = dataset_of(labels)
    assert leaks(dataset, looked_at(dataset, features, store)) == ()
