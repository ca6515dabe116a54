"""Tables of heads on frozen features: what was tried, how they are chosen, on which views and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

import numpy as np

from calibration import ENOUGH
from cells import by_size, headed, percent, sets_of, ways_of
from headstart.race import WORTH
from standings import SAID


def standardised(means: list[dict[str, Any]]) -> list[str]:
    """What each floor under the variances gives, out of fold and on unseen pictures."""
    rows = headed("| floor | head | out of fold | refitted per fold | unseen | log-loss, unseen |")
    return rows + [
        f"| {row['floor']:g} | {row['head']} | {percent(row['out_of_fold'])} | {percent(row['refit'])} | {percent(row['test'])} | "
        f"{row['test_log_loss']:.3f} |"
        for row in means
    ]


def chosen(means: list[dict[str, Any]]) -> list[str]:
    """What is told of heads, and what unseen pictures give, by number of training pictures."""
    rows = headed(
        "| training pictures | cases | best of many, out of fold | best, unseen | chosen, out of fold | chosen, as told | chosen, "
        "unseen | last stage, unseen |"
    )
    keys = ("best_out_of_fold", "best_test", "chosen_out_of_fold", "chosen_told", "chosen_test", "last_test")
    return rows + [
        f"| {row['size']} | {row['cases']} | " + " | ".join(percent(row[key]) for key in keys) + " |" for row in means
    ]


def by_head(cases: Mapping[str, Any]) -> list[str]:
    """Means over the cases of each size, and in how many a way is ahead of the mean's logistic head."""
    rows = headed(
        "| training pictures | head on the last stage | accuracy | better, worse | balanced accuracy | better, worse |"
    )
    for size, those in by_size(cases):
        for way in (ways := ways_of(those[0])):
            scores, usual = (np.array([case[each] for case in those]) for each in (way, ways[0]))
            right, even = scores.mean(0)
            more = [
                f"{(scores > usual)[:, k].sum()}, {(scores < usual)[:, k].sum()}" * (way != ways[0]) for k in (0, 1)
            ]
            rows.append(
                f"| {SAID[size]}, {len(those)} cases | {way} | {percent(right)} | {more[0]} | {percent(even)} | {more[1]} |"
            )
    return rows


def by_weight(cases: Mapping[str, Any]) -> list[str]:
    """Means over the seeds of each data set and over all, and in how many cases a way is ahead of the head as it is."""
    rows = headed(
        "| data set | head | accuracy at these frequencies | better, worse | balanced accuracy | better, worse |"
    )
    by_set = {**sets_of(cases), f"**all {len(cases)} cases**": list(cases.values())}
    for name, those in by_set.items():
        for way in (ways := ways_of(those[0])):
            scores, plain = (np.array([case[each] for case in those]) for each in (way, ways[0]))
            right, even = scores.mean(0)
            more = [
                f"{(scores > plain)[:, k].sum()}, {(scores < plain)[:, k].sum()}" * (way != ways[0]) for k in (0, 1)
            ]
            rows.append(f"| {name} | {way} | {percent(right)} | {more[0]} | {percent(even)} | {more[1]} |")
    return rows


