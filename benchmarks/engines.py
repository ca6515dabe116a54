"""What runs the frozen stages: torch as it is, OpenVINO, torch.compile. Milliseconds a picture in turns, all cores at work, and
what it takes to set each up.

    python benchmarks/engines.py --data ../shared/data
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from common import SETS, backbone_by_backbone
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.images import load_view
from headstart.data.load import load_dataset
from headstart.features.compiled import Runner
from headstart.features.engine import SAMPLE, Engine
from headstart.features.precision import Precision
from headstart.features.settle import transform_of

import numpy as np  # isort: skip

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
    for _ in range(ROUNDS):
        for engine, found in zip(engines, rates, strict=True):
            found.append(engine.seconds(pictures))
    return [{**row, "seconds": median(found)} for row, found in zip(rows, rates, strict=True)]


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured, {"satellite": SETS["satellite"]})
