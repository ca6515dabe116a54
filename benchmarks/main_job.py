"""The main job with its defaults on several data sets and seeds: accuracy, verdict, plan, wall time, peak memory.

    python benchmarks/main_job.py --data ../shared/data --seeds 0

The whole command in a process of its own, with an empty store. Results accumulate in benchmarks/results/main_job.json, case by case;
a case that is there is not run again unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cells import headed, percent
from common import SETS, commit, keep, results

RESULTS = Path(__file__).parent / "results" / "main_job.json"
SPEEDS = ("images", "tested", "decode_seconds", "forward_seconds", "beside_seconds", "scratch_seconds")  # planned by


def whole(source: Path, seed: int) -> dict[str, Any]:
    """`headstart fit` with an empty store; everything from its `metrics.json`, and what the system says of the process."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "headstart", "fit", str(source), "--out", str(out), "--seed", str(seed)]
        began = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "HEADSTART_CACHE": scratch}, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - began
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    models = metrics["test"]["models"]
    return {
        "seconds": wall,
        "phases": metrics["seconds"],
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "verdict": metrics["verdict"],
        "overkill": metrics["overkill"],
        "test_images": metrics["test"]["images"],
        "accuracy": {name: scores["accuracy"] for name, scores in models.items()},
        "ece": {name: scores["ece"]["value"] for name, scores in models.items()},
        "rungs": metrics["rungs"],
        "planned": [{"cut": rung["cut"], "epochs": rung["epochs"], "views": rung["views"]} for rung in plan["rungs"]],
        "speeds": {name: plan["evidence"][name] for name in SPEEDS},
        "stages": plan["stages"],
        "reasons": plan["reasons"],
    }


def whole_runs(cases: dict[str, Any]) -> list[str]:
    """One row per whole run: every model's accuracy, the verdict, what was trained, time and memory."""
    rows = headed(
        "| data set | test images | final | 95 % interval | best head | last-stage head | small network | pixels | verdict | "
        "rungs kept of tried | seconds | peak GB | commit |"
    )
    for case in cases.values():
        found = case["accuracy"]
        final = found["final"]
        kept = sum(rung["kept"] for rung in case["rungs"])
        verdict = case["verdict"] + (", overkill" if case["overkill"] else "")
        rows.append(
            f"| {case['set']} | {case['test_images']} | **{percent(final['value'])}** | {percent(final['low'])} to "
            f"{percent(final['high'])} | {percent(found['head']['value'])} | {percent(found['last_stage_head']['value'])} | "
            f"{percent(found['scratch_cnn']['value'])} | {percent(found['pixels']['value'])} | {verdict} | "
            f"{kept} of {len(case['rungs'])} | {case['seconds']:.0f} | {case['peak_memory_bytes'] / 1e9:.2f} | {case['commit']} |"
        )
    return rows


def main() -> None:
    """Run the cases that are not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    record = results(RESULTS)
    for seed in given.seeds:
        for name in given.sets:
            case = f"{name} seed {seed}"
            if case in record["cases"] and not given.again:
                continue
            facts = {"set": name, "seed": seed, "commit": commit(), "load": os.getloadavg()[0]}
            record["cases"][case] = {**facts, **whole(given.data / SETS[name], seed)}
            keep(record, RESULTS)
            shown = {key: round(100 * value["value"], 1) for key, value in record["cases"][case]["accuracy"].items()}
            print(f"{case}: {record['cases'][case]['seconds']:.0f} s {shown}", flush=True)


if __name__ == "__main__":
    main()
