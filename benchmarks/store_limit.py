"""What a rung loses where the store has no room for it: numbers of two bytes, fewer views, or a cut further up.

    python benchmarks/store_limit.py --data ../shared/data --seeds 0 1

The first rung of the ladder on the default backbone in float32, the best head before it; accuracy on the sealed test set.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)

import torch  # isort: skip

from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.features.activations import activation_bytes, cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.plan import Rung
from headstart.planner import LADDER, cut_for
from headstart.race import race
from headstart.solvers import spread
from headstart.suffix import FromStore, Net, fastest, held_out_logits, training
from headstart.train import train
from headstart.winner import fit_winner

RESULTS = Path(__file__).parent / "results" / "store_limit.json"


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """All ways on one data set."""
    with TemporaryDirectory() as work:
        return _measured(source, seed, Store(Path(work)))


def _measured(source: Path, seed: int, store: Store) -> list[dict[str, Any]]:
    dataset = load_dataset(source, seed=seed)
    engine = Engine(load_backbone("tf_efficientnet_lite0"), precision="float32")
    backbone = engine.backbone
    features = extract(backbone, dataset, store, engine=engine)
    pool, test, labels = dataset.indices("train"), dataset.indices("test"), dataset.labels
    heads = race(features, labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
    head = fit_winner(heads.best, features, labels[pool], len(dataset.classes), pool, store)
    frozen = float((head.logits(features.stages(head.taps, test)).argmax(1) == labels[test]).mean())
    epochs = max(6, min(12, round(6 * math.sqrt(1500 / len(pool)))))
    cut, rows = cut_for(list(backbone.flops), LADDER[0]), []
    for place, kept, views in (
        (cut, "float32", 4), (cut, "bfloat16", 4), (cut, "bfloat16", 2), (cut, "bfloat16", 1), (cut + 1, "bfloat16", 4)
    ):  # fmt: skip
        rung = Rung(cut=place, epochs=epochs, views=views)
        cached = cache_activations(
            backbone,
            dataset,
            store,
            place,
            views,
            augmented=pool,
            clean=test,
            seed=seed,
            engine=engine,
            rounded=kept == "bfloat16",
        )
        trained = copy.deepcopy(backbone)
        trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        raw = torch.from_numpy(features.stages(head.taps, pool))
        net, given = Net(trained, head, place, raw.mean(0), spread(raw)), FromStore(backbone, cached)
        with training(net, fastest(engine.device)) as precision:
            train(net, given, labels, pool, test[:0], rung, seed=seed, precision=precision)
            logits = held_out_logits(net, given, test, precision)
        rows.append({
            "cut": place, "kept": kept, "views": views, "frozen": frozen,
            "bytes": views * activation_bytes(backbone, place, kept),
            "accuracy": float((logits.argmax(1) == labels[test]).mean()),
        })  # fmt: skip
        print(source, seed, rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
