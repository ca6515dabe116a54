"""Tables of what runs cost: precision, engines, training steps, the race of heads, and the limits of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from cells import digits, headed, percent

HEADS = {"last": "last-stage head", "best": "winner of the race"}


def rounded(cases: Mapping[str, Any]) -> list[str]:
    """Least cosine with float32 by number of exact leading stages, simply rounded and with means kept, what the engine takes, and its
    rate beside float32's."""
    depths = range(max(len(case["depths"]) for case in cases.values()))
    rows = headed(
        "| backbone | data set | "
        + " | ".join(f"{exact} exact" for exact in depths)
        + " | taken | pictures/s | float32 | OpenVINO takes | pictures/s |"
    )
    for case in cases.values():
        least = [f"{each['plain']['least']:.4f}, {each['kept']['least']:.4f}" for each in case["depths"]]
        rates = case["rates"]
        rows.append(
            f"| {case['backbone']} | {case['set']} | {' | '.join(least)} | {case['taken']} | {rates['taken']:.0f} | "
            f"{rates['float32']:.0f} | {case['heads']['ways']['openvino']['way']} | {rates['openvino']:.0f} |"
        )
    return rows


def kept(cases: Mapping[str, Any]) -> list[str]:
    """A row per case and way: least cosines with plain float32, and how right heads are on both."""
    told = " | ".join(f"{name}, float32 | as taken | difference" for name in HEADS.values())
    rows = headed(f"| data set | backbone | pictures | taken | least cosine, last stage | of all stages | {told} |")
    for case in cases.values():
        heads = case["heads"]
        for label, way in heads["ways"].items():
            if label == "float32":
                continue
            cells = [case["set"], case["backbone"], f"{heads['pictures']}", way["way"]]
            cells += [f"{cosine:.4f}" for cosine in (way["least"][-1], min(way["least"]))]
            for name in HEADS:
                both = (heads["ways"]["float32"][name], way[name])
                cells += [f"{percent(score['accuracy'])} ± {percent(score['se'])}" for score in both]
                cells.append(f"{100 * way[name]['gain']:+.1f} ± {percent(way[name]['gain_se'])}")
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def handed(cases: Mapping[str, Any]) -> list[str]:
    """What runs the frozen stages: milliseconds a picture, agreement and seconds to set up."""
    rows = headed("| case | asked for | taken | ms per picture | least cosine | set up, s |")
    for name, ways in cases.items():
        for way in ways:
            agreement = "" if way["agreement"] is None else f"{way['agreement']:.5f}"
            rows.append(
                f"| {name} | {way['asked'][1]}, {way['asked'][0]} | {way['way']} | {1000 * way['seconds']:.2f} | {agreement} | "
                f"{way['settling']:.1f} |"
            )
    return rows


def in_one_pass(cases: Mapping[str, Any]) -> list[str]:
    """Seconds of passes apart and together, medians of turns, by data set."""
    rows = headed("| data set | pictures | passes apart, s | one pass, s | saved |")
    for name, case in cases.items():
        apart, together = (median(case["seconds"][way]) for way in ("apart", "together"))
        rows.append(f"| {name} | {case['pictures']} | {apart:.1f} | {together:.1f} | {percent(case['saved'], 0)} % |")
    return rows


def by_step(cases: Mapping[str, Any]) -> list[str]:
    """A row per cut and way."""
    rows = headed("| frozen share | way | ms a step | times as fast | s before the first | steps that pay for them |")
    for case in cases.values():
        first, *_, compiled = case["ways"]
        plain = case["ways"][first]
        for way, found in case["ways"].items():
            saved = plain["step"] - found["step"]
            extra = max(0.0, found["first"] - plain["first"])
            pays = f"{extra / saved:,.0f}" if saved > 0 and way == compiled else ""
            rows.append(
                f"| {100 * case['frozen']:.0f} % | {way} | {1000 * found['step']:.0f} | {plain['step'] / found['step']:.2f} | "
                f"{found['first']:.1f} | {pays} |"
            )
    return rows


