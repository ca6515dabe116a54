"""What recorded runs let expect of fine-tuning: fitted to the depth suite, nothing where nothing is known or all is."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from headstart.backbones.catalog import load_backbone
from headstart.forecast import Forecast, coefficients
from headstart.forecast import forecast as any_forecast

ROOT = Path(__file__).parent.parent


def forecast(log_loss: float, shift: float, images: int, classes: int) -> Forecast:
    return any_forecast(log_loss, shift, images, classes, backbone=coefficients()["backbone"])


def test_the_numbers_are_those_that_the_depth_suite_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cases = json.loads((ROOT / "benchmarks/results/depth.json").read_text(encoding="utf-8"))["cases"]
    fitted = importlib.import_module("forecast").learnt(cases)
    for found, known in ((fitted, coefficients()), (fitted["held_out"], coefficients()["held_out"])):
        assert found.pop("weights") == pytest.approx(known["weights"], abs=1e-4)
    assert fitted.pop("held_out")["error"] == pytest.approx(coefficients()["held_out"]["error"], abs=1e-4)
    assert (
        fitted.items()
        <= {
            **coefficients(),
            **{k: pytest.approx(coefficients()[k], abs=1e-4) for k in ("error", "error_slope")},
        }.items()
    )
    assert len(fitted["sets"]) >= 7 and fitted["error"] > 0


def test_far_pictures_gain_more_and_so_do_more_of_them() -> None:
    gains = [forecast(0.5, shift, 100, 5).gain for shift in (0.02, 0.05, 0.1, 0.15)]
    assert gains == sorted(gains) and gains[-1] > 0.03
    gains = [forecast(0.5, 0.05, images, 5).gain for images in (25, 100, 400)]
    assert gains == sorted(gains)


@pytest.mark.parametrize("log_loss", [0.0, math.log(5), 3.0])
def test_a_head_that_knows_all_or_nothing_leaves_nothing_to_expect(log_loss: float) -> None:
    found = forecast(log_loss, 0.1, 200, 5)
    assert (found.gain, found.error) == (0.0, coefficients()["error"])


def test_beyond_what_was_recorded_the_nearest_counts() -> None:
    near, far = coefficients()["shift"]
    assert forecast(0.5, 0.0, 100, 5) == forecast(0.5, near, 100, 5)
    assert forecast(0.5, 0.9, 100, 5) == forecast(0.5, far, 100, 5)
    assert forecast(0.5, 0.05, 10**6, 5) == forecast(0.5, 0.05, 10**7, 5)
    # 300 classes leave room for twice as much as any recorded head did not know.
    usual, many, more = (forecast(loss, 0.1, 20 * k, k) for loss, k in ((1.5, 10), (2.0, 300), (3.0, 300)))
    assert usual.gain == pytest.approx(many.gain) == pytest.approx(more.gain)
    assert usual.error < many.error < more.error


def test_pictures_correct_what_is_expected_as_far_as_they_are_sure() -> None:
    before = Forecast(0.02, 0.03)
    assert before.updated(-0.1, 10.0).gain == pytest.approx(0.02, abs=1e-4)
    assert before.updated(-0.1, 1e-4).gain == pytest.approx(-0.1, abs=1e-4)
    both = before.updated(0.04, 0.03)
    assert both.gain == pytest.approx(0.03) and both.error == pytest.approx(0.03 / 2**0.5)
    assert str(Forecast(0.0123, 0.02)) == "+1.2 ± 2.0 points"


def test_what_makes_held_out_labels_likelier_gains_and_doubt_about_it_stays_doubt() -> None:
    unsure = Forecast(0.0, 1e3)  # pictures alone
    less, none, more = (unsure.seen(nats, 0.0) for nats in (-0.1, 0.0, 0.1))
    assert less.gain < none.gain < more.gain and 0 < none.gain < 0.03, (
        "the head is flattered on the pictures that chose it"
    )
    assert none.error == pytest.approx(coefficients()["held_out"]["error"], rel=1e-4)
    assert unsure.seen(0.1, 0.05).error > none.error
    assert Forecast(0.0, 1e3, carried=True).seen(0.0, 0.0).error == pytest.approx(2 * none.error, rel=1e-4)


def test_what_trying_promises_is_what_a_posterior_leaves_when_losses_are_dropped() -> None:
    draw, error = np.random.default_rng(0), coefficients()["held_out"]["error"]
    for gain, spread in ((0.02, 0.03), (-0.01, 0.02), (0.0, 0.05)):
        told = Forecast(gain, spread)
        seen = draw.normal(gain, spread, 200_000) + draw.normal(0, error, 200_000)
        left = (gain / spread**2 + seen / error**2) / (spread**-2 + error**-2)
        assert told.promise == pytest.approx(np.maximum(left, 0).mean(), abs=2e-4)
        assert told.promise > max(0.0, gain)
    assert Forecast(0.03, 1e-4).promise == pytest.approx(0.03)
    assert Forecast(-0.03, 1e-4).promise == pytest.approx(0.0)
    assert Forecast(0.0, 0.05).promise > Forecast(0.0, 0.02).promise


def test_the_backbone_that_was_recorded_is_the_default() -> None:
    assert coefficients()["backbone"] == load_backbone("tf_efficientnet_lite0").origin.name


def test_another_backbone_makes_it_half_as_sure() -> None:
    own, other = forecast(0.5, 0.1, 100, 5), any_forecast(0.5, 0.1, 100, 5, backbone="another")
    assert other == Forecast(own.gain, 2 * own.error, carried=True)
    assert not own.carried and other.updated(0.0, 0.1).carried