def seen_again(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Heads on the clean view and on more: mean over sets of the mean over seeds, by how many pictures were drawn."""
    rows = headed(
        "| training pictures | draws | last stage | with views | the race's choice | with views | draws that this won, tied, lost | "
        "views stayed |"
    )
    for size in ("5", "20", "600"):
        by_set = {
            name: [row for sizes in those for row in sizes if row["size"] == size]
            for name, those in sets_of(cases).items()
        }
        draws = [row for those in by_set.values() for row in those]
        means = [percent(over_sets(by_set, name)) for name in ("last_clean", "last_views", "clean", "views")]
        won, lost = (sum((row["views"] - row["clean"]) * sign > 0 for row in draws) for sign in (1, -1))
        kept = f"{sum(row['taken'] for row in draws)} of {len(draws)}"
        rows.append(
            f"| {SAID[size]} | {len(draws)} of {len(by_set)} sets | {' | '.join(means)} | "
            f"{won}, {len(draws) - won - lost}, {lost} | {kept} |"
        )
    return rows


_SIZES = ("5", "20", "all")


def lined_up(cases: dict[str, Any]) -> list[str]:
    """Heads on one backbone and on what the line-up chose: mean over sets of the mean over seeds, by pictures of each class."""
    rows = headed("| pictures of each class | draws | last stage | one backbone | line-up | two were chosen |")
    for size in _SIZES:
        by_set = sets_of({case: sizes[size] for case, sizes in cases.items() if size in sizes})
        if not by_set:
            continue
        means = [percent(over_sets(by_set, name)) for name in ("last_stage", "alone", "line_up")]
        draws = [row for those in by_set.values() for row in those]
        two = 100 * mean(len(row["chosen"]) == 2 for row in draws)
        rows.append(f"| {size} | {len(draws)} of {len(by_set)} sets | {' | '.join(means)} | {two:.0f} % |")
    return rows


_PAIRED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "never": lambda _: False,
    "right no less often, labels likelier by more than a standard error": lambda pair: (
        pair["gain"][0] >= 0 and pair["nats"][0] > pair["nats"][1]
    ),
    "labels likelier by more than a standard error": lambda pair: pair["nats"][0] > pair["nats"][1],
    f"labels likelier, by {WORTH} nats as far as the standard error tells": lambda pair: (
        pair["nats"][0] > 0 and sum(pair["nats"]) > WORTH
    ),
    "unless labels are less likely by more than a standard error": lambda pair: pair["nats"][0] > -pair["nats"][1],
    "always": lambda _: True,
}


def paired(cases: dict[str, Any]) -> list[str]:
    """What each rule by which a second backbone answers, too, gives on the test pictures: the mean over all draws of each size."""
    rows = headed("| a second backbone answers, too | pairs | 5 | 20 | all | mean | better, worse | log-loss |")
    draws = [(size, row["pair"]) for sizes in cases.values() for size, row in sizes.items()]
    for rule, takes in _PAIRED.items():
        way = ["both" if takes(pair) else "first" for _, pair in draws]
        right, loss = (
            [pair[f"{name}_{what}"] for name, (_, pair) in zip(way, draws, strict=True)] for what in ("test", "loss")
        )
        by = [mean(each for each, (size, _) in zip(right, draws, strict=True) if size == wanted) for wanted in _SIZES]
        more = [each - pair["first_test"] for each, (_, pair) in zip(right, draws, strict=True)]
        ahead = f"{sum(each > 0 for each in more)}, {sum(each < 0 for each in more)}" if any(more) else ""
        rows.append(
            f"| {rule} | {way.count('both')} of {len(way)} | {' | '.join(map(percent, [*by, mean(right)]))} | {ahead} | "
            f"{mean(loss):.3f} |"
        )
    return rows


def enlarged(cases: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Accuracy by network and side of its pictures: the mean over all draws of each size, and in all."""
    draws = [row for rows in cases.values() for row in rows]
    sizes = list(dict.fromkeys(row["size"] for row in draws))
    first = next(iter(draws[0]["ways"]))
    rows = headed(
        f"| network and side, pixels | {' | '.join(SAID[size] for size in sizes)} | all {len(draws)} | better, worse |"
    )
    for way in draws[0]["ways"]:
        found = {size: [row["ways"][way] for row in draws if row["size"] == size] for size in sizes}
        gains = [row["ways"][way] - row["ways"][first] for row in draws]
        ahead = f"{sum(gain > 0 for gain in gains)}, {sum(gain < 0 for gain in gains)}" * (way != first)
        cells = [percent(mean(each)) for each in (*found.values(), [row["ways"][way] for row in draws])]
        rows.append(f"| {way} | {' | '.join(cells)} | {ahead} |")
    return rows


def over_sets(by_set: Mapping[str, list[dict[str, Any]]], name: str) -> float:
    """The mean over data sets of the mean over the draws of each."""
    return mean(mean(row[name] for row in those) for those in by_set.values())


def by_answer(cases: Mapping[str, Any]) -> list[str]:
    """Means over the cases of each size, and in how many a way is ahead of the head as it is."""
    rows = headed(
        "| training pictures | answers | accuracy | better, worse | log-loss | better, worse | calibration error | "
        f"where {ENOUGH} are tested |"
    )
    for size, those in by_size(cases):
        for way in (ways := ways_of(those[0])):
            scores, plain = (np.array([case[each] for case in those]) for each in (way, ways[0]))
            right, loss, error = scores.mean(0)
            many = [case[way][2] for case in those if case["tested"] >= ENOUGH]
            ahead = (scores - plain)[:, :2] * (1, -1)
            more = [f"{(ahead[:, k] > 0).sum()}, {(ahead[:, k] < 0).sum()}" * (way != ways[0]) for k in (0, 1)]
            rows.append(
                f"| {SAID[size]}, {len(those)} cases | {way} | {percent(right)} | {more[0]} | {loss:.3f} | {more[1]} | "
                f"{percent(error)} | {percent(mean(many))} in {len(many)} |"
            )
    return rows
