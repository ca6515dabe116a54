"""Averaging weights: what it gives to a rung.

    python benchmarks/averaging.py --data ../shared/data

The deep rung, on the draws of `--suite depth`: trained on all pictures, once more in another order, and, where pictures are few, on
the cross-validation folds that judge it. Averaged are the weights of the two, those of the folds (soups, Wortsman et al. 2022, arXiv
2203.05482), and those after every epoch of the second half (Izmailov et al. 2018, arXiv 1803.05407). Test accuracy alone and with
the frozen head.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from common import PLACES, commit, keep, results
from depth import Case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.heads import Head
from headstart.planner import FEW_LADDER, cut_for, rung_from
from headstart.suffix import Net
from headstart.train import Checkpoint
from headstart.tuning import Tuning

import numpy as np  # isort: skip
import torch  # isort: skip

RESULTS = Path(__file__).parent / "results" / "averaging.json"
SETS, SIZES, SEEDS = ("flowers", "ants_bees", "blood", "satellite", "signs", "steel"), ("20", "5"), (0,)
MANY = ("satellite", "signs", "groceries", "mnist")  # these with 600 pictures, too
Weights = dict[str, torch.Tensor]


class Collecting(Checkpoint):
    """Keeps nothing on the disk, and the weights after every epoch in memory."""

    seen: ClassVar[list[Weights]] = []

    def load(self, net: Net, optimizer: torch.optim.AdamW) -> None:
        Collecting.seen = []

    def save(self, net: Net, *rest: object) -> None:
        Collecting.seen.append(net.weights())


def mean(parts: Sequence[Weights]) -> Weights:
    """Of several sets of weights; what is no floating-point number is taken from the first."""
    return {
        name: torch.stack([part[name] for part in parts]).mean(0) if value.is_floating_point() else value
        for name, value in parts[0].items()
    }


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Share of right answers, alone and with the head, of every average."""
    case = Case.of(name, place.resolve(), size, seed)
    assert case.plan.evidence is not None
    rung = rung_from(case.plan.evidence, cut_for(case.plan.evidence.flops, FEW_LADDER[0]))
    head, pool, nobody = case._answers(case.heads.best), case.dataset.indices("train"), np.empty(0, np.int64)
    row: dict[str, Any] = {"images": len(pool), "head": float(case._right(head).mean())}

    def trained(fit: Any, number: int = 0) -> tuple[Net, Weights]:
        Collecting.seen = []
        done = case.tuning.train(rung, number, case.tuning.start(case.heads.last, fit, nobody))
        return done.net, done.outcome.weights

    def told(title: str, net: Net, weights: Weights) -> None:
        net.load(weights)
        own = case._shown(net.backbone, net.linear("logistic", 0.0))
        row[title] = [float(case._right(own).mean()), float(case._with(own, head).mean())]

    net, other = trained(pool, number=1)
    tail = Collecting.seen[rung.epochs // 2 :]
    told("in another order", net, other)
    told("in another order, second half averaged", net, mean(tail))
    net, once = trained(pool)
    told("trained once", net, once)
    told("both averaged", net, mean([once, other]))
    if case.plan.judge != "folds":
        return row
    folds = [trained(fit) for fit, _ in case.tuning.judging()]
    heads = [own.linear("logistic", 0.0) for own, _ in folds]
    # Every fold standardises its features for itself: what is averaged are the heads on raw features.
    net.load(once | mean([weights for _, weights in folds]))
    whole = Head(
        "logistic", heads[0].taps, 0.0, *(np.mean([getattr(h, k) for h in heads], 0) for k in ("weight", "bias"))
    )
    own = case._shown(net.backbone, whole)
    row["folds averaged"] = [float(case._right(own).mean()), float(case._with(own, head).mean())]
    return row


def draw_by_draw(
    about: str | None,
    path: Path,
    seeds: Sequence[int],
    measure: Callable[..., dict[str, Any]],
    sizes: Sequence[str] = SIZES,
    sets: Sequence[str] = SETS,
) -> None:
    """Measure what is missing of all draws, those with few pictures or of other sizes, and write after each."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    record = results(path)
    for seed, size, name in product(seeds, sizes, sets):
        key = f"{name}, size {size}, seed {seed}"
        if key not in record["cases"]:
            found = measure(name, given.data / PLACES[name], size, seed)
            record["cases"][key] = {"size": size, "commit": commit(), **found}
            keep(record, path)
            print(key, found, flush=True)


def anew(*case: Any) -> dict[str, Any]:
    """What is `measured` with an empty store: a rung that is remembered is not trained again."""
    with (
        patch.object(sys.modules[Tuning.__module__], "Checkpoint", Collecting),
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ["HEADSTART_CACHE"] = folder
        return measured(*case)


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, anew)
    draw_by_draw(__doc__, RESULTS, SEEDS, anew, ("600",), MANY)