def raced_in(cases: Mapping[str, Any]) -> list[str]:
    """A row per size: seconds of the race and of scikit-learn on the last stage, and how right both are out of fold."""
    rows = headed(
        "| pictures | features, last stage of all | classes | folds | heads raced | seconds, whole race | accuracy, last stage | "
        "winner | scikit-learn, last stage alone: seconds | accuracy | load |"
    )
    for case in cases.values():
        widths, plain = case["widths"], case["scikit-learn"]
        rows.append(
            f"| {case['pictures']:,} | {widths[-1]:,} of {sum(widths):,} | {case['classes']} | {case['folds']} | {case['heads']} | "
            f"{case['seconds']:.1f} | {percent(case['last'])} | {percent(case['best'])} | {plain['seconds']:.1f} | "
            f"{percent(plain['accuracy'])} | {case['load']:.1f} |"
        )
    return rows


def against_limits(cases: Mapping[str, Any]) -> list[str]:
    """Rates of decoding, engine, extraction and prediction, against what they could be."""
    rows = headed(
        "| case | decoding alone, pictures/s | in processes | engine alone | limit | both on the same cores | "
        "extraction | limit ÷ extraction | the same, cold | first prediction, s | predictions/s | limit ÷ predictions | "
        "1,000 predictions with the start, s | × the limit |"
    )
    for name, case in cases.items():
        rates = case["rates"]
        rows.append(
            f"| {name} | {rates['decode']:.0f} | {rates['decode, processes']:.0f} | {rates['engine']:.0f} | {case['limit']:.0f} | "
            f"{case['together']:.0f} | {rates['extract']:.0f} | {case['limit'] / rates['extract']:.2f} | "
            f"{case['limit'] / rates['extract, cold']:.2f} | "
            f"{case['first_prediction_seconds']:.1f} | {case['prediction_rate']:.0f} | "
            f"{case['limit'] / case['prediction_rate']:.2f} | {case['prediction_seconds']:.1f} | "
            f"{case['prediction_seconds'] * case['limit'] / 1000:.2f} |"
        )
    return rows


def choosing(cases: Mapping[str, Any]) -> str:
    """By how many seconds a cold extraction is longer than one whose way to run is chosen."""
    took = [
        case["pictures"] * (1 / case["rates"]["extract, cold"] - 1 / case["rates"]["extract"])
        for case in cases.values()
    ]
    return " and ".join(f"{seconds:.1f} s" for seconds in took)


def at_the_limit(limits: Mapping[str, Any], speeds: Mapping[str, Any]) -> str:
    """What one pass over the training pictures of the speed suite would take at the limit of extraction, in words."""
    rates = {name.split()[0]: case["limit"] for name, case in limits.items()}
    found = {case["set"]: case["train"] / rates[case["set"]] for case in speeds.values() if case["set"] in rates}
    return " and ".join(f"{seconds:.1f} s ({name})" for name, seconds in found.items())


def decoding(cases: Mapping[str, Any]) -> str:
    """The share of decoding in the work of extraction, case by case."""
    shares = {
        name.split()[0]: rates["engine"] / (rates["decode"] + rates["engine"])
        for name, rates in ((name, case["rates"]) for name, case in cases.items())
    }
    return " and ".join(f"{percent(share, 0)} % ({name})" for name, share in shares.items())


def phases(found: Mapping[str, float]) -> str:
    """Seconds of each phase, in words."""
    return ", ".join(f"{phase} {digits(seconds)}" for phase, seconds in found.items())


def epochs_against_limits(cases: Mapping[str, Any]) -> list[str]:
    """An epoch of partial fine-tuning beside one of the whole network, against what it could be."""
    rows = headed(
        "| case | frozen share of the forward pass | epoch of the whole network, ms per picture | from the store | "
        "the same in float32 | times as fast | 1/(1 − share) |"
    )
    for name, case in cases.items():
        took = case["epoch_seconds_per_picture"]
        rows.append(
            f"| {name} | {percent(case['frozen_share'])} % | {1000 * took['whole']:.1f} | {1000 * took['cached']:.1f} | "
            f"{1000 * took['cached, float32']:.1f} | {case['partial_speedup']:.1f} | {case['ideal_speedup']:.1f} |"
        )
    return rows
