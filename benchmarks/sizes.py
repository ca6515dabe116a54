"""Heads on frozen features of pictures that are larger than those that the weights were trained with.

    python benchmarks/sizes.py --data ../shared/data --seeds 0 1

Convolutions take any size, and ImageNet classifiers of this age answer best somewhat above the size that they were trained at (Touvron
et al. 2019, arXiv 1906.06423). The race's choice on each network at each size, and the means of the calibrated logits of some pairs;
draws as in the depth suite.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from common import case_by_case
from depth import SIZES, draw
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.race import race
from headstart.tasks.classification import fit_temperature
from headstart.winner import fit_winner

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "sizes.json"
WAYS = {
    "Lite0": (224, 256, 288, 320),
    "Lite1": (240, 304),
    "Lite2": (260, 320),
}  # the first is what they were trained at
PAIRS = (("Lite0 at 224", "Lite2 at 260"), ("Lite0 at 288", "Lite2 at 260"), ("Lite0 at 224", "Lite0 at 288"))


@cache
def engine(name: str, side: int) -> Engine:
    """A network that sees pictures of this side, cut from the centre as ever."""
    known = f"tf_efficientnet_{name.lower()}"
    backbone = load_backbone(known)
    if side != backbone.input.size[0]:
        backbone = load_backbone(known, input=replace(backbone.input, size=(side, side)))
    return Engine(backbone)


def row_of(answers: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """Share of right answers of every way, from calibrated test logits (M, K)."""
    both = {" and ".join(pair): answers[pair[0]] + answers[pair[1]] for pair in PAIRS}
    return {name: float((logits.argmax(1) == truth).mean()) for name, logits in (answers | both).items()}


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """A row per size of the draw."""
    rows = []
    for size in SIZES:
        store, dataset = Store(), draw(source.resolve(), size, seed)
        pool, test, classes = dataset.indices("train"), dataset.indices("test"), len(dataset.classes)
        labels, folds = dataset.labels[pool], dataset.fold[pool]
        answers: dict[str, np.ndarray] = {}
        for name, side in ((name, side) for name, sides in WAYS.items() for side in sides):
            own = engine(name, side)
            features = extract(own.backbone, dataset, store, engine=own)
            heads = race(features, labels, folds, classes, pool, store=store)
            head = fit_winner(heads.best, features, labels, classes, pool, store)
            heat = fit_temperature(heads.best.logits, dataset.labels[heads.pool])
            answers[f"{name} at {side}"] = head.answers(features, test) / np.float32(heat)
        rows.append({"size": size, "pictures": len(pool), "ways": row_of(answers, dataset.labels[test])})
        print(source.name, seed, rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
