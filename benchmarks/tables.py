"""Write the tables of docs/results.md and of the README from the files in benchmarks/results: no number is typed.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import binomtest

import aims
from answers import by_way
from averaging import by_average
from beside import told as told_best
from calibration import by_set as errors_by_set
from calibration import calibrated
from cells import headed, percent
from fairness import by_setting
from forecast import alternatives, corrected, left_out
from head_cost import raced_in
from heads_tried import by_head
from precision import kept
from regret import by_depth, depths, laddered
from scratch_time import by_epochs
from speed import medians
from standings import OURS, SAID, by_set, duels, held, met, parties, points, ranked, shared
from suffix_ways import by_way as by_step

HERE = Path(__file__).parent
ROOT = HERE.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def load(name: str) -> dict[str, Any] | None:
    """A results file, or None where it has not been made."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def whole_runs(cases: dict[str, Any]) -> list[str]:
    """One row per whole run: every model's accuracy, the verdict, what was trained, time and memory."""
    rows = headed(
        "| data set | test images | final | 95 % interval | best head | last-stage head | small network | pixels | verdict | "
        "rungs kept of tried | seconds | peak GB | commit |"
    )
    for case in cases.values():
        found = case["accuracy"]
        final = found["final"]
        kept = sum(rung["kept"] for rung in case["rungs"])
        verdict = case["verdict"] + (", overkill" if case["overkill"] else "")
        rows.append(
            f"| {case['set']} | {case['test_images']} | **{percent(final['value'])}** | {percent(final['low'])} to "
            f"{percent(final['high'])} | {percent(found['head']['value'])} | {percent(found['last_stage_head']['value'])} | "
            f"{percent(found['scratch_cnn']['value'])} | {percent(found['pixels']['value'])} | {verdict} | "
            f"{kept} of {len(case['rungs'])} | {case['seconds']:.0f} | {case['peak_memory_bytes'] / 1e9:.2f} | {case['commit']} |"
        )
    return rows


