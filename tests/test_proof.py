"""What the baselines are given."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headstart import proof, runtime
from headstart.cost import scratch_affordable
from headstart.data.load import load_dataset
from headstart.data.splits import assign_folds
from headstart.features.store import Store
from headstart.ladder import Finetuned, RungResult
from headstart.plan import Budget, Evidence, Plan, Rung
from headstart.planner import decide
from headstart.proof import REPEATS, Baselines, Proof, _scratch_epochs, answers, baselines, passes, prove
from headstart.scratch import USUAL_RATES
from headstart.train import Epoch
from tests.toys import striped, stripes

STAGES = ["stem", "one", "two", "three", "four"]


@pytest.fixture
def plan() -> Plan:
    evidence = Evidence(
        images=800, classes=5, smallest_class=90, tested=200, head="", head_accuracy=0.9, head_accuracy_se=0.01,
        last_stage_accuracy=0.9, profile=[0.5] * 5, stages=STAGES, flops=[100] * 5, activation_bytes=[1] * 5,
        forward_seconds=[0.002] * 5, training_seconds=[0.006] * 5, decode_seconds=0.004, scratch_seconds=0.002,
    )  # fmt: skip
    return decide(evidence, Budget(), backbone="net")


def climbed(rung: Rung, epochs: int, kept: bool) -> Finetuned:
    curve = tuple(Epoch(number, 1.0, 1.0, 0.5) for number in range(epochs))
    result = RungResult(rung, 0.9, 0.01, 0.005, (0.1, 0.02), 1.0, epochs, kept, True, (curve,), 1.0, "")
    nobody = np.empty(0, np.int64)
    return Finetuned(None, None, (result,), nobody, np.empty((0, 5), np.float32), True, ())  # type: ignore[arg-type]


def climbed_not() -> Finetuned:
    nobody = np.empty(0, np.int64)
    return Finetuned(None, None, (), nobody, np.empty((0, 5), np.float32), True, ())  # type: ignore[arg-type]


def test_the_network_from_scratch_is_given_what_transfer_turned_out_to_take(plan: Plan) -> None:
    rung = plan.rungs[0]
    kept, dropped, stopped = (
        _scratch_epochs(plan, climbed(rung, epochs, kept), 1)[0]
        for epochs, kept in ((rung.epochs, True), (rung.epochs, False), (rung.epochs // 2, False))
    )
    assert kept > dropped > stopped
    assert _scratch_epochs(plan.model_copy(update={"scratch_epochs": 3}), climbed(rung, 3, True), 1) == (
        3,
        "3 epochs, as the plan says",
    )


def test_a_class_in_one_piece_is_never_asked_for() -> None:
    """Whoever answers for its only picture, or its only group, has never seen the class."""
    pictures, labels = stripes(61)
    labels[-1] = 3
    dataset = load_dataset((pictures, labels))
    lone = int(np.flatnonzero(dataset.labels == 3)[0])
    each = passes(dataset, climbed_not(), 0)
    asked = np.concatenate([one.asked for one in each])
    assert lone not in asked and len(np.unique(asked)) == 60 and len(asked) == 60 * REPEATS
    assert any(lone in one.fit for one in each)
    for one in each:
        assert set(dataset.labels[one.asked]) <= set(dataset.labels[one.fit])


@pytest.mark.parametrize(
    "pieces", [(("a", 30), ("a", 10), ("b", 30)), (("ab", 30), ("ab", 30))], ids=["few groups", "two mixed groups"]
)
def test_a_pass_has_two_folds_to_choose_by_however_few_the_groups(pieces: tuple[tuple[str, int], ...]) -> None:
    pictures, _ = stripes(sum(count for _, count in pieces))
    labels = np.concatenate([np.resize(["ab".index(name) for name in names], count) for names, count in pieces])
    groups = np.repeat(np.arange(len(pieces)), [count for _, count in pieces])
    plain = load_dataset((pictures, labels))
    dataset = replace(plain, groups=groups, fold=assign_folds(labels, groups, plain.digests, 2, 0))
    for tuned in (climbed_not(), climbed(Rung(cut=1, epochs=1), 1, True)):
        each = passes(dataset, tuned, 0)
        assert each
        for one in each:
            assert len(one.fold) == len(one.fit) and len(np.unique(one.fold)) > 1
            assert not set(groups[one.fit]) & set(groups[one.asked])


def test_the_network_from_scratch_ends_a_short_schedule_where_there_is_no_time_for_a_fair_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in its search for a rate it would answer as it was born."""
    assert plan.evidence is not None
    monkeypatch.setattr("headstart.scratch._SEARCH_STEPS", 4)  # it need not find a good one
    dataset = striped(200)
    count = len(dataset.indices("train"))
    slow = plan.evidence.model_copy(update={"images": count, "scratch_seconds": 20.0 / count})  # 20 s an epoch
    starved = plan.model_copy(update={"evidence": slow})
    store = Store(tmp_path)
    found = baselines(dataset, store, starved, climbed_not(), deadline=time.monotonic() + 50.0)
    assert [(run.epochs, run.rate, run.complete) for run in found.scratch] == [(2, USUAL_RATES[0], False)]
    assert found.scratch_epochs.startswith(
        "2 epochs at the usual rate, all that there was time for; fair would have been "
    )
    searchless = baselines(
        dataset, store, starved, climbed_not(), deadline=time.monotonic() + 20.0 * 21
    )  # fair are 20 epochs
    assert [(run.epochs, run.searched, run.complete) for run in searchless.scratch] == [(20, False, False)]
    assert searchless.scratch_epochs.startswith("20 epochs at the usual rate, all that there was time for")
    tested = slow.model_copy(update={"tested": 1000})  # which take 14 s
    proven = starved.model_copy(update={"evidence": tested})
    found = baselines(dataset, store, proven, climbed_not(), deadline=time.monotonic() + 50.0)
    assert [run.epochs for run in found.scratch] == [1], "what comes after has its share of the time"
    given = baselines(dataset, store, starved, climbed_not(), deadline=math.inf)
    assert [run.complete for run in given.scratch] == [True]
    again = baselines(dataset, store, starved, climbed_not(), deadline=time.monotonic() + 50.0)
    assert [run.complete for run in again.scratch] == [True], "what was computed before needs no time"


