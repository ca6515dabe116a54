"""Neighbours: what every pair compared by hand says, of other folds only."""

from __future__ import annotations

import numpy as np

from headstart.diagnosis.neighbours import _ROWS, nearest


def test_neighbours_are_those_of_all_pairs_compared() -> None:
    draw = np.random.default_rng(0)
    rows, columns = (draw.standard_normal((count, 7)).astype(np.float32) for count in (_ROWS + 30, 90))
    row_folds, column_folds = (draw.integers(0, 4, count) for count in (_ROWS + 30, 90))
    apart, places = nearest(rows, columns, 3, row_folds, column_folds)
    by_hand = np.linalg.norm(rows[:, None].astype(float) - columns, axis=2)
    by_hand[row_folds[:, None] == column_folds] = np.inf
    assert np.array_equal(places, np.argsort(by_hand, axis=1)[:, :3])
    assert np.allclose(apart, np.sort(by_hand, axis=1)[:, :3], atol=1e-3)


def test_where_there_are_fewer_the_rest_is_infinitely_far() -> None:
    points, folds = np.arange(3, dtype=np.float32)[:, None], np.array([0, 0, 1])
    apart, places = nearest(points, points, 5, folds, folds)
    assert np.isfinite(apart).sum(1).tolist() == [1, 1, 2]
    assert (apart[0, 0], places[0, 0]) == (2.0, 2) and places[2, :2].tolist() == [1, 0]


def test_of_a_group_the_nearest_stands_for_all() -> None:
    draw = np.random.default_rng(1)
    rows, columns = (draw.standard_normal((count, 7)).astype(np.float32) for count in (40, 90))
    row_folds, column_folds, groups = draw.integers(0, 4, 40), np.arange(90) // 3 % 4, 100 - np.arange(90) // 3
    apart, places = nearest(rows, columns, 5, row_folds, column_folds, groups)
    by_hand = np.linalg.norm(rows[:, None].astype(float) - columns, axis=2)
    by_hand[row_folds[:, None] == column_folds] = np.inf
    least = by_hand.reshape(40, 30, 3)
    assert np.allclose(apart, np.sort(least.min(2), axis=1)[:, :5], atol=1e-3)
    first = np.argsort(least.min(2), axis=1)[:, :5]
    assert np.array_equal(places, 3 * first + np.take_along_axis(least.argmin(2), first, axis=1))
