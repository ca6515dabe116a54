"""One backbone or two: what the line-up does for heads on frozen features, with 5, 20 and all training pictures of each class.

    python benchmarks/backbones.py --data ../shared/data --seeds 0 1 2

Pictures of each class are drawn from the training side; the line-up of the backbones that come with the installation chooses on
them, and what it chose is tested on the test side, beside the first backbone alone and its last stage alone. So are, whatever was
chosen, the best pair with the first backbone and this backbone alone, with what out-of-fold answers say of that pair: how many of
them it has right, and how likely it makes the labels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.choice import Ways
from headstart.data.dataset import Dataset
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import extract, together
from headstart.features.store import Store
from headstart.lineup import line_up
from headstart.race import race
from headstart.tasks.classification import fit_temperature, softmax, surprise
from headstart.winner import fit_winner

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "backbones.json"
FIRST, *OTHERS = "tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"
SIZES = (5, 20, None)
engine = cache(lambda name: Engine(load_backbone(name)))


def measured(source: Path, seed: int) -> dict[str, Any]:
    """All sizes on one data set."""
    dataset, store = load_dataset(source, seed=seed), Store()
    everyone, test, classes = dataset.indices("train"), dataset.indices("test"), len(dataset.classes)
    rows: dict[str, Any] = {}
    for size in SIZES:
        random = np.random.default_rng([seed, size or 0])
        drawn = [random.permutation(everyone[dataset.labels[everyone] == label])[:size] for label in range(classes)]
        few = dataset.select(np.sort(np.concatenate(drawn)))
        pool, labels = np.arange(len(few)), few.labels
        if len(np.unique(few.fold)) < 2:
            continue
        features = extract(engine(FIRST).backbone, few, store, engine=engine(FIRST))
        alone = race(features, labels, few.fold, classes, pool)
        found = line_up(engine(FIRST), features, few, store, OTHERS, engine)
        row: dict[str, Any] = {"pictures": len(pool), "chosen": [each.backbone.origin.name for each in found.engines]}
        shown = [
            ("last_stage", alone.last, features, [engine(FIRST)]),
            ("alone", alone.best, features, [engine(FIRST)]),
        ]
        for name, score, seen, engines in [*shown, ("line_up", found.heads.best, found.features, found.engines)]:
            head = fit_winner(score, seen, labels, classes, pool, store)
            whole = together([extract(each.backbone, dataset, store, engine=each) for each in engines])
            row[name] = float((head.answers(whole, test).argmax(1) == dataset.labels[test]).mean())
        row["told"], row["alone_told"] = found.heads.accuracy, alone.accuracy
        row["pair"] = _pair(dataset, few, store)
        rows[str(size or "all")] = row
        print(source.name, seed, size, row, flush=True)
    return rows


def _pair(dataset: Dataset, few: Dataset, store: Store) -> dict[str, Any]:
    """The best pair with the first backbone, as out-of-fold answers see it and as the test does."""
    names = (FIRST, *OTHERS)
    seen = together([extract(engine(name).backbone, few, store, engine=engine(name)) for name in names])
    whole = together([extract(engine(name).backbone, dataset, store, engine=engine(name)) for name in names])
    pool, test, classes = np.arange(len(few)), dataset.indices("test"), len(dataset.classes)
    heads = race(seen, few.labels, few.fold, classes, pool, groups=few.groups, store=store)
    pair = heads.candidates[-1]  # the last that raced, whether it won or not
    first = pair.parts[0][0]
    ways = Ways.of([pair.logits, first.logits], few.labels, few.groups)
    row: dict[str, Any] = {"won": heads.best is pair, "gain": ways.gain(0, 1), "nats": ways.likelier(0, 1)}
    row["loss"] = [float(each.mean()) for each in ways.loss]
    for name, score in (("both", pair), ("first", first)):
        answers = fit_winner(score, seen, few.labels, classes, pool, store).answers(whole, test)
        likely = softmax(answers, fit_temperature(score.logits, few.labels))
        row[f"{name}_test"] = float((answers.argmax(1) == dataset.labels[test]).mean())
        row[f"{name}_loss"] = float(surprise(dataset.labels[test], likely).mean())
    return row


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
