"""What bfloat16 costs in agreement with float32, by the number of leading stages that stay in float32, what it saves, and what heads
make of it.

    python benchmarks/precision.py --data ../shared/data

160 pictures a data set: the least cosine of any stage's pooled features over the pictures that the engine settles on, and over all
of them, with weights that are simply rounded and with weights whose means are kept; what the engine takes, unasked and where a
compiler is named; and pictures a second of both and of float32, in turns. About 400
training pictures, run in plain float32 and in what the engine takes: the least cosine of every stage, and how right the last-stage
head and the winner of the race are out of fold, in the same folds; the difference from float32 picture by picture.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from accuracy import drawn
from common import backbone_by_backbone, commit
from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.backbones.catalog import load_backbone
from headstart.choice import paired_gain
from headstart.data.dataset import Dataset
from headstart.data.images import load_view
from headstart.data.load import load_dataset
from headstart.errors import BackboneError
from headstart.features import folded
from headstart.features.compiled import compilers
from headstart.features.engine import BATCH, SAMPLE, Engine
from headstart.features.extract import extract
from headstart.features.settle import transform_of
from headstart.features.store import Store
from headstart.heads import Score
from headstart.race import race

RESULTS = Path(__file__).parent / "results" / "precision.json"
PICTURES, ROUNDS, RACED = 160, 3, 400


def settled(backbone: Backbone, pictures: np.ndarray) -> dict[str, Engine]:
    """Folded float32, what is taken unasked, and what where a compiler of this device is named, each settled on the first pictures."""
    found = {"float32": Engine(backbone, precision="float32"), "taken": Engine(backbone)}
    found |= {runner: Engine(backbone, runner=runner) for runner in compilers(runtime.device())}
    for label, engine in list(found.items()):
        try:
            engine.settle(pictures[:SAMPLE])
        except BackboneError as error:
            print(f"{label} is left out: {error}", flush=True)
            del found[label]
    return found


@contextmanager
def simply_rounded() -> Iterator[None]:
    """Folded weights are rounded one by one meanwhile, and biases stay."""
    kept = folded.rounded, folded.lost
    folded.rounded, folded.lost = lambda kernels, dtype: kernels.to(dtype), lambda *_: torch.zeros(())
    try:
        yield
    finally:
        folded.rounded, folded.lost = kept


def least(truth: np.ndarray, found: np.ndarray) -> float:
    """The least cosine of two arrays (N, D), row by row."""
    a, b = (torch.from_numpy(np.ascontiguousarray(rows)) for rows in (truth, found))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).min())


def raced(dataset: Dataset, ways: Mapping[str, Engine]) -> dict[str, Any]:
    """The same training pictures run in each of the ways: by stage, the least cosine with the first way, and heads out of fold."""
    pool = dataset.indices("train")
    pool = pool[drawn(dataset.labels[pool], 0, most=RACED)]
    labels, folds, classes = dataset.labels[pool], dataset.fold[pool], len(dataset.classes)
    runs = {}
    with tempfile.TemporaryDirectory() as work:
        for label, engine in ways.items():
            features = extract(engine.backbone, dataset, Store(Path(work)), engine=engine, only=pool)
            stages = features.apart(range(len(features.own)), pool)
            runs[label] = stages, race(features, labels, folds, classes, pool)
    truth, first = next(iter(runs.values()))

    def beside(score: Score, other: Score) -> dict[str, Any]:
        gain, error = paired_gain(score.logits, other.logits, labels)
        return {
            "kind": score.kind, "taps": score.taps, "accuracy": score.accuracy, "se": score.accuracy_se, "gain": gain,
            "gain_se": error,
        }  # fmt: skip

    return {
        "pictures": len(pool),
        "classes": classes,
        "folds": len(np.unique(folds)),
        "ways": {
            label: {
                "way": str(ways[label].way),
                "least": [least(*pair) for pair in zip(truth, stages, strict=True)],
                "last": beside(found.last, first.last),
                "best": beside(found.best, first.best),
            }
            for label, (stages, found) in runs.items()
        },
    }


def measured(name: str, source: Path) -> dict[str, Any]:
    """One backbone on one data set."""
    backbone, dataset = load_backbone(name), load_dataset(source)
    order = sorted(range(len(dataset)), key=lambda i: dataset.digests[i])[:PICTURES]
    pictures = np.stack([load_view(dataset.images, i, transform_of(backbone)) for i in order])
    parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    ends = np.cumsum(backbone.widths)[:-1]

    def stages(engine: Engine) -> list[np.ndarray]:
        return np.split(np.concatenate([engine.pooled(part) for part in parts]), ends, axis=1)

    plain = Engine(backbone, precision="float32", folded=False)
    truth = stages(plain)
    depths = []
    for exact in range(len(backbone.stages) // 2 + 1):
        found = {"exact": exact}
        for label, rounding in (("plain", simply_rounded), ("kept", nullcontext)):
            with rounding():
                pairs = list(zip(truth, stages(Engine(backbone, precision="bfloat16", exact=exact)), strict=True))
            found[label] = {
                "sample": min(least(a[:SAMPLE], b[:SAMPLE]) for a, b in pairs),
                "least": min(least(a, b) for a, b in pairs),
                "last": least(*pairs[-1]),
            }
        depths.append(found)
    ways = settled(backbone, pictures)
    taken = ways["taken"]
    rates: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(ROUNDS):
        for label, engine in ways.items():
            began = time.perf_counter()
            for _ in runtime.parallel(engine.pooled, parts):
                pass
            rates[label].append(len(pictures) / (time.perf_counter() - began))
    return {
        "backbone": name,
        "set": source.parent.name if source.suffix else source.name,
        "commit": commit(),
        "pictures": len(pictures),
        "depths": depths,
        "taken": str(taken.way),
        "exact": taken.exact if taken.settled == "bfloat16" else None,
        "rates": {label: median(found) for label, found in rates.items()},
        "heads": raced(dataset, {**ways, "float32": plain}),
    }


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured)
