"""Head-only fit of 2,000 images at 224 px, cold and with features cached, and the demo: wall time and peak memory.

    python benchmarks/head_only.py --data ../shared/data/signs

Each is the whole command in a process of its own; the cold run has an empty store, the warm one that store and a new run folder.
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

RESULTS = Path(__file__).parent / "results"
BACKBONE = "tf_efficientnet_lite0"


def timed(arguments: list[str], out: Path, cache: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of one command, interpreter start included, and its metrics."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "headstart", *arguments, "--out", str(out)],
        check=True, env={**os.environ, "HEADSTART_CACHE": str(cache)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began, json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/signs"))
    parser.add_argument("--demo", action="store_true", help="measure the demo, not the head-only fit")
    given = parser.parse_args()
    from headstart import runtime

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        record: dict[str, Any] = {"environment": runtime.environment(), "load": os.getloadavg()[0]}
        if given.demo:
            seconds, metrics = timed(["demo"], scratch / "demo", scratch / "cache")
            record |= {
                "seconds": seconds, "phases": metrics["seconds"], "peak_memory_bytes": metrics["peak_memory_bytes"],
                "verdict": metrics["verdict"], "overkill": metrics["overkill"], "sentence": metrics["sentence"],
            }  # fmt: skip
        else:
            fit = ["fit", str(given.data), "--plan", "head", "--backbone", BACKBONE]
            cold, metrics = timed(fit, scratch / "cold", scratch / "cache")
            warm, again = timed(fit, scratch / "warm", scratch / "cache")
            audit = json.loads((scratch / "cold" / "audit.json").read_text(encoding="utf-8"))
            record |= {
                "images": audit["usable"], "input": 224, "backbone": BACKBONE, "cold_seconds": cold,
                "warm_seconds": warm, "cold_phases": metrics["seconds"], "warm_phases": again["seconds"],
                "peak_memory_bytes": metrics["peak_memory_bytes"],
            }  # fmt: skip
        target = RESULTS / ("demo.json" if given.demo else "head_only.json")
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({key: value for key, value in record.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
