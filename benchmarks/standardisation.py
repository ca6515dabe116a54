"""What features are divided by before a head is fitted: scores out of fold against what unseen pictures keep.

    python benchmarks/standardisation.py --data ../shared/data

Each case draws `size` training pictures, cross-validates a head on them and tests it on up to 1,000 others, with scales
√(variance + floor · mean variance). A floor of 0 is plain standardisation. Beside the accuracy by the race's shortcut stands
the one by fitting the head anew for every fold (`refit`): the two differ where the scales of a fold differ from those of all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import FEW_CLASSES, SETS
from headstart import heads, runtime, solvers
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.data.splits import assign_folds
from headstart.features.engine import Engine
from headstart.features.extract import columns, extract
from headstart.features.store import Store

RESULTS = Path(__file__).parent / "results" / "standardisation.json"
FLOORS = (0.0, 0.1, 1.0, 10.0)
KINDS: dict[heads.Kind, Any] = {"ridge": heads.ridge_scores, "logistic": heads.logistic_scores}


def spread_with(floor: float) -> Any:
    """`solvers.spread` with another floor; with 0, the least that keeps constant features from a division by zero."""

    def spread(x: torch.Tensor) -> torch.Tensor:
        variance = x.var(0, correction=0)
        return (variance + max(floor, 1e-6) * variance.mean().clamp(min=1e-12)).sqrt()

    return spread


def measured(
    features: Any, labels: Any, classes: int, taps: tuple[int, ...], size: int, seed: int
) -> list[dict[str, Any]]:
    """One draw of training pictures, all floors and both heads."""
    drawn = np.random.default_rng(seed).permutation(len(labels))
    fit, test = drawn[:size], drawn[size : size + 1000]
    folds = assign_folds(labels[fit], np.arange(size), [str(i) for i in range(size)], 5, seed)
    x, unseen = features[fit], features[test]
    rows = []
    for floor in FLOORS:
        solvers.spread = spread_with(floor)
        axes = solvers.principal_axes(x)
        for kind, score in KINDS.items():
            found, *_ = score(axes, labels[fit], folds, classes, taps)
            right = np.empty(size, bool)
            for fold in np.unique(folds):
                head = heads.fit_head(x[folds != fold], labels[fit][folds != fold], classes, kind, taps, found.strength)
                right[folds == fold] = head.logits(x[folds == fold]).argmax(1) == labels[fit][folds == fold]
            head = heads.fit_head(x, labels[fit], classes, kind, taps, found.strength)
            logits = torch.from_numpy(head.logits(unseen))
            rows.append(
                {
                    "floor": floor, "head": kind, "stages": len(taps), "size": size, "seed": seed,
                    "out_of_fold": found.accuracy, "refit": float(right.mean()),
                    "test": float((logits.argmax(1).numpy() == labels[test]).mean()),
                    "test_log_loss": float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[test]))),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    """Measure every case and write the means per floor beside the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[60, 240])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    backbone = load_backbone("tf_efficientnet_lite0")
    cases: list[dict[str, Any]] = []
    for name in FEW_CLASSES:
        dataset = load_dataset(given.data / SETS[name])
        features = extract(backbone, dataset, Store(), engine=Engine(backbone))
        everything = tuple(range(len(features.widths)))
        rows = features.stages(everything)
        for taps in (everything[-1:], everything):
            chosen = rows[:, columns(features.widths, taps)]
            for size in given.sizes:
                for seed in given.seeds if size < 0.9 * len(dataset) else ():
                    found = measured(chosen, dataset.labels, len(dataset.classes), taps, size, seed)
                    cases += [{"set": name, **row} for row in found]
        print(name, flush=True)
    means = []
    for floor in FLOORS:
        for kind in KINDS:
            mine = [case for case in cases if (case["floor"], case["head"]) == (floor, kind)]
            values = ("out_of_fold", "refit", "test", "test_log_loss")
            means.append(
                {"floor": floor, "head": kind, **{key: float(np.mean([c[key] for c in mine])) for key in values}}
            )
    RESULTS.write_text(
        json.dumps({"environment": runtime.environment(), "means": means, "cases": cases}, indent=1) + "\n",
        encoding="utf-8",
    )
    for row in means:
        print(row)


if __name__ == "__main__":
    main()
