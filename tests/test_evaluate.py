"""Bootstrap metrics against slow, plain ones; pairing, repeats, degenerate sets, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.evaluate import TestReport, evaluate
from headstart.intervals import Interval, sign_test
from headstart.tasks.catalog import TASKS
from headstart.tasks.classification import softmax
from headstart.tasks.resampling import bootstrap
from headstart.verdict import decide_verdict

Belief = NDArray[np.float64]


def made(images: int, classes: int, strengths: dict[str, float]) -> tuple[NDArray[np.int64], dict[str, Belief]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    return labels, {
        name: softmax(rng.normal(size=(images, classes)) + pull * np.eye(classes)[labels])
        for name, pull in strengths.items()
    }


def all_intervals(report: TestReport) -> list[Interval]:
    found = [getattr(scores, name) for scores in report.models.values() for name in type(scores).model_fields]
    return [interval for interval in found if isinstance(interval, Interval)]


def test_resampled_metrics_equal_the_plain_ones_on_the_resampled_images() -> None:
    labels, beliefs = made(40, 6, {"final": 1.5, "head": 0.5})
    draws = bootstrap(labels, beliefs, {"final": beliefs["head"]}, np.arange(40), 30, seed=5)
    chosen = np.random.default_rng(5).integers(0, 40, (30, 40))
    for name, belief in beliefs.items():
        for metric, measure in TASKS["classification"].metrics.items():
            plain = [measure(labels[rows], belief[rows]) for rows in chosen]
            np.testing.assert_allclose(draws[name][metric], plain, atol=1e-12)
    np.testing.assert_allclose(draws["final"]["ece_uncalibrated"], draws["head"]["ece"])


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, beliefs = made(50, 4, {"final": 1.0})
    whole = bootstrap(labels, beliefs, {}, np.arange(50), 20, seed=1)
    monkeypatch.setattr("headstart.tasks.resampling._BLOCK", 50 * 3)
    parts = bootstrap(labels, beliefs, {}, np.arange(50), 20, seed=1)
    np.testing.assert_array_equal(whole["final"]["macro_f1"], parts["final"]["macro_f1"])


def test_report_holds_point_values_and_intervals_around_them() -> None:
    labels, beliefs = made(150, 5, {"final": 3.0, "head": 2.5, "scratch_cnn": 1.0, "pixels": 0.6})
    beliefs["majority"] = np.tile(np.bincount(labels, minlength=5) / 150, (150, 1))
    report = evaluate(labels, beliefs, uncalibrated={"final": beliefs["head"]}, resamples=500)
    assert (report.images, report.opened, report.protocol) == (150, 1, "sealed test")
    for name, belief in beliefs.items():
        for metric, measure in TASKS["classification"].metrics.items():
            assert getattr(report.models[name], metric).value == measure(labels, belief)
    assert all(i.low <= i.value <= i.high for i in all_intervals(report))
    assert all(d.low <= d.value <= d.high for d in report.differences)
    uncalibrated = report.models["final"].ece_uncalibrated
    assert uncalibrated is not None and uncalibrated.value == report.models["head"].ece.value
    assert report.models["head"].ece_uncalibrated is None
    pairs = {(d.a, d.b) for d in report.differences}
    assert pairs == {("final", other) for other in beliefs if other != "final"} | {
        ("head", "scratch_cnn"),
        ("scratch_cnn", "majority"),
        ("pixels", "majority"),
    }


def test_intervals_of_accuracy_cover_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(120) < 0.8
        belief = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        report = evaluate(np.zeros(120, int), {"final": belief}, resamples=300, seed=seed)
        covered += report.models["final"].accuracy.low <= 0.8 <= report.models["final"].accuracy.high
    assert 0.89 <= covered / 200 <= 0.99


def test_paired_interval_is_narrower_than_the_models_own_where_they_err_together() -> None:
    labels, beliefs = made(300, 4, {"final": 1.2})
    other = beliefs["final"].copy()
    other[:6] = np.roll(other[:6], 1, axis=1)
    report = evaluate(labels, {**beliefs, "head": other}, resamples=500)
    pair, own = report.difference("final", "head"), report.models["final"].accuracy
    assert pair is not None and pair.high - pair.low < 0.4 * (own.high - own.low)


def test_no_mistake_seen_is_no_proof_of_none() -> None:
    sure = np.tile([1.0, 0.0], (20, 1))
    report = evaluate(np.zeros(20, int), {"final": sure, "head": 0.9 * sure + 0.05, "majority": sure})
    assert report.models["final"].accuracy.low == pytest.approx(0.025 ** (1 / 20))
    differ, same = report.difference("final", "head"), report.difference("final", "majority")
    assert differ is not None and (differ.low, differ.high) == pytest.approx((-0.168, 0.168), abs=1e-3)
    assert same is not None and (same.low, same.high, same.p) == (0, 0, 1)


def test_one_mistake_more_never_makes_a_model_look_safer() -> None:
    lows = []
    for wrong in range(5):
        belief = np.where((np.arange(40) >= wrong)[:, None], [0.9, 0.1], [0.1, 0.9])
        lows.append(evaluate(np.zeros(40, int), {"final": belief}, resamples=300).models["final"].accuracy.low)
    assert lows == sorted(lows, reverse=True) and len(set(lows)) == 5


@pytest.mark.parametrize(
    ("support", "recall"),
    [((35, 15, 5, 2, 1), (0.97, 0.95, 0.9, 0.8, 0.6)), ((2,) * 10, (0.8,) * 10), ((8,) * 5, (0.9,) * 5)],
)
def test_intervals_of_balanced_accuracy_cover_where_classes_have_few_pictures(
    support: tuple[int, ...], recall: tuple[float, ...]
) -> None:
    labels, classes, covered = np.repeat(np.arange(len(support)), support), len(support), 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(len(labels)) < np.repeat(recall, support)
        belief = np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]
        found = evaluate(labels, {"final": belief}, resamples=100, seed=seed).models["final"].balanced_accuracy
        covered += found.low <= np.mean(recall) <= found.high
    assert covered >= 0.91 * 200  # resampling alone covers 77 to 89 in 100


def test_one_answer_to_everything_has_one_balanced_accuracy() -> None:
    labels = np.repeat(np.arange(4), 20)
    found = evaluate(labels, {"final": np.tile([0.7, 0.1, 0.1, 0.1], (80, 1))}, resamples=200).models["final"]
    assert found.balanced_accuracy == Interval(value=0.25, low=0.25, high=0.25)
    assert found.accuracy.low < 0.25 < found.accuracy.high


@pytest.mark.parametrize("heat", [1.0, 0.3])
def test_an_error_of_calibration_is_held_against_what_chance_would_show(heat: float) -> None:
    """`heat` 1 is a calibrated model, 0.3 one that is far too sure."""
    above, shown, expected = 0, [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        true = softmax(rng.normal(size=(80, 4)) * 2)
        labels = (true.cumsum(1) > rng.random((80, 1))).argmax(1)
        scores = evaluate(labels, {"final": softmax(np.log(true) / heat)}, resamples=100, seed=seed).models["final"]
        above += scores.ece.low > 0
        shown.append(scores.ece.value)
        expected.append(scores.ece_expected)
    if heat == 1.0:
        assert above <= 6 and np.mean(shown) == pytest.approx(np.mean(expected), rel=0.1)
    else:
        assert above >= 54 and np.mean(shown) > 2 * np.mean(expected)


def test_repeats_resample_images_not_rows() -> None:
    labels, beliefs = made(80, 3, {"final": 1.0})
    thrice = evaluate(np.tile(labels, 3), {"final": np.tile(beliefs["final"], (3, 1))}, repeats=3)
    once = evaluate(labels, beliefs)
    assert (thrice.images, thrice.repeats, thrice.opened) == (80, 3, 0)
    assert thrice.protocol == "repeated cross-validation"
    assert thrice.models["final"].accuracy == once.models["final"].accuracy


def test_confusion_class_rows_and_reliability_add_up() -> None:
    labels, beliefs = made(200, 4, {"final": 1.0})
    labels[labels == 3] = 2
    report = evaluate(labels, beliefs, classes=("a", "b", "c", "d"), resamples=50)
    matrix = np.zeros((4, 4), int)
    for label, predicted, count in report.confusion:
        matrix[label, predicted] = count
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(labels, minlength=4))
    assert [row.support for row in report.classes] == matrix.sum(1).tolist()
    assert report.classes[3].recall is None and report.classes[3].predicted > 0
    assert report.classes[0].recall == matrix[0, 0] / matrix[0].sum()
    assert report.classes[0].precision == matrix[0, 0] / matrix[:, 0].sum()
    assert sum(b.count for b in report.reliability) == 200
    gap = sum(b.count * abs(b.accuracy - b.confidence) for b in report.reliability) / 200
    assert gap == pytest.approx(report.models["final"].ece.value)


def test_json_is_the_outline_and_reads_back() -> None:
    labels, beliefs = made(30, 3, {"final": 2.0, "scratch_cnn": 1.0})
    report = evaluate(labels, beliefs, resamples=50)
    data = json.loads(report.model_dump_json())
    assert set(data["models"]["final"]["accuracy"]) == {"value", "low", "high"}
    assert {"images", "opened", "models", "differences"} <= set(data)
    assert {"a", "b", "metric", "value", "low", "high", "p"} == set(data["differences"][0])
    assert TestReport.model_validate_json(report.model_dump_json()) == report


def test_the_seed_decides() -> None:
    labels, beliefs = made(60, 3, {"final": 1.0})
    assert evaluate(labels, beliefs, resamples=80) == evaluate(labels, beliefs, resamples=80)
    assert evaluate(labels, beliefs, resamples=80, seed=1) != evaluate(labels, beliefs, resamples=80)


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 / 32 - 1 / 32)
    assert sign_test(7, 7) == pytest.approx(1.0)
    assert sign_test(3, 9) == sign_test(9, 3)


def test_macro_f1_of_ten_thousand_images_and_a_thousand_classes_lies_in_its_interval() -> None:
    labels, beliefs = made(10_000, 1000, {"final": 4.0, "head": 3.5})
    report = evaluate(labels, beliefs)
    assert centred(report.models["final"].macro_f1)  # every class is rare


def centred(found: Interval) -> bool:
    """Whether the value lies in the middle half of its interval."""
    return abs((found.low + found.high) / 2 - found.value) < 0.25 * (found.high - found.low)


def test_resampling_does_not_overstate_the_error_of_a_calibrated_model() -> None:
    rng = np.random.default_rng(2)
    belief = softmax(1.5 * rng.normal(size=(1500, 5)))
    labels = np.array([rng.choice(5, p=row) for row in belief])
    draws = bootstrap(labels, {"final": belief}, {}, np.arange(1500), 500, seed=0)["final"]["ece"]
    found = evaluate(labels, {"final": belief}, resamples=500).models["final"].ece
    assert centred(found)
    assert np.quantile(draws, 0.025) > found.low  # what plain percentiles would have said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, p: (y, {"head": p}), "expected 'final' among"),
        (lambda y, p: (y, {"final": p[:-1]}), r"shape \(9, 3\) for 'final'; expected \(10, 3\)"),
        (lambda y, p: (y, {"final": p * np.nan}), "'final' must be"),
        (lambda y, p: (y, {"final": p * 2}), "rows that sum to 1"),
        (lambda y, p: (y + 1, {"final": p}), "Got labels 1 to 3; expected 0 to 2"),
        (lambda y, p: (y[:0], {"final": p[:0]}), r"labels of shape \(0,\)"),
    ],
)
def test_bad_input_is_told(change, message) -> None:  # type: ignore[no-untyped-def]
    labels = np.arange(10) % 3
    given, beliefs = change(labels, np.full((10, 3), 1 / 3))
    with pytest.raises(DataError, match=message):
        evaluate(given, beliefs)


def test_repeats_that_list_other_images_are_told() -> None:
    with pytest.raises(DataError, match="labels differ"):
        evaluate(np.array([0, 1, 1, 0]), {"final": np.full((4, 2), 0.5)}, repeats=2)


def grouped(seed: int, groups: int, each: int) -> tuple[NDArray[np.int64], dict[str, Belief], NDArray[np.int64]]:
    """Two models that are equally good, each right or wrong on whole groups but for one picture in ten."""
    rng = np.random.default_rng(seed)
    labels, unit = rng.integers(0, 2, groups * each), np.repeat(np.arange(groups), each)
    beliefs = {}
    for name in ("final", "scratch_cnn"):
        right = (rng.random(groups) < 0.7)[unit] ^ (rng.random(groups * each) < 0.1)
        beliefs[name] = np.where((labels == 1) == right, 0.9, 0.1)[:, None] * [-1, 1] + [1, 0]
    return labels, beliefs, unit


def test_pictures_of_one_group_count_as_one() -> None:
    surely = {True: 0, False: 0}
    for seed in range(60):
        labels, beliefs, unit = grouped(seed, 12, 20)
        for apart in surely:
            report = evaluate(labels, beliefs, groups=None if apart else unit, resamples=300)
            gain = report.difference("final", "scratch_cnn")
            assert gain is not None and gain.p is not None
            surely[apart] += (gain.low > 0 or gain.high < 0) and gain.p < 0.05
            assert report.groups == (None if apart else 12)
    assert surely[True] > 20 and surely[False] <= 4, "both are equally good"


@pytest.mark.parametrize("groups", [1, 2, 3, 9])
def test_few_groups_make_no_interval_narrower(groups: int) -> None:
    labels, beliefs = made(60, 3, {"final": 2.0, "scratch_cnn": 1.5, "majority": 0.1})
    alone, few = (evaluate(labels, beliefs, groups=each, resamples=300) for each in (None, np.arange(60) % groups))
    for one, other in zip(all_intervals(alone), all_intervals(few), strict=True):
        assert other.low <= one.low + 1e-9 and other.high >= one.high - 1e-9
    for one, other in zip(alone.differences, few.differences, strict=True):
        assert other.low <= one.low and other.high >= one.high
    verdict = decide_verdict(few)
    assert verdict.outcome == "not distinguishable" or groups > 4
    assert any(f"are of {groups} group" in said for said in verdict.warnings)


@pytest.mark.parametrize(("groups", "alike"), [(3, 0.1), (4, 0.4), (8, 0.2), (8, 0.8), (20, 0.4)])
def test_intervals_over_few_groups_cover_the_truth(groups: int, alike: float) -> None:
    """Of each group a share of answers is right that varies from group to group, 0.85 of all."""
    unit, spread, covered = np.repeat(np.arange(groups), 20), 1 / alike - 1, 0
    labels = np.tile([0, 1], 10 * groups)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        right = rng.random(len(unit)) < rng.beta(0.85 * spread, 0.15 * spread, groups)[unit]
        belief = np.eye(2)[np.where(right, labels, 1 - labels)]
        found = evaluate(labels, {"final": belief}, groups=unit, resamples=100, seed=seed).models["final"]
        covered += found.accuracy.low <= 0.85 <= found.accuracy.high
        covered += found.balanced_accuracy.low <= 0.85 <= found.balanced_accuracy.high
    assert covered >= 0.91 * 400


def test_one_wrong_answer_in_few_groups_still_promises_little() -> None:
    labels, unit = np.tile([0, 1], 30), np.arange(60) // 20
    belief = np.eye(2)[labels]
    belief[0] = belief[0, ::-1]
    low = evaluate(labels, {"final": belief}, groups=unit, resamples=100).models["final"].accuracy.low
    assert 0.6 < low < 0.75, "one by one, 60 pictures would promise 91 %"


def test_groups_of_one_picture_change_nothing() -> None:
    labels, beliefs = made(60, 4, {"final": 2.0, "pixels": 1.0})
    plain, alone = (
        evaluate(labels, beliefs, groups=groups, resamples=200) for groups in (None, np.arange(60)[::-1] + 7)
    )
    assert plain.groups is None and alone.groups is None
    assert plain.models["final"].accuracy.value == alone.models["final"].accuracy.value
    assert evaluate(labels, beliefs, groups=np.arange(60), resamples=200) == plain


def test_a_resample_of_groups_holds_them_whole() -> None:
    labels, beliefs = made(40, 3, {"final": 1.0})
    unit = np.arange(40) // 8
    draws = bootstrap(labels, beliefs, {}, unit, 25, seed=3)
    for place, chosen in enumerate(np.random.default_rng(3).integers(0, 5, (25, 5))):
        rows = np.concatenate([np.flatnonzero(unit == group) for group in chosen])
        for metric, measure in TASKS["classification"].metrics.items():
            assert draws["final"][metric][place] == pytest.approx(measure(labels[rows], beliefs["final"][rows]))


def test_all_right_promises_little_of_a_class_of_two() -> None:
    labels = np.repeat([0, 1], [98, 2])
    report = evaluate(labels, {"final": np.eye(2)[labels]}, resamples=50)
    scores = report.models["final"]
    assert scores.accuracy.low == pytest.approx(0.025 ** (1 / 100))
    # The least mean of p and q with p^98 q^2 = 0.025: nearly all of it is q's.
    grid = np.linspace(0.97, 1.0, 30_001)
    q = np.sqrt(0.025 / grid**98)
    assert scores.balanced_accuracy.low == pytest.approx(0.5 * (grid + q)[q <= 1].min(), abs=1e-4)
    assert scores.balanced_accuracy.low < 0.6
