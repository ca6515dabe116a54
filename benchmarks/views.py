"""Heads that are fitted to more views of each picture, against heads on the clean view: 5 and 20 pictures a class, and 600 in all.

    python benchmarks/views.py --data ../shared/data --seeds 0 1 2

Draws as in the depth suite. `clean` and `views`: what the race chooses without and with the views; `last`: the last stage's head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import case_by_case
from depth import SIZES, draw, engine
from headstart.features.extract import extract, with_views
from headstart.features.store import Store
from headstart.race import race
from headstart.views import VIEWS
from headstart.winner import fit_winner

RESULTS = Path(__file__).parent / "results" / "views.json"


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """A row per size: accuracy on test pictures, mean log-loss out of fold."""
    rows = []
    for size in SIZES:
        store, dataset = Store(), draw(source.resolve(), size, seed)
        pool, test, classes = dataset.indices("train"), dataset.indices("test"), len(dataset.classes)
        labels, folds = dataset.labels[pool], dataset.fold[pool]
        own = engine(source)
        clean = extract(own.backbone, dataset, store, engine=own)
        viewed = with_views(clean, [own], dataset, store, VIEWS, only=pool, seed=seed)
        row: dict[str, Any] = {"size": size, "pictures": len(pool), "a_class": len(pool) / classes, "tested": len(test)}
        for name, features in (("clean", clean), ("views", viewed)):
            heads = race(features, labels, folds, classes, pool, store=store)
            for what, score in (("", heads.best), ("last_", heads.last)):
                head = fit_winner(score, features, labels, classes, pool, store)
                right = head.answers(features, test).argmax(1) == dataset.labels[test]
                row |= {what + name: float(right.mean()), f"{what}{name}_log_loss": score.log_loss}
            row["taken"] = heads.last.views > 0
        rows.append(row)
        print(source.name, seed, row, flush=True)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
