"""How long the small network from scratch needs: test accuracy against the epochs that it is given.

    python benchmarks/scratch_time.py --data ../shared/data

The baseline as a run trains it, its search for a learning rate included, on the draws of the accuracy suite. Beside it stands the head
that wins the race on EfficientNet-Lite0's frozen features. Time is not measured here: it grows as epochs do.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from common import PLACES, commit, keep, results
from depth import Case
from headstart.baselines import thumbnails
from headstart.features.store import Store
from headstart.scratch import Scratching

RESULTS = Path(__file__).parent / "results" / "scratch_time.json"
SIZES, EPOCHS = ("600", "20"), (5, 10, 20, 40, 80, 160)


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Test accuracy by epochs, the learning rates that were chosen, and how right the frozen head is."""
    case = Case.of(name, place.resolve(), size, seed)
    data, pool, test = case.dataset, case.dataset.indices("train"), case.dataset.indices("test")
    first = data.fold[pool] == data.fold[pool].min()
    thumbs = thumbnails(data, Store(), side=32 if name == "mnist" else 64)
    runs = {
        epochs: Scratching(thumbs, data, Store(), epochs, pool[~first], pool[first], pool, test, seed=seed).run()
        for epochs in EPOCHS
    }
    return {
        "images": len(pool),
        "tested": len(test),
        "head": float(case._right(case._answers(case.heads.best)).mean()),
        "accuracy": {str(epochs): float(case._right(run.logits).mean()) for epochs, run in runs.items()},
        "rate": {str(epochs): run.rate for epochs, run in runs.items()},
    }


def main() -> None:
    """Measure the cases that the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    record = results(RESULTS)
    for seed, size, name in product(given.seeds, SIZES, given.sets):
        key = f"{name}, size {size}, seed {seed}"
        if key not in record["cases"]:
            record["cases"][key] = {"commit": commit(), **measured(name, given.data / PLACES[name], size, seed)}
            keep(record, RESULTS)
            print(key, record["cases"][key], flush=True)


if __name__ == "__main__":
    main()
