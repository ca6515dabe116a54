"""How well calibrated answers are: expected calibration error where 500 pictures or more are tested, in the depth suite by size, and
in the accuracy suite by data set, of Headstart's default."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from cells import headed, percent
from regret import LADDER
from standings import OURS, SAID

ENOUGH = 500  # tested pictures: with fewer, the error of a perfect model comes out at several percent


def calibrated(cases: Mapping[str, Any]) -> list[str]:
    """By size: the mean error of the best head, and of the ladder's choice where it was run, and the worst."""
    rows = headed("| training pictures | cases | best head | worst | cases with the ladder | its choice | worst |")
    tested = [case for case in cases.values() if case["tested"] >= ENOUGH]
    for size, said in [*SAID.items(), ("", "**all**")]:
        those = [case for case in tested if size in ("", case["size"])]
        if not those:
            continue
        cells = []
        for found in (
            [case["ece"] for case in those],
            [case["rungs"][LADDER]["ece"] for case in those if LADDER in case["rungs"]],
        ):
            cells += [str(len(found)), *((percent(mean(found)), percent(max(found))) if found else ("", ""))]
        rows.append(f"| {said} | {' | '.join(cells)} |")
    return rows


def errors_by_set(deep: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, float]:
    """Of every data set with enough test pictures: the mean error of Headstart's default in the accuracy suite; of a set that has
    too few in there, of what the depth suite's ladders end with (without one, of the frozen head)."""
    found: dict[str, list[float]] = {}
    for case in right.values():
        row = case["contestants"].get(OURS, {})
        if len(row.get("right", "")) >= ENOUGH:
            found.setdefault(case["set"], []).append(row["ece"])
    there = set(found)
    for case in deep.values():
        if case["set"] not in there and case["tested"] >= ENOUGH:
            found.setdefault(case["set"], []).append(case["rungs"].get(LADDER, case)["ece"])
    return {name: mean(errors) for name, errors in found.items()}


def by_set(cases: Mapping[str, Any]) -> list[str]:
    """Mean and worst error of Headstart's default on each data set, and over all of them."""
    rows = headed("| data set | cases | tested | mean | worst |")
    found: dict[str, list[tuple[int, float]]] = {}
    for case in cases.values():
        row = case["contestants"].get(OURS, {})
        if len(row.get("right", "")) >= ENOUGH:
            found.setdefault(case["set"], []).append((len(row["right"]), row["ece"]))
    whole = [each for those in found.values() for each in those]
    for name, those in (*found.items(), ("**all**", whole)):
        if those:
            errors = [error for _, error in those]
            tested = f"{min(count for count, _ in those)} to {max(count for count, _ in those)}"
            rows.append(f"| {name} | {len(those)} | {tested} | {percent(mean(errors))} | {percent(max(errors))} |")
    return rows
