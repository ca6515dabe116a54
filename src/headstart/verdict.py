"""Did the pretrained weights earn their keep? A pure function of the test report, answered in plain words."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from headstart.errors import DataError
from headstart.evaluate import RESAMPLED_GROUPS, Difference, TestReport

Outcome = Literal["helped", "hurt", "not distinguishable"]

# The opponents: nothing here has seen another data set.
BASELINES = {
    "scratch_cnn": "a small network trained from scratch",
    "pixels": "a linear model on raw pixels",
    "majority": "always answering the commonest class",
}
LEVEL = 0.05
TIE = 0.005  # half a point: less than this is a tie, however sure
MARGIN = 0.05  # by which a simpler model may be behind for all that the test says, and still tie
DECIDES = 5  # pictures that are not of the commonest class: fewer cannot show that a model tells them from it
WIDE = 0.20  # an interval wider than ±10 points


class Verdict(BaseModel):
    """Whether transfer helped, in a sentence, with its reasons and what to be careful about.

    `baseline` is the most accurate model without pretrained weights; `overkill` says that a much simpler
    model ties with the final one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    overkill: bool
    baseline: str
    sentence: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def decide_verdict(
    report: TestReport, *, final: str = "final", head: str = "head", unfinished: str | None = None
) -> Verdict:
    """Compare `final` with the best baseline that used no pretrained weights, by accuracy.

    *helped* needs the paired bootstrap interval above zero and the sign test to agree at 5 %. *hurt* needs
    both below, the test at 5 % divided by the number of baselines: the best of several is lucky, and would
    beat an equal model too often. (For *helped* that luck works against us, and no correction is due.) All
    else is *not distinguishable*. An opponent that ran out of time is not beaten: with a baseline `unfinished`, nothing *helped*.

    Raises:
        DataError: where the report holds no baseline, or not its paired difference.
    """
    present = [name for name in BASELINES if name in report.models]
    if final not in report.models or not present:
        raise DataError(
            f"Got a report of {sorted(report.models)}; a verdict needs '{final}' and one of {list(BASELINES)}."
        )
    # Of equals one that ran to its end.
    best = max(present, key=lambda name: (report.models[name].accuracy.value, name != unfinished))
    gain = _paired(report, final, best)
    found = _outcome(gain, len(present))
    outcome: Outcome = "not distinguishable" if found == "helped" and unfinished is not None else found
    simple = _simple_tie(report, final, present)
    decided = [
        _decided(gain, found, len(present), grouped=report.groups is not None),
        *([_instead(BASELINES[best])] if outcome == "hurt" else []),
    ]
    return Verdict(
        outcome=outcome,
        overkill=simple is not None,
        baseline=best,
        sentence=_sentence(report, final, best, gain, outcome, unfinished if outcome != found else None),
        reasons=(*decided, *_reasons(report, final, head, simple)),
        warnings=tuple(_warnings(report, final, gain, unfinished)),
    )


def _paired(report: TestReport, a: str, b: str) -> Difference:
    found = report.difference(a, b)
    if found is None:
        raise DataError(f"The report lacks the paired accuracy difference of '{a}' and '{b}'.")
    return found


def _outcome(gain: Difference, baselines: int) -> Outcome:
    p = 1.0 if gain.p is None else gain.p
    if gain.low > 0 and p <= LEVEL:
        return "helped"
    if gain.high < 0 and p <= LEVEL / baselines:
        return "hurt"
    return "not distinguishable"


def _simple_tie(report: TestReport, final: str, present: list[str]) -> str | None:
    """The best simple model that `final` does not beat, that is surely no more than `MARGIN` behind it (a test of equivalence,
    Schuirmann 1987), and that clearly beats the majority class, if there is one.

    One that is surely better is no tie but the verdict itself.
    """
    ties = []
    for name in present:
        gap, above = report.difference(final, name), report.difference(name, "majority")
        if name == "majority" or gap is None or above is None or _outcome(above, 1) != "helped":
            continue
        if gap.high <= MARGIN and (gap.low <= 0 or gap.value <= TIE) and _outcome(gap, len(present)) != "hurt":
            ties.append(name)
    return max(ties, key=lambda name: report.models[name].accuracy.value, default=None)