def test_a_network_from_scratch_that_was_cut_off_is_not_said_to_have_had_its_epochs(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.evidence is not None
    monkeypatch.setattr(proof, "scratch_affordable", lambda _, epochs, *__: (epochs, True))  # all of it, as it seemed
    dataset = striped(200)
    fast = plan.evidence.model_copy(update={"images": len(dataset.indices("train")), "scratch_seconds": 1e-9})
    hopeful = plan.model_copy(update={"evidence": fast, "scratch_epochs": None})
    found = baselines(dataset, Store(tmp_path), hopeful, climbed_not(), deadline=time.monotonic())
    assert [run.complete for run in found.scratch] == [False]
    assert found.scratch_epochs.startswith("as long as there was time; fair would have been 150 epochs")


def test_the_network_from_scratch_has_the_time_before_pixels_do(plan: Plan, tmp_path: Path) -> None:
    shown: list[str] = []

    def progress(what: str, total: int, unit: str = "images") -> AbstractContextManager[runtime.Advance]:
        shown.append(what)
        return runtime.silent(what, total, unit)

    few = plan.model_copy(update={"scratch_epochs": 1})
    found = baselines(striped(130), Store(tmp_path), few, climbed_not(), progress=progress)
    assert shown == ["Making thumbnails", "Baseline from scratch", "Linear model on pixels"]
    assert {name: rival.is_calibrated for name, rival in found.rivals.items()} == {
        "majority": True, "pixels": True, "scratch_cnn": False,
    }  # fmt: skip


def test_a_step_fewer_epochs_are_fair_where_all_do_not_fit(plan: Plan) -> None:
    assert plan.evidence is not None  # 800 pictures at 2 ms: 1.6 s an epoch, and 0.3 times as much for the search
    known = plan.evidence
    assert [scratch_affordable(known, 10, left, 1) for left in (math.inf, 20.9)] == [(10, True)] * 2
    assert [scratch_affordable(known, 10, left, 1) for left in (20.7, 16.7)] == [(8, True)] * 2
    assert [scratch_affordable(known, 10, left, 1) for left in (16.5, 8.1, 0.0)] == [
        (10, False),
        (5, False),
        (1, False),
    ]
    assert scratch_affordable(known, 10, 33.0, 5) == (5, False)  # five trainings on four fifths, without a search
    assert scratch_affordable(known, 8, 16.5, 1) == (8, False), "no fewer than 8 are fair"


def test_a_step_fewer_epochs_from_scratch_end_and_are_told(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.evidence is not None
    monkeypatch.setattr("headstart.scratch._SEARCH_STEPS", 4)  # it need not find a good one
    dataset = striped(200)
    count = len(dataset.indices("train"))
    slow = plan.evidence.model_copy(update={"images": count, "scratch_seconds": 20.0 / count})  # an epoch
    tight = plan.model_copy(update={"evidence": slow, "scratch_epochs": 40})
    store = Store(tmp_path)
    found = baselines(dataset, store, tight, climbed_not(), deadline=time.monotonic() + 1.3 * 20 * 36)
    assert [(run.epochs, run.searched, run.complete) for run in found.scratch] == [(32, True, True)]
    assert found.scratch_epochs == "32 epochs, as there was no time for 40 epochs, as the plan says"
    again = baselines(dataset, store, tight, climbed_not(), deadline=math.inf)
    assert [run.epochs for run in again.scratch] == [32], "a run again gives the same"


def proven(monkeypatch: pytest.MonkeyPatch, sealed: bool, kept: bool = True) -> Proof:
    """What is proved of a rung that gained 3 points, 1 once cleared; every model answers by the same logits."""
    dataset = striped(150 if sealed else 60)
    pool, labels = dataset.indices("train"), dataset.labels
    logits = 4 * np.eye(3, dtype=np.float32)[labels]
    score = SimpleNamespace(logits=logits[pool])
    heads = SimpleNamespace(best=score, last=score, pool=pool)
    monkeypatch.setattr(proof, "race", lambda _, __, fold, ___, fit, **____: _raced(logits, fit))
    monkeypatch.setattr(proof, "fit_winner", lambda *_: SimpleNamespace(answers=lambda _, asked: logits[asked]))
    monkeypatch.setattr(proof, "extract_all", lambda _, asked, *__, **___: asked)
    monkeypatch.setattr(proof, "together", lambda asked: asked)
    tuned = climbed(Rung(cut=1, epochs=1), 1, kept)
    rungs = tuple(replace(result, gain=0.03, cleared=0.01 if kept else None) for result in tuned.rungs)
    tuned = replace(tuned, rungs=rungs, held=pool, logits=logits[pool])
    each = passes(dataset, tuned, 0)
    rivals = {"scratch_cnn": answers(each, lambda one: (logits[one.asked], None))}
    against = Baselines(None, each, rivals, (), "")  # type: ignore[arg-type]
    final = SimpleNamespace(answers=lambda asked, _: 4 * np.eye(3, dtype=np.float32)[asked.labels])
    model = SimpleNamespace(engines=(), head=final, temperature=1.0)
    return prove(model, heads, tuned, None, dataset, against, Store())  # type: ignore[arg-type]


def _raced(logits: np.ndarray, fit: np.ndarray) -> SimpleNamespace:  # type: ignore[type-arg]
    score = SimpleNamespace(logits=logits[fit])
    return SimpleNamespace(best=score, last=score, pool=fit)


def test_without_a_test_set_a_kept_rung_is_said_to_be_tested_on_what_chose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = proven(monkeypatch, sealed=False).verdict.warnings[0]
    assert "gain of +3.0 points over the frozen head is +1.0 once cleared of that choice" in told
    assert "about 2.0 points too high" in told
    for sealed, kept in ((True, True), (False, False)):
        assert not any("cleared" in told for told in proven(monkeypatch, sealed, kept).verdict.warnings)


def test_who_is_not_calibrated_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = proven(monkeypatch, sealed=True)
    assert found.uncalibrated == ("scratch_cnn",)
    unscaled = found.rivals["scratch_cnn"]
    assert np.array_equal(unscaled.logits, unscaled.calibrated)
