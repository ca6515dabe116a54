"""What was aimed at, what was reached, and whether that is enough: computed from the results, aim by aim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

from accuracy import LP_FT
from calibration import ENOUGH, errors_by_set
from cells import headed, percent
from forecast import held_up, planned_away
from regret import depths, shortfalls, thorough
from standings import HEADS, OURS, SAID, foretold, hours, met, ranks_by_size, standing, surely_behind, together

Results = Mapping[str, Any]  # what a file of benchmarks/results holds, by its name
FASTAI, PLAIN, KERAS = (
    "fastai, fine_tune(5)",
    "plain PyTorch, 10 frozen epochs",
    "Keras guide, 20 frozen epochs, MobileNetV2",
)
ONE, HEAD, MOBILE = "Headstart, default, one network", "Headstart, head only", "Headstart, head only, MobileNetV2"


def row(what: str, wanted: str, reached: str, enough: bool) -> str:
    """An aim, as a row; nothing reached means that it was not measured."""
    return f"| {what} | {wanted} | {reached} | {('yes' if enough else '**no**') if reached else 'not measured'} |"


def at_least(what: str, wanted: float, found: list[float], sign: str = "×") -> str:
    """An aim that the least of what was found has to reach."""
    return row(
        what, f"≥ {wanted:g}{sign}", ", ".join(f"{each:.1f}{sign}" for each in found), min(found, default=0.0) >= wanted
    )


def at_most(what: str, wanted: float, found: list[float], unit: str = "×", digits: int = 2) -> str:
    """An aim that the most of what was found has to keep to."""
    return row(
        what, f"≤ {wanted:g}{unit}", ", ".join(f"{each:.{digits}f}{unit}" for each in found), max(found) <= wanted
    )


def of_speed(results: Results) -> Iterator[str]:
    """Side by side with other tools, and against the limits of the machine."""
    for where, speeds, limits in (
        ("", "speed", "limits"), (", without bfloat16", "speed_avx2", "limits_avx2"),
    ):  # fmt: skip
        if speeds in results:
            yield from _beside_others(results[speeds], where)
        if limits in results:
            yield from _against_limits(list(results[limits]["cases"].values()), where)
    sizes = results.get("scaling")
    if sizes is not None:
        cases = list(sizes["cases"].values())
        paces = [case["phases"]["extract"] / case["pictures"] for case in cases]
        yield at_most(f"extraction per picture, {_range(cases)}: slowest over fastest", 1.15, [max(paces) / min(paces)])
        memory = {case["pictures"]: case["peak_memory_bytes"] for case in cases}
        yield at_most("peak memory at 100,000 pictures over that at 10,000", 1.3, [memory[100_000] / memory[10_000]])


def _against_limits(cases: list[Any], where: str) -> Iterator[str]:
    """How near extraction, training behind a cut, and predictions come to what the machine could do."""

    def below(what: str, most: float, found: list[float], unit: str = "×", digits: int = 2) -> str:
        return at_most(f"{what}{where}", most, found, unit, digits)

    yield below(
        "cold extraction against its limit, choosing how to run included",
        1.25,
        [case["limit"] / case["rates"]["extract, cold"] for case in cases],
    )
    yield below("extraction once that is chosen", 1.25, [case["limit"] / case["rates"]["extract"] for case in cases])
    share = [case["partial_speedup"] / case["ideal_speedup"] for case in cases]
    yield at_least(f"an epoch behind a cut, times as fast as all of it, over 1/(1 − frozen share){where}", 0.75, share)
    yield below(
        "predictions after the first against the limit",
        1.3,
        [case["limit"] / case["prediction_rate"] for case in cases],
    )
    yield below(
        "1,000 predictions with the start of the process against the limit",
        1.3,
        [case["prediction_seconds"] * case["limit"] / 1000 for case in cases],
    )
    yield below("the first prediction", 3, [case["first_prediction_seconds"] for case in cases], " s", 1)


def _beside_others(suite: Any, where: str) -> Iterator[str]:
    """Times and accuracies beside other tools; on another processor, `where`, those that were measured."""
    sets = [case["medians"] for case in suite["cases"].values()]

    def times(other: str, key: str, ours: str, own: str) -> list[float]:
        return [found[other][key] / found[ours][own] for found in sets if {other, ours} <= set(found)]

    def points(ours: str) -> list[float]:
        return [
            100 * (found[ours]["accuracy"] - found[FASTAI]["accuracy"])
            for found in sets
            if {ours, FASTAI} <= set(found)
        ]

    for what, wanted, found, sign in (
        ("head only, cold: fastai's fine_tune(5) takes", 80, times(FASTAI, "seconds", HEAD, "seconds"), "×"),
        ("its accuracy less fastai's", 0, points(HEAD), " points"),
        ("plain PyTorch with 10 frozen epochs takes", 10, times(PLAIN, "seconds", HEAD, "seconds"), "×"),
        ("the Keras guide's first phase takes, same network", 20, times(KERAS, "seconds", MOBILE, "seconds"), "×"),
        ("the whole default, proof and report included: fastai takes", 4, times(FASTAI, "seconds", ONE, "whole"), "×"),
        ("its accuracy less fastai's", 4, points(ONE), " points"),
        ("the same with the line-up of its networks", 4, times(FASTAI, "seconds", OURS, "whole"), "×"),
        ("the default again, with a warm store", 20, times(ONE, "whole", f"{ONE}, again", "whole"), "×"),
        ("head only again, with a warm store", 20, times(HEAD, "whole", f"{HEAD}, again", "whole"), "×"),
    ):
        if found or not where:
            yield at_least(f"{what}{where}", wanted, found, sign)


def _range(cases: list[dict[str, Any]]) -> str:
    counts = sorted(case["pictures"] for case in cases)
    return f"{counts[0]:,} to {counts[-1]:,}"


def of_judgement(results: Results) -> Iterator[str]:
    """How right the answers, the choices and the verdicts are."""
    right, deep, verdicts, doubtful, wrong, strange, whole_runs = map(
        results.get, ("accuracy", "depth", "verdict", "suspicions", "labels", "unknown", "main_job")
    )
    if whole_runs is not None:
        runs = list(whole_runs["cases"].values())
        yield at_most("the main job, up to 2,062 pictures", 600, [max(run["seconds"] for run in runs)], " s", 0)
    if right is not None:
        cases = met(right["cases"])
        behind, unknown, count = surely_behind(cases)
        said = f"{behind} of {count}" + f", {unknown} not known" * bool(unknown)
        tuned = sum(LP_FT in case.answered for case in cases)
        yield row(
            f"cases behind its own head, or LP-FT ({tuned} of them), by more than chance",
            "0",
            said,
            not behind + unknown,
        )
        for names, common in together(cases):
            yield from _standing(standing(common, names))
            ranks = ranks_by_size(common, names)
            ours, others = (", ".join(f"{pair[k]:.1f}" for pair in ranks.values()) for k in (0, 1))
            sizes = ", ".join(SAID[size] for size in ranks)
            yield row(
                f"mean rank in these with {sizes}", "first at every size", f"{ours}; the best other's {others}",
                all(own < other for own, other in ranks.values()),
            )  # fmt: skip
        if few := foretold(right["cases"]):
            own, foreign = (100 * mean(getattr(case, key) - case.probe for case in few) for key in ("own", "foreign"))
            yield row(
                f"points above the linear probe in the {len(few)} cases with few pictures, foretold by other sets",
                "≥ 2",
                f"{foreign:.1f}; as it comes {own:.1f}",
                foreign >= 2,
            )
        if new := results.get("accuracy_unseen"):
            for names, common in together(met(new["cases"])):
                yield from _standing(standing(common, names), " on sets that no choice was made on")
        whole, first = hours(right["cases"]), hours(right["cases"], 0)
        yield row(
            "the whole accuracy suite as it is recorded",
            "≤ 2 h",
            f"{whole:.1f} h, {first:.1f} of them the first seed",
            whole <= 2,
        )
    if deep is not None:
        every = depths(deep["cases"])
        behind, fitted = shortfalls(thorough(every))
        said = f"{100 * mean(behind):.1f} in hindsight, {100 * mean(fitted):.1f} cross-fitted"
        yield row(
            f"points behind the best depth, mean of {len(behind)} cases with every cut",
            "≤ 0.5",
            said,
            mean(behind) <= 0.005,
        )
        behind, _ = shortfalls(every)
        yield row(
            f"points behind the best depth, worst of all {len(behind)}",
            "≤ 2",
            f"{100 * max(behind):.1f}",
            max(behind) <= 0.02,
        )
        held = held_up(deep["cases"])
        said = f"{held.rank:.2f}"
        yield row("rank correlation of expected and true gains, sets left out", "≥ 0.7", said, held.rank >= 0.7)
        yield row(
            "ladder's passes saved by skipping, and points lost", "≥ 40 %, ≤ 0.2", f"{100 * held.saved:.0f} %, {100 * held.lost:.2f}",
            held.saved >= 0.4 and held.lost <= 0.002,
        )  # fmt: skip
        saved, lost = planned_away(deep["cases"])
        said = f"{percent(saved, 0)} %, {percent(lost, 2)}"
        yield row(
            "passes saved by plans in all, and points lost", "≥ 40 %, ≤ 0.2", said, saved >= 0.4 and lost <= 0.002
        )
    if verdicts is not None:
        runs = [(case["truth"], run) for case in verdicts["cases"].values() for run in case["runs"].values()]
        yield _share("verdicts on constructed cases that are right", 0.95, [run["right"] for _, run in runs])
        claimed = mean(run["outcome"] != "not distinguishable" for truth, run in runs if truth == "nothing")
        yield row("*helped* or *hurt* where nothing is to be learnt", "≤ 5 %", f"{percent(claimed)} %", claimed <= 0.05)
    if doubtful is not None:
        plants = {
            "leaks": ("near_copies", "re-shots", "bursts"),
            "shortcuts": ("shortcut", "size", "border", "colour", "format"),
        }
        for what, (kind, *where) in plants.items():
            draws = [draw for case in doubtful["cases"].values() for key in where for draw in case.get(key, [])]
            found = [any(each.startswith(kind) for each in draw["suspected"]) for draw in draws]
            yield _share(f"planted {what} found", 0.9, found)
    if wrong is not None:
        shares = [share for case in wrong["cases"].values() for share in case["found"]]
        yield row(
            "planted label errors in the first tenth of the list, mean",
            "≥ 50 %",
            f"{percent(mean(shares))} %",
            mean(shares) >= 0.5,
        )
    if right is not None and deep is not None:
        errors = list(errors_by_set(deep["cases"], right["cases"]).values())
        yield row(
            f"calibration error where {ENOUGH} or more are tested, mean of {len(errors)} data sets",
            "≤ 3 %",
            f"{percent(mean(errors))} %",
            mean(errors) <= 0.03,
        )
    if strange is not None:
        cases = list(strange["cases"].values())
        far = mean(case["all_taught"]["Headstart"]["far"] for case in cases)
        parts = [[draw["Headstart"] for draw in case["left_out"].values()] for case in cases]
        near = mean(mean(each["left_out"] for each in part) for part in parts if part)
        lost = mean(
            mean(each["lost"] for each in (case["all_taught"]["Headstart"], *part))
            for case, part in zip(cases, parts, strict=True)
        )
        for what, share in (("pictures of other data sets", far), ("pictures of a class that was left out", near)):
            said = f"{percent(share)} %, {percent(lost)} % of known ones lost"
            yield row(f"{what} told to be unknown", "≥ 80 %, ≤ 5 % lost", said, share >= 0.8 and lost <= 0.05)


def _share(what: str, wanted: float, found: list[bool]) -> str:
    said = f"{percent(mean(found))} % ({sum(found)} of {len(found)})"
    return row(what, f"≥ {100 * wanted:g} %", said, mean(found) >= wanted)


def _standing(found: Mapping[str, tuple[float, float, int]], where: str = "") -> Iterator[str]:
    """Headstart beside the best other: accuracy, seconds."""
    own = {OURS, *HEADS.values()}
    name = max((each for each in found if each not in own), key=lambda each: found[each][0])
    (ours, took, cases), (theirs, others, _) = found[OURS], found[name]
    said = f"{100 * (ours - theirs):.1f} in {took:.0f} s against {others:.0f} s"
    yield row(
        f"points above {name}, the best other in {cases} cases{where}",
        "≥ 2, in no more time",
        said,
        ours - theirs >= 0.02 and took <= others,
    )
    head, first, _ = found[HEADS["head"]]
    said = f"{100 * (head - theirs):.1f} in {first:.0f} s against {others:.0f} s"
    yield row(
        "the same, of its best frozen head alone, whose seconds are an upper bound",
        "≥ 2, in no more time",
        said,
        head - theirs >= 0.02 and first <= others,
    )


def table(rows: Iterator[str]) -> list[str]:
    """All aims."""
    return [*headed("| what | aim | reached | enough |"), *rows]
