"""What the baselines are given."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.finetune import Finetuned, RungResult
from headstart.plan import Budget, Evidence, Plan, Rung, decide
from headstart.proof import _scratch_epochs
from headstart.train import Epoch

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
    result = RungResult(rung, 0.9, 0.01, 0.005, 1.0, epochs, kept, True, (curve,), 1.0, "")
    nobody = np.empty(0, np.int64)
    return Finetuned(None, None, (result,), nobody, np.empty((0, 5), np.float32), True, ())  # type: ignore[arg-type]


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
