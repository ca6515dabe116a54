"""What the baselines are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headstart.data.load import load_dataset
from headstart.data.splits import assign_folds
from headstart.finetune import Finetuned, RungResult
from headstart.plan import Budget, Evidence, Plan, Rung
from headstart.planner import decide
from headstart.proof import REPEATS, _scratch_epochs, passes
from headstart.train import Epoch
from tests.toys import stripes

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
