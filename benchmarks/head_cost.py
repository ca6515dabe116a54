"""What the whole head race costs in seconds: 2,000 pictures of 100 classes, 1,280 features in the last stage, 5 folds.

    python benchmarks/head_cost.py

Every stage and their combinations, all strengths and folds, and the fit of the last-stage head and of the winner to all pictures;
median of three, each from an empty store. Beside it, once, `LogisticRegressionCV` of scikit-learn on the last stage alone: the
same folds and strengths, and a fit to all pictures. Features are drawn, as wide as the stages of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import commit, keep, results
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import LOGISTIC_STRENGTHS
from headstart.race import Race, race
from tables_cost import raced_in

import numpy as np  # isort: skip
from sklearn.linear_model import LogisticRegressionCV  # isort: skip
from sklearn.model_selection import PredefinedSplit  # isort: skip
from sklearn.preprocessing import StandardScaler  # isort: skip

RESULTS = Path(__file__).parent / "results" / "head_cost.json"
ROUNDS, FOLDS, STEPS = 3, 5, 1000
# Along the directions in which drawn pictures differ, standard deviations within a class fall by this power of their rank, so that
# more than half of the axes hold hardly 1 % of the variance, as in real features; how far apart classes are, in those, along the
# first, and by what power of the rank that falls; what a stage has to itself, in the same.
FALL, APART, DULL, OWN = 0.8, 2.5, 0.5, 0.5


def features_of(widths: Sequence[int], labels: np.ndarray) -> np.ndarray:
    """Drawn features (N, sum of widths) float32: narrow stages see the leading directions only, which tell less of the class."""
    draw, rank = np.random.default_rng(0), np.arange(1.0, 1 + max(widths))
    centres = APART * rank**-DULL * draw.standard_normal((labels.max() + 1, len(rank)))
    seen = centres[labels] + draw.standard_normal((len(labels), len(rank)))
    stages = [
        ((seen[:, :width] + OWN * draw.standard_normal((len(labels), width))) * rank[:width] ** -FALL)
        @ draw.standard_normal((width, width))
        for width in widths
    ]
    return np.concatenate(stages, axis=1).astype(np.float32)


def raced(rows: np.ndarray, widths: Sequence[int], labels: np.ndarray, folds: np.ndarray) -> tuple[float, Race]:
    """Seconds of a race from an empty store, and what it came to."""
    digests = [hashlib.blake2b(row.tobytes(), digest_size=32).hexdigest() for row in rows]
    with tempfile.TemporaryDirectory() as work:
        store = Store(Path(work))
        table = store.table("pooled", {"drawn": "head_cost"}, "float32", sum(widths))
        table.append(digests, rows)
        features = Features(table, table.locate(digests), tuple(widths))
        began = time.perf_counter()
        found = race(features, labels, folds, int(labels.max()) + 1, np.arange(len(labels)), store=store)
        return time.perf_counter() - began, found


def by_sklearn(last: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
    """Seconds of the plain way on one stage (N, D), the best accuracy out of fold, and the most steps that a fit took."""
    # A strength is a weight on ½‖W‖² for features divided by √D, times the pictures that a fold trains on.
    seen = len(labels) * (FOLDS - 1) // FOLDS
    model = LogisticRegressionCV(
        Cs=[1 / (strength * seen * last.shape[1]) for strength in LOGISTIC_STRENGTHS], cv=PredefinedSplit(folds),
        l1_ratios=(0.0,), scoring="accuracy", max_iter=STEPS, use_legacy_attributes=False,
    )  # fmt: skip
    began = time.perf_counter()
    model.fit(StandardScaler().fit_transform(last), labels)
    took = time.perf_counter() - began
    return {
        "seconds": took, "accuracy": float(model.scores_.mean(0).max()), "steps": int(model.n_iter_.max()),
        "steps_allowed": STEPS,
    }  # fmt: skip


def measured(pictures: int, classes: int) -> dict[str, Any]:
    """One size."""
    widths = load_backbone("tf_efficientnet_lite0").widths
    labels = np.random.default_rng(1).permutation(np.arange(pictures) % classes)
    rows, folds = features_of(widths, labels), np.empty(pictures, np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(pictures) % FOLDS
    load = os.getloadavg()[0]
    runs = [raced(rows, widths, labels, folds) for _ in range(ROUNDS)]
    found = runs[0][1]
    return {
        "commit": commit(),
        "load": load,
        "pictures": pictures,
        "classes": classes,
        "folds": FOLDS,
        "widths": list(widths),
        "heads": len([score for score in found.candidates if not score.parts]),
        "rounds": [seconds for seconds, _ in runs],
        "seconds": median(seconds for seconds, _ in runs),
        "last": found.last.accuracy,
        "best": found.best.accuracy,
        "scikit-learn": by_sklearn(rows[:, -widths[-1] :], labels, folds),
    }


def main() -> None:
    """Measure one size, anew if the results hold it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=100)
    given = parser.parse_args()
    record = results(RESULTS)
    record["cases"][f"{given.pictures} pictures, {given.classes} classes"] = measured(given.pictures, given.classes)
    keep(record, RESULTS)
    print("\n".join(raced_in(record["cases"])))


if __name__ == "__main__":
    main()