def started(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row per data set and way to begin a rung."""
    rows = headed(
        "| case | start | lr body | lr head | held out | test | frozen winner, held out | frozen winner, test |"
    )
    for case, ways in cases.items():
        for way in ways:
            best = max(way["shares"], key=lambda each: each["held_out"])
            rows.append(
                f"| {case} | {way['start']} | {way['rung']['lr_body']:g} | {way['rung']['lr_head']:g} | "
                f"{percent(best['held_out'])} | {percent(best['test'])} | {percent(way['frozen_held_out']['winner'])} | "
                f"{percent(way['frozen_test']['winner'])} |"
            )
    return rows


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


def rounded(cases: dict[str, Any]) -> list[str]:
    """Least cosine with float32 by number of exact leading stages, what the engine takes, and its rate beside float32's."""
    depths = range(max(len(case["depths"]) for case in cases.values()))
    rows = headed(
        "| backbone | data set | "
        + " | ".join(f"{exact} exact" for exact in depths)
        + " | taken | pictures/s | float32 |"
    )
    for case in cases.values():
        least = [f"{each['least']:.4f}" for each in case["depths"]]
        rates = case["rates"]
        rows.append(
            f"| {case['backbone']} | {case['set']} | {' | '.join(least)} | {case['taken']} | {rates['taken']:.0f} | "
            f"{rates['float32']:.0f} |"
        )
    return rows


def planted(cases: dict[str, Any]) -> list[str]:
    """Planted label errors: how many are found, by data set."""
    rows = headed(
        "| data set | training pictures | planted a draw | in the first tenth, mean | least of all draws | doubtful then | "
        "doubtful as given | accuracy out of fold, as given |"
    )
    for name, case in cases.items():
        rows.append(
            f"| {name} | {case['pictures']} | {case['planted']} | {percent(mean(case['found']))} % | "
            f"{percent(min(case['found']))} % | {percent(case['listed'])} % | {percent(case['listed_as_given'])} % | "
            f"{percent(case['out_of_fold'])} |"
        )
    return rows


def lined_up(cases: dict[str, Any]) -> list[str]:
    """Heads on one backbone and on what the line-up chose: mean over sets of the mean over seeds, by pictures of each class."""
    rows = headed("| pictures of each class | draws | last stage | one backbone | line-up | two were chosen |")
    for size in ("5", "20", "all"):
        by_set: dict[str, list[dict[str, Any]]] = {}
        for case, sizes in cases.items():
            if size in sizes:
                by_set.setdefault(case.split()[0], []).append(sizes[size])
        if not by_set:
            continue
        shares = [
            100 * mean(mean(row[name] for row in those) for those in by_set.values())
            for name in ("last_stage", "alone", "line_up")
        ]
        draws = [row for those in by_set.values() for row in those]
        two = 100 * mean(len(row["chosen"]) == 2 for row in draws)
        means = " | ".join(f"{share:.1f}" for share in shares)
        rows.append(f"| {size} | {len(draws)} of {len(by_set)} sets | {means} | {two:.0f} % |")
    return rows


def seen_again(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Heads on the clean view and on more: mean over sets of the mean over seeds, by how many pictures were drawn."""
    rows = headed(
        "| training pictures | draws | last stage | with views | the race's choice | with views | draws that this won, tied, lost | "
        "views stayed |"
    )
    for size in ("5", "20", "600"):
        by_set: dict[str, list[dict[str, Any]]] = {}
        for case, sizes in cases.items():
            by_set.setdefault(case.split()[0], []).extend(row for row in sizes if row["size"] == size)
        draws = [row for those in by_set.values() for row in those]
        means = [
            percent(mean(mean(row[name] for row in those) for those in by_set.values()))
            for name in ("last_clean", "last_views", "clean", "views")
        ]
        won, lost = (sum((row["views"] - row["clean"]) * sign > 0 for row in draws) for sign in (1, -1))
        kept = f"{sum(row['taken'] for row in draws)} of {len(draws)}"
        rows.append(
            f"| {SAID[size]} | {len(draws)} of {len(by_set)} sets | {' | '.join(means)} | "
            f"{won}, {len(draws) - won - lost}, {lost} | {kept} |"
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
        those = [case for key, draws in cases.items() if key.split()[0] == name for case in draws]
        counts = [case["pictures"] for case in those]
        longest = max(case["seconds"] for case in those)
        rows.append(row(name, f"{min(counts)} to {max(counts)}", [found], longest))
    longest = max(case["seconds"] for draws in cases.values() for case in draws)
    return [*rows, row("mean of all sets", "", list(sets.values()), longest)]


def suspected(cases: dict[str, Any]) -> list[str]:
    """Leaks and shortcuts: how often they are suspected where nothing was planted, and where something was."""
    plants = {
        "re-shots": "near_copies", "bursts": "near_copies", "size": "shortcut_size", "border": "shortcut_border",
        "colour": "shortcut_colour",
    }  # fmt: skip
    rows = headed(
        "| data set | whole | drawn | suspected of a leak | of a shortcut | re-shots found | bursts found | joined by the audit | "
        "size found | border found | colour found | nearest neighbour less head, standard errors, as drawn | with bursts |"
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
            *(counted(case.get(what, []), plants[what]) for what in ("size", "border", "colour")),
            lead(case["clean"]), lead(case.get("bursts", [])),
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"

    all_ = {key: [draw for case in cases.values() for draw in case.get(key, [])] for key in ("whole", "clean", *plants)}
    return rows + [row(name, case) for name, case in cases.items()] + [row("**all**", all_)]


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


def told(cases: dict[str, Any]) -> list[str]:
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
        cells = [
            mean(found["lost"]),
            mean(found["far"]),
            mean(found["left_out"]),
            max(found["lost"]),
            min(found["far"]),
            min(found["left_out"]),
        ]
        title = f"**{name}**" if name == "Headstart" else name
        rows.append(f"| {title} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} | {mean(found['auroc']):.3f} |")
    return rows


def handed(cases: dict[str, Any]) -> list[str]:
    """What runs the frozen stages: milliseconds a picture, agreement and seconds to set up."""
    rows = headed("| case | asked for | taken | ms a picture | least cosine | set up, s |")
    for name, ways in cases.items():
        for way in ways:
            agreement = "" if way["agreement"] is None else f"{way['agreement']:.5f}"
            rows.append(
                f"| {name} | {way['asked'][1]}, {way['asked'][0]} | {way['way']} | {1000 * way['seconds']:.2f} | {agreement} | "
                f"{way['settling']:.1f} |"
            )
    return rows


def without_room(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Test accuracy of a rung by what is cached for it, and bytes of that, a picture."""
    rows = headed("| case | frozen head | cut | kept in | views | kB a picture | test accuracy |")
    for case, ways in cases.items():
        for way in ways:
            rows.append(
                f"| {case} | {percent(way['frozen'])} | {way['cut']} | {way['kept']} | {way['views']} | {way['bytes'] / 1000:.0f} | "
                f"{percent(way['accuracy'])} |"
            )
    return rows


def against_limits(cases: dict[str, Any]) -> list[str]:
    """Rates of decoding, engine and extraction, and prediction and partial fine-tuning against what they could be."""
    rows = headed(
        "| case | decoding alone, pictures/s | in processes | engine alone | limit | both on the same cores | "
        "extraction | limit ÷ extraction | "
        "first prediction, s | predictions/s | limit ÷ predictions |"
    )
    for name, case in cases.items():
        rates = case["rates"]
        rows.append(
            f"| {name} | {rates['decode']:.0f} | {rates['decode, processes']:.0f} | {rates['engine']:.0f} | {case['limit']:.0f} | "
            f"{case['together']:.0f} | {rates['extract']:.0f} | {case['limit'] / rates['extract']:.2f} | "
            f"{case['first_prediction_seconds']:.1f} | {case['prediction_rate']:.0f} | "
            f"{case['limit'] / case['prediction_rate']:.2f} |"
        )
    rows += [
        "",
        *headed(
            "| case | frozen share of the forward pass | epoch of the whole network, ms a picture | from the store | "
            "the same in float32 | "
            "times as fast | 1/(1 − share) |"
        ),
    ]
    for name, case in cases.items():
        took = case["epoch_seconds_per_picture"]
        rows.append(
            f"| {name} | {percent(case['frozen_share'])} % | {1000 * took['whole']:.1f} | {1000 * took['cached']:.1f} | "
            f"{1000 * took['cached, float32']:.1f} | "
            f"{case['partial_speedup']:.1f} | {case['ideal_speedup']:.1f} |"
        )
    return rows


def grown_to(cases: dict[str, Any], path: Path) -> None:
    """Milliseconds a picture and peak memory against the number of pictures."""
    pyplot = plain_plots()
    figure, (pace, memory) = pyplot.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    counts = [case["pictures"] for case in cases.values()]
    for phase in ("audit", "extract", "head"):
        times = [1000 * case["phases"][phase] / case["pictures"] for case in cases.values()]
        pace.plot(counts, times, marker="o", label=phase)
    pace.set(xscale="log", ylim=(0, None), xlabel="pictures", ylabel="ms a picture")
    pace.legend(frameon=False)
    memory.plot(counts, [case["peak_memory_bytes"] / 1e9 for case in cases.values()], marker="o", color="#1f4fbf")
    memory.set(xscale="log", ylim=(0, None), xlabel="pictures", ylabel="peak memory, GB")
    for panel in (pace, memory):
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})


