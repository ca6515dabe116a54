"""What bfloat16 costs in agreement with float32, by the number of leading stages that stay in float32, and what it saves.

    python benchmarks/precision.py --data ../shared/data

160 pictures a data set: the least cosine of the pooled features over the pictures that the engine settles on, and over all of
them; what the engine takes; and pictures a second of both, in turns.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from common import backbone_by_backbone
from headstart import runtime
from headstart.backbones.catalog import load_backbone
from headstart.data.images import load_view
from headstart.data.load import load_dataset
from headstart.features.engine import BATCH, SAMPLE, Engine
from headstart.features.settle import transform_of

RESULTS = Path(__file__).parent / "results" / "precision.json"
PICTURES, ROUNDS = 160, 3


def measured(name: str, source: Path) -> dict[str, Any]:
    """One backbone on one data set."""
    backbone, dataset = load_backbone(name), load_dataset(source)
    order = sorted(range(len(dataset)), key=lambda i: dataset.digests[i])[:PICTURES]
    pictures = np.stack([load_view(dataset.images, i, transform_of(backbone)) for i in order])
    parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    width = backbone.widths[-1]

    def last(engine: Engine) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([engine.pooled(part)[:, -width:] for part in parts]))

    truth = last(Engine(backbone, precision="float32", folded=False))
    depths = []
    for exact in range(len(backbone.stages) // 2 + 1):
        cosines = torch.nn.functional.cosine_similarity(
            truth, last(Engine(backbone, precision="bfloat16", exact=exact)), dim=1
        )
        depths.append({
            "exact": exact, "sample": float(cosines[:SAMPLE].min()), "least": float(cosines.min()),
            "below": float((cosines < 0.999).float().mean()),
        })  # fmt: skip
    taken = Engine(backbone)
    taken.settle(pictures[:SAMPLE])
    rates: dict[str, list[float]] = {"float32": [], "taken": []}
    for _ in range(ROUNDS):
        for label, engine in (("float32", Engine(backbone, precision="float32")), ("taken", taken)):
            engine.settle(pictures[:SAMPLE])
            began = time.perf_counter()
            for _ in runtime.parallel(engine.pooled, parts):
                pass
            rates[label].append(len(pictures) / (time.perf_counter() - began))
    return {
        "backbone": name,
        "set": source.parent.name if source.suffix else source.name,
        "pictures": len(pictures),
        "depths": depths,
        "taken": str(taken.way),
        "exact": taken.exact if taken.settled == "bfloat16" else None,
        "rates": {label: median(found) for label, found in rates.items()},
    }


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured)
