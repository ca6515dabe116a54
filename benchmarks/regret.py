"""What every depth gives in the depth suite, and by how much the ladder's choice falls short of the best one.

The best in hindsight is chosen by the very test pictures that it is told of, and is flattered by it. So the shortfall is told twice:
behind that best, and *cross-fitted*, where one half of the test pictures chooses the depth and the other half tells what it is worth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any

import numpy as np

from cells import headed, percent
from standings import SAID

HEAD, LADDER, WITH = "the head alone", "the plan's ladder", ", with the head"
JUDGED = "the deep rung, judged"  # by held-out pictures alone: no answer to the test is recorded
CUTS = tuple(f"from {cut}" for cut in range(9))  # of EfficientNet-Lite0's stages: from 8 trains the last alone
DEPTH = re.compile(rf"({HEAD}|from \d(, then from \d)?({WITH})?)")  # what the choice of a depth is a choice from


@dataclass(frozen=True, eq=False)
class Depths:
    """A case. For each choice, a mark per test picture (M,) bool: the head, rungs alone, rungs `WITH` the head, the ladder."""

    source: str
    size: str
    seed: int
    marks: Mapping[str, np.ndarray]

    def accuracy(self, name: str) -> float:
        """Share of the test pictures."""
        return float(self.marks[name].mean())

    def behind(self, name: str, among: Sequence[str]) -> float:
        """How far a choice is behind the best of all, by all test pictures."""
        return max(self.accuracy(each) for each in among) - self.accuracy(name)

    def behind_cross_fitted(self, name: str, among: Sequence[str]) -> float:
        """The same, with the best chosen by one half of the test pictures and measured by the other, both ways round."""
        found = []
        for half in (0, 1):
            here, there = (slice(start, None, 2) for start in (half, 1 - half))
            best = max(among, key=lambda each: (float(self.marks[each][here].mean()), each == HEAD))
            found.append(float(self.marks[best][there].mean() - self.marks[name][there].mean()))
        return mean(found)


def depths(cases: Mapping[str, Any]) -> list[Depths]:
    """The cases as they were recorded."""

    def marks(text: str) -> np.ndarray:
        return np.array(list(text)) == "1"

    return [
        Depths(
            case["set"],
            case["size"],
            case["seed"],
            {
                HEAD: marks(case["right"]["head"]),
                **{name: marks(row["right"]) for name, row in case["rungs"].items() if name != JUDGED},
                **{
                    name + WITH: marks(row["right_with_head"])
                    for name, row in case["rungs"].items()
                    if "right_with_head" in row
                },
            },
        )
        for case in cases.values()
    ]


def hours(cases: Mapping[str, Any]) -> float:
    """What all trainings took that were timed."""
    return sum(row.get("seconds", 0.0) for case in cases.values() for row in case["rungs"].values()) / 3600


def by_depth(cases: Sequence[Depths]) -> list[str]:
    """What each rung gives when it is kept whatever it gains, against the head alone on the same cases."""
    rows = headed(
        "| what trains | training pictures | cases | head alone | rung alone | better, worse | with the head | better, worse |"
    )
    names = dict.fromkeys(name for case in cases for name in case.marks if name + WITH in case.marks)
    for name in [*reversed(CUTS), *(name for name in names if name not in CUTS)]:
        for size in SAID:
            those = [case for case in cases if case.size == size and name in case.marks]
            if not those:
                continue
            cells = [percent(mean(case.accuracy(HEAD) for case in those))]
            for shown in (name, name + WITH):
                own = [case.accuracy(shown) for case in those]
                change = [value - case.accuracy(HEAD) for value, case in zip(own, those, strict=True)]
                cells += [percent(mean(own)), f"{sum(d > 0 for d in change)}, {sum(d < 0 for d in change)}"]
            rows.append(f"| {name} | {SAID[size]} | {len(those)} | {' | '.join(cells)} |")
    return rows


def by_cut(cases: Sequence[Depths]) -> list[str]:
    """Points that each cut gains over the head alone, in the cases that all of them were tried in."""
    rows = headed(f"| training pictures | cases | answers | {' | '.join(CUTS)} |")
    common = thorough(cases)
    for size, shown in product(SAID, ("", WITH)):
        those = [case for case in common if case.size == size]
        if those:
            gains = [100 * mean(case.accuracy(name + shown) - case.accuracy(HEAD) for case in those) for name in CUTS]
            said = "with the head" if shown else "alone"
            rows.append(f"| {SAID[size]} | {len(those)} | {said} | {' | '.join(f'{gain:+.1f}' for gain in gains)} |")
    return rows


def thorough(cases: Sequence[Depths]) -> list[Depths]:
    """Those in which every cut was tried: where fewer were, there is less to be behind of."""
    return [case for case in cases if set(CUTS) <= set(case.marks)]


def shortfalls(cases: Sequence[Depths]) -> tuple[list[float], list[float]]:
    """By how much the ladder is behind the best depth in every case that it was run in: in hindsight, and cross-fitted."""
    among = [[name for name in case.marks if DEPTH.fullmatch(name)] for case in cases]
    pairs = [(case, names) for case, names in zip(cases, among, strict=True) if LADDER in case.marks]
    return (
        [case.behind(LADDER, names) for case, names in pairs],
        [case.behind_cross_fitted(LADDER, names) for case, names in pairs],
    )


RATES = ("from 4, a third of the rate", "from 4", "from 4, thrice the rate")


def by_rate(cases: Sequence[Depths]) -> list[str]:
    """The deep rung at three rates, in the cases that all three were run in, and whichever is best in hindsight."""
    rows = headed(
        "| training pictures | cases | answers | a third of the rate | the rate | thrice | best of three, in hindsight |"
    )
    common = [case for case in cases if set(RATES) <= set(case.marks)]
    for size, shown in product(SAID, ("", WITH)):
        those = [[case.accuracy(name + shown) for name in RATES] for case in common if case.size == size]
        if those:
            cells = [*(mean(column) for column in zip(*those, strict=True)), mean(map(max, those))]
            said = "with the head" if shown else "alone"
            rows.append(f"| {SAID[size]} | {len(those)} | {said} | {' | '.join(map(percent, cells))} |")
    return rows


def laddered(cases: Sequence[Depths]) -> list[str]:
    """The ladder's choice beside the head alone and the best depth in hindsight."""
    rows = headed(
        "| case | depths | head alone | ladder | best in hindsight | that is | behind it | behind, cross-fitted |"
    )
    shown = [case for case in cases if LADDER in case.marks]
    behind, fitted = shortfalls(shown)
    for case, after, crossed in zip(shown, behind, fitted, strict=True):
        best = max(filter(DEPTH.fullmatch, case.marks), key=lambda name: (case.accuracy(name), name == HEAD))
        count = sum(bool(DEPTH.fullmatch(name)) and not name.endswith(WITH) for name in case.marks) - 1
        rows.append(
            f"| {case.source}, {SAID[case.size]}, seed {case.seed} | {count} | {percent(case.accuracy(HEAD))} | "
            f"{percent(case.accuracy(LADDER))} | {percent(case.accuracy(best))} | {best} | {100 * after:.1f} | {100 * crossed:.1f} |"
        )
    for those, what in ((shown, ""), (thorough(shown), " with every cut")):
        if those:
            heads, ladders = (percent(mean(case.accuracy(name) for case in those)) for name in (HEAD, LADDER))
            behind, fitted = shortfalls(those)
            rows.append(
                f"| mean of {len(those)}{what} | | {heads} | {ladders} | | | {100 * mean(behind):.1f} | {100 * mean(fitted):.1f} |"
            )
    return rows