def percent(share: float) -> str:
    """0.9619 -> "96.2 %"."""
    return f"{100 * share:.1f} %"


def points(difference: Difference, sign: int = 1) -> str:
    """A difference of shares: "21.0 points (17.1 to 24.9)"; with `sign` -1 told the other way round."""
    value, *ends = (sign * 100 * x for x in (difference.value, difference.low, difference.high))
    low, high = sorted(ends)
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(value, 1) + 0.0:.1f} points ({round(low, 1) + 0.0:.1f} to {round(high, 1) + 0.0:.1f})"


def _sentence(
    report: TestReport, final: str, best: str, gain: Difference, outcome: Outcome, unfinished: str | None
) -> str:
    """What was found; `unfinished` where nothing can be told for want of that baseline alone."""
    share, opponent = percent(report.models[final].accuracy.value), BASELINES[best]
    if report.protocol == "sealed test":
        where = f"{share} of the {report.images:,} sealed test images are right"
    else:
        where = f"in repeated cross-validation on {report.images:,} images (no test set was cut) {share} are right"
    if outcome == "helped":
        return f"Transfer helped: {where}, {points(gain)} more than {opponent}."
    if outcome == "hurt":
        return f"Transfer hurt: {where}, {points(gain, -1)} fewer than {opponent}."
    other = percent(report.models[best].accuracy.value)
    why = "" if unfinished is None else f", as {BASELINES[unfinished]} had no time to end"
    return (
        f"Whether transfer helped cannot be told{why}: {where}, against {other} for {opponent}; "
        f"the difference is {points(gain)}."
    )


def _instead(opponent: str) -> str:
    return (
        f"What these weights know is in the way here. Next: try others (headstart backbones lists them), or do without, as "
        f"{opponent} does; and look whether the images are of the kind that these weights were made for."
    )


def _reasons(report: TestReport, final: str, head: str, simple: str | None) -> list[str]:
    reasons = []
    added = report.difference(final, head)
    if added is not None:
        reasons.append(_added(added))
    if simple is not None:
        above = _paired(report, simple, "majority")
        share = percent(report.models[simple].accuracy.value)
        reasons.append(
            f"Pretrained weights are overkill here: {BASELINES[simple]} reaches {share}, {_behind(report, final, simple)}, and is "
            f"{points(above)} above {BASELINES['majority']}. Next: train that one on its own if size and speed count, or label "
            "harder images, on which the two would differ."
        )
    if report.groups is not None:
        reasons.append(
            f"The {report.images:,} images are of {report.groups:,} groups: near-duplicates, or what was said to belong together. "
            "Each group counts as one in intervals and tests, as its pictures tend to be right or wrong together."
        )
    if report.protocol != "sealed test":
        few = "the data" if report.groups is None else "the data, or the groups that they come in,"
        reasons.append(
            f"No test set was cut, because {few} are too few: each image was predicted {report.repeats} "
            f"time{'s' if report.repeats > 1 else ''} by models that had not seen it."
        )
    return reasons


def _behind(report: TestReport, final: str, simple: str) -> str:
    most = max(0.0, _paired(report, final, simple).high)
    return f"which is at most {100 * most:.1f} points worse" if most else "which is no worse"


def _decided(gain: Difference, outcome: Outcome, baselines: int, *, grouped: bool) -> str:
    said = _chance(gain)
    if outcome != "not distinguishable":
        return f"The paired 95 % interval leaves out zero, and the sign test agrees ({said})."
    if gain.low <= 0 <= gain.high:
        return f"The paired 95 % interval holds zero (sign test: {said})."
    level = LEVEL if gain.value > 0 else LEVEL / baselines
    against = "" if gain.value > 0 else f", its level for the best of {baselines} baselines"
    few = "groups" if grouped else "images"
    return (
        f"The paired interval leaves out zero, but too few {few} decide it: the sign test gives {said}, "
        f"above {level:.3f}{against}."
    )


