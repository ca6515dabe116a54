"""What runs the frozen stages: torch as it is, OpenVINO, torch.compile; the last also on the folded copies, which no run does.
Milliseconds per picture in turns, all cores at work, and what it takes to set each up. Each machine has cases of its own.

    python benchmarks/engines.py --data ../shared/data
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from common import SETS, backbone_by_backbone
from headstart import runtime
from headstart.backbones.catalog import load_backbone
from headstart.data.images import load_view
from headstart.data.load import load_dataset
from headstart.features.compiled import Runner, compiled
from headstart.features.engine import SAMPLE, Engine, normalize
from headstart.features.precision import Precision
from headstart.features.settle import transform_of

import numpy as np  # isort: skip
import torch  # isort: skip

RESULTS = Path(__file__).parent / "results" / "engines.json"
ROUNDS = 5
ASKED: tuple[Precision | Literal["auto"], ...] = ("float32", "auto")


def measured(name: str, source: Path) -> list[dict[str, Any]]:
    """One backbone on pictures of one data set: what is asked for, what it came to, and how fast that is."""
    dataset = load_dataset(source)
    transform = transform_of(load_backbone(name))
    first = sorted(range(len(dataset)), key=lambda i: dataset.digests[i])[:SAMPLE]
    pictures = np.stack([load_view(dataset.images, i, transform) for i in first])
    rows, engines, rates = [], [], []
    for precision in ASKED:
        for runner in get_args(Runner):
            engine = Engine(load_backbone(name), precision=precision, runner=runner)
            began = time.perf_counter()
            engine.settle(pictures)
            took = time.perf_counter() - began
            assert engine.way is not None
            rows.append({
                "asked": [precision, runner], "way": str(engine.way), "agreement": engine.way.agreement, "settling": took
            })  # fmt: skip
            engines.append(engine)
            rates.append([])
    began = time.perf_counter()
    engine = _compiled_folded(name, pictures)
    took = time.perf_counter() - began
    rows.append({
        "asked": ["float32", "compile of folded copies"], "way": str(engine.way), "agreement": engine.way.agreement, "settling": took
    })  # fmt: skip
    engines.append(engine)
    rates.append([])
    for _ in range(ROUNDS):
        for engine, found in zip(engines, rates, strict=True):
            found.append(engine.seconds(pictures))
    return [{**row, "seconds": median(found)} for row, found in zip(rows, rates, strict=True)]


def _compiled_folded(name: str, pictures: np.ndarray) -> Engine:
    """The network in float32, its folded copy compiled."""
    engine = Engine(load_backbone(name), precision="float32")
    engine.settle(pictures)
    now = engine._ready(pictures)
    entering = normalize(np.resize(pictures, (engine.batch, *pictures.shape[1:])), engine.backbone.input, engine.device)
    program = compiled("compile", now.nets[1], 0, entering, torch.float32)
    with torch.inference_mode():
        alike = engine._agreement(
            engine._pooled(engine._plain(), pictures),
            program(normalize(pictures, engine.backbone.input, engine.device)),
        )
    engine._now = replace(now, way=replace(now.way, runner="compile", agreement=alike), program=program)
    return engine


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured, {"satellite": SETS["satellite"]}, here=runtime.machine())
