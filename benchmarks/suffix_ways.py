"""What a training step of the stages that are not frozen costs, by the way it is run.

    python benchmarks/suffix_ways.py

EfficientNet-Lite0 from two cuts on, batches of 16 activations of nothing: forward, backward and optimizer, medians of rounds in turns.
Compiled steps pay for their compilation first, which is told apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from common import commit, keep, results
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.heads import Head
from headstart.plan import Rung
from headstart.planner import FEW_LADDER, LADDER, cut_for, frozen_share
from headstart.suffix import Net, Training, training
from headstart.train import optimizer_for
from tables_cost import by_step

import numpy as np  # isort: skip
import torch  # isort: skip

RESULTS = Path(__file__).parent / "results" / "suffix_ways.json"
BATCH, CLASSES, STEPS, ROUNDS = 16, 10, 10, 5
WAYS = (
    "float32", "one step with the norm", "the same, 1×1 convolutions in bfloat16", "the same, fused AdamW", "bfloat16 throughout",
    "compiled",
)  # fmt: skip
LASTING = ExitStack()  # for as long as the process
OURS: dict[str, Training] = {WAYS[1]: "float32", WAYS[2]: "mixed", WAYS[3]: "mixed"}


def made(cut: int, way: str) -> tuple[Callable[[], None], float]:
    """A function that takes one step, and the seconds that were spent before it can take any."""
    backbone = load_backbone("tf_efficientnet_lite0")
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last, width = len(backbone.widths) - 1, backbone.widths[-1]
    head = Head("ridge", (last,), 0.0, np.zeros((width, CLASSES), np.float32), np.zeros(CLASSES, np.float32))
    net = Net(backbone, head, cut, torch.zeros(width), torch.ones(width))
    rung = Rung(cut=cut, epochs=1, views=1)
    net.unfreeze(rung)
    (shape,) = backbone.shapes[cut - 1]
    entering = torch.randn(BATCH, *shape).contiguous(memory_format=torch.channels_last)
    beside, target = torch.zeros(BATCH, sum(backbone.widths[:cut])), torch.arange(BATCH) % CLASSES
    optimizer = optimizer_for(net, rung)
    if way != WAYS[3]:  # groups remember whether they are fused
        groups = [{key: value for key, value in group.items() if key != "fused"} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, fused=False)
    run: Callable[..., Any] = torch.compile(net) if way == "compiled" else net
    low = torch.autocast("cpu", torch.bfloat16) if way == "bfloat16 throughout" else nullcontext()
    if way in OURS:
        LASTING.enter_context(training(net, OURS[way]))

    def step() -> None:
        with low:
            logits = run(entering, beside)
        loss = torch.nn.functional.cross_entropy(logits.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    began = time.perf_counter()
    step()
    return step, time.perf_counter() - began


def timed(step: Callable[[], None]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Measure every way from both cuts."""
    record = results(RESULTS)
    flops = list(load_backbone("tf_efficientnet_lite0").flops)
    for share in (FEW_LADDER[0], LADDER[0]):
        cut = cut_for(flops, share)
        load, steps = os.getloadavg()[0], {way: made(cut, way) for way in WAYS}
        rounds = [{way: timed(step) for way, (step, _) in steps.items()} for _ in range(ROUNDS)]
        record["cases"][f"cut {cut}"] = {
            "cut": cut, "frozen": frozen_share(flops, cut), "commit": commit(), "load": load,
            "ways": {
                way: {"step": median(each[way] for each in rounds), "first": first} for way, (_, first) in steps.items()
            },
        }  # fmt: skip
        keep(record, RESULTS)
    print("\n".join(by_step(record["cases"])))


if __name__ == "__main__":
    main()