def plain_plots() -> Any:
    """matplotlib without a screen: the same figures give the same file, and words stay words."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "headstart", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    return pyplot


def scaled(cases: dict[str, Any]) -> list[str]:
    """One row per size: milliseconds a picture by phase, and memory."""
    rows = headed(
        "| pictures | audit, ms a picture | extraction, ms a picture | heads, s | s to a usable model | s in all | peak GB | "
        "store GB | test accuracy |"
    )
    for case in cases.values():
        phases, count = case["phases"], case["pictures"]
        rows.append(
            f"| {count:,} | {1000 * phases['audit'] / count:.2f} | {1000 * phases['extract'] / (0.8 * count):.2f} | "
            f"{phases['head']:.1f} | {case['usable_seconds']:.0f} | {case['whole_seconds']:.0f} | "
            f"{case['peak_memory_bytes'] / 1e9:.2f} | {case['store_bytes'] / 1e9:.2f} | {percent(case['accuracy'])} |"
        )
    return rows


def beside(case: dict[str, Any]) -> list[str]:
    """One row per contestant: medians, and how many times as long as Headstart's head-only and default fit it took."""
    rows = headed("| contestant | runs | s to the model | s in all | test accuracy | × head only | × default, in all |")
    for name, found in medians(case["contestants"]).items():
        times = [f"{found[key]:.1f}" if key in found else "" for key in ("times head only", "times default")]
        rows.append(
            f"| {name} | {len(case['contestants'][name])} | {found['seconds']:.1f} | {found['whole']:.1f} | "
            f"{percent(found['accuracy'])} | {' | '.join(times)} |"
        )
    return rows


def by_phase(case: dict[str, Any]) -> list[str]:
    """Where the time of Headstart's own runs goes: median seconds of every phase, and what lies outside of all of them."""
    ours = {name: runs for name, runs in case["contestants"].items() if name.startswith("Headstart") and runs}
    phases = list(dict.fromkeys(phase for runs in ours.values() for phase in runs[0]["phases"] if phase != "total"))
    rows = headed(f"| run | {' | '.join(phases)} | start and end |")
    for name, runs in ours.items():
        times = [median(run["phases"].get(phase, 0.0) for run in runs) for phase in phases]
        times.append(median(run["whole"] - run["phases"]["total"] for run in runs))
        rows.append(f"| {name} | {' | '.join(f'{seconds:.1f}' for seconds in times)} |")
    return rows


