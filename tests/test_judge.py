"""A rung is kept for what it gains alone, or with the frozen head for what that makes likelier."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.choice import Ways
from headstart.forecast import WORTH, Forecast
from headstart.judge import judge
from tests.toys import clearly_likelier

Logits = NDArray[np.float32]
TRUTH = np.arange(90) % 3
HOPE = Forecast(0.05, 0.005)


def answers(right: float, seed: int, sure: float = 2.0) -> Logits:
    """Logits (90, 3) that are right for a share of the pictures, and noisy."""
    draw = np.random.default_rng(seed)
    told = np.where(draw.random(90) < right, TRUTH, (TRUTH + 1 + draw.integers(2, size=90)) % 3)
    return (sure * np.eye(3)[told] + draw.normal(0, 0.5, (90, 3))).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_alone_it_takes_more_than_the_standard_error_and_one_picture(seed: int) -> None:
    best = answers(0.6, seed)
    shares = np.stack([answers(0.3, 20 + seed), answers(0.9, 40 + seed)])
    found = judge(shares, best, TRUTH)
    assert (found.share, found.kept, found.together, found.heat) == (1, True, False, 1.0)
    np.testing.assert_array_equal(found.logits, shares[1])
    assert found.accuracy == (shares[1].argmax(1) == TRUTH).mean()
    assert found.gain == pytest.approx(found.accuracy - (best.argmax(1) == TRUTH).mean())
    assert not judge(best[None], best, TRUTH).kept
    one = best.copy()
    wrong = int(np.flatnonzero(best.argmax(1) != TRUTH)[0])
    one[wrong] = 5 * np.eye(3)[TRUTH[wrong]]
    assert not judge(one[None], best, TRUTH).kept  # a picture more, and none lost
    forced = judge(one[None], best, TRUTH, frozen=best, forced=True)
    assert forced.kept and not forced.together


def test_heads_that_err_apart_answer_together() -> None:
    seen = set()
    for seed in range(20):
        frozen, trained = answers(0.7, seed), answers(0.7, 100 + seed)
        found = judge(trained[None], frozen, TRUTH, frozen=frozen)
        if found.together:
            assert found.kept and found.gain >= 0
            np.testing.assert_allclose(found.logits, 0.5 * (trained / np.float32(found.heat) + frozen), rtol=1e-5)
            assert clearly_likelier(found.logits, frozen, TRUTH)
        seen.add(found.together)
    assert seen == {False, True}
    same = judge(frozen[None], frozen, TRUTH, frozen=frozen)
    assert not same.kept and not same.together  # a mean with itself tells nothing new


def test_what_is_kept_alone_stays_alone_where_the_other_would_spoil_it() -> None:
    frozen, trained = answers(0.4, 1), answers(0.95, 2)
    found = judge(trained[None], frozen, TRUTH, frozen=frozen)
    assert found.kept and not found.together


def test_another_backbone_is_always_part_of_the_answer() -> None:
    beside, best = answers(0.7, 3), answers(0.5, 4)
    shares = np.stack([answers(0.8, 5), answers(0.4, 6)])
    found = judge(shares, best, TRUTH, beside=beside)
    assert found.share == 0 and not found.together
    np.testing.assert_allclose(found.logits, 0.5 * (shares[0] / np.float32(found.heat) + beside), rtol=1e-5)


def test_what_recorded_runs_let_expect_keeps_two_networks_where_pictures_do_not_speak_against_it() -> None:
    frozen, trained = answers(0.7, 3), answers(0.68, 4)
    without = judge(trained[None], frozen, TRUTH, frozen=frozen)
    assert not without.kept
    hopeful = judge(trained[None], frozen, TRUTH, frozen=frozen, expected=HOPE)
    assert hopeful.kept and hopeful.together and hopeful.posterior is not None
    nats = Ways.of([hopeful.logits, frozen], TRUTH).likelier(0, 1)
    assert hopeful.likelier == hopeful.with_head == nats
    assert hopeful.posterior == HOPE.seen(*nats) and hopeful.posterior.gain > WORTH
    np.testing.assert_allclose(hopeful.logits, 0.5 * (trained / np.float32(hopeful.heat) + frozen), rtol=1e-5)
    bad = judge(answers(0.05, 5, sure=8.0)[None], frozen, TRUTH, frozen=frozen, expected=HOPE)
    assert bad.with_head is not None and bad.with_head[0] < -bad.with_head[1]
    assert not bad.kept and bad.posterior is None, "the labels are clearly less likely"
    worse = judge(trained[None], frozen, TRUTH, frozen=frozen, expected=Forecast(-0.02, 0.005))
    assert not worse.kept  # the pictures alone would have it
    assert worse.posterior is not None and worse.posterior.gain < WORTH
    assert worse.with_head is not None and worse.with_head[0] > 0


def test_a_rung_that_its_training_ruined_is_not_kept_for_the_head_beside_it() -> None:
    """Beside a head that it hardly disturbs, the labels are no clearly less likely; by recorded runs alone it would be kept."""
    frozen, noise = answers(0.7, 3), np.random.default_rng(2).normal(0, 1, (1, 90, 3)).astype(np.float32)
    found = judge(noise, frozen, TRUTH, frozen=frozen, expected=HOPE)
    assert found.with_head is not None and found.with_head[0] > -found.with_head[1]
    assert HOPE.seen(*found.with_head).gain >= WORTH
    assert not found.kept and found.posterior is None


def test_what_recorded_runs_keep_is_all_that_training_changed() -> None:
    """So were they recorded; how likely the labels become is told of that, whatever share answers best."""
    frozen = answers(0.7, 3)
    shares = np.stack([answers(0.68, 4), frozen])  # the latter: nothing of it
    for each in (shares, shares[:1]):
        found = judge(each, frozen, TRUTH, frozen=frozen, expected=Forecast(0.2, 0.001))
        assert found.kept and found.together and found.share == 0 and found.with_head is not None
    alone = judge(shares, frozen, TRUTH, frozen=frozen)
    assert not alone.kept and alone.with_head == found.with_head


def test_a_single_network_is_kept_for_what_it_gains_alone() -> None:
    """And so is one beside another backbone: what was recorded are networks together with their own frozen heads."""
    best, trained = answers(0.7, 8), answers(0.65, 9)
    for beside in (None, best):
        assert not judge(trained[None], best, TRUTH, beside=beside).kept
        assert not judge(trained[None], best, TRUTH, beside=beside, expected=Forecast(0.2, 0.001)).kept


def test_the_share_that_makes_the_labels_likeliest_answers_though_another_is_right_once_more() -> None:
    right, wrong = np.eye(3, dtype=np.float32)[TRUTH], np.eye(3, dtype=np.float32)[(TRUTH + 1) % 3]
    mistaken = np.arange(90)[:, None]
    sure, vague = (
        np.where(mistaken < 9, 0.1 * wrong, 6 * right),
        np.where(mistaken < 8, wrong, np.where(mistaken < 60, 0.1, 1) * right),
    )
    assert (vague.argmax(1) == TRUTH).sum() == (sure.argmax(1) == TRUTH).sum() + 1
    assert judge(np.stack([vague, sure]).astype(np.float32), answers(0.4, 12), TRUTH).share == 1


def test_what_is_as_often_right_and_clearly_surer_of_the_labels_is_kept_alone() -> None:
    best = answers(0.7, 15)
    right = best.argmax(1) == TRUTH
    surer = (
        best + 2.0 * np.eye(3, dtype=np.float32)[TRUTH] * right[:, None]
    )  # the same answers, sure where they are right
    found = judge(surer[None], best, TRUTH)
    assert found.gain == 0 and found.kept and not found.together
    vague = (0.1 * best).astype(np.float32)  # calibrated, it says the same
    assert not judge(vague[None], best, TRUTH).kept
    worse = surer.copy()
    lost = np.flatnonzero(right)[:12]
    worse[lost] = 0.2 * np.eye(3)[(TRUTH[lost] + 1) % 3]
    assert clearly_likelier(worse, best, TRUTH) and not judge(worse[None], best, TRUTH).kept, "clearly less often right"


def test_the_gain_of_what_is_kept_is_cleared_of_having_been_chosen_and_kept() -> None:
    """Rungs as good as the best so far: those that are kept were lucky, and most of their gain was. What surely gains keeps it."""
    told, cleared = [], []
    for seed in range(60):
        shares = np.stack([answers(0.6, 1000 + 10 * seed + share) for share in range(5)])
        found = judge(shares, answers(0.6, seed), TRUTH)
        assert (found.cleared is not None) == found.kept
        if found.cleared is not None:
            told.append(found.gain)
            cleared.append(found.cleared)
    assert len(told) > 5 and max(np.subtract(cleared, told)) <= 0
    assert np.mean(cleared) < 0.6 * np.mean(told)
    sure = judge(answers(0.95, 2)[None], answers(0.4, 1), TRUTH)
    assert sure.cleared == sure.gain > 0.4


def test_shots_of_one_thing_are_no_more_sure_than_one_of_them() -> None:
    best, shares = answers(0.6, 1), np.stack([answers(0.7, 21), answers(0.75, 41)])
    apart = judge(shares, best, TRUTH)
    three = {"best": best.repeat(3, 0), "shares": shares.repeat(3, 1), "truth": TRUTH.repeat(3)}
    together = judge(**three, groups=100 - np.arange(90).repeat(3))
    assert together.gain == pytest.approx(apart.gain)
    assert together.gain_se == pytest.approx(apart.gain_se, rel=0.01)
    assert together.likelier == pytest.approx(apart.likelier, rel=0.02) and together.kept == apart.kept
    assert together.cleared == pytest.approx(apart.cleared, abs=0.01)
    for few in (1, 2, 4):  # nothing is known for sure of so few
        lucky = judge(answers(0.95, 5)[None], answers(0.5, 6), TRUTH, groups=np.arange(90) % few)
        assert lucky.gain > 0.3 and lucky.gain_se >= lucky.gain and not lucky.kept
    unaware = judge(**three)
    assert unaware.gain_se == pytest.approx(apart.gain_se / 3**0.5)
    alone = judge(shares, best, TRUTH, groups=np.arange(90)[::-1])
    assert (alone.gain_se, alone.likelier, alone.cleared) == (apart.gain_se, apart.likelier, apart.cleared)
