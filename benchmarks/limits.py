"""Where the time goes, against what it could be at best: decoding alone, the engine alone, both together, prediction, and an epoch
of partial fine-tuning against one of the whole network.

    python benchmarks/limits.py --data ../shared/data --sets satellite signs

Rates are medians of three rounds in turns, those of whole processes of seven. The limit of extraction is the slower of decoding on
all cores and the engine on pictures from memory, on a GPU compiled; what it can be where both share the cores is told as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from common import case_by_case, commit
from headstart import runtime
from headstart.backbones.catalog import load_backbone
from headstart.bundle import save
from headstart.data.dataset import Images
from headstart.data.images import Transform, load_view
from headstart.data.load import load_dataset
from headstart.features.activations import cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.settle import settle, transform_of
from headstart.features.store import Store
from headstart.heads import fit_head
from headstart.model import Model
from headstart.plan import Rung
from headstart.planner import cut_for, frozen_share
from headstart.solvers import spread
from headstart.suffix import FromImages, FromStore, Net, fastest, training
from headstart.train import train
from headstart.unknown import learn

RESULTS = Path(__file__).parent / "results" / "limits.json"
PICTURES, TRAINED, FILES, ROUNDS, PROCESSES = 600, 240, 1000, 3, 7


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def discarded(images: Images, transform: Transform, index: int) -> None:
    """Decode a picture, and give nothing back."""
    load_view(images, index, transform)


def drained(function: Callable[[Any], Any], items: list[Any]) -> None:
    """Run `function` on all cores and drop what it gives."""
    for _ in runtime.parallel(function, items):
        pass


def predicted(run: Path, files: list[str], cache: Path) -> dict[str, float]:
    """`headstart predict` as a process: seconds to the first answer and to the last."""
    listed = "\n".join(files) + "\n"
    began = time.monotonic()
    command = [sys.executable, "-m", "headstart", "predict", str(run), "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HEADSTART_CACHE": str(cache), "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(listed)
        process.stdin.close()
        process.stdout.readline()  # the names of the columns
        process.stdout.readline()
        first = time.monotonic() - began
        process.stdout.read()
    return {"first": first, "whole": time.monotonic() - began}


def measured(source: Path, seed: int) -> dict[str, Any]:
    """One data set."""
    dataset, backbone = load_dataset(source), load_backbone("tf_efficientnet_lite0")
    transform = transform_of(backbone)
    chosen = dataset.indices("train")[:PICTURES]
    dataset = dataset.select(chosen)
    everyone, count = np.arange(len(chosen)), len(chosen)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        engine = Engine(backbone, runner="compile" if runtime.device().type == "cuda" else "eager")
        settle(engine, dataset, Store(work / "settling"))
        pictures = np.stack([load_view(dataset.images, i, transform) for i in range(count)])
        parts = [pictures[start : start + engine.batch] for start in range(0, count, engine.batch)]
        rounds: dict[str, list[float]] = {
            what: [] for what in ("decode", "decode, processes", "engine", "extract", "extract, cold")
        }
        decoded = partial(discarded, dataset.images, transform)
        for number in range(ROUNDS):
            with ProcessPoolExecutor(runtime.cpu_count()) as pool:
                list(pool.map(decoded, range(8)))  # so that they have begun
                rounds["decode, processes"].append(
                    seconds(lambda pool=pool: list(pool.map(decoded, range(count), chunksize=16)))  # type: ignore[misc]
                )
            rounds["decode"].append(
                seconds(lambda: drained(lambda i: load_view(dataset.images, i, transform), list(range(count))))
            )
            rounds["engine"].append(seconds(lambda: drained(engine.pooled, parts)))
            store = Store(work / f"store {number}")
            rounds["extract"].append(seconds(lambda store=store: extract(backbone, dataset, store, engine=engine)))  # type: ignore[misc]
            empty, anew = Store(work / f"empty store {number}"), Engine(backbone, runner=engine.runner)
            rounds["extract, cold"].append(
                seconds(lambda empty=empty, anew=anew: extract(backbone, dataset, empty, engine=anew))  # type: ignore[misc]
            )
        rates = {what: count / median(found) for what, found in rounds.items()}
        features = extract(backbone, dataset, store, engine=engine)
        taps = (len(backbone.stages) - 1,)
        head = fit_head(features.stages(taps), dataset.labels, len(dataset.classes), "ridge", taps, 1e-4)
        model = Model(backbone, head, dataset.classes, precision=engine.settled or "float32", exact=engine.exact)
        logits = head.logits(features.stages(taps))
        model.unknown = learn(features, dataset, len(features.own), everyone, everyone, logits, store)
        save(model, work / "run")
        files = [str(source / dataset.names[i % count]) for i in range(FILES)]
        answers = [predicted(work / "run", files, work / "cache") for _ in range(PROCESSES)]
        # An epoch from cached activations, and one of the whole network on the same pictures, each from the same start.
        cut = cut_for(list(backbone.flops), 0.63)
        clean = np.empty(0, np.int64)
        cached = cache_activations(backbone, dataset, store, cut, 1, augmented=everyone, clean=clean, engine=engine)
        ways, used = (("cached", cut), ("cached, float32", cut), ("whole", 0)), everyone[:TRAINED]
        tries: dict[str, list[float]] = {label: [] for label, _ in ways}
        for label, where in ROUNDS * ways:
            own = load_backbone("tf_efficientnet_lite0")
            own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            raw = torch.from_numpy(features.stages(taps))
            net = Net(own, head, where, raw.mean(0), spread(raw)).to(engine.device)
            data = FromStore(own, cached) if where else FromImages(Engine(own, precision="float32"), dataset, 0, 0)
            rung = Rung(cut=where, epochs=2, views=1)
            with training(net, "float32" if "float32" in label else fastest(runtime.device())) as precision:
                trained = partial(train, net, data, dataset.labels, used, clean, rung, seed=seed, precision=precision)
                tries[label].append(seconds(trained) / 2 / len(used))
        epochs = {label: median(found) for label, found in tries.items()}
        share = frozen_share(list(backbone.flops), cut)
    together = 1 / (1 / rates["decode"] + 1 / rates["engine"])
    start = median(each["first"] for each in answers)
    rest = (FILES - 1) / median(each["whole"] - each["first"] for each in answers)
    return {
        "commit": commit(), "load": os.getloadavg()[0], "pictures": count,
        "way": str(engine.way), "rates": rates, "limit": min(rates["decode"], rates["engine"]),
        "together": together, "first_prediction_seconds": start, "prediction_rate": rest,
        "prediction_seconds": median(each["whole"] for each in answers),
        "cut": cut, "frozen_share": share, "epoch_seconds_per_picture": epochs,
        "partial_speedup": epochs["whole"] / epochs["cached"], "ideal_speedup": 1 / (1 - share),
    }  # fmt: skip


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
