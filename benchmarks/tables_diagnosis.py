"""Tables of what a run tells of the data and of itself, beside what is true."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from scipy.stats import binomtest

from cells import headed, percent, sets_of


def planted(cases: dict[str, Any]) -> list[str]:
    """Planted label errors: how many are found, by data set."""
    rows = headed(
        "| data set | training pictures | planted a draw | in the first tenth, mean | least of all draws | doubtful then | "
        "with confidence | these hold of the planted | of these planted | doubtful as given | with confidence | "
        "accuracy out of fold, as given |"
    )
    for name, case in cases.items():
        rows.append(
            f"| {name} | {case['pictures']} | {case['planted']} | {percent(mean(case['found']))} % | "
            f"{percent(min(case['found']))} % | {percent(case['listed'])} % | {percent(case['confident'])} % | "
            f"{percent(case['confident_holds'], 0)} % | {percent(case['confident_right'], 0)} % | "
            f"{percent(case['listed_as_given'])} % | {percent(case['confident_as_given'])} % | {percent(case['out_of_fold'])} |"
        )
    return rows


def carried_on(sets: dict[str, Any], cases: dict[str, Any]) -> list[str]:
    """Accuracy foretold for twice and four times the pictures: how far off, beside that of no change, and how often inside."""
    rows = headed(
        "| data set | pictures | forecasts | gain of twice as many, points | off by, twice as many | no change is off by | inside | "
        "inside, as tested | off by, four times | no change is off by | inside | inside, as tested | seconds |"
    )

    def row(name: str, sizes: str, found: list[dict[str, Any]], seconds: float) -> str:
        def over(times: str, key: str) -> float:
            return 100 * mean(each[times][key] for each in found)

        keys = ("error", "error_of_no_change", "inside", "as_tested")
        values = [over("2", "gain"), *(over(times, key) for times in ("2", "4") for key in keys)]
        count = sum(each[times]["cases"] for each in found for times in ("2", "4"))
        return (
            f"| {name} | {sizes} | {count} | " + " | ".join(f"{value:.1f}" for value in values) + f" | {seconds:.1f} |"
        )

    for name, found in sets.items():
        those = [case for draws in sets_of(cases)[name] for case in draws]
        counts = [case["pictures"] for case in those]
        longest = max(case["seconds"] for case in those)
        rows.append(row(name, f"{min(counts)} to {max(counts)}", [found], longest))
    longest = max(case["seconds"] for draws in cases.values() for case in draws)
    return [*rows, row("mean of all sets", "", list(sets.values()), longest)]


def apart(cases: dict[str, Any]) -> list[str]:
    """Distance from the source, entropy and depth profile of data sets, by backbone, the nearest first."""
    rows = headed(
        "| case | distance | first stage | middle stage | last stage | entropy | best stage | points ahead of the last |"
    )
    for name, case in sorted(cases.items(), key=lambda item: (item[0].split()[0], item[1]["distance"])):
        stages, profile = case["stages"], case["profile"]
        best = max(range(len(profile)), key=lambda place: (profile[place], place))
        cells = [case["distance"], stages[0], stages[len(stages) // 2], stages[-1], case["entropy"]]
        rows.append(
            f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {best + 1} of {len(profile)} | "
            f"{100 * (profile[best] - profile[-1]):.1f} |"
        )
    return rows


def called_unknown(cases: dict[str, Any]) -> list[str]:
    """Unknown pictures by score: known ones lost, those of other data sets and of left-out classes told; means over data sets."""
    rows = headed(
        "| score | known lost | far told | left out told | most lost | worst far | worst left out | area under the curve, left out |"
    )
    shares: dict[str, dict[str, list[float]]] = {}
    for case in cases.values():
        for name, whole in case["all_taught"].items():
            parts = [draw[name] for draw in case["left_out"].values()]
            found = shares.setdefault(name, {"lost": [], "far": [], "left_out": [], "auroc": []})
            found["lost"].append(mean(each["lost"] for each in [whole, *parts]))
            found["far"].append(whole["far"])
            for key in ("left_out", "auroc"):
                found[key] += [mean(part[key] for part in parts)] if parts else []
    for name, found in sorted(shares.items(), key=lambda item: -mean(item[1]["far"]) - mean(item[1]["left_out"])):
        cells = [*(mean(found[key]) for key in ("lost", "far", "left_out"))]
        cells += [max(found["lost"]), min(found["far"]), min(found["left_out"])]
        title = f"**{name}**" if name == "Headstart" else name
        rows.append(f"| {title} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} | {mean(found['auroc']):.3f} |")
    return rows


def suspected(cases: dict[str, Any]) -> list[str]:
    """Leaks and shortcuts: how often they are suspected where nothing was planted, and where something was."""
    plants = {
        "re-shots": "near_copies", "bursts": "near_copies", "size": "shortcut_size", "border": "shortcut_border",
        "colour": "shortcut_colour", "format": "shortcut_format",
    }  # fmt: skip
    rows = headed(
        "| data set | whole | drawn | suspected of a leak | of a shortcut | re-shots found | bursts found | joined by the audit | "
        "size found | border found | colour found | file format found | "
        "nearest neighbour less head, standard errors, as drawn | with bursts |"
    )

    def counted(draws: list[dict[str, Any]], kind: str) -> str:
        hits = sum(any(found.startswith(kind) for found in draw["suspected"]) for draw in draws)
        return f"{hits} of {len(draws)}" if draws else ""

    def lead(draws: list[dict[str, Any]]) -> str:
        return f"{mean(draw['nearest_lead_errors'] for draw in draws):+.1f}" if draws else ""

    def row(name: str, case: dict[str, Any]) -> str:
        natural = [*case["whole"], *case["clean"]]
        joined = [f"{mean(d['audited'] for d in case[what]):.0f}" for what in ("re-shots", "bursts") if case.get(what)]
        cells = [
            name, str(len(case["whole"])), str(len(case["clean"])), counted(natural, "near_copies"), counted(natural, "shortcut"),
            *(counted(case.get(what, []), plants[what]) for what in ("re-shots", "bursts")), " and ".join(joined),
            *(counted(case.get(what, []), plants[what]) for what in ("size", "border", "colour", "format")),
            lead(case["clean"]), lead(case.get("bursts", [])),
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"

    all_ = {key: [draw for case in cases.values() for draw in case.get(key, [])] for key in ("whole", "clean", *plants)}
    return rows + [row(name, case) for name, case in cases.items()] + [row("**all**", all_)]


def rate(count: int, runs: int) -> str:
    """A share of runs in percent with its exact 95 % interval (Clopper and Pearson)."""
    found = binomtest(count, runs).proportion_ci(0.95, method="exact")
    return f"{percent(count / runs)} ({percent(found.low)} to {percent(found.high)})"


def hours(cases: Mapping[str, Any]) -> float:
    """What all runs of the verdict suite took."""
    return sum(run["seconds"] for case in cases.values() for run in case["runs"].values()) / 3600


def judged(cases: dict[str, Any]) -> list[str]:
    """One row per constructed case, and one for all cases of a truth."""
    columns = "case | truth | runs | right, % | called helped, % | called hurt, % | called overkill, %"
    rows = headed(f"| {columns} | final, mean | small network | pixels |")
    groups = {name: (case["truth"], list(case["runs"].values())) for name, case in cases.items() if case["runs"]}
    for truth in dict.fromkeys(truth for truth, _ in groups.values()):
        groups[f"*all of them*, {truth}"] = (
            truth,
            [run for own, runs in list(groups.values()) if own == truth for run in runs],
        )
    for name, (truth, runs) in groups.items():
        counts = [
            sum(run["right"] for run in runs), sum(run["outcome"] == "helped" for run in runs),
            sum(run["outcome"] == "hurt" for run in runs), sum(run["overkill"] for run in runs),
        ]  # fmt: skip
        means = [mean(run["accuracy"][model] for run in runs) for model in ("final", "scratch_cnn", "pixels")]
        rows.append(
            f"| {name} | {truth} | {len(runs)} | {' | '.join(rate(count, len(runs)) for count in counts)} | "
            f"{' | '.join(map(percent, means))} |"
        )
    return rows
