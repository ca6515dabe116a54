"""Time per picture and peak memory from 1,000 to 100,000 pictures: what grows, and what does not.

    python benchmarks/scaling.py --source ../shared/data/satellite --work /somewhere/with/3GB

Writes as many different pictures as asked for (random crops, turned and mirrored, of the source's pictures) and fits a head to
the first N of them, from an empty store, in a process of its own. Sizes take turns; of several rounds the medians are told.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from cells import headed, percent
from common import commit, keep, results

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SIDE = 256  # pixels of the written pictures
EXTRACTED = 0.8  # of the pictures, before the model is usable: a fifth is sealed
HEAD = ("--plan", "head", "--backbone", "tf_efficientnet_lite0")


def drawn(task: tuple[int, list[tuple[str, str]], Path]) -> list[tuple[str, str]]:
    """Write pictures `start` to `start + 500`; their names and labels."""
    start, sources, folder = task
    rows = []
    for number in range(start, start + 500):
        draw = np.random.default_rng(number)
        path, label = sources[int(draw.integers(len(sources)))]
        name = f"{number // 1000:03d}/{number:06d}.jpg"
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            side = min(picture.size) * float(draw.uniform(0.35, 0.7))
            left, top = draw.random() * (picture.width - side), draw.random() * (picture.height - side)
            crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
            turn = int(draw.integers(8))
            crop = crop.rotate(90 * (turn % 4))
            (crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn > 3 else crop).save(target, quality=85)
        rows.append((name, label))
    return rows


def written(source: Path, count: int, folder: Path) -> list[tuple[str, str]]:
    """Names and labels of `count` pictures below `folder`."""
    sources = sorted((str(path), path.parent.name) for path in source.glob("*/*") if path.is_file())
    with ProcessPoolExecutor() as pool:
        return [row for part in pool.map(drawn, [(s, sources, folder) for s in range(0, count, 500)]) for row in part]


def measured(table: Path, work: Path) -> dict[str, Any]:
    """One cold head-only fit."""
    cache, out = work / "cache", work / "run"
    for place in (cache, out):
        shutil.rmtree(place, ignore_errors=True)
    command = [sys.executable, "-m", "headstart", "fit", str(table), "--out", str(out), *HEAD]
    began, usable = time.monotonic(), None
    with subprocess.Popen(
        command, env={**os.environ, "HEADSTART_CACHE": str(cache)}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            if usable is None and (out / "model.json").exists():
                usable = time.monotonic() - began
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    store = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return {
        "usable_seconds": usable, "whole_seconds": time.monotonic() - began, "phases": found["seconds"],
        "peak_memory_bytes": found["peak_memory_bytes"], "store_bytes": store,
        "accuracy": found["test"]["models"]["final"]["accuracy"]["value"],
    }  # fmt: skip


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number, and of every number within."""
    first = rounds[0]
    return {
        key: medians([each[key] for each in rounds])
        if isinstance(value, dict)
        else median(each[key] for each in rounds)
        for key, value in first.items()
    }


def scaled(cases: dict[str, Any]) -> list[str]:
    """One row per size: milliseconds a picture by phase, and memory."""
    rows = headed(
        "| pictures | rounds | audit, ms per picture | extraction, ms per picture | heads, s | "
        "s to a usable model | s in all | peak GB | "
        "store GB | test accuracy |"
    )
    for case in cases.values():
        phases, count = case["phases"], case["pictures"]
        audit, pace = 1000 * phases["audit"] / count, 1000 * phases["extract"] / (EXTRACTED * count)
        rows.append(
            f"| {count:,} | {len(case['rounds'])} | {audit:.2f} | {pace:.2f} | {phases['head']:.1f} | "
            f"{case['usable_seconds']:.0f} | {case['whole_seconds']:.0f} | {case['peak_memory_bytes'] / 1e9:.2f} | "
            f"{case['store_bytes'] / 1e9:.2f} | {percent(case['accuracy'])} |"
        )
    return rows


def main() -> None:
    """Measure every size that the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/satellite"), help="a folder per class")
    parser.add_argument("--work", type=Path, required=True, help="where pictures and stores are written")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", type=int, default=30_000, help="pictures from which on a size is measured once")
    given = parser.parse_args()
    record = results(RESULTS)
    pictures = given.work / "pictures"
    rows = written(given.source, max(given.sizes), pictures)
    for size in given.sizes:
        with (pictures / f"first_{size}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *rows[:size]])
    for turn in range(given.rounds):
        for size in given.sizes:
            case = record["cases"].setdefault(f"{size} pictures of {given.source.name}", {"rounds": []})
            if len(case["rounds"]) > turn or (turn and size >= given.once):
                continue
            facts = {"pictures": size, "commit": commit(), "load": os.getloadavg()[0]}
            case["rounds"].append(measured(pictures / f"first_{size}.csv", given.work))
            case.update({**facts, **medians(case["rounds"])})
            keep(record, RESULTS)
            print(size, turn, json.dumps(case["rounds"][-1]), flush=True)


if __name__ == "__main__":
    main()
