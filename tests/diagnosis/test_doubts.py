"""Doubts: planted label errors come first, and what is listed is what a head that had not seen the picture answers."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.diagnosis.doubts import doubts, listed
from headstart.heads import Score, logistic_scores
from headstart.race import Race
from headstart.solvers import principal_axes
from tests.toys import clouds

FOLDS = np.arange(400) % 5


def raced(labels: np.ndarray, features: np.ndarray, pool: np.ndarray) -> Race:  # type: ignore[type-arg]
    folds = np.arange(len(labels)) % 5
    best = logistic_scores(principal_axes(features), labels, folds, 3, (0,))[0]
    return Race((best,), best, best, (best,), best.accuracy, "", pool)


@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_come_first(seed: int) -> None:
    features, truth = clouds(300, apart=1.6, seed=seed)
    draw = np.random.default_rng(seed)
    wrong = draw.permutation(300)[:15]
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + draw.integers(1, 3, 15)) % 3
    everyone = np.zeros(400, np.int64)  # the pictures that raced are some of the data set's
    pool = np.sort(draw.permutation(400)[:300])
    everyone[pool] = labels
    found = doubts(raced(labels, features, pool), everyone, FOLDS)
    first = {doubt.index for doubt in found[:30]}
    assert len(first & set(pool[wrong].tolist())) >= 12
    suggested = {doubt.index: doubt.suggested for doubt in found}
    right = [suggested.get(int(pool[place])) == truth[place] for place in wrong]
    assert np.mean(right) >= 0.8, "what is suggested is what it was"
    sure = {doubt.index for doubt in found if doubt.confident}
    planted = set(pool[wrong].tolist())
    assert len(sure) < len(found) and len(sure & planted) >= 10
    assert len(sure & planted) / len(sure) >= len({doubt.index for doubt in found} & planted) / len(found)


@pytest.mark.parametrize(
    ("usual", "sure", "unsure"), [((0.95, 0.85), 0.93, 0.87), ((0.8, 0.6), 0.76, 0.73)], ids=["usual", "three to one"]
)
def test_an_answer_is_confident_where_its_class_is_as_probable_as_for_its_own_and_more_than_three_to_one(
    monkeypatch: pytest.MonkeyPatch, usual: tuple[float, float], sure: float, unsure: float
) -> None:
    """What the pictures of class 1 get for it, 0.9 or 0.7 on the mean; two of class 0 are answered 1."""
    monkeypatch.setattr("headstart.diagnosis.doubts.fit_temperature", lambda *_: 1.0)
    labels = np.array([0, 0, 0, 1, 1, 0, 0])
    shares = np.array([0.1, 0.1, 0.1, *usual, unsure, sure])
    logits = np.log(np.stack([1 - shares, shares], axis=1)).astype(np.float32)
    best = Score("logistic", (0,), 1.0, 0.0, 0.0, 0.0, 0.0, logits)
    found = doubts(Race((best,), best, best, (best,), 0.0, "", np.arange(7)), labels, np.arange(7) % 2)
    with_confidence = {doubt.index: doubt.confident for doubt in found}
    assert with_confidence == {5: False, 6: True}


def test_only_answers_against_the_label_are_doubts_the_least_likely_label_first() -> None:
    features, labels = clouds(240, apart=0.8)
    race = raced(labels, features, np.arange(240))
    found = doubts(race, labels, FOLDS)
    against = np.flatnonzero(race.best.logits.argmax(1) != labels)
    assert {doubt.index for doubt in found} == set(against.tolist()) and len(found) > 5
    own = [doubt.label_probability for doubt in found]
    assert own == sorted(own)
    for doubt in found:
        assert 0 <= doubt.label_probability < doubt.suggested_probability <= 1
        assert doubt.suggested == race.best.logits[doubt.index].argmax() != labels[doubt.index]


def test_nothing_is_doubted_where_all_is_as_expected() -> None:
    features, labels = clouds(90, apart=30)
    assert doubts(raced(labels, features, np.arange(90)), labels, FOLDS) == ()


def test_a_class_that_is_never_answered_is_not_doubted_for_it() -> None:
    features, labels = clouds(90, apart=30)
    labels[labels == 2] = 0
    labels[7] = 2  # the only picture of its class: no head that has not seen it knows the class
    assert 7 not in {doubt.index for doubt in doubts(raced(labels, features, np.arange(90)), labels, FOLDS)}


def weak(right: float, sure: int = 3) -> tuple[Race, np.ndarray]:  # type: ignore[type-arg]
    """Two hundred pictures of two classes; of the wrong answers so many are sure."""
    labels = np.arange(200) % 2
    wrong = np.arange(200) >= round(200 * right)
    far = np.where(np.arange(200) >= 200 - sure, 9.0, 0.4)
    logits = (far[:, None] * np.eye(2)[(labels + wrong) % 2]).astype(np.float32)
    best = Score("logistic", (0,), 1.0, right, 0.0, 0.0, 0.0, logits)
    return Race((best,), best, best, (best,), right, "", np.arange(200)), labels


@pytest.mark.parametrize(("right", "count"), [(0.95, 10), (0.8, 40), (0.79, 3), (0.5, 0), (0.45, 0)])
def test_a_weak_head_floods_nobody_with_doubts(monkeypatch: pytest.MonkeyPatch, right: float, count: int) -> None:
    """All up to a fifth of the pictures, then the confident ones, and none where one class for all would be right as often."""
    monkeypatch.setattr("headstart.diagnosis.doubts.fit_temperature", lambda *_: 1.0)
    heads, labels = weak(right)
    found = doubts(heads, labels, np.arange(200) // 2 % 5)
    assert len(found) == round(200 * (1 - right)) and sum(doubt.confident for doubt in found) == 3
    assert len(listed(found, heads, labels)) == count
