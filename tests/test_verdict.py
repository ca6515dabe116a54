"""The verdict's outcomes, its sentences word for word, and its error rates where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.evaluate import Difference, Scores, TestReport, evaluate
from headstart.intervals import Interval
from headstart.verdict import Verdict, decide_verdict, points

Bools = NDArray[np.bool_]


def labelled(images: int) -> NDArray[np.int64]:
    """Two classes in turn."""
    return np.arange(images) % 2


def belief(right: Bools) -> NDArray[np.float64]:
    """Two classes, labelled in turn: sure of the label where right, of the other where not."""
    return np.where((right == (labelled(len(right)) == 0))[:, None], [0.9, 0.1], [0.1, 0.9])


def judged(images: int, shares: dict[str, float], head: float | None = None, repeats: int = 1) -> Verdict:
    """Models that are right on the first `share` of the images: where one errs, all worse ones do."""
    right = {name: np.arange(images) < round(share * images) for name, share in shares.items()}
    if head is not None:
        right["head"] = np.arange(images) < round(head * images)
    beliefs = {name: np.tile(belief(values), (repeats, 1)) for name, values in right.items()}
    return decide_verdict(evaluate(np.tile(labelled(images), repeats), beliefs, repeats=repeats))


def test_helped_in_words() -> None:
    shares = {"final": 0.962, "scratch_cnn": 0.752, "pixels": 0.4, "majority": 0.2}
    verdict = judged(420, shares, head=0.943)
    assert (verdict.outcome, verdict.overkill, verdict.baseline) == ("helped", False, "scratch_cnn")
    assert verdict.sentence == (
        "Transfer helped: 96.2 % of the 420 sealed test images are right, "
        "21.0 points (17.1 to 25.0) more than a small network trained from scratch."
    )
    assert verdict.reasons == (
        "The paired 95 % interval leaves out zero, and the sign test agrees (p < 0.001).",
        "Fine-tuning added 1.9 points (0.7 to 3.3) over the head on frozen features.",
    )
    assert verdict.warnings == ()


def test_hurt_in_words() -> None:
    verdict = judged(300, {"final": 0.7, "scratch_cnn": 0.8, "pixels": 0.3, "majority": 0.2})
    assert verdict.outcome == "hurt"
    assert "hurt: 70.0 % of the 300 sealed test images are right, 10.0 points (" in verdict.sentence
    assert verdict.sentence.endswith("fewer than a small network trained from scratch.")
    assert "Next: try others (headstart backbones lists them), or do without, as a small network" in verdict.reasons[1]


def test_overkill_is_a_tie_that_beats_the_majority() -> None:
    tie = judged(400, {"final": 0.97, "scratch_cnn": 0.9675, "pixels": 0.8, "majority": 0.2})
    assert (tie.outcome, tie.overkill) == ("not distinguishable", True)
    assert (
        "overkill here: a small network trained from scratch reaches 96.8 %, which is at most 0.8 points worse"
        in tie.reasons[1]
    )
    nothing_helps = judged(400, {"final": 0.5, "scratch_cnn": 0.5, "pixels": 0.5, "majority": 0.5})
    assert (nothing_helps.outcome, nothing_helps.overkill) == ("not distinguishable", False)
    assert "better than always answering the commonest class" in nothing_helps.warnings[0]


def test_a_small_network_that_is_better_but_not_for_sure_makes_transfer_overkill() -> None:
    ahead = judged(411, {"final": 405 / 411, "scratch_cnn": 409.5 / 411, "pixels": 0.8, "majority": 0.1})
    assert (ahead.outcome, ahead.overkill) == ("not distinguishable", True)
    surely = judged(411, {"final": 0.95, "scratch_cnn": 0.99, "pixels": 0.8, "majority": 0.1})
    assert (surely.outcome, surely.overkill) == ("hurt", False)  # that is no tie but the verdict itself


def test_pixels_that_tie_are_overkill_too() -> None:
    verdict = judged(400, {"final": 0.97, "scratch_cnn": 0.6, "pixels": 0.97, "majority": 0.2})
    assert verdict.overkill and "a linear model on raw pixels" in verdict.reasons[1]


def test_a_sure_gain_below_half_a_point_is_helped_and_overkill() -> None:
    verdict = judged(10_000, {"final": 0.99, "scratch_cnn": 0.987, "majority": 0.1})
    assert (verdict.outcome, verdict.overkill) == ("helped", True)


def test_ignorance_is_not_called_overkill() -> None:
    rng = np.random.default_rng(1)
    right = {"final": rng.random(24) < 0.85, "scratch_cnn": rng.random(24) < 0.75}
    right["majority"] = np.zeros(24, bool)
    report = evaluate(labelled(24), {name: belief(values) for name, values in right.items()})
    gap = report.difference("final", "scratch_cnn")
    assert gap is not None and gap.low < 0 < gap.high and gap.high - gap.low > 0.2
    verdict = decide_verdict(report)
    assert (verdict.outcome, verdict.overkill) == ("not distinguishable", False)
    assert len(verdict.warnings) == 2


@pytest.mark.parametrize(("images", "overkill"), [(60, False), (100, True)])
def test_no_difference_seen_on_few_images_is_no_tie(images: int, overkill: bool) -> None:
    """On 60, equal numbers leave room for six points."""
    alike = np.arange(images) < round(0.9 * images)
    beliefs = {
        "final": belief(alike),
        "scratch_cnn": 0.8 * belief(alike) + 0.1,
        "majority": belief(np.arange(images) < 20),
    }
    assert decide_verdict(evaluate(labelled(images), beliefs)).overkill is overkill


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(
    ("rare", "found", "said"),
    [
        (2, 2, "All but 2 of the 202 images tested are of one class, '0': accuracy cannot show"),
        (12, 11, "but it finds the others: its balanced accuracy is 43.3 points ("),
        (12, 1, "it should not be used as it is"),
    ],
)
def test_a_model_that_finds_the_rare_class_is_not_called_useless(
    rare: int, found: int, said: str, repeats: int
) -> None:
    labels = np.r_[np.zeros(200, int), np.ones(rare, int)]
    right = np.r_[np.arange(200) >= 10 * (rare == 12), np.arange(rare) < found]
    final = np.eye(2)[np.where(right, labels, 1 - labels)]
    beliefs = {"final": 0.98 * final + 0.01, "majority": np.tile([0.9, 0.1], (len(labels), 1))}
    beliefs = {name: np.tile(each, (repeats, 1)) for name, each in beliefs.items()}
    warned = decide_verdict(evaluate(np.tile(labels, repeats), beliefs, repeats=repeats)).warnings
    assert any(said in each for each in warned), warned
    assert all("it should not be used" not in each for each in warned) or "it should not be used" in said


def test_a_model_that_too_few_groups_show_to_be_better_is_not_told_to_find_rare_classes() -> None:
    images = 48  # two classes of equal size in four groups
    right = {"final": np.arange(images) % 12 > 0, "majority": labelled(images) == 0}
    beliefs = {name: belief(values) for name, values in right.items()}
    report = evaluate(labelled(images), beliefs, groups=np.arange(images) // 12)
    warned = " ".join(decide_verdict(report).warnings)
    assert "This model is right more often than always answering the commonest class, by 41.7 points (" in warned
    assert (
        "but too few groups of images say so: the sign test gives p = 0.062, above 0.050. Add pictures of other"
        in warned
    )
    assert "rare" not in warned and "it should not be used" not in warned
    assert "too few groups decide it: the sign test gives p = 0.062" in decide_verdict(report).reasons[0]


def test_few_discordant_images_do_not_decide() -> None:
    # Four of thirty images, all in favour: the bootstrap alone would say so, the sign test does not.
    verdict = judged(30, {"final": 1.0, "scratch_cnn": 26 / 30, "majority": 0.3})
    assert verdict.outcome == "not distinguishable"
    assert "too few images decide it: the sign test gives p = 0.062" in verdict.reasons[0]
    assert judged(30, {"final": 1.0, "scratch_cnn": 24 / 30, "majority": 0.3}).outcome == "helped"


def test_the_final_model_that_is_the_head_is_said_so() -> None:
    verdict = judged(100, {"final": 0.9, "scratch_cnn": 0.5, "majority": 0.2}, head=0.9)
    assert "no fine-tuning was kept" in verdict.reasons[1]


def test_cross_validation_says_that_no_test_set_was_cut() -> None:
    verdict = judged(60, {"final": 0.9, "scratch_cnn": 0.5, "majority": 0.2}, head=0.88, repeats=4)
    said = "in repeated cross-validation on 60 images (no test set was cut) 90.0 % are right"
    assert said in verdict.sentence
    assert "each image was predicted 4 times by models that had not seen it" in " ".join(verdict.reasons)
    assert "added nothing that this test can show" in verdict.reasons[1]
    assert "somewhat wider" in verdict.warnings[-1]


def report_of(gain: Difference, baselines: tuple[str, ...]) -> TestReport:
    level = Interval(value=0.8, low=0.7, high=0.88)
    scores = Scores(accuracy=level, balanced_accuracy=level, macro_f1=level, log_loss=level, ece=level)
    pairs = [gain] + [gain.model_copy(update={"b": name}) for name in baselines if name != gain.b]
    return TestReport(
        images=100,
        opened=1,
        protocol="sealed test",
        repeats=1,
        differences=tuple(pairs),
        classes=(),
        models=dict.fromkeys(("final", *baselines), scores),
        confusion=(),
        reliability=(),
    )


def test_beating_the_best_of_three_asks_more_than_beating_one() -> None:
    loss = Difference(a="final", b="scratch_cnn", metric="accuracy", value=-0.05, low=-0.09, high=-0.01, p=0.03)
    assert decide_verdict(report_of(loss, ("scratch_cnn",))).outcome == "hurt"
    three = decide_verdict(report_of(loss, ("scratch_cnn", "pixels", "majority")))
    assert three.outcome == "not distinguishable"
    assert "above 0.017, its level for the best of 3 baselines" in three.reasons[0]


@pytest.mark.parametrize("images", [12, 40, 150])
@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("baselines", [1, 3])
def test_false_verdicts_are_at_most_five_in_a_hundred(images: int, share: float, baselines: int) -> None:
    rng, trials, wrong = np.random.default_rng(images), 200, 0
    names = ("final", "scratch_cnn", "pixels", "majority")[: baselines + 1]
    for seed in range(trials):
        shared = rng.random(images)  # images that are hard are hard for all
        draws = {name: np.where(rng.random(images) < 0.4, shared, rng.random(images)) for name in names}
        beliefs = {name: belief(draw < share) for name, draw in draws.items()}
        report = evaluate(labelled(images), beliefs, resamples=200, seed=seed)
        wrong += decide_verdict(report).outcome != "not distinguishable"
    # 5 % of 200 is 10; 18 is what a true rate of 5 % exceeds once in a hundred times.
    assert wrong <= 18


def test_real_gains_are_found() -> None:
    rng, found = np.random.default_rng(0), 0
    for seed in range(60):
        draws = {"final": rng.random(200) < 0.9, "scratch_cnn": rng.random(200) < 0.75}
        beliefs = {name: belief(draw) for name, draw in draws.items()}
        report = evaluate(labelled(200), beliefs, resamples=200, seed=seed)
        found += decide_verdict(report).outcome == "helped"
    assert found >= 54


def test_points_never_write_minus_zero() -> None:
    gap = Difference(a="a", b="b", metric="accuracy", value=-0.0001, low=-0.02, high=0.0)
    assert points(gap) == "0.0 points (-2.0 to 0.0)"
    assert points(gap, -1) == "0.0 points (0.0 to 2.0)"


def test_a_report_without_baselines_is_told() -> None:
    report = evaluate(labelled(5), {"final": belief(np.ones(5, bool))}, resamples=10)
    with pytest.raises(DataError, match="a verdict needs 'final' and one of"):
        decide_verdict(report)


def test_an_opponent_that_ran_out_of_time_is_not_beaten() -> None:
    right = {
        name: np.arange(400) < 400 * share
        for name, share in {"final": 0.95, "scratch_cnn": 0.5, "majority": 0.2}.items()
    }
    report = evaluate(labelled(400), {name: belief(values) for name, values in right.items()})
    assert decide_verdict(report).outcome == "helped"
    verdict = decide_verdict(report, unfinished="scratch_cnn")
    assert verdict.outcome == "not distinguishable"
    assert verdict.sentence.startswith(
        "Whether transfer helped cannot be told, as a small network trained from scratch had no time to end: 95.0 %"
    )
    assert verdict.warnings[0].startswith(
        "Time ran out before a small network trained from scratch was trained as long as is fair: its result"
    )


def test_how_well_the_difference_is_known_is_as_measured() -> None:
    rivals = {"final": 0.9, "scratch_cnn": 0.5}
    report = evaluate(labelled(26), {name: belief(np.arange(26) < share * 26) for name, share in rivals.items()})
    gain = report.difference("final", "scratch_cnn")
    assert gain is not None and gain.high - gain.low > 0.3
    said = next(each for each in decide_verdict(report).warnings if "difference" in each)
    assert f"known only to ±{50 * (gain.high - gain.low):.0f} points with 26 images" in said


def test_a_test_of_one_class_shows_nothing() -> None:
    alike = np.tile([0.9, 0.1], (24, 1))
    report = evaluate(
        np.zeros(24, int), dict.fromkeys(("final", "scratch_cnn", "majority"), alike), classes=["grass", "parking"]
    )
    verdict = decide_verdict(report, unfinished="scratch_cnn")
    assert verdict.baseline == "majority", "of equals one that ran to its end"
    assert any(said.startswith("All images tested are of one class, 'grass'") for said in verdict.warnings)
    assert not any(
        "one class" in said for said in judged(24, {"final": 0.9, "scratch_cnn": 0.9, "majority": 0.5}).warnings
    )
