"""The main job with its defaults on several data sets and seeds: accuracy, verdict, plan, wall time, peak memory.

    python benchmarks/main_job.py --data ../shared/data --seeds 0 1 2

Seed 0 is the whole command in a process of its own, with an empty store. Further seeds stop before the baselines, which say
nothing about how the final model compares with its own head. Results accumulate in benchmarks/results/main_job.json, case by
case; a case that is there is not run again unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SETS, commit, keep, results

RESULTS = Path(__file__).parent / "results" / "main_job.json"


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
        "kind": "whole",
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
        "stages": plan["stages"],
        "reasons": plan["reasons"],
    }


def without_baselines(source: Path, seed: int) -> dict[str, Any]:
    """The same path up to the finished model, and its accuracy beside its own heads on the sealed test set."""
    import numpy as np

    from headstart.backbones.catalog import load_backbone
    from headstart.evidence import planned
    from headstart.features.engine import Engine
    from headstart.features.extract import extract, together
    from headstart.features.store import Store
    from headstart.finetune import finetune
    from headstart.race import race
    from headstart.request import Options, audited
    from headstart.winner import fit_winner

    options, store, began = Options(seed=seed), Store(), time.monotonic()
    dataset = audited(source, options, store)
    engine = Engine(load_backbone(options.backbone))
    features = extract(engine.backbone, dataset, store, engine=engine)
    pool, test = dataset.indices("train"), dataset.indices("test")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool)
    plan = planned(dataset, [engine], heads, features, options, store, spent=time.monotonic() - began)
    tuned = finetune(engine, heads, features, dataset, plan, store)
    engines = [engine.alike(tuned.backbone), *([engine] if tuned.together else [])]
    tested = together([extract(each.backbone, dataset.select(test), store, engine=each) for each in engines])

    def accuracy(logits: Any) -> dict[str, float]:
        return {"value": float(np.mean(logits.argmax(1) == dataset.labels[test]))}

    found = {"final": accuracy(tuned.head.logits(tested.stages(tuned.head.taps)))}
    for name, score in (("head", heads.best), ("last_stage_head", heads.last)):
        head = fit_winner(score, features, dataset.labels[pool], len(dataset.classes), pool, store)
        found[name] = accuracy(head.logits(features.stages(score.taps, test)))
    return {
        "kind": "without baselines",
        "seconds": time.monotonic() - began,
        "test_images": len(test),
        "accuracy": found,
        "rungs": [
            {"cut": r.rung.cut, "kept": r.kept, "gain": r.gain, "gain_se": r.gain_se, "alpha": r.alpha}
            for r in tuned.rungs
        ],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


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
            run = whole if seed == 0 else without_baselines
            facts = {"set": name, "seed": seed, "commit": commit(), "load": os.getloadavg()[0]}
            record["cases"][case] = {**facts, **run(given.data / SETS[name], seed)}
            keep(record, RESULTS)
            shown = {key: round(100 * value["value"], 1) for key, value in record["cases"][case]["accuracy"].items()}
            print(f"{case}: {record['cases'][case]['seconds']:.0f} s {shown}", flush=True)


if __name__ == "__main__":
    main()
