"""Gap: a test set that is surely harder than held-out training pictures is told; chance, and an easier one, are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from headstart.data.audit import Finding
from headstart.diagnosis.gap import gap
from headstart.evaluate import Protocol, TestReport, evaluate
from tests.diagnosis.given import dataset_of, raced


def told(right: float, report: TestReport, pictures: int = 400, each: int = 1) -> tuple[Finding, ...]:
    """What is told where the head is `right` out of fold for a share of so many pictures, in groups of `each`."""
    dataset = dataset_of(np.arange(pictures) % 4, together=np.arange(pictures) // each)
    return gap(raced(dataset, right), dataset, report)


def report_of(right: float, pictures: int = 300, *, protocol: Protocol = "sealed test", each: int = 1) -> TestReport:
    labels, groups = np.arange(pictures) % 4, np.arange(pictures) // each
    wrong = np.random.default_rng(0).permutation(pictures) >= round(right * pictures)
    shares = np.exp(log_softmax(4.0 * np.eye(4)[(labels + wrong) % 4], 1))
    beliefs = {"final": shares, "head": shares}
    return evaluate(labels, beliefs, classes=("a", "b", "c", "d"), groups=groups, protocol=protocol)


def test_a_harder_test_set_is_told_with_its_numbers() -> None:
    (found,) = told(0.85, report_of(0.7))
    assert (found.kind, found.severity) == ("gap", "warning")
    assert (
        "right for 85.0 % of 400 training pictures out of fold, and for 70.0 % of the 300 test pictures"
        in found.message
    )
    assert "15.0 ± 3.2 points fewer" in found.message and "group" in found.next_step


@pytest.mark.parametrize(
    ("before", "right", "pictures"),
    [
        (0.85, 0.82, 100_000),  # sure, but small
        (0.85, 0.70, 20),  # large, but chance
        (0.70, 0.85, 300),  # the other way round
        (1.00, 0.97, 300),
    ],
)
def test_small_gaps_chance_and_an_easier_test_set_are_none(before: float, right: float, pictures: int) -> None:
    assert told(before, report_of(right, pictures)) == ()


def test_without_a_sealed_test_set_there_is_nothing_to_compare() -> None:
    assert told(0.9, report_of(0.5, protocol="repeated cross-validation")) == ()


def test_a_few_groups_of_many_pictures_make_no_gap() -> None:
    assert told(0.85, report_of(0.7)) and told(0.85, report_of(0.7, each=2), each=2)
    assert not told(0.85, report_of(0.7, each=10), each=10)
    assert not told(0.85, report_of(0.7), each=40), "of ten groups to train on little is known, either"


@pytest.mark.parametrize("each", [1, 5])
def test_chance_seldom_makes_a_gap(each: int) -> None:
    """With pictures of a group right or wrong together."""
    random = np.random.default_rng(1)
    before, shares = (random.binomial(count // each, 0.8, 2000) / (count // each) for count in (100, 60))
    reports = {share: report_of(share, 60, each=each) for share in np.unique(shares)}
    pairs, times = np.unique(np.stack([before, shares]), axis=1, return_counts=True)
    alarms = sum(
        count for (one, other), count in zip(pairs.T, times, strict=True) if told(one, reports[other], 100, each)
    )
    assert alarms <= 2000 * 0.005
