"""What one pass saves: the views of heads and what rungs start from, each in a pass of its own, or all in one.

    python benchmarks/one_pass.py --data ../shared/data

600 training pictures at most. *Apart*: a pass for three augmented views of heads, one for the four views that the upper rung trains
on, and one for those of the rung below it. *Together*: the first caches what enters both cuts, and the clean view is what is left.
Seconds in turns, each into an empty store.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from accuracy import QUICK, drawn
from common import case_by_case
from contest import LITE
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.dataset import Dataset
from headstart.data.load import load_dataset
from headstart.features.activations import cache_activations, cache_views
from headstart.features.engine import Engine
from headstart.features.extract import extract, with_views
from headstart.features.settle import settle
from headstart.features.store import Store
from headstart.planner import LADDER, cut_for
from headstart.views import VIEWS

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "one_pass.json"
ROUNDS = 3


def measured(source: Path, seed: int) -> dict[str, Any]:
    """Both ways on one data set, in turns."""
    dataset, engine = load_dataset(source, seed=seed), Engine(load_backbone(LITE))
    pool = dataset.indices("train")
    pool = pool[drawn(dataset.labels[pool], seed, most=QUICK)]
    deep, upper = sorted(cut_for(list(engine.backbone.flops), share) for share in LADDER)
    took: dict[str, list[float]] = {"apart": [], "together": []}
    with tempfile.TemporaryDirectory() as folder:
        settle(engine, dataset, Store(Path(folder) / "settled"))
        for turn in range(ROUNDS):
            for way, found in took.items():
                store = Store(Path(folder) / f"{way} {turn}")
                features = extract(engine.backbone, dataset, store, engine=engine, only=pool)
                began = time.perf_counter()
                if way == "together":
                    cache_views(engine, dataset, store, (deep, upper), VIEWS, only=pool)
                with_views(features, [engine], dataset, store, VIEWS, only=pool)
                _cached(engine, dataset, store, pool, upper, [(deep, False)] * (way == "together"))
                _cached(engine, dataset, store, pool, deep, [])
                found.append(time.perf_counter() - began)
    print(source, took, flush=True)
    return {
        "pictures": len(pool),
        "cuts": [upper, deep],
        "seconds": took,
        "saved": 1 - median(took["together"]) / median(took["apart"]),
    }


def _cached(
    engine: Engine, dataset: Dataset, store: Store, pool: np.ndarray, cut: int, also: list[tuple[int, bool]]
) -> None:
    cache_activations(
        engine.backbone, dataset, store, cut, VIEWS + 1, augmented=pool, clean=pool[:0], engine=engine, also=also
    )


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
