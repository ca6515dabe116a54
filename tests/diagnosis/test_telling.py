"""Telling: the sentence says what its shares are of, and how sure they are."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from headstart.diagnosis.telling import LeftOut, Telling
from headstart.intervals import exact_share


def test_a_mean_over_classes_is_called_one_and_has_its_range() -> None:
    told = Telling(0.05, 1.0, None, 0, (LeftOut("a", 10, 0.5), LeftOut("b", 10, 0.1), LeftOut("c", 10, 0.3)))
    assert told.sentence.endswith(
        "strange: that tells 30 % of the pictures of a class that was left out of training, on average over 3 classes left out in "
        "turn, 10 to 50 %."
    )
    alone = Telling(0.05, 1.0, None, 0, told.left_out[:1])
    assert alone.sentence.endswith("strange: that tells 50 % of the pictures of a class that was left out of training.")


def test_known_pictures_that_are_lost_are_counted_with_an_interval() -> None:
    low, high = exact_share(2, 50)
    assert binom.sf(1, 50, low) == pytest.approx(0.025) and binom.cdf(2, 50, high) == pytest.approx(0.025)
    assert exact_share(0, 50)[0] == 0.0 and exact_share(50, 50)[1] == 1.0
    assert "loses 2 of the 50 sealed test pictures (0.5 to 13.7 %)" in Telling(0.05, 1.0, 0.04, 50, ()).sentence
