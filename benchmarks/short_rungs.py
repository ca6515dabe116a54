"""What a rung loses that has fewer epochs than usual, for want of time.

    python benchmarks/short_rungs.py --data ../shared/data

The first rung that a plan would try, on the draws of `--suite depth` with up to 600 pictures: trained on four fifths of them, then
going on with all, as a kept rung does. Test accuracy alone and with the frozen head, and passes over all pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import PLACES, seed_by_seed
from depth import Case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.cost import ON_EPOCHS, ON_RATE
from headstart.planner import LADDER, cut_for, rung_from
from headstart.tuning import Split

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "short_rungs.json"
SHARES = (1.0, 0.67, 0.5, 0.33)  # of the usual epochs


def measured(source: Path, seed: int) -> dict[str, Any]:
    """Share of right answers, alone and with the head, and passes, by the share of the usual epochs."""
    case = Case.of(source.name, source.resolve(), "600", seed)
    tuning, evidence = case.tuning, case.plan.evidence
    assert evidence is not None
    head, pool, nobody = case._answers(case.heads.best), case.dataset.indices("train"), np.empty(0, np.int64)
    usual = rung_from(evidence, cut_for(evidence.flops, LADDER[0]))
    fit, held = tuning.judging()[0]
    row: dict[str, Any] = {"images": len(pool), "head": [float(case._right(head).mean())] * 2 + [0.0]}
    gentle = {"epochs": ON_EPOCHS, "lr_body": ON_RATE * usual.lr_body, "lr_head": ON_RATE * usual.lr_head}
    for share in SHARES:
        epochs = max(1, round(share * usual.epochs))
        state = tuning.start(case.heads.last, fit, held)
        for number, (changes, seen) in enumerate((({"epochs": epochs}, fit), (gentle, pool))):
            rung = usual.model_copy(update=changes)
            net = tuning.train(rung, 7 * number, replace(state, fit=seen, held=nobody)).at(1.0)
            state = Split(seen, nobody, net.backbone, net.linear(state.head.kind, state.head.strength))
        own = case._shown(state.backbone, state.head)
        right = [float(case._right(own).mean()), float(case._with(own, head).mean())]
        row[f"{100 * share:.0f} % of its epochs"] = [*right, epochs * len(fit) / len(pool) + ON_EPOCHS]
    print(source.name, seed, row, flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["groceries", "mnist", "satellite", "signs"], choices=PLACES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    seed_by_seed(RESULTS, measured, given.data, given.sets, given.seeds)