def drawn(shown: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    """Accuracy against time, a panel each, of (contestant, seconds, accuracy): what a person gets, and how long it takes. The time
    axis is logarithmic."""
    pyplot = plain_plots()
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(6.4 * len(shown), 4.2), squeeze=False, layout="constrained"
    )
    for panel, (name, contestants) in zip(panels[0], shown.items(), strict=True):
        for who, seconds, accuracy in contestants:
            ours = who.startswith("Headstart")
            place = seconds, 100 * accuracy
            panel.scatter(*place, color="#1f4fbf" if ours else "#8a8a94", s=42, zorder=3)
            where, side = ((0, 7), "center") if ours else ((-7, -2.5), "right")
            panel.annotate(who, place, where, textcoords="offset points", ha=side, fontsize=7.5)
        panel.set(
            xscale="log",
            xlabel="seconds, from files to a usable model (Headstart's default: to the end of its proof)",
            ylabel="test accuracy, %",
            title=name,
        )
        panel.margins(0.3, 0.22)
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})


def by_speed(case: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Contestant, median seconds, median accuracy of a case of the speed suite; left out are repeated runs, and Headstart's with other
    weights than the rest."""
    return [
        (
            who,
            median(run["whole" if who.startswith("Headstart, default") else "seconds"] for run in runs),
            median(run["accuracy"] for run in runs),
        )
        for who, runs in case["contestants"].items()
        if runs and not who.endswith("again") and who not in (OURS, "Headstart, head only, MobileNetV2")
    ]


def compared(suite: dict[str, Any]) -> list[str]:
    """The section on accuracy beside other recipes, and its plot."""
    cases = met(suite["cases"])
    busiest = max(row["load"] for case in suite["cases"].values() for row in case["contestants"].values())
    page = [
        "## How right it is, beside other recipes",
        "",
        "`benchmarks/run.py --suite accuracy`: same pictures, same split, same ImageNet weights (the Keras guide: MobileNetV2's), "
        "each a process of its own; Headstart's default may use no network but the one whose weights all have. Test "
        "pictures are those that Headstart seals for the seed, 600 at most. Means in percent; "
        "*behind the best* is the mean distance, in points, from whoever shown is best in a case, which only hindsight knows. "
        "Headstart's heads come from the run of its default; their seconds are those to its first model. AutoGluon trains for as "
        "many seconds as Headstart's default took there; its imports come on top. With fewer than 500 training "
        "pictures Headstart weighs what other runs let expect "
        "of fine-tuning, and six of these sets are among those that it learnt that from ([left "
        "out](#what-fine-tuning-may-be-expected-to-gain), they are foretold less well). "
        f"Before a case the load average was up to {busiest:.1f}: where other work went on, seconds are upper bounds.",
        "",
    ]
    shows = [(names, common) for names in parties(cases) if (common := shared(cases, names))]
    for names, common in shows:
        page += [f"{held(common)}.", "", "\n".join(ranked(common, names)), ""]
    page += [
        "Each against Headstart's default, on all cases that both have. The exact tests ask whether what is not tied is split "
        "evenly: over cases (two of one set share pictures), and over all their test pictures together (McNemar; a picture counts "
        "once a case, so that this one is too sure).",
        "",
        "\n".join(duels(cases)),
        "",
        "On each data set: how far Headstart's default is above its own best head and above LP-FT, in points, on the mean and in the "
        "worst case, and in how many cases it is behind, and surely so (by the paired 95 % interval over its head where it was kept, "
        "by McNemar's test at 5 % over LP-FT). Groceries was no part of what the forecast was learnt from.",
        "",
        "\n".join(by_set(cases)),
        "",
    ]
    failed = [
        f"{who} on {name}"
        for name, case in suite["cases"].items()
        for who, row in case["contestants"].items()
        if "failed" in row
    ]
    page += [f"Ended with an error, and counted nowhere: {'; '.join(failed)}.", ""] if failed else []
    if shows:
        names, common = shows[-1]
        drawn({f"mean of {len(common)} cases": points(common, names)}, ROOT / "docs" / "accuracy.svg")
        page += ["![Mean accuracy against mean time](accuracy.svg)", ""]
    return page


def calibrated_by_set(right: dict[str, Any] | None) -> list[str]:
    """The calibration of the accuracy suite, where there is one."""
    if right is None:
        return []
    return [
        "The same of Headstart's default in the accuracy suite:",
        "",
        "\n".join(errors_by_set(right["cases"], OURS)),
        "",
    ]


def rate(count: int, runs: int) -> str:
    """A share of runs in percent with its exact 95 % interval (Clopper and Pearson)."""
    found = binomtest(count, runs).proportion_ci(0.95, method="exact")
    return f"{percent(count / runs)} ({percent(found.low)} to {percent(found.high)})"


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


def machine(environment: dict[str, Any]) -> str:
    """The environment that figures must be read with, in a line."""
    return (
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory_bytes'] / 2**30:.0f} GiB, "
        f"torch {environment['torch']}, timm {environment['timm']}, Python {environment['python']}"
    )


def replaced(path: Path, text: str) -> None:
    """Put the text between the markers of a page."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Write what the results at hand allow."""
    record = load("main_job")
    if record is None:
        raise SystemExit("benchmarks/results/main_job.json is not there; run benchmarks/main_job.py first")
    cases = record["cases"]
    busy = max(case["load"] for case in cases.values())
    whole = "\n".join(whole_runs(cases))
    page = [
        "# Results",
        "",
        "Generated by `benchmarks/tables.py` from `benchmarks/results/`; run `benchmarks/main_job.py` to measure again.",
        "",
        f"Machine: {machine(record['environment'])}. The load average at the start of a case was up to {busy:.1f}: on a busy "
        "machine the seconds are upper bounds.",
        "",
        "## `headstart fit` with its defaults, from an empty store",
        "",
        "Accuracies in percent of the sealed test images.",
        "",
        whole,
        "",
        "## What was aimed at",
        "",
        "Computed from the tables below. What is not enough has its reason in [the next section](#what-stands-in-the-way).",
        "",
        "### Speed, side by side with other tools and against the machine's limits",
        "",
        "\n".join(aims.table(aims.of_speed(load))),
        "",
        "On a GPU nothing was measured.",
        "",
        "### Judgement",
        "",
        "\n".join(aims.table(aims.of_judgement(load))),
        "",
        *aims.IN_THE_WAY,
    ]
    starts = load("rung_start")
    if starts is not None:
        page += [
            "## Where a rung starts, and how fast it learns",
            "",
            "The first rung on one fold, judged at its best share of the interpolation, beside the frozen head that won the race.",
            "",
            "\n".join(started(starts["cases"])),
            "",
        ]
    rough = load("precision")
    if rough is not None:
        page += [
            "## What bfloat16 costs in agreement",
            "",
            "The least cosine of the pooled features with plain float32 over 160 pictures, by the number of leading stages that stay "
            "in float32; what the engine takes by looking at 8 of these pictures; pictures a second of that and of folded float32, "
            "decoding left aside (`benchmarks/precision.py`).",
            "",
            "\n".join(rounded(rough["cases"])),
            "",
        ]
    if rough is not None and any("heads" in case for case in rough["cases"].values()):
        page += [
            "What that does to heads: accuracy out of fold of the last stage's head and of the race's winner, on the "
            "same pictures and "
            "folds, in plain float32 and as the engine runs by itself or with `--engine openvino`.",
            "",
            "\n".join(kept(rough["cases"])),
            "",
        ]
    runners = load("engines")
    if runners is not None:
        page += [
            "## What runs the frozen stages",
            "",
            "Wall time a picture with all cores at work, decoding left aside, in turns within one run; the least cosine of the "
            "pooled features with plain float32 over eight pictures; and the seconds that it takes to set up "
            "(`benchmarks/engines.py`). A compiler that does not agree in bfloat16 runs in float32.",
            "",
            "\n".join(handed(runners["cases"])),
            "",
        ]
    steps = load("suffix_ways")
    if steps is not None:
        page += [
            "## What a step of fine-tuning costs",
            "",
            "Forward, backward and optimizer of the stages that train, for a batch of 16 activations, in turns within one run "
            "(`benchmarks/suffix_ways.py`). Headstart runs 1×1 convolutions in bfloat16 where the processor has it.",
            "",
            "\n".join(by_step(steps["cases"])),
            "",
        ]
    raced = load("head_cost")
    if raced is not None:
        page += [
            "## What the race of heads costs",
            "",
            "All stages, strengths and folds, from an empty store, on drawn features of EfficientNet-Lite0's widths "
            "(`benchmarks/head_cost.py`), and scikit-learn's cross-validated logistic regression on the last stage alone.",
            "",
            "\n".join(raced_in(raced["cases"])),
            "",
        ]
    heads = load("heads_tried")
    if heads is not None:
        page += [
            "## Other heads",
            "",
            "What was tried on the last stage of EfficientNet-Lite0 and is not part of the race (`benchmarks/heads_tried.py`): other "
            "poolings, discriminant analysis, classes that weigh the same (beside scikit-learn's own plain head).",
            "",
            "\n".join(by_head(heads["cases"])),
            "",
        ]
    room = load("store_limit")
    if room is not None:
        page += [
            "## Where the store has no room for a rung",
            "",
            "The first rung of the ladder on all training pictures, by what is cached for it (`benchmarks/store_limit.py`).",
            "",
            "\n".join(without_room(room["cases"])),
            "",
        ]
    scales = load("standardisation")
    if scales is not None:
        page += [
            "## What features are divided by",
            "",
            "√(variance + floor · mean variance), means over the cases in `benchmarks/results/standardisation.json`: 60 and 240 "
            "training pictures of six data sets, where there are as many, last stage and all stages, three draws. A floor of 1 is "
            "what Headstart uses.",
            "",
            "\n".join(standardised(scales["means"])),
            "",
        ]
    choice = load("choice")
    if choice is not None:
        page += [
            "## What is told of the head that won",
            "",
            "Means over draws of six data sets (`benchmarks/results/choice.json`). The best of many scores flatters; what a run tells "
            "is cleared of the choice.",
            "",
            "\n".join(chosen(choice["means"])),
            "",
        ]
    again = load("views")
    if again is not None:
        page += [
            "## More views of each picture",
            "",
            "Heads on frozen features of EfficientNet-Lite0, percent of up to 600 test pictures: fitted to the pictures as they are, "
            "and to three augmented views of each as well, unless the labels are clearly likelier without (`benchmarks/views.py`).",
            "",
            "\n".join(seen_again(again["cases"])),
            "",
        ]
    several = load("backbones")
    if several is not None:
        page += [
            "## Two backbones or one",
            "",
            "Heads on frozen features, percent of the test pictures: the last stage of EfficientNet-Lite0, the head that the race "
            "picks on it, and what the line-up of Lite0, Lite1 and Lite2 answers with (`benchmarks/backbones.py`).",
            "",
            "\n".join(lined_up(several["cases"])),
            "",
        ]
    wrong = load("labels")
    if wrong is not None:
        page += [
            "## Label errors that were planted",
            "",
            "Five percent of the training labels are changed, twenty times (`benchmarks/labels.py`): the share of them within the "
            "first tenth of the training pictures, by the rank of `doubts.csv`.",
            "",
            "\n".join(planted(wrong["cases"])),
            "",
        ]
    grown = load("growth")
    if grown is not None:
        page += [
            "## What more pictures would add",
            "",
            "Heads race on one, three or six twentieths of a data set, drawn five times; the winner's accuracy out of fold "
            "is foretold for twice and four times as many, and measured on eight twentieths that are never drawn "
            "(`benchmarks/growth.py`). What is known of exponents beforehand is fitted to the other data sets. Points, and shares of "
            "the forecasts in percent: whose 95 % interval holds what is measured, and whose does, once it also has the chance of the "
            "test pictures. Seconds: the longest curve, on a busy machine.",
            "",
            "\n".join(carried_on(grown["left_out"], grown["cases"])),
            "",
        ]
    source = load("shift")
    if source is not None:
        page += [
            "## Like the source, or not",
            "",
            "How far the channel statistics of 64 training pictures lie from those of the source, ImageNet photographs, and how "
            "undecided the source's classifier is about them (`benchmarks/shift.py`). mnist stands for glyphs, steel for grey "
            "textures, blood for microscopy. The last columns say on which single stage a ridge head is best, and by how many points.",
            "",
            "\n".join(apart(source["cases"])),
            "",
        ]
    strange = load("unknown")
    if strange is not None:
        page += [
            "## Pictures of something else",
            "",
            "By several scores, the share of pictures that are called unknown where 5 % of known ones may be lost, in percent "
            "(`benchmarks/unknown.py`): of sealed test pictures of classes that were taught, of 40 pictures of each other data set "
            "(far), and of a class that was left out of training, up to three classes one at a time. The threshold of every score is "
            f"taken out of fold. Means over {len(strange['cases'])} cases of {len({key.split()[0] for key in strange['cases']})} data "
            "sets, and the worst; the last column needs no threshold. Every test picture counts as known, also those that are "
            "answered wrongly.",
            "",
            "\n".join(told(strange["cases"])),
            "",
        ]
    doubtful = load("suspicions")
    if doubtful is not None:
        page += [
            "## Leaks and shortcuts that were planted",
            "",
            "Whole data sets, and 150 pictures drawn from them: as they are (two columns of suspicions), and with something planted "
            "(`benchmarks/suspicions.py`): a third replaced by re-shots of others, turned, moved, in other light and with noise; "
            "four such shots of everything (bursts); or a size, a border or a tint for each class. *Joined by the audit* counts the "
            "pictures that it keeps together as near-duplicates, with re-shots and with bursts. Of many classes a draw has too few "
            "pictures each to plant anything in. Nobody planted what is suspected of the whole of steel: the pairs that it lists are "
            "mostly overlapping parts of one sheet, with numbers in a row as file names.",
            "",
            "\n".join(suspected(doubtful["cases"])),
            "",
        ]
    speed = load("head_only")
    if speed is not None:
        page += [
            "## Head only",
            "",
            f"`headstart fit --plan head` on {speed['images']} images at {speed['input']} px with `{speed['backbone']}`: "
            f"{speed['cold_seconds']:.1f} s from an empty store, {speed['warm_seconds']:.1f} s with features cached, peak memory "
            f"{speed['peak_memory_bytes'] / 1e9:.2f} GB (load average {speed['load']:.1f}).",
            "",
        ]
    suite = load("speed")
    if suite is not None:
        page += [
            "## Beside other tools",
            "",
            "`benchmarks/run.py --suite speed`: each contestant a process of its own, same pictures, same split, same ImageNet "
            "weights (the Keras guide uses MobileNetV2, and so does the Headstart run named after it). Seconds count from the "
            "start of the process; the model is then saved and can be used; Headstart goes on to prove it. The last two columns "
            "divide the time to the model by that of Headstart's head-only fit, and by the whole time of its default "
            "fit on one network "
            "with ladder, baselines and report. *One network* may use no weights but those that all have; *Headstart, default* also "
            "tries those of its installation. Medians where there are several runs.",
            "",
        ]
        drawn({name: by_speed(case) for name, case in suite["cases"].items()}, ROOT / "docs" / "speed.svg")
        page += ["![Accuracy against time of all contestants](speed.svg)", ""]
        for name, case in suite["cases"].items():
            page += [f"### {name}, {case['test']} test pictures", "", "\n".join(beside(case)), ""]
            page += ["Where Headstart's seconds go:", "", "\n".join(by_phase(case)), ""]
    settings = load("fairness")
    if settings is not None:
        page += [
            "### The settings of the others",
            "",
            "Seconds of a frozen epoch by setting, in turns (`benchmarks/fairness.py`); the first of each is what the "
            "comparison uses.",
            "",
            "\n".join(by_setting(settings["cases"])),
            "",
        ]
    right = load("accuracy")
    if right is not None:
        page += compared(right)
    deep = load("depth")
    if deep is not None:
        cases = depths(deep["cases"])
        page += [
            "## How deep to unfreeze",
            "",
            "`benchmarks/run.py --suite depth`, EfficientNet-Lite0 (9 stages, counted from 0): every rung alone from the same head, "
            "kept whatever it gains; 5 or 20 training pictures a class or up to 600 in all, up to 600 test pictures. *With the head*: "
            "the mean of its and the frozen head's calibrated answers.",
            "",
            "\n".join(by_depth(cases)),
            "",
            "The ladder of the default plan, against the best of head and single rungs, alone or with the head. That best is chosen "
            "by the very test pictures that it is told of, which flatters it; cross-fitted, one half of them chooses and the other "
            "half tells.",
            "",
            "\n".join(laddered(cases)),
            "",
            "## Calibration",
            "",
            "Expected calibration error (15 bins) in percent, at the temperature that suits out-of-fold answers best, where 500 "
            "pictures or more are tested. With 5 pictures a class a few dozen answers decide that temperature, of heads that "
            "have seen a fifth less.",
            "",
            "\n".join(calibrated(deep["cases"])),
            "",
            *calibrated_by_set(right),
            "## What fine-tuning may be expected to gain",
            "",
            "Forecasts of the gain of a rung together with the frozen head (`benchmarks/forecast.py`): each data set's are made with "
            "numbers that were fitted to the others. Points.",
            "",
            "\n".join(left_out(deep["cases"])),
            "",
            "What else a forecast could be made of, on data sets that were left out in the same way. There are seven of these: what "
            "is added seldom carries over to the next. The last row is what the luck of the test pictures would leave to whoever "
            "knew all true gains; of the passes, what went into rungs that gained less.",
            "",
            "\n".join(alternatives(deep["cases"])),
            "",
            "What held-out pictures say of the deep rung in three folds: by how much likelier it makes their labels together with the "
            "frozen head, in nats, times a slope and with a constant that were fitted to the other data sets. Points; kept is what "
            "promises half a point.",
            "",
            "\n".join(corrected(deep["cases"])),
            "",
        ]
    pairs = load("beside")
    if pairs is not None:
        page += [
            "## What held-out pictures tell best",
            "",
            "The deep rung with 5 or 20 pictures a class, in the place of the frozen head, alone and where EfficientNet-Lite1 answers "
            "beside it (`benchmarks/beside.py`): points of test accuracy, by what is taken on three held-out folds.",
            "",
            "\n".join(told_best(pairs["cases"])),
            "",
        ]
    means = load("averaging")
    if means is not None:
        page += [
            "## Averaging weights",
            "",
            "The deep rung with few pictures, trained once, in another order, and on three folds (`benchmarks/averaging.py`): test "
            "accuracy in percent of what averages answer.",
            "",
            "\n".join(by_average(means["cases"])),
            "",
        ]
    ways = load("answers")
    if ways is not None:
        page += [
            "## Averaging answers, and a temperature for each class",
            "",
            "The best head on EfficientNet-Lite0's frozen features with few pictures (`benchmarks/answers.py`): the mean with what it "
            "answers to the mirror image, which takes twice as long, and a factor and a constant for each class, fitted to "
            "out-of-fold answers. Percent, nats.",
            "",
            "\n".join(by_way(ways["cases"])),
            "",
        ]
    patient = load("scratch_time")
    if patient is not None:
        page += [
            "## How long the small network needs",
            "",
            "Test accuracy in percent of the small network from scratch by the epochs that it is given, its search for "
            "a learning rate "
            "included, and of the frozen head (`benchmarks/scratch_time.py`). A quarter of the time would make it look worse than it "
            "is, so it gets as long as transfer took.",
            "",
            "\n".join(by_epochs(patient["cases"])),
            "",
        ]
    truths = load("verdict")
    if truths is not None:
        page += [
            "## Verdicts where the truth is known",
            "",
            "`benchmarks/run.py --suite verdict`: 100 to 500 pictures, two fifths of them sealed, only the head trained; a seed draws "
            "the pictures, the split and what is constructed. *Nothing*: labels were shuffled, so *not distinguishable* is true, and "
            "neither *helped* nor *hurt*. *Hurt*: the numbers within every tensor of the source weights changed places. *Overkill* "
            "counts as right beside *not distinguishable* alone. Where no test set was cut, cross-validation judges. Exact 95 % "
            "intervals.",
            "",
            "\n".join(judged(truths["cases"])),
            "",
        ]
    limits = load("limits")
    if limits is not None:
        page += [
            "## Where the time goes, against what it could be",
            "",
            "`benchmarks/limits.py`: the limit is the slower of decoding on all cores and the engine on pictures from memory. Where "
            "both share the cores, neither can have all of them: the next column says what is left then. While torch is imported, "
            "`fit` decodes with the cores that are idle, which this does not count. Threads decode, although processes are a little "
            "faster: decoding takes a small part of the time, and what processes decode would have to be handed over.",
            "",
            "\n".join(against_limits(limits["cases"])),
            "",
        ]
    begun = load("start")
    if begun is not None:
        parts = begun["cases"]
        page += [
            f"Before the first prediction, {sum(parts.values()):.1f} s (`benchmarks/start.py`): "
            + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in parts.items())
            + ".",
            "",
        ]
    page += [
        "What was tried for these and left out again:",
        "",
        "- *Extraction.* OpenVINO's bfloat16 is much faster than what is used here, and too coarse: its last stages lose "
        "as much as its first, so neither exact leading stages nor a correction of means mends it. Rounding weights so that "
        "their sums are kept, and correcting biases by the means of eight pictures, come out no better than exact stages do, or would "
        "have to travel with the model. `torch.compile` loses to folded copies on a CPU.",
        "- *The first prediction.* Most of the time goes into importing torch and timm. torchvision and timm both ask for torch's "
        "compiler at their import, so that a stand-in for one of them saves nothing. Recording with numbers instead of meta "
        "tensors takes as long. Pausing the garbage collector meanwhile saves time, and stayed.",
        "- *Decoding on a GPU* through torchvision was written and taken out: torchvision 0.29 deprecates it, and a model would be "
        "measured on other pixels than it sees in use.",
        "",
    ]
    sizes = load("scaling")
    if sizes is not None:
        grown_to(sizes["cases"], ROOT / "docs" / "scaling.svg")
        page += [
            "## From 1,000 to 100,000 pictures",
            "",
            "`benchmarks/scaling.py`: `headstart fit --plan head --backbone tf_efficientnet_lite0` from an empty store, on crops of "
            "256 px. Four fifths of the pictures are extracted for the model. Seconds in all hold the small network from scratch, for "
            "as long as the budget of ten minutes lasts.",
            "",
            "![Time per picture and peak memory against the number of pictures](scaling.svg)",
            "",
            "\n".join(scaled(sizes["cases"])),
            "",
        ]
    demo = load("demo")
    if demo is not None:
        page += [
            "## The demo",
            "",
            f"`headstart demo`: {demo['seconds']:.0f} s, peak memory {demo['peak_memory_bytes'] / 1e9:.2f} GB; {demo['sentence']}",
            "",
        ]
    (ROOT / "docs" / "results.md").write_text("\n".join(page), encoding="utf-8")
    beside_others = (
        "\nBeside other tools, on the same pictures, split, weights and machine "
        "([how it was measured](docs/results.md#beside-other-tools)):\n\n"
        "![Accuracy against time of Headstart, scikit-learn, plain PyTorch, Keras and fastai](docs/speed.svg)\n"
    )
    text = f"\n{whole}\n\nMachine: {machine(record['environment'])}.\n{beside_others if suite else ''}"
    replaced(ROOT / "README.md", text)


if __name__ == "__main__":
    main()
