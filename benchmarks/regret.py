"""What every depth gives in the depth suite, and by how much the ladder's choice falls short of the best one.

The best in hindsight is chosen by the very test pictures that it is told of, and is flattered by it. So the shortfall is told twice:
behind that best, and *cross-fitted*, where one half of the test pictures chooses the depth and the other half tells what it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

HEAD, LADDER = "the head alone", "the plan's ladder"


@dataclass(frozen=True, eq=False)
class Depths:
    """A case: for each choice, a mark per test picture (M,) bool; `gains`: held-out gain and its standard error by rung."""

    source: str
    size: str
    seed: int
    marks: Mapping[str, np.ndarray]
    gains: Mapping[str, tuple[float, float]]
    seconds: Mapping[str, float]

    def behind(self, name: str, among: Sequence[str]) -> float:
        """How far a choice is behind the best of all, by all test pictures."""
        return max(float(self.marks[each].mean()) for each in among) - float(self.marks[name].mean())

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
    found = []
    for case in cases.values():
        if "right" not in case:
            continue
        rows = case["rungs"]
        marks = {HEAD: case["right"]["head"], **{name: row["right"] for name, row in rows.items()}}
        alone = {name: row["rungs"][0] for name, row in rows.items() if name != LADDER and row["rungs"]}
        found.append(
            Depths(
                case["set"], case["size"], case["seed"],
                {name: np.array(list(text)) == "1" for name, text in marks.items()},
                {name: (rung["gain"], rung["gain_se"]) for name, rung in alone.items()},
                {name: row["seconds"] for name, row in rows.items()},
            )
        )  # fmt: skip
    return found
