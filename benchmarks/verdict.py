"""Verdicts on constructed cases whose truth is known, twenty seeds each.

A seed draws the pictures, the split and what is constructed: shuffled labels, weights, generated pictures. Only the head is trained,
but where a case is named after the default plan: what is judged is the verdict, and fine-tuning has benchmarks of its own. Seed by
seed over all cases, so that an interrupted run is balanced.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import labels
import suspicions
from common import SETS, commit, keep, results, seed_by_seed
from contest import LITE

RESULTS = Path(__file__).parent / "results" / "verdict.json"
SEEDS = range(20)
TEST = 0.4  # share that is sealed: with a fifth of so few pictures nothing but the crudest truth could show


@dataclass(frozen=True)
class Case:
    """`made(data, seed, folder)` gives source and options of a fit, and `plan` one more; `truth` is "nothing", "helped", "overkill"
    or "hurt"."""

    truth: str
    made: Callable[[Path, int, Path], tuple[Any, dict[str, Any]]]
    plan: str = "head"

    def right(self, run: Mapping[str, Any]) -> bool:
        """Whether the verdict of a run says what is true."""
        if self.truth == "overkill":
            return bool(run["overkill"]) and run["outcome"] == "not distinguishable"
        return run["outcome"] == {"nothing": "not distinguishable"}.get(self.truth, self.truth)


def listed(data: Path, name: str, count: int, seed: int, folder: Path, *, shuffled: bool = False) -> Path:
    """A table of `count` pictures of a data set in class folders, drawn by the seed; with `shuffled`, labels change places."""
    random = np.random.default_rng(seed)
    files = sorted(
        path for path in (data / SETS[name]).resolve().rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    chosen = [files[i] for i in random.permutation(len(files))[:count]]
    labels = [path.parent.name for path in chosen]
    if shuffled:
        labels = [labels[i] for i in random.permutation(len(labels))]
    table = folder / "pictures.csv"
    rows = [f"{path},{label}" for path, label in zip(chosen, labels, strict=True)]
    table.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    return table


def digits(data: Path, count: int, seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` handwritten digits of the first `classes` classes, drawn by the seed: (N, 28, 28) uint8 and labels (N,)."""
    pixels, labels = (
        np.frombuffer(
            gzip.decompress((data / "mnist" / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset
        )
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    among = np.flatnonzero(labels < classes)
    chosen = np.random.default_rng(seed).permutation(among)[:count]
    return pixels.reshape(-1, 28, 28)[chosen], labels[chosen].astype(np.int64)


def tinted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cloudy grey pictures (N, 96, 96, 3) uint8 of three classes that differ by a tint of red, green or blue alone: 40 ± 6 levels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    clouds = random.normal(120, 30, (count, 6, 6, 1)).repeat(16, axis=1).repeat(16, axis=2)
    tint = np.eye(3)[labels] * random.normal(40, 6, (count, 1))
    pictures = clouds + random.normal(0, 8, (count, 96, 96, 3)) + tint[:, None, None, :]
    return np.clip(pictures, 0, 255).astype(np.uint8), labels


def destroyed(seed: int, folder: Path) -> Path:
    """The weights of the default network, the numbers within each tensor in an order drawn by the seed: nothing learnt is left."""
    import torch
    from safetensors.torch import save_file

    from headstart.backbones.catalog import load_backbone

    draw = torch.Generator().manual_seed(seed)
    state = load_backbone(LITE).state()
    mixed = {
        name: value.flatten()[torch.randperm(value.numel(), generator=draw)].reshape(value.shape).contiguous()
        for name, value in state.items()
    }
    save_file(mixed, folder / "destroyed.safetensors")
    return folder / "destroyed.safetensors"


def _shuffled(name: str, count: int, data: Path, seed: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    return listed(data, name, count, seed, folder, shuffled=True), {}


def _photographs(name: str, count: int, data: Path, seed: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    return listed(data, name, count, seed, folder), {}


def _two_digits(data: Path, seed: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    return digits(data, 300, seed, 2), {}


def _tinted(data: Path, seed: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    return tinted(300, seed), {}


def _without_source(name: str, count: int, data: Path, seed: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    source = digits(data, count, seed, 10) if name == "digits" else listed(data, name, count, seed, folder)
    return source, {"weights": str(destroyed(seed, folder))}


CASES = {
    "labels shuffled, flowers": Case("nothing", partial(_shuffled, "flowers", 200)),
    "labels shuffled, steel": Case("nothing", partial(_shuffled, "steel", 200)),
    "photographs, flowers": Case("helped", partial(_photographs, "flowers", 200)),
    "photographs, ants_bees": Case("helped", partial(_photographs, "ants_bees", 300)),
    "digits 0 and 1": Case("overkill", _two_digits),
    "a tint": Case("overkill", _tinted),
    "weights destroyed, digits": Case("hurt", partial(_without_source, "digits", 500)),
    "weights destroyed, signs": Case("hurt", partial(_without_source, "signs", 500)),
    "labels shuffled, ants_bees without a test set": Case("nothing", partial(_shuffled, "ants_bees", 100)),
    "labels shuffled, flowers, default plan": Case("nothing", partial(_shuffled, "flowers", 200), "auto"),
    "labels shuffled, steel, default plan": Case("nothing", partial(_shuffled, "steel", 200), "auto"),
    "photographs, ants_bees, default plan": Case("helped", partial(_photographs, "ants_bees", 300), "auto"),
    "a tint, default plan": Case("overkill", _tinted, "auto"),
    "weights destroyed, digits, default plan": Case("hurt", partial(_without_source, "digits", 500), "auto"),
}


def measured(case: Case, data: Path, seed: int) -> dict[str, Any]:
    """The verdict of one run, the accuracies it rests on, and seconds."""
    from headstart import Options, fit

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source, options = case.made(data, seed, Path(folder))
        run = fit(source, options=Options(plan=case.plan, seed=seed, test_fraction=TEST, **options))
    models = run.metrics["test"]["models"]
    return {
        "outcome": run.verdict.outcome, "overkill": run.verdict.overkill, "baseline": run.verdict.baseline,
        "images": run.metrics["test"]["images"],
        "accuracy": {name: s["accuracy"]["value"] for name, s in models.items()},
        "rungs": [bool(rung["kept"]) for rung in run.metrics["rungs"]],
        "seconds": time.monotonic() - began, "commit": commit(),
    }  # fmt: skip


def suite(given: argparse.Namespace) -> None:
    """Run what is missing and write after every run; a cache that is thrown away keeps the destroyed weights' features."""
    record = results(RESULTS)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HEADSTART_CACHE"] = cache
        for seed in given.seeds or SEEDS:
            for name, case in CASES.items():
                done = record["cases"].setdefault(name, {"truth": case.truth, "runs": {}})["runs"]
                if str(seed) in done or (given.only and name not in given.only):
                    continue
                done[str(seed)] = found = measured(case, given.data, seed)
                found["right"] = case.right(found)
                keep(record, RESULTS)
                models = {key: round(100 * value, 1) for key, value in found["accuracy"].items()}
                said = found["outcome"] + ", overkill" * found["overkill"]
                print(f"{name}, seed {seed}: {said}, {found['seconds']:.0f} s, {models}", flush=True)
        for plants in () if given.only else (suspicions, labels):
            seed_by_seed(plants.RESULTS, plants.measured, given.data, SETS, [0])
