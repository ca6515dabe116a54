"""A rung where another network answers beside the first: what held-out pictures say of it, and what it gives on the test.

    python benchmarks/beside.py --data ../shared/data

The draws of `--suite depth`, and the rung that few pictures get. EfficientNet-Lite0's frozen head, or the trained network in its
place, answers together with the frozen head of EfficientNet-Lite1; and without it. Held out are three folds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from averaging import draw_by_draw
from depth import Case
from headstart.backbones.catalog import load_backbone
from headstart.choice import Ways, paired_gain
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.planner import FEW_LADDER, cut_for, rung_from
from headstart.race import race
from headstart.tasks.classification import fit_temperature
from headstart.tuning import Tuning
from headstart.views import more_views

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "beside.json"
SEEDS = (0, 1)
OTHER = "tf_efficientnet_lite1"


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """For the rung alone and beside the other network, against the frozen head in its place: by how many nats it makes the held-out
    labels likelier, the gain in accuracy on them, both with standard errors, and the gain on the test."""
    case = Case.of(name, place.resolve(), size, seed)
    assert case.plan.evidence is not None
    data, store = case.dataset, case.store
    pool, test, nobody = data.indices("train"), data.indices("test"), np.empty(0, np.int64)
    rung = rung_from(case.plan.evidence, cut_for(case.plan.evidence.flops, FEW_LADDER[0]))
    folds, last = case.tuning.judging(), case.heads.last
    other = Engine(load_backbone(OTHER))
    features, *_ = more_views(extract(other.backbone, data, store, engine=other), [other], data, store, seed=seed)
    heads = race(features, data.labels[pool], data.fold[pool], len(data.classes), pool, store=store)
    beside = Tuning(data, features, store, other, case.plan)

    def trained(fit: np.ndarray, held: np.ndarray) -> Any:
        return case.tuning.train(rung, 0, case.tuning.start(last, fit, held))

    net = trained(pool, nobody).at(1.0)
    truth, answers = data.labels[np.concatenate([held for _, held in folds])], data.labels[test]
    held_out = {
        "rung": np.concatenate([trained(fit, held).shares[0] for fit, held in folds]),
        "head": case.tuning.held_out(case.heads.best),
        "other": beside.held_out(heads.best),
    }
    tested = {
        "rung": case._shown(net.backbone, net.linear(last.kind, last.strength)),
        "head": case._answers(case.heads.best),
        "other": beside.head(heads.best, pool).answers(features, test),
    }
    heat = {part: np.float32(fit_temperature(logits, truth)) for part, logits in held_out.items()}
    row: dict[str, Any] = {}
    for title, more in (("alone", ()), ("beside another", ("other",))):
        (before, shown), (after, now) = (
            [
                np.mean([logits[part] / heat[part] for part in (own, *more)], axis=0).astype(np.float32)
                for logits in (held_out, tested)
            ]
            for own in ("head", "rung")
        )
        ways = Ways.of([before, after], truth)
        row[title] = {
            "likelier": ways.likelier(1, 0),
            "held_out_gain": ways.gain(1, 0),
            "gain": paired_gain(now, shown, answers)[0],
        }
    return row


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, measured)
