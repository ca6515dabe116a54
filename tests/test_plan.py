"""The plan is data: pure, with a reason for everything that is in it or left out, and read back only where it fits."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headstart.cost import ON_EPOCHS, judgings, scratch_epochs, seconds, seconds_of
from headstart.data.load import load_dataset
from headstart.errors import PlanError
from headstart.forecast import PROMISING, Forecast
from headstart.plan import Budget, Evidence, Judge, Plan, Rung, load_plan
from headstart.planner import FEW_IMAGES, WHOLE_VIEWS, cut_for, decide, foreseen, frozen_share
from tests.data.pictures import class_folders

STAGES = ["stem", "one", "two", "three", "four"]


def evidence(**changes: Any) -> Evidence:
    return Evidence(
        **{
            "images": 800,
            "classes": 5,
            "smallest_class": 90,
            "tested": 200,
            "head": "logistic, no head beats the last stage",
            "head_accuracy": 0.9,
            "head_accuracy_se": 0.01,
            "last_stage_accuracy": 0.89,
            "profile": [0.3, 0.5, 0.7, 0.8, 0.89],
            "stages": STAGES,
            "flops": [100, 100, 100, 100, 100],
            "activation_bytes": [80_000, 40_000, 20_000, 10_000, 5_000],
            "forward_seconds": [0.002] * 5,
            "training_seconds": [0.006] * 5,
            "decode_seconds": 0.004,
            "scratch_seconds": 0.003,
        }
        | changes
    )


def plan(budget: Budget | None = None, changes: dict[str, Any] | None = None, **options: Any) -> Plan:
    return decide(evidence(**(changes or {})), budget or Budget(), backbone="net", **options)


def test_decide_is_a_pure_function() -> None:
    random.seed(0)
    first = plan(Budget(seconds=600, store_bytes=10**9), seed=3)
    random.seed(1)
    assert plan(Budget(seconds=600, store_bytes=10**9), seed=3) == first
    assert first.evidence == evidence()
    assert first.seed == 3


def test_the_ladder_goes_down_from_the_top_and_names_its_reasons() -> None:
    found = plan()
    assert [rung.cut for rung in found.rungs] == [4, 2]
    assert "stages from four on train: 80 % of the forward pass stays frozen" in found.rungs[0].reason
    assert (
        "one step deeper, 40 % stays frozen; tried if the rung above it pays and at its pace there is time"
        in found.rungs[1].reason
    )
    assert "90.0 ± 1.0 % out of fold" in found.reasons[0]
    assert (found.judge, found.refit, found.stages) == ("fold", "on", STAGES)


def test_the_judge_follows_the_data() -> None:
    assert plan(changes={"images": FEW_IMAGES - 1}).judge == "folds"
    assert plan(changes={"images": FEW_IMAGES}).judge == "fold"
    given_val = plan(changes={"validation": 100})
    assert (given_val.judge, given_val.refit) == ("val", "none")
    few = plan(changes={"validation": 99})
    assert (few.judge, few.refit) == ("fold", "on")
    assert "the 99 of the given validation set are too few" in few.reasons[-1]


@pytest.mark.parametrize(("left", "judge"), [((), "val"), (("0",), "fold")])
def test_a_validation_set_that_lacks_a_class_leaves_judging_to_folds(
    tmp_path: Path, left: tuple[str, ...], judge: Judge
) -> None:
    for side, first in (("train", 0), ("val", 100), ("test", 500)):
        counts = {name: 120 if side == "val" else 6 for name in "012" if side != "val" or name not in left}
        class_folders(tmp_path / side, counts, first_seed=first)
    dataset = load_dataset(tmp_path)
    sides = {"tested": len(dataset.indices("test")), "validation": len(dataset.indices("val"))}
    assert plan(changes=sides).judge == judge


@pytest.mark.parametrize(
    ("folds", "judge", "expected"),
    [(5, "folds", (3, 0.8)), (2, "folds", (2, 0.5)), (10, "fold", (1, 0.9)), (5, "val", (1, 1.0))],
)
def test_what_judging_takes_follows_the_folds(folds: int, judge: Judge, expected: tuple[int, float]) -> None:
    assert judgings(folds, judge) == expected
    known, rung = evidence().model_copy(update={"folds": folds}), Rung(cut=2, epochs=10)
    trainings, share = expected
    after = {"folds": 10, "fold": ON_EPOCHS, "val": 0}[judge]
    assert seconds(known, rung, judge) == seconds_of(known, rung, 10 * trainings * share + after)


@pytest.mark.parametrize("images", [9, 30, 33])
def test_a_small_network_that_has_few_steps_an_epoch_gets_its_least(images: int) -> None:
    known = plan(changes={"images": images}).evidence
    assert known is not None
    few, much = (scratch_epochs(known, seconds, 1)[0] for seconds in (0.0, 1e9))
    assert few == math.ceil(160 / math.ceil(images / 32)) <= much == max(few, 150)


def test_asked_for_modes() -> None:
    head = plan(mode="head")
    assert head.rungs == []
    assert head.reasons[-1] == "only the head is trained: asked for with --plan head"
    full = plan(Budget(seconds=1.0), mode="full")
    assert [(rung.cut, rung.views) for rung in full.rungs] == [(0, WHOLE_VIEWS)]
    assert full.reasons[-1] == "every stage is trained from the start: asked for with --plan full"


def test_few_pictures_get_one_deep_rung_or_a_shallow_one_where_time_is_short() -> None:
    few = {"images": 300}
    (deep,) = plan(changes=few).rungs
    assert (deep.cut, deep.batch) == (2, 16)
    cost = seconds(evidence(**few), deep, "folds")
    found = plan(Budget(seconds=2 * cost - 1), few)
    (shallow,) = found.rungs
    assert shallow.cut == 4 and seconds(evidence(**few), shallow, "folds") < cost
    assert any(reason.startswith(f"no rung from two on: it would take about {cost:.0f} s") for reason in found.reasons)
    assert plan(Budget(seconds=1), few).rungs == []


def test_nothing_is_tuned_where_nothing_could_be_shown_or_gained() -> None:
    untested = plan(changes={"tested": 0, "images": 80})
    assert untested.rungs == []
    assert untested.reasons[-1].startswith("only the head is trained: of 80 images no test set could be cut")
    perfect = plan(changes={"head_accuracy": 1.0})
    assert perfect.rungs == []
    assert "about 0.0 mistakes are expected on the pictures that would judge more" in perfect.reasons[-1]
    # 800 pictures are judged on one fold of 160, 400 on three of 80.
    for images, accuracy, rungs in (
        (800, 1 - 1.4 / 160, 0),
        (800, 1 - 1.6 / 160, 2),
        (400, 1 - 1.4 / 240, 0),
        (400, 1 - 1.6 / 240, 1),
    ):
        assert len(plan(changes={"images": images, "head_accuracy": accuracy}).rungs) == rungs


def test_what_the_time_has_no_room_for_is_dropped_with_its_reason() -> None:
    whole = plan()
    first, second = (seconds(evidence(), rung, "fold", whole.rungs[:place]) for place, rung in enumerate(whole.rungs))
    assert second > first
    # The pass for the first caches what the second starts from.
    pictures, share = evidence().images, sum(evidence().forward_seconds[:2]) + evidence().decode_seconds
    assert seconds(evidence(), whole.rungs[1], "fold") - second == pytest.approx(4 * pictures * share)
    usual = whole.rungs[0].epochs
    shortest = seconds(evidence(), whole.rungs[0].model_copy(update={"epochs": math.ceil(usual / 2)}), "fold")
    # The pace of the first rung decides on the second, unless twice the speed would not do either. Before nothing is fine-tuned at
    # all, the first has fewer epochs.
    for left, expected in (
        (2 * (first + second) + 1, [4, 2]),
        (first + second + 1, [4, 2]),
        (first + second - 1, [4]),
        (2 * first + 1, [4]),
        (2 * first - 1, [4]),
        (2 * shortest + 1, [4]),
        (2 * shortest - 1, []),
    ):
        found = plan(Budget(seconds=left + 30, spent_seconds=30))
        assert [rung.cut for rung in found.rungs] == expected
        dropped = [reason for reason in found.reasons if "it would take about" in reason]
        assert len(dropped) == 2 - len(expected)
    assert (
        f"no rung from four on: it would take about {first:.0f} s, and {shortest - 0.5:.0f} s are left" in found.reasons
    )
    for left, epochs in ((2 * first + 1, usual), (2 * first - 1, usual - 1), (2 * shortest + 1, math.ceil(usual / 2))):
        rung = plan(Budget(seconds=left)).rungs[0]
        assert rung.epochs == epochs
        assert rung.reason.endswith(f"; {epochs} of {usual} epochs, for which there is time") == (epochs < usual)
    assert plan(Budget(seconds=10, spent_seconds=30)).reasons[-1].endswith("and 0 s are left")


def test_a_rung_is_shortened_also_where_the_one_above_has_no_room_in_the_store() -> None:
    growing = {"activation_bytes": [5_000, 10_000, 20_000, 800_000, 400_000]}
    (alone,) = plan(Budget(store_bytes=10**8), growing).rungs
    cost = seconds(evidence(**growing), alone, "fold")
    found = plan(Budget(seconds=2 * cost - 1, store_bytes=10**8), growing)
    assert [(rung.cut, rung.epochs) for rung in found.rungs] == [(2, alone.epochs - 1)]
    assert any("no rung from four on: two views of it take" in reason for reason in found.reasons)


@pytest.mark.parametrize("images", [300, 800])
def test_what_heads_cache_ahead_is_what_plans_cut_at_and_costs_nothing_again(images: int) -> None:
    known = {"images": images, "views": 3}
    about: dict[str, Any] = {"tested": 200, "validation": 0, "folds": 5}
    cuts = foreseen(evidence().flops, images, accuracy=0.9, **about)
    found = plan(changes={**known, "cached": cuts})
    assert [rung.cut for rung in found.rungs] == cuts == [rung.cut for rung in plan(changes=known).rungs]
    rung = found.rungs[0]
    before, after = (seconds(evidence(**known, cached=each), rung, found.judge) for each in ([], cuts))
    once = evidence().decode_seconds + sum(evidence().forward_seconds[: rung.cut])
    assert before - after == pytest.approx(3 * images * once), "the clean view is left"
    assert foreseen(evidence().flops, images, accuracy=1.0, **about) == []
    assert foreseen(evidence().flops, images, accuracy=0.9, **{**about, "tested": 0}) == []


def test_what_the_store_has_no_room_for_is_cached_in_less() -> None:
    # At "four" a view takes 800 · 10,000 bytes in float32, at "three" twice, at "two" four times as much.
    view = 800 * 10_000
    for room, expected in (
        (20 * view, [(4, 4, False), (2, 4, False)]),
        (12 * view, [(4, 4, False), (2, 4, True)]),
        (8 * view, [(4, 4, False), (2, 2, True)]),
        (7 * view, [(4, 4, False), (3, 3, True)]),
        (6 * view, [(4, 4, False), (3, 2, True)]),
        (5 * view, [(4, 4, False)]),
        (3 * view, [(4, 4, True)]),
        (1.5 * view, [(4, 3, True)]),
        (view, [(4, 2, True)]),
        (view - 1, []),
    ):
        found = plan(Budget(store_bytes=int(room)))
        assert [(rung.cut, rung.views, rung.rounded) for rung in found.rungs] == expected, room
        assert len([reason for reason in found.reasons if reason.startswith("no rung")]) == 2 - len(expected)
    assert plan(Budget(store_bytes=3 * view)).rungs[0].reason.endswith("; cached in bfloat16, for which there is room")
    moved = plan(Budget(store_bytes=7 * view)).rungs[1].reason
    assert moved == (
        "stages from three on train: 60 % of the forward pass stays frozen; the store has no room for what enters two; "
        "cached in bfloat16 and in 3 of 4 views, for which there is room"
    )
    none = plan(Budget(store_bytes=view // 2))
    assert "no rung from four on: two views of it take 0.008 GB, the store has room for 0.004 GB" in none.reasons


def test_what_is_computed_in_two_bytes_is_not_halved_again() -> None:
    view = 800 * 10_000
    found = plan(Budget(store_bytes=3 * view), {"activation_dtype": "bfloat16"})
    assert (found.rungs[0].cut, found.rungs[0].views) == (4, 3)
    assert found.rungs[0].reason.endswith("; cached in 3 of 4 views, for which there is room")


def test_fewer_pictures_get_more_passes_within_bounds() -> None:
    epochs = [plan(changes={"images": images}).rungs[0].epochs for images in (50, 150, 500, 1500, 5000, 100_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert (epochs[0], epochs[1], epochs[3], epochs[-1]) == (24, 12, 6, 6)


def test_the_plan_says_what_recorded_runs_let_expect() -> None:
    known = {"forecast": Forecast(0.021, 0.03)}
    (said,) = [reason for reason in plan(changes=known).reasons if "other data" in reason]
    assert said == "from runs on other data, fine-tuning is expected to gain +2.1 ± 3.0 points"
    assert not any("other data" in reason for reason in plan().reasons)
    assert not any("other data" in reason for reason in plan(changes=known, mode="head").reasons)


def test_few_pictures_are_not_tuned_where_recorded_runs_let_expect_nothing() -> None:
    poor = {"forecast": Forecast(-0.001, 0.023), "images": 60}
    assert poor["forecast"].promise < PROMISING
    found = plan(changes=poor)
    assert found.rungs == [] and found.reasons[-1] == (
        "only the head is trained: from runs on other data, fine-tuning is expected to gain -0.1 ± 2.3 points; to try it, and keep "
        f"what held-out pictures approve of, promises {100 * poor['forecast'].promise:.1f}, not worth its time"
    )
    assert (
        len(plan(changes={**poor, "images": 800}).rungs) == 2
    )  # more were never recorded, and can show what they gain
    assert len(plan(changes={**poor, "validation": 200}).rungs) == 2
    assert len(plan(changes=poor, mode="full").rungs) == 1
    for hopeful in (Forecast(0.011, 0.023), Forecast(-0.001, 0.04)):  # what is not known may be much
        assert len(plan(changes={**poor, "forecast": hopeful}).rungs) == 1
    assert (
        len(plan(changes={**poor, "forecast": Forecast(0.0, 0.06, carried=True)}).rungs) == 1
    )  # learnt from another backbone


def test_the_network_from_scratch_gets_the_time_of_transfer_within_bounds() -> None:
    assert plan().scratch_epochs is None  # known only when the ladder has been climbed
    assert scratch_epochs(evidence(), 0.0, 1) == (
        8,
        "8 epochs, the least that is fair (its share of the time would be about 4)",
    )
    epochs, why = scratch_epochs(evidence(), 1e4, 1)
    assert (epochs, "when it has long converged" in why) == (150, True)
    assert scratch_epochs(evidence(images=64), 0.0, 1)[0] == 80  # of two steps each
    for pace in (0.0005, 0.001, 0.002):
        epochs, why = scratch_epochs(evidence(scratch_seconds=pace), 30.0, 1)
        transfer, given = 800 * (0.004 + 0.01) + 30.0, epochs * 800 * pace * 1.3
        assert transfer * 0.88 <= given <= transfer * 1.13 and "about as long as transfer" in why
        folds, _ = scratch_epochs(evidence(scratch_seconds=pace), 100.0, 5)
        assert 111.2 * 0.88 <= 5 * folds * 640 * pace <= 111.2 * 1.13
    viewed, _ = scratch_epochs(
        evidence(scratch_seconds=0.001, views=3), 30.0, 1
    )  # three more passes are transfer's, too
    assert (4 * 11.2 + 30.0) * 0.88 <= viewed * 800 * 0.001 * 1.3 <= (4 * 11.2 + 30.0) * 1.13
    # What is measured is noisy.
    assert len({scratch_epochs(evidence(scratch_seconds=pace), 30.0, 1)[0] for pace in (0.001, 0.00101)}) == 1


def test_a_rung_that_stops_early_or_is_dropped_costs_less_than_planned() -> None:
    rung = plan().rungs[0]
    for judge, passes in (("fold", 0.8 * rung.epochs + ON_EPOCHS), ("folds", 3.4 * rung.epochs)):
        whole = seconds(evidence(), rung, judge)
        assert seconds_of(evidence(), rung, passes) == pytest.approx(whole)
        assert seconds_of(evidence(), rung, passes - 1) < whole


def test_a_plan_without_evidence_names_the_epochs() -> None:
    with pytest.raises(ValidationError, match="give a number"):
        Plan(backbone="net", stages=STAGES, rungs=[], scratch_epochs=None)


@settings(max_examples=60, deadline=None)
@given(flops=st.lists(st.integers(1, 10**9), min_size=3, max_size=12), share=st.floats(0.0, 1.0))
def test_a_cut_leaves_a_stage_on_either_side_and_is_the_nearest(flops: list[int], share: float) -> None:
    cut = cut_for(flops, share)
    assert 1 <= cut < len(flops)
    distance = abs(frozen_share(flops, cut) - share)
    assert all(distance <= abs(frozen_share(flops, other) - share) for other in range(1, len(flops)))


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(8, 10**6),
    accuracy=st.floats(0, 1),
    time=st.none() | st.floats(1, 1e5),
    store=st.none() | st.integers(0, 10**12),
)
def test_a_plan_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, images: int, accuracy: float, time: float | None, store: int | None
) -> None:
    found = plan(Budget(seconds=time, store_bytes=store), {"images": images, "head_accuracy": accuracy})
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(found.model_dump_json(indent=1))
    assert load_plan(path, backbone="net", stages=STAGES) == found


def test_a_plan_file_by_hand_needs_little(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"backbone": "net", "stages": STAGES, "rungs": [{"cut": 3, "epochs": 2}]}))
    found = load_plan(path, backbone="net", stages=STAGES)
    assert found.rungs == [Rung(cut=3, epochs=2)]
    assert (found.judge, found.refit) == ("fold", "again")
    path.write_text(malformed(judge="val"))
    assert load_plan(path, backbone="net", stages=STAGES).refit == "none", "nothing more to train on"
    path.write_text(malformed(judge="val", refit="again"))
    assert load_plan(path, backbone="net", stages=STAGES).refit == "again", "as it is asked for"


@pytest.mark.parametrize(("written", "read"), [(True, "again"), (False, "none"), ("on", "on")])
def test_plan_files_may_say_yes_or_no_to_a_refit(tmp_path: Path, written: object, read: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(malformed(refit=written))
    assert load_plan(path, backbone="net", stages=STAGES).refit == read


def malformed(**changes: Any) -> str:
    return json.dumps({"backbone": "net", "stages": STAGES, "rungs": [{"cut": 3, "epochs": 2}], **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The plan '{path}' is no readable JSON: Expecting property name enclosed in double quotes"),
        ("[]", "The plan '{path}' is malformed at the file: Input should be a valid dictionary"),
        (malformed(format=2), "The plan '{path}' is malformed at format: Input should be 1."),
        (malformed(rungs=[{"cut": -1, "epochs": 2}]), "malformed at rungs.0.cut: Input should be greater than or equal to 0."),
        (malformed(rungs=[{"cut": 1, "epochs": 0}]), "malformed at rungs.0.epochs: Input should be greater than or equal to 1."),
        (malformed(rungs=[{"cut": 2, "epochs": 1, "until": 2}]), "until is 2, and the cut 2: until takes a later stage"),
        (malformed(rungs=[{"cut": 2, "epochs": 1, "until": 6}]), "The plan '{path}' has a rung until 6; there are 5 stages."),
        (malformed(rungs=[{"cut": 2, "epochs": 1, "trains": "gains"}]), "rungs.0.trains: Input should be 'all', 'norms' or 'biases'."),
        (malformed(rungs=[{"cut": 1}]), "malformed at rungs.0.epochs: Field required."),
        (malformed(rungs=[{"cut": 1, "epochs": 2, "lr": 1}]), "malformed at rungs.0.lr: Extra inputs are not permitted."),
        (malformed(refit="never"), "malformed at refit: Input should be 'again', 'on' or 'none'."),
        (malformed(judge="me"), "malformed at judge: Input should be 'folds', 'fold' or 'val'."),
        (malformed(rungs=[{"cut": 5, "epochs": 2}]), "The plan '{path}' has a rung with cut 5; a cut lies between 0 and 4."),
        (
            malformed(backbone="other"),
            "The plan '{path}' is for other with stages stem, one, two, three, four; this run has net with stages "
            "stem, one, two, three, four. Give --backbone other, or write another plan.",
        ),
        (malformed(stages=["a", "b"]), "is for net with stages a, b; this run has net with stages stem, one"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_plan(path, backbone="net", stages=STAGES)
    assert message.format(path=path) in str(caught.value)


def test_a_plan_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"No plan at '.*nowhere\.json'\. Give 'auto', 'head', 'full' or the path of a plan"
    ):
        load_plan(tmp_path / "nowhere.json", backbone="net", stages=STAGES)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="is no readable JSON"):
        load_plan(tmp_path / "bytes.json", backbone="net", stages=STAGES)
    with pytest.raises(PlanError, match="is no readable JSON"):
        load_plan(tmp_path, backbone="net", stages=STAGES)


def test_a_plan_that_judges_on_pictures_that_there_are_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for judge, lacking in (("val", {"given_val": False}), ("fold", {"tested": False}), ("val", {"tested": False})):
        rungs = [Rung(cut=2, epochs=1)]
        path.write_text(Plan(backbone="net", stages=STAGES, rungs=rungs, judge=judge).model_dump_json())  # type: ignore[arg-type]
        assert load_plan(path, backbone="net", stages=STAGES).judge == judge
        with pytest.raises(PlanError, match=f'judges rungs on "{judge}"'):
            load_plan(path, backbone="net", stages=STAGES, **lacking)
    full = plan(changes={"tested": 0, "images": 80, "validation": 200}, mode="full")
    assert (full.judge, full.refit) == ("folds", "again")


def test_records_are_frozen_and_know_no_other_fields() -> None:
    rung = Rung(cut=1, epochs=1)
    with pytest.raises(ValidationError, match="frozen"):
        rung.cut = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="finite"):
        Rung(cut=1, epochs=1, lr_body=float("inf"))
