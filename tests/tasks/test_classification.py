"""Metrics against scikit-learn and by hand, temperature scaling, and the contract over the table of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from headstart.errors import HeadstartError
from headstart.tasks import classification as c
from headstart.tasks.catalog import TASKS
from headstart.tasks.task import check_task


def sample(seed: int, images: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, classes - 1), images)  # the last class is never a label
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, c.softmax(logits).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(12, 300), st.integers(3, 40))
def test_metrics_equal_scikit_learn(seed: int, images: int, classes: int) -> None:
    labels, belief = sample(seed, images, classes)
    predicted, present = belief.argmax(1), np.unique(labels)
    assert c.accuracy(labels, belief) == pytest.approx(reference.accuracy_score(labels, predicted))
    recalls = reference.recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert c.balanced_accuracy(labels, belief) == pytest.approx(recalls)
    f1 = reference.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert c.macro_f1(labels, belief) == pytest.approx(f1)
    exact = belief.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    expected = reference.log_loss(labels, exact, labels=np.arange(classes))
    assert c.log_loss(labels, belief) == pytest.approx(expected, rel=1e-5)


def test_log_loss_of_a_sure_mistake_is_bounded() -> None:
    assert c.log_loss(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(-np.log(c.SMALLEST_PROBABILITY))


def test_ece_by_hand() -> None:
    # Two samples at 0.7 (one right: gap 0.2 each way in sum), one at 1.0 (right: gap 0).
    belief = np.array([[0.7, 0.3], [0.7, 0.3], [0.0, 1.0]])
    assert c.ece(np.array([0, 1, 1]), belief) == pytest.approx(abs(1 - 1.4) / 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 200))
def test_ece_equals_the_sum_over_bins_of_the_paper(seed: int, images: int) -> None:
    labels, belief = sample(seed, images, 5)
    confidence, right = belief.max(1), belief.argmax(1) == labels
    total = 0.0
    for m in range(c.ECE_BINS):
        inside = (confidence > m / c.ECE_BINS) & (confidence <= (m + 1) / c.ECE_BINS)
        if inside.any():
            total += inside.sum() / images * abs(right[inside].mean() - confidence[inside].mean())
    assert c.ece(labels, belief) == pytest.approx(total, abs=1e-6)


def test_confidences_on_an_edge_fall_in_the_lower_bin() -> None:
    assert c.confidence_bin(np.array([1 / 15, 1 / 15 + 1e-9, 1.0])).tolist() == [0, 1, 14]


def test_temperature_is_found_and_calibrates() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4000, 6)) * 2
    labels = np.array([rng.choice(6, p=row) for row in c.softmax(logits)])
    assert c.fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.08)
    assert c.fit_temperature(logits * 5, labels) == pytest.approx(5.0, abs=0.4)
    before, after = c.softmax(logits * 5), c.softmax(logits * 5, c.fit_temperature(logits * 5, labels))
    assert c.ece(labels, after) < 0.03 < 0.2 < c.ece(labels, before)


def test_temperature_where_every_answer_is_right_leaves_room_for_a_mistake() -> None:
    labels = np.arange(30) % 3
    for sharpness in (1.0, 8.0, 40.0):
        logits = sharpness * np.eye(3)[labels]
        sure = c.softmax(logits, c.fit_temperature(logits, labels)).max(1)
        assert 0.95 < sure.min() < 0.995  # about one mistake in N + 1


def test_temperature_stays_in_bounds() -> None:
    labels = np.arange(10) % 3
    low, high = c.TEMPERATURES
    assert low <= c.fit_temperature(1e-3 * np.eye(3)[labels], labels) <= low * 1.01
    assert high * 0.99 <= c.fit_temperature(-8 * np.eye(3)[labels], labels) <= high
    assert c.fit_temperature(np.ones((10, 3)), labels) == 1.0


def test_softmax_bears_huge_logits() -> None:
    assert c.softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_loss_smooths_as_written() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    logs = torch.log_softmax(logits, 1)[0]
    expected = -(0.9 * logs[0] + 0.1 * logs.mean())
    found = TASKS["classification"].loss(logits, targets, smoothing=0.1)
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name: str) -> None:
    assert TASKS[name].name == name
    check_task(TASKS[name])


@dataclass(frozen=True)
class Fixed(c.Classification):
    def fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
        return 1.0


def test_the_contract_can_fail() -> None:
    with pytest.raises(HeadstartError, match=r"fit_temperature gave 1\.000"):
        check_task(Fixed())
