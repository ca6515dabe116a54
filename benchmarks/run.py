"""Suites that set Headstart beside other tools, or before cases whose truth is known.

    python benchmarks/run.py --suite speed --data ../shared/data --peers-python /path/to/peers/bin/python
    python benchmarks/run.py --suite accuracy --tier quick --data ../shared/data --peers-python /path/to/peers/bin/python
    python benchmarks/run.py --suite accuracy --tier unseen --data unseen --peers-python /path/to/peers/bin/python
    python benchmarks/run.py --suite depth --data ../shared/data
    python benchmarks/run.py --suite verdict --data ../shared/data

`verdict` goes on to planted leaks and shortcuts (suspicions.py) and planted label errors (labels.py).
`speed` and `accuracy` lay out the pictures as train/ and test/ with a folder per class (links, nothing is copied), save the weights as
the peers read them, and run every contestant as a process of its own: same pictures, same split, same weights, same machine, in
one run; AutoGluon may have an environment of its own. `depth` and `verdict` need no peers. What has been measured is kept in
benchmarks/results and not measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import accuracy
import depth
import speed
import verdict
from common import PLACES

SUITES = {"speed": speed, "accuracy": accuracy, "depth": depth, "verdict": verdict}
NAMES = {
    "speed": speed.CONTESTANTS, "accuracy": accuracy.CONTESTANTS, "depth": [*depth.RUNGS, depth.JUDGED, depth.LADDER],
    "verdict": verdict.CASES,
}  # fmt: skip


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--sets", nargs="+", help="speed, accuracy, depth: only these data sets; speed has satellite without it"
    )
    parser.add_argument("--images", type=int, default=1260, help="speed: training pictures at most")
    parser.add_argument(
        "--into", default="speed", help="speed: the results file, without .json; another for another processor"
    )
    parser.add_argument("--tier", choices=list(accuracy.TIERS), default="quick", help="accuracy: how much is run")
    parser.add_argument("--sizes", nargs="+", choices=accuracy.SIZES, help="accuracy, depth: only these")
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="accuracy: only these; depth, verdict: these instead of 0, or 0 to 19"
    )
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that the peers are installed for")
    parser.add_argument(
        "--autogluon-python", help="accuracy: the one that AutoGluon is installed for; else --peers-python"
    )
    parser.add_argument("--only", nargs="+", help="only these contestants, rungs, or cases of the verdict")
    given = parser.parse_args()
    given.autogluon_python = given.autogluon_python or given.peers_python
    for name in given.only or []:
        if name not in NAMES[given.suite]:
            parser.error(f"--only {name!r}: the suite has {', '.join(map(repr, NAMES[given.suite]))}")
    have = {"accuracy": [name for each in accuracy.TIERS[given.tier] for name in each.sets], "depth": [*PLACES]}
    for name in given.sets or []:
        if given.suite in have and name not in have[given.suite]:
            parser.error(f"--sets {name!r}: it has {', '.join(dict.fromkeys(have[given.suite]))}")
    SUITES[given.suite].suite(given)


if __name__ == "__main__":
    main()
