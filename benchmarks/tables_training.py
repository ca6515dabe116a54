"""Tables of what trains: the first rung, what held-out pictures tell of it, averages of its weights, the small network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cells import by_size, headed, percent, ways_of
from headstart.judge import SURER
from standings import SAID


def without_room(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Test accuracy of a rung by what is cached for it, and bytes of that, a picture."""
    rows = headed("| case | frozen head | cut | kept in | views | kB per picture | test accuracy |")
    for case, ways in cases.items():
        for way in ways:
            rows.append(
                f"| {case} | {percent(way['frozen'])} | {way['cut']} | {way['kept']} | {way['views']} | {way['bytes'] / 1000:.0f} | "
                f"{percent(way['accuracy'])} |"
            )
    return rows


def told_best(cases: Mapping[str, Any]) -> list[str]:
    """What those give that are taken by accuracy, and by likelihood."""
    rows = headed("| the rung | taken where | of | gain of these, mean | least | gain of the others |")
    for title in ("alone", "beside another"):
        found = [case[title] for case in cases.values()]
        gain = 100 * np.array([each["gain"] for each in found])
        right, surer = (
            np.array([each[key] for each in found]) for key in ("held_out_gain", "likelier")
        )  # each with its standard error
        for rule, taken in (
            ("right more often, by a standard error", right[:, 0] > right[:, 1]),
            (
                f"labels likelier, by {SURER:g} of them",
                (surer[:, 0] > SURER * surer[:, 1]) & (right[:, 0] >= -right[:, 1]),
            ),
        ):
            cells = [f"{gain[taken].mean():+.1f}", f"{gain[taken].min():+.1f}"] if taken.any() else ["", ""]
            others = f"{gain[~taken].mean():+.1f}" if (~taken).any() else ""
            rows.append(f"| {title} | {rule} | {taken.sum()} of {len(found)} | {' | '.join(cells)} | {others} |")
    return rows


def by_average(cases: Mapping[str, Any]) -> list[str]:
    """Means over the cases of each size, in percent."""
    rows = headed("| training pictures | weights | alone | with the head |")
    for size, those in by_size(cases):
        said = f"{SAID[size]}, {len(those)} cases"
        for title in ways_of(those[0]):
            alone, together = np.mean([case[title] for case in those], axis=0)
            rows.append(f"| {said} | {title} | {percent(alone)} | {percent(together)} |")
        rows.append(f"| {said} | none: the head alone | | {percent(np.mean([case['head'] for case in those]))} |")
    return rows


def by_ending(cases: Mapping[str, Any]) -> list[str]:
    """Accuracy, alone and with the head, by what trained and how it ended: the mean over the cases, and each."""
    names = [key.split(",")[0] for key in cases]
    rows = headed(f"| what trained, how it ended | passes | mean, alone | with the head | {' | '.join(names)} |")
    for way in ways_of(next(iter(cases.values()))):
        found = [case[way] for case in cases.values()]
        alone, together, passes = np.mean(found, axis=0)
        each = " | ".join(f"{percent(own)}, {percent(both)}" for own, both, _ in found)
        rows.append(f"| {way} | {passes:.1f} | {percent(alone)} | {percent(together)} | {each} |")
    return rows


def by_epochs(cases: Mapping[str, Any]) -> list[str]:
    """A row per case: accuracy by epochs, and the frozen head's."""
    columns = " | ".join(f"{epochs} epochs" for epochs in next(iter(cases.values()))["accuracy"])
    rows = headed(f"| data set | training pictures | {columns} | frozen head |")
    for key, case in cases.items():
        found = " | ".join(map(percent, case["accuracy"].values()))
        rows.append(f"| {key.split(',')[0]} | {case['images']:,} | {found} | {percent(case['head'])} |")
    return rows
