"""Suites that set Headstart beside other tools.

    python benchmarks/run.py --suite speed --data ../shared/data --peers-python /path/to/peers/bin/python

`speed` lays out the pictures as train/ and test/ with a folder per class (links, nothing is copied), saves the weights as
the peers read them, and runs every contestant as a process of its own: same pictures, same split, same weights, same machine, in
one run. What has been measured is kept in benchmarks/results and not measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import speed

SUITES = {"speed": speed}
NAMES = {"speed": speed.CONTESTANTS}


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", help="only these data sets instead of satellite")
    parser.add_argument("--images", type=int, default=1260, help="training pictures at most")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that the peers are installed for")
    parser.add_argument("--only", nargs="+", help="only these contestants")
    given = parser.parse_args()
    for name in given.only or []:
        if name not in NAMES[given.suite]:
            parser.error(f"--only {name!r}: the suite has {', '.join(map(repr, NAMES[given.suite]))}")
    SUITES[given.suite].suite(given)


if __name__ == "__main__":
    main()
