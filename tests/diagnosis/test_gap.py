"""Gap: a test set that is surely harder than held-out training pictures is told; chance, and an easier one, are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from headstart.diagnosis.gap import gap
from headstart.evaluate import TestReport, evaluate
from headstart.race import Race
from tests.diagnosis.given import dataset_of, raced


def heads(right: float, pictures: int = 400) -> Race:
    return raced(dataset_of(np.arange(pictures) % 4), right)


def report_of(right: float, pictures: int = 300, **options: str) -> TestReport:
    labels = np.arange(pictures) % 4
    wrong = np.random.default_rng(0).permutation(pictures) >= round(right * pictures)
    shares = np.exp(log_softmax(4.0 * np.eye(4)[(labels + wrong) % 4], 1))
    return evaluate(labels, {"final": shares, "head": shares}, classes=("a", "b", "c", "d"), **options)


def test_a_harder_test_set_is_told_with_its_numbers() -> None:
    (found,) = gap(heads(0.85), report_of(0.7, protocol="sealed test"))
    assert (found.kind, found.severity) == ("gap", "warning")
    assert (
        "right for 85.0 % of 400 training pictures out of fold, and for 70.0 % of the 300 test pictures"
        in found.message
    )
    assert "15.0 ± 3.2 points fewer" in found.message and "group" in found.next_step


@pytest.mark.parametrize(
    ("told", "right", "pictures"),
    [
        (0.85, 0.82, 100_000),  # sure, but small
        (0.85, 0.70, 20),  # large, but chance
        (0.70, 0.85, 300),  # the other way round
        (1.00, 0.97, 300),
    ],
)
def test_small_gaps_chance_and_an_easier_test_set_are_none(told: float, right: float, pictures: int) -> None:
    assert gap(heads(told), report_of(right, pictures, protocol="sealed test")) == ()


def test_without_a_sealed_test_set_there_is_nothing_to_compare() -> None:
    assert gap(heads(0.9), report_of(0.5, protocol="repeated cross-validation")) == ()


def test_chance_seldom_makes_a_gap() -> None:
    random = np.random.default_rng(1)
    told = random.binomial(100, 0.8, 2000) / 100
    shares = random.binomial(60, 0.8, 2000) / 60
    reports = {share: report_of(share, 60, protocol="sealed test") for share in np.unique(shares)}
    races = {each: heads(each, 100) for each in np.unique(told)}
    alarms = sum(bool(gap(races[one], reports[other])) for one, other in zip(told, shares, strict=True))
    assert alarms <= 2000 * 0.004