def _chance(difference: Difference) -> str:
    p = 1.0 if difference.p is None else difference.p
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _added(added: Difference) -> str:
    if added.low == added.high == 0:
        return "The final model answers as the head on frozen features does: no fine-tuning was kept."
    if added.low > 0:
        return f"Fine-tuning added {points(added)} over the head on frozen features."
    if added.high < 0:
        return f"Fine-tuning lost {points(added, -1)} against the head on frozen features. To have that head, run with --plan head."
    return f"Fine-tuning added nothing that this test can show over the head on frozen features: {points(added)}."


def _no_better(report: TestReport, final: str) -> str:
    """Of a model that is not surely right more often than the commonest class."""
    commonest = max(report.classes, key=lambda row: row.support, default=None)
    balanced, above = report.difference(final, "majority", "balanced_accuracy"), _paired(report, final, "majority")
    others = report.images - (commonest.support // report.repeats if commonest else 0)
    if commonest is not None and others < DECIDES:
        return (
            f"All but {others} of the {report.images:,} images tested are of one class, "
            f"'{commonest.name}': accuracy cannot show "
            "whether this model finds the others. Add pictures of them."
        )
    if above.low > 0:
        few, more = (
            ("images", "pictures") if report.groups is None else ("groups of images", "pictures of other groups")
        )
        return (
            f"This model is right more often than {BASELINES['majority']}, by {points(above)}, but too few {few} say so: the sign "
            f"test gives {_chance(above)}, above {LEVEL:.3f}. Add {more}."
        )
    if balanced is not None and balanced.low > 0:
        return (
            f"This model is not surely right more often than {BASELINES['majority']}, but it finds the others: its balanced accuracy "
            f"is {points(balanced)} higher. Judge it by that, and add pictures of the rare classes."
        )
    return (
        f"Nothing shows that this model is better than {BASELINES['majority']}: it should not be used as it is. "
        "Look at the labels (doubts.csv), then label more."
    )


def _warnings(report: TestReport, final: str, gain: Difference, unfinished: str | None) -> list[str]:
    warnings = []
    if unfinished is not None:
        warnings.append(
            f"Time ran out before {BASELINES[unfinished]} was trained as long as is fair: its result is a lower bound, and nothing "
            "can be shown to be better. Give more --budget."
        )
    shown = [row.name for row in report.classes if row.support]
    if len(shown) == 1:
        warnings.append(
            f"All images tested are of one class, '{shown[0]}': they can show nothing about telling classes apart. Add pictures of "
            "the others, or give a test set that has some."
        )
    if report.groups is not None and report.groups < RESAMPLED_GROUPS:
        warnings.append(
            f"The {report.images:,} images tested are of {report.groups} group{'s' if report.groups > 1 else ''} alone: how others "
            "would be answered is hardly known, and no difference can be sure. Add pictures of other groups."
        )
    own = report.models[final].accuracy
    if own.high - own.low > WIDE:
        warnings.append(
            f"The accuracy is known only within {percent(own.low)} to {percent(own.high)}: "
            f"{report.images:,} images are few. Label more before relying on it."
        )
    above = report.difference(final, "majority")
    if above is not None and _outcome(above, 1) != "helped":
        warnings.append(_no_better(report, final))
    if gain.high - gain.low > WIDE:
        warnings.append(
            f"The difference is known only to ±{50 * (gain.high - gain.low):.0f} points with {report.images:,} images: read the "
            "verdict with care, and label more to sharpen it."
        )
    if report.protocol != "sealed test":
        warnings.append(
            "Cross-validated models share most of their training images: true intervals are somewhat wider. "
            "With more pictures of each class a test set is cut."
        )
    return warnings
