"""What a kept rung needs in the end: trained again on all pictures, or going on with all of them from where a fold's training ended.

    python benchmarks/finishing.py --data ../shared/data

The rungs that the plan would try, all of them, on the draws of `--suite depth`. Judged on one fold, they have seen four fifths of
the training pictures. Then all are trained again on all pictures (`again`); or the last rung goes on for a few epochs on all pictures,
at a share of its rates (`on`); or nothing more is done (`fold`). The same for the deepest rung alone, and for one from further down.
Test accuracy alone and with the frozen head, and passes over pictures that trained, in units of all training pictures.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from common import PLACES, commit, keep, results
from depth import Case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.cost import ON_EPOCHS, ON_RATE
from headstart.plan import Rung
from headstart.planner import FEW_LADDER, LADDER, cut_for, rung_from
from headstart.tuning import Split

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "finishing.json"
# Epochs that go on, and at which share of the rates; those of a ladder that has two rungs.
WAYS = [(2, 0.1), (2, 0.3)]
USUAL = (ON_EPOCHS, ON_RATE)


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Share of right answers, alone and with the head, of every way, and the passes that it takes."""
    case = Case.of(name, place.resolve(), size, seed)
    tuning, evidence = case.tuning, case.plan.evidence
    assert evidence is not None
    few = case.plan.judge == "folds"
    cuts = [cut_for(evidence.flops, share) for share in ([FEW_LADDER[0]] if few else LADDER)]
    head, pool, nobody = case._answers(case.heads.best), case.dataset.indices("train"), np.empty(0, np.int64)
    row: dict[str, Any] = {"images": len(pool), "head": [float(case._right(head).mean())] * 2 + [0.0]}
    fit, held = tuning.judging()[0]

    def climbed(state: Split, steps: list[Rung], number: int = 0) -> Split:
        for place, rung in enumerate(steps, number):
            net = tuning.train(rung, place, state).at(1.0)
            state = Split(state.fit, state.held, net.backbone, net.linear(state.head.kind, state.head.strength))
        return state

    def told(title: str, state: Split, passes: float) -> None:
        own = case._shown(state.backbone, state.head)
        row[title] = [float(case._right(own).mean()), float(case._with(own, head).mean()), passes]

    for steps in dict.fromkeys((tuple(cuts), (cuts[-1],), (4,))):
        rungs = [rung_from(evidence, cut) for cut in steps]
        said = "from " + ", then from ".join(map(str, steps))
        once, share = sum(rung.epochs for rung in rungs), len(fit) / len(pool)
        ended = climbed(tuning.start(case.heads.last, fit, held), rungs)
        told(f"{said}: fold", ended, share * once)
        for epochs, rate in WAYS if len(steps) > 1 else [USUAL]:
            rates = {"lr_body": rate * rungs[-1].lr_body, "lr_head": rate * rungs[-1].lr_head}
            more = rungs[-1].model_copy(update={"epochs": epochs, **rates})
            state = climbed(Split(pool, nobody, ended.backbone, ended.head), [more], number=7)
            told(f"{said}: on, {epochs} at {rate:g}", state, share * once + epochs)
        if steps != (4,):
            told(f"{said}: again", climbed(tuning.start(case.heads.last, pool, nobody), rungs), share * once + once)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["groceries", "mnist", "satellite", "signs"], choices=PLACES)
    parser.add_argument("--sizes", nargs="+", default=["600"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    record = results(RESULTS)
    for seed, size, name in product(given.seeds, given.sizes, given.sets):
        key = f"{name}, size {size}, seed {seed}"
        if key not in record["cases"]:
            row = measured(name, given.data / PLACES[name], size, seed)
            record["cases"][key] = {"size": size, "commit": commit(), **row}
            keep(record, RESULTS)
            print(key, {k: v for k, v in row.items() if isinstance(v, list)}, flush=True)
