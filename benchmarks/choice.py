"""What the best of many heads promises out of fold, raw and cleared of the choice, against what unseen pictures give.

    python benchmarks/choice.py --data ../shared/data

Each case draws `size` training pictures, lets the heads race on them, and tests the winner, the last stage's head and what the
race's rule picks of the two on up to 600 other pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import FEW_CLASSES, SETS
from headstart import runtime
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.data.splits import assign_folds
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.heads import Score
from headstart.race import race
from headstart.winner import fit_winner

RESULTS = Path(__file__).parent / "results" / "choice.json"


def measured(features: Any, labels: Any, classes: int, size: int, seed: int, store: Store) -> dict[str, Any] | None:
    """One draw; None where fewer than 100 pictures are left to test on."""
    drawn = np.random.default_rng(seed).permutation(len(labels))
    fit, test = drawn[:size], drawn[size : size + 600]
    if len(test) < 100:
        return None
    folds = assign_folds(labels[fit], np.arange(size), [str(i) for i in range(size)], 5, seed)
    found = race(features, labels[fit], folds, classes, fit)
    best = max(found.candidates, key=lambda score: (score.accuracy, -score.log_loss))

    def tested(score: Score) -> float:
        head = fit_winner(score, features, labels[fit], classes, fit, store)
        return float((head.answers(features, test).argmax(1) == labels[test]).mean())

    return {
        "size": size, "seed": seed, "best_out_of_fold": best.accuracy, "chosen_out_of_fold": found.best.accuracy,
        "chosen_told": found.accuracy, "best_test": tested(best), "last_test": tested(found.last),
        "chosen_test": tested(found.best),
    }  # fmt: skip


def main() -> None:
    """Measure every case and write the means beside the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    backbone, store = load_backbone("tf_efficientnet_lite0"), Store()
    engine, cases = Engine(backbone), []
    for name in FEW_CLASSES:
        dataset = load_dataset(given.data / SETS[name])
        features = extract(backbone, dataset, store, engine=engine)
        for size in (60, 200):
            for seed in range(given.seeds):
                case = measured(features, dataset.labels, len(dataset.classes), size, seed, store)
                cases += [] if case is None else [{"set": name, **case}]
        print(name, len(cases), flush=True)
    means = [
        {"size": size, "cases": len(those)}
        | {key: float(np.mean([case[key] for case in those])) for key in cases[0] if key not in ("set", "size", "seed")}
        for size in (60, 200)
        for those in [[case for case in cases if case["size"] == size]]
    ]
    record = {"environment": runtime.environment(), "means": means, "cases": cases}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
