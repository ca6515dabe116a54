"""Label errors that were planted, and where they come in the list of labels worth a second look.

    python benchmarks/labels.py --data ../shared/data

Five percent of the training labels of each data set are changed to another class, drawn evenly, twenty times; the share of them within
the first tenth of the training pictures, by the rank of `headstart.diagnosis.doubts`; and of those that are contradicted with
confidence, how many there are, which share of the changed labels they hold, and which share of them was changed.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.diagnosis.doubts import doubts
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.race import race

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "labels.json"
PLANTED, FIRST, DRAWS = 0.05, 0.1, 20


def measured(source: Path, seed: int) -> dict[str, Any]:
    """All draws on one data set."""
    dataset = load_dataset(source, seed=seed)
    engine = Engine(load_backbone("tf_efficientnet_lite0"))
    features = extract(engine.backbone, dataset, Store(), engine=engine)
    pool, classes = dataset.indices("train"), len(dataset.classes)
    found, listed, sure, held, right = [], [], [], [], []
    for draw in range(DRAWS):
        random = np.random.default_rng([seed, draw])
        wrong = random.permutation(pool)[: max(1, round(PLANTED * len(pool)))]
        labels = dataset.labels.copy()
        labels[wrong] = (labels[wrong] + random.integers(1, classes, len(wrong))) % classes
        heads = race(features, labels[pool], dataset.fold[pool], classes, pool)
        doubtful = doubts(heads, labels, dataset.fold)
        first = [doubt.index for doubt in doubtful[: max(1, round(FIRST * len(pool)))]]
        found.append(float(np.isin(wrong, first).mean()))
        listed.append(len(doubtful) / len(pool))
        confident = np.array([doubt.index for doubt in doubtful if doubt.confident], np.int64)
        sure.append(len(confident) / len(pool))
        held.append(float(np.isin(wrong, confident).mean()))
        right.append(float(np.isin(confident, wrong).mean()) if len(confident) else 1.0)
    clean = race(features, dataset.labels[pool], dataset.fold[pool], classes, pool)
    as_given = doubts(clean, dataset.labels, dataset.fold)
    row = {
        "pictures": len(pool), "planted": len(wrong), "found": found, "listed": mean(listed),
        "confident": mean(sure), "confident_holds": mean(held), "confident_right": mean(right),
        "listed_as_given": len(as_given) / len(pool),
        "confident_as_given": sum(doubt.confident for doubt in as_given) / len(pool), "out_of_fold": clean.accuracy,
    }  # fmt: skip
    print(source, mean(found), min(found), row["confident"], row["confident_holds"], row["confident_right"], flush=True)
    return row


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
