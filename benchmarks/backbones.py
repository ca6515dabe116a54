"""One backbone or two: what the line-up does for heads on frozen features, with 5, 20 and all training pictures of each class.

    python benchmarks/backbones.py --data ../shared/data --seeds 0 1 2

Pictures of each class are drawn from the training side; the line-up of the backbones that come with the installation chooses on
them, and what it chose is tested on the test side, beside the first backbone alone and its last stage alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import extract, together
from headstart.features.store import Store
from headstart.lineup import line_up
from headstart.race import race
from headstart.winner import fit_winner

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "backbones.json"
FIRST, *OTHERS = "tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"
SIZES = (5, 20, None)
engine = cache(lambda name: Engine(load_backbone(name)))


def measured(source: Path, seed: int) -> dict[str, Any]:
    """All sizes on one data set."""
    dataset, store = load_dataset(source, seed=seed), Store()
    everyone, test, classes = dataset.indices("train"), dataset.indices("test"), len(dataset.classes)
    rows: dict[str, Any] = {}
    for size in SIZES:
        random = np.random.default_rng([seed, size or 0])
        drawn = [random.permutation(everyone[dataset.labels[everyone] == label])[:size] for label in range(classes)]
        few = dataset.select(np.sort(np.concatenate(drawn)))
        pool, labels = np.arange(len(few)), few.labels
        if len(np.unique(few.fold)) < 2:
            continue
        features = extract(engine(FIRST).backbone, few, store, engine=engine(FIRST))
        alone = race(features, labels, few.fold, classes, pool)
        found = line_up(engine(FIRST), features, few, store, OTHERS, engine)
        row: dict[str, Any] = {"pictures": len(pool), "chosen": [each.backbone.origin.name for each in found.engines]}
        shown = [
            ("last_stage", alone.last, features, [engine(FIRST)]),
            ("alone", alone.best, features, [engine(FIRST)]),
        ]
        for name, score, seen, engines in [*shown, ("line_up", found.heads.best, found.features, found.engines)]:
            head = fit_winner(score, seen, labels, classes, pool, store)
            whole = together([extract(each.backbone, dataset, store, engine=each) for each in engines])
            row[name] = float((head.answers(whole, test).argmax(1) == dataset.labels[test]).mean())
        row["told"], row["alone_told"] = found.heads.accuracy, alone.accuracy
        rows[str(size or "all")] = row
        print(source.name, seed, size, row, flush=True)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
