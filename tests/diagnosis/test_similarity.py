"""The quadrant follows the numbers, says them, and says what was measured instead of what practice does."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from headstart.diagnosis.similarity import LARGE, NEAR, similarity
from headstart.features.shift import Shift
from headstart.report.sections import quadrant

STAGES = ("stem", "middle", "late", "last")


def placed(
    distance: float | None, entropy: float | None = None, pictures: int = 100, profile: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8),
    taps: tuple[int, ...] = (3,), rungs: tuple[Any, ...] = (),
) -> Any:  # fmt: skip
    dataset = SimpleNamespace(indices=lambda _: range(pictures))
    last = SimpleNamespace(taps=(3,), accuracy=0.8)
    heads = SimpleNamespace(
        profile=[SimpleNamespace(accuracy=accuracy) for accuracy in profile],
        best=last if taps == (3,) else SimpleNamespace(taps=taps, accuracy=0.95),
        last=last,
        accuracy=0.8 if taps == (3,) else 0.9,
    )
    shift = Shift((distance,) * 4, distance, entropy, 1000 if entropy is not None else 0, 64)
    return similarity(shift, heads, SimpleNamespace(rungs=rungs), dataset, STAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("distance", "entropy", "similar"),
    [(NEAR - 0.01, 0.9, True), (NEAR + 0.01, 0.1, False), (None, 0.1, True), (None, 0.9, False), (None, None, None)],
)
def test_statistics_tell_likeness_and_the_classifier_where_there_are_none(
    distance: float | None, entropy: float | None, similar: bool | None
) -> None:
    found = placed(distance, entropy)
    assert found.similar is similar
    assert bool(found.practice) == (similar is not None)
    assert ("source's classifier of 1,000 classes" in found.evidence) == (entropy is not None)


def test_each_quadrant_has_its_practice() -> None:
    told = {placed(distance, pictures=count).practice for distance in (0.01, 0.2) for count in (LARGE - 1, LARGE)}
    assert len(told) == 4
    assert "last stage and leave the network alone" in placed(0.01, pictures=LARGE - 1).practice


def test_the_best_stage_and_what_was_measured_are_said() -> None:
    rung = SimpleNamespace(rung=SimpleNamespace(cut=2), kept=True, gain=0.021, gain_se=0.008)
    found = placed(0.2, profile=(0.5, 0.9, 0.8, 0.7), taps=(1, 2), rungs=(rung,))
    assert found.best_stage == 1 and found.gap == pytest.approx(0.2)
    assert "the best single stage is middle, 2 before the last and 20.0 points ahead of it" in found.evidence
    assert (
        "a head on 2 stages is right for 95.0 % out of fold (90.0 % once cleared of being the best of many), one on the last stage "
        "for 80.0 %" in found.measured
    )
    both = placed(0.2, profile=(0.5, 0.9, 0.8, 0.7), taps=(1, 7), rungs=(rung,))  # stage 7 is the second network's
    assert "a head on stages of both networks is right for 95.0 % out of fold (90.0 %" in both.measured
    assert "fine-tuning from late on was kept (+2.1 ± 0.8 points)" in found.sentence
    assert "the last stage is right for 80.0 % out of fold, and no other" in placed(0.2).measured
    assert "no fine-tuning was tried" in placed(0.2).measured and "no single stage" in placed(0.2).evidence


def test_the_figure_shows_the_dot_among_the_four() -> None:
    drawn = str(quadrant(placed(0.1, pictures=400)))
    assert all(text in drawn for text in ("few, unlike", "many, unlike", "few, alike", "many, alike"))
    assert "400: 0.1" in drawn
    assert quadrant(placed(None, 0.3)) is None


def test_a_data_set_of_any_size_fits_the_figure() -> None:
    for count in (1, 12, 10**6):
        spots = re.findall(r'<circle class="dot ringed" cx="([\d.]+)"', str(quadrant(placed(0.9, pictures=count))))
        assert len(spots) == 1 and 46 <= float(spots[0]) <= 366
