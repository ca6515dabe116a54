"""How long every contestant takes to a usable model.

Two times are taken, both from the start of the process, imports included: until the model is there (the final one: Headstart
saves one with a frozen head long before), and until the process ends, which has tested the model by then. What has been measured
is kept and not measured again; every contestant runs once before any runs twice.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from cells import headed, percent
from common import commit, keep, results
from contest import LITE, MOBILE, Contestant, linked, ran

RESULTS = Path(__file__).parent / "results" / "speed.json"
HEAD_ONLY, DEFAULT = "Headstart, head only", "Headstart, default, one network"

CONTESTANTS = {
    HEAD_ONLY: Contestant(("--plan", "head"), runs=3),
    "Headstart, head only, again": Contestant(("--plan", "head"), runs=3, warm=HEAD_ONLY),
    "Headstart, head only, MobileNetV2": Contestant(("--plan", "head"), MOBILE, runs=3),
    "scikit-learn on timm features": Contestant(("sklearn_features.py",), runs=3),
    "plain PyTorch, 10 frozen epochs": Contestant(("plain_lpft.py", "10", "0")),
    "Keras guide, 20 frozen epochs, MobileNetV2": Contestant(("keras_guide.py", "20", "0"), MOBILE),
    DEFAULT: Contestant((), runs=3),
    "Headstart, default, one network, again": Contestant((), runs=3, warm=DEFAULT),
    "Headstart, default": Contestant((), "", runs=3),
    "plain PyTorch, 10 frozen epochs and 5 more": Contestant(("plain_lpft.py", "10", "5")),
    "fastai, fine_tune(5)": Contestant(("fastai_fine_tune.py",)),
}


def laid_out(source: Path, images: int, folder: Path) -> dict[str, int]:
    """A tree of links with at most `images` training pictures, drawn by Headstart's own split; how many lie on each side."""
    import numpy as np

    from headstart.data.load import load_dataset

    dataset = load_dataset(source)
    chosen = np.random.default_rng(0).permutation(dataset.indices("train"))[:images]
    return linked(dataset, source, {"train": chosen, "test": dataset.indices("test")}, folder)


def medians(contestants: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of every contestant: seconds to the model and in all, accuracy, and how many times as long as Headstart's head-only fit to the
    model, and as its default fit in all, the model took."""
    found = {
        title: {key: median(row[key] for row in rows) for key in ("seconds", "whole", "accuracy")}
        for title, rows in contestants.items()
        if rows
    }
    for each in found.values():
        for name, ours, key in (("head only", HEAD_ONLY, "seconds"), ("default", DEFAULT, "whole")):
            if ours in found:
                each[f"times {name}"] = each["seconds"] / found[ours][key]
    return found


def side_by_side(case: dict[str, Any]) -> list[str]:
    """One row per contestant: medians, and how many times as long as Headstart's head-only and default fit it took."""
    rows = headed("| contestant | runs | s to the model | s in all | test accuracy | × head only | × default, in all |")
    for name, found in medians(case["contestants"]).items():
        times = [f"{found[key]:.1f}" if key in found else "" for key in ("times head only", "times default")]
        rows.append(
            f"| {name} | {len(case['contestants'][name])} | {found['seconds']:.1f} | {found['whole']:.1f} | "
            f"{percent(found['accuracy'])} | {' | '.join(times)} |"
        )
    return rows


def commits(case: dict[str, Any]) -> str:
    """Commits that were measured, as text."""
    return ", ".join(sorted({run["commit"] for runs in case["contestants"].values() for run in runs}))


def by_phase(case: dict[str, Any]) -> list[str]:
    """Where the time of Headstart's own runs goes: median seconds of every phase, and what lies outside of all of them."""
    ours = {name: runs for name, runs in case["contestants"].items() if name.startswith("Headstart") and runs}
    phases = list(dict.fromkeys(phase for runs in ours.values() for phase in runs[0]["phases"] if phase != "total"))
    rows = headed(f"| run | {' | '.join(phases)} | of finetune, frozen stages | start and end |")
    for name, runs in ours.items():
        times = [median(run["phases"].get(phase, 0.0) for run in runs) for phase in phases]
        cells = [f"{seconds:.1f}" for seconds in times]
        cells.append(f"{median(run['caching'] for run in runs):.1f}" if all("caching" in run for run in runs) else "")
        cells.append(f"{median(run['whole'] - run['phases']['total'] for run in runs):.1f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def points(case: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Contestant, median seconds, in all of the default, and median accuracy; left out are repeated runs, and Headstart's with other
    weights than the rest."""
    return [
        (name, found["whole" if name == DEFAULT else "seconds"], found["accuracy"])
        for name, found in medians(case["contestants"]).items()
        if (who := CONTESTANTS[name]).is_peer or (who.weights == LITE and not who.warm)
    ]


def suite(given: argparse.Namespace) -> None:
    """Run what is missing, a round of everybody at a time, and write after every process."""
    path = RESULTS.with_name(f"{given.into}.json")
    record = results(path)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source in given.sets or ["satellite"]:
            tree = work / source
            counts = laid_out((given.data / source).resolve(), given.images, tree)
            label = f"{source}, {counts['train']} training pictures"
            case = record["cases"].setdefault(label, {"set": source, **counts, "contestants": {}})
            for number in range(max(who.runs for who in CONTESTANTS.values())):
                for title, who in CONTESTANTS.items():
                    done = case["contestants"].setdefault(title, [])
                    if number >= who.runs or len(done) > number or (given.only and title not in given.only):
                        continue
                    facts = {"commit": commit(), "load": os.getloadavg()[0]}
                    done.append({**ran(who, title, tree, work, given.peers_python).row, **facts})
                    case["medians"] = medians(case["contestants"])
                    keep(record, path)
                    last = done[-1]
                    print(
                        f"{source}: {title}: {last['seconds']:.1f} s to a usable model, {last['whole']:.1f} s in all, "
                        f"{100 * last['accuracy']:.1f} %",
                        flush=True,
                    )
            for title, found in medians(case["contestants"]).items():
                print(f"{source}: {title}: {found}", flush=True)
