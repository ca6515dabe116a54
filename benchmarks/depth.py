"""One rung at each of several depths: what it gains on held-out pictures, what is kept of it on the test set, and its seconds.

    python benchmarks/depth.py --data ../shared/data --sets signs satellite groceries

Every cut starts from the same frozen features and heads and has the epochs and views that the plan gives its first rung.
Results accumulate in benchmarks/results/depth.json, case by case.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import case_by_case
from headstart.backbones.catalog import load_backbone
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.finetune import finetune
from headstart.race import fit_winner, race
from headstart.request import Options, audited
from headstart.transfer import planned

RESULTS = Path(__file__).parent / "results" / "depth.json"
CUTS = (8, 7, 6, 5)


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """A row per cut."""
    options, store = Options(seed=seed, budget=None), Store()
    dataset = audited(source, options, store)
    engine = Engine(load_backbone(options.backbone))
    features = extract(engine.backbone, dataset, store, engine=engine)
    pool, test = dataset.indices("train"), dataset.indices("test")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
    plan = planned(dataset, engine, heads, options, store)
    if not plan.rungs:
        return []
    head = fit_winner(heads.best, features, dataset.labels[pool], len(dataset.classes), pool, store)
    frozen = head.logits(features.stages(head.taps, test)).argmax(1) == dataset.labels[test]
    rows = []
    for cut in CUTS:
        rung = plan.rungs[0].model_copy(update={"cut": cut})
        began = time.monotonic()
        tuned = finetune(engine, heads, features, dataset, plan.model_copy(update={"rungs": [rung]}), store)
        seconds = time.monotonic() - began
        shown = engine.alike(tuned.backbone)
        tested = extract(tuned.backbone, dataset.select(test), store, engine=shown)
        right = tuned.head.logits(tested.stages(tuned.head.taps)).argmax(1) == dataset.labels[test]
        (result,) = tuned.rungs
        rows.append(
            {
                "cut": cut, "stage": plan.stages[cut], "seconds": seconds, "gain": result.gain, "gain_se": result.gain_se,
                "held_out": result.accuracy, "kept": result.kept, "alpha": result.alpha, "test": float(right.mean()),
                "head_test": float(frozen.mean()), "judge": plan.judge, "epochs": rung.epochs,
            }
        )  # fmt: skip
        print(f"{source.name} seed {seed} cut {cut}: {rows[-1]}", flush=True)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
