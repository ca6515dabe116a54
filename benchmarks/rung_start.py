"""Where a rung starts and how fast it learns: one rung on one fold, from two heads and at several learning rates.

    python benchmarks/rung_start.py --data ../shared/data --sets signs satellite

Per case the accuracy on the held-out fold and on the sealed test set, for every share of the interpolation. The rung is the
plan's first one; nothing is trained again on all pictures. Results accumulate, case by case.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)

import torch  # isort: skip

from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.features.activations import cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.plan import Rung
from headstart.planner import LADDER, cut_for
from headstart.race import race
from headstart.solvers import spread
from headstart.suffix import FromStore, Net, between, held_out_logits
from headstart.train import train
from headstart.tuning import ALPHAS
from headstart.winner import fit_winner

RESULTS = Path(__file__).parent / "results" / "rung_start.json"
WAYS = (("winner", 3e-4, 1e-3), ("last stage", 3e-4, 1e-3), ("winner", 1e-3, 3e-3), ("last stage", 1e-3, 3e-3))


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """All ways on one data set."""
    dataset, store = load_dataset(source, seed=seed), Store()
    engine = Engine(load_backbone("tf_efficientnet_lite0"))
    backbone = engine.backbone
    features = extract(backbone, dataset, store, engine=engine)
    pool, test, labels = dataset.indices("train"), dataset.indices("test"), dataset.labels
    fold, classes = dataset.fold[pool], len(dataset.classes)
    heads = race(features, labels[pool], fold, classes, pool, store=store)
    fit, held = pool[fold != 0], pool[fold == 0]

    def accuracy(logits: Any, asked: Any) -> float:
        return float((logits.argmax(1) == labels[asked]).mean())

    frozen = {}
    for name, score in (("winner", heads.best), ("last stage", heads.last)):
        frozen[name] = fit_winner(score, features, labels[fit], classes, fit, store)
    epochs = max(6, min(12, round(6 * math.sqrt(1500 / len(pool)))))
    cut = cut_for(list(backbone.flops), LADDER[0])
    rows = []
    for name, lr_body, lr_head in WAYS:
        rung = Rung(cut=cut, epochs=epochs, lr_body=lr_body, lr_head=lr_head)
        cached = cache_activations(
            backbone, dataset, store, cut, rung.views, augmented=pool, clean=test, seed=seed, engine=engine
        )
        trained = copy.deepcopy(backbone)
        trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        raw = torch.from_numpy(features.stages(frozen[name].taps, fit))
        net, given = Net(trained, frozen[name], cut, raw.mean(0), spread(raw)), FromStore(backbone, cached)
        start, began = net.weights(), time.monotonic()
        found = train(net, given, labels, fit, held, rung, seed=seed)
        row = {"start": name, "head": frozen[name].kind, "stages": len(frozen[name].taps), "rung": rung.model_dump()}
        row |= {
            "seconds": time.monotonic() - began,
            "curve": [epoch.val_accuracy for epoch in found.curve],
            "shares": [],
        }
        for asked, side in ((held, "held_out"), (test, "test")):
            row[f"frozen_{side}"] = {
                key: accuracy(head.logits(features.stages(head.taps, asked)), asked) for key, head in frozen.items()
            }
        for share in ALPHAS:
            net.load(between(start, found.weights, share))
            sides = {
                side: accuracy(held_out_logits(net, given, asked), asked)
                for asked, side in ((held, "held_out"), (test, "test"))
            }
            row["shares"].append({"share": share, **sides})
        best = max(row["shares"], key=lambda each: each["held_out"])
        print(source, seed, name, lr_body, "frozen", row["frozen_held_out"], "best", best, flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
