"""How long the small network from scratch has to train, and what is lost where it trains for less.

    python benchmarks/small_network.py --data ../shared/data

Whole data sets with the split of `fit`; the learning rate is searched for each length as in a run. Accuracy on the sealed test
pictures, by epochs. Its seconds are taken one training after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.baselines import thumbnails
from headstart.features.store import Store
from headstart.request import Options, audited
from headstart.scratch import Scratching

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "small_network.json"
EPOCHS = (10, 20, 40, 75, 150)


def measured(source: Path, seed: int) -> dict[str, Any]:
    """All lengths on one data set."""
    store = Store()
    dataset = audited(source.resolve(), Options(seed=seed), store)
    thumbs = thumbnails(dataset, store)
    pool, test = dataset.indices("train"), dataset.indices("test")
    fold = dataset.fold[pool]
    parts = pool[fold != fold.min()], pool[fold == fold.min()], pool, test
    row: dict[str, Any] = {"images": len(pool), "tested": len(test), "classes": len(dataset.classes), "lengths": {}}
    for epochs in EPOCHS:
        done = Scratching(thumbs, dataset, store, epochs, *parts, seed=seed).run()
        right = float(np.mean(done.logits.argmax(1) == dataset.labels[test]))
        row["lengths"][epochs] = {"accuracy": right, "rate": done.rate, "seconds": done.seconds}
        print(source, seed, epochs, row["lengths"][epochs], flush=True)
    return row


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
