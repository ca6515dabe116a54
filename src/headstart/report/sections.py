"""From the report's records to what each section draws: bounded, ordered, with a note on what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from headstart.evaluate import ClassRow, Difference, Scores, TestReport
from headstart.intervals import Interval, exact_share
from headstart.report.charts import (
    Axis,
    Line,
    axis,
    axis_track,
    compact_heat_map,
    heat_map,
    interval_track,
    line_figure,
)
from headstart.report.record import CurvePoint, ReportData, RungRow, StageRow
from headstart.report.text import MODELS

if TYPE_CHECKING:  # without torch
    from headstart.diagnosis.growth import Growth
    from headstart.diagnosis.similarity import Similarity

NAMED_CELLS = 30  # classes up to which the confusion matrix has names
BARS = 40
CONFUSIONS = 15
CLASS_ROWS = 60
ITEMS = 12


@dataclass(frozen=True)
class ModelRow:
    """One model of the baselines chart and table; `ahead` is how far the final model lies above it; no temperature was fitted to what
    is `uncalibrated`."""

    name: str
    scores: Scores
    tone: str
    track: Markup
    ahead: Difference | None
    uncalibrated: bool


@dataclass(frozen=True)
class Bar:
    """A labelled bar of parts: (tone, percent of the full width, text)."""

    name: str
    parts: tuple[tuple[str, float, str], ...]
    text: str


@dataclass(frozen=True)
class Confusion:
    """How often `label` was taken for `predicted`, of how many."""

    label: str
    predicted: str
    count: int
    support: int


def models(test: TestReport, uncalibrated: Sequence[str] = ()) -> tuple[list[ModelRow], Markup]:
    """The rows of the baselines chart, transfer first, and its axis."""
    order = [name for name in MODELS if name in test.models]
    order += [name for name in test.models if name not in MODELS]
    lows = [test.models[name].accuracy.low for name in order]
    scale = axis(
        [*lows, 1.0 if max(lows) > 0.5 else max(test.models[n].accuracy.high for n in order)],
        percent=True,
        floor=0.0,
        ceiling=1.0,
    )
    rows = []
    for name in order:
        scores, spoken = test.models[name], MODELS.get(name, name).capitalize()
        tone = "transfer" if name in ("final", "head", "last_stage_head") else "plain"
        found = scores.accuracy
        track = interval_track(found.value, found.low, found.high, scale, tone, spoken)
        rows.append(ModelRow(spoken, scores, tone, track, test.difference("final", name), name in uncalibrated))
    return rows, axis_track(scale)


def strips(stages: Sequence[StageRow]) -> list[Bar]:
    """The network drawn twice, stem first: stages as wide as their share of compute, and of parameters."""
    found = []
    for what in ("Compute", "Parameters"):
        sizes = [stage.flops if what == "Compute" else stage.parameters for stage in stages]
        total = sum(sizes) or 1
        parts = tuple(
            ("frozen" if stage.frozen else "trained", 100 * size / total, f"{place}")
            for place, (stage, size) in enumerate(zip(stages, sizes, strict=True), start=1)
        )
        still = sum(size for stage, size in zip(stages, sizes, strict=True) if stage.frozen)
        found.append(Bar(what, parts, f"{100 * still / total:.0f} % frozen"))
    return found


def profile(stages: Sequence[StageRow]) -> Markup | None:
    """Cross-validated accuracy of a head on each stage alone, along the depth."""
    known = [(place, s.accuracy, s.accuracy_se or 0.0) for place, s in enumerate(stages, 1) if s.accuracy is not None]
    if not known:
        return None
    points = [(float(place), accuracy) for place, accuracy, _ in known]
    best = max(range(len(points)), key=lambda place: points[place][1])
    y = axis([a - e for _, a, e in known] + [a + e for _, a, e in known], percent=True, floor=0.0, ceiling=1.0)
    x = axis([1, len(stages)], "stage, from the image to the output", whole=True, count=8)
    line = Line(points, "transfer", [error for _, _, error in known], ringed=best)
    return line_figure([line], x, y, "Depth profile: accuracy of a head on each stage")


def curves(rung: RungRow) -> tuple[Markup, Markup] | None:
    """Two figures of one rung, or None without a curve: held-out accuracy, and both losses, by epoch."""
    epochs = [float(point.epoch) for curve in rung.curves for point in curve]
    if not epochs:
        return None
    # Past half a dozen folds the lines hide each other.
    shown = rung.curves[:6]
    x = axis(epochs, "epoch", whole=True, count=6, floor=min(epochs))
    accuracy = [_line(curve, "val_accuracy", "transfer") for curve in shown]
    losses = [_line(curve, "train_loss", "plain") for curve in shown]
    losses += [_line(curve, "val_loss", "transfer") for curve in shown]
    return (
        _curve_figure(accuracy, x, f"{rung.name}: held-out accuracy over epochs", percent=True),
        _curve_figure(losses, x, f"{rung.name}: training and held-out loss over epochs", percent=False),
    )


def _line(curve: Sequence[CurvePoint], what: str, tone: str) -> Line:
    values = {
        "train_loss": [p.train_loss for p in curve],
        "val_loss": [p.val_loss for p in curve],
        "val_accuracy": [p.val_accuracy for p in curve],
    }[what]
    points = [
        (float(point.epoch), value)
        for point, value in zip(curve, values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    return Line(points, tone, dots=len(points) < 12)


def _curve_figure(lines: Sequence[Line], x: Axis, name: str, *, percent: bool) -> Markup:
    values = [value for line in lines for _, value in line.points] or [0.0, 1.0]
    y = axis(values, percent=percent, floor=0.0, ceiling=1.0 if percent else None)
    return line_figure(lines, x, y, name)


def growth(found: Growth) -> Markup:
    """Accuracy against the number of training pictures: measured, and foretold with its interval; every tick doubles them."""
    measured = [(math.log2(pictures), accuracy) for pictures, accuracy in found.measured]
    foretold = [(math.log2(each.pictures), each.accuracy) for each in found.foretold]
    band = [(each.low, each.high) for each in found.foretold]
    values = [accuracy for _, accuracy in measured] + [end for ends in band for end in ends]
    low, high = measured[0][0], foretold[-1][0]
    ticks = tuple(high - step for step in range(math.floor(high - low + 0.02), -1, -1))
    x = Axis(low, high, ticks, "labelled training pictures", doubling=True)
    y = axis(values, percent=True, floor=0.0, ceiling=1.0)
    lines = [
        Line(foretold, "transfer", dots=False, band=band),
        Line([foretold[place] for place in (2, 4) if place < len(foretold)], "transfer", joined=False),
        Line(measured, "plain"),
    ]
    return line_figure(lines, x, y, "Accuracy of the frozen head against the number of training pictures")


def quadrant(found: Similarity) -> Markup | None:
    """Training pictures against the distance from the source, both edges, and this data set; None where no distance is known."""
    distance = found.shift.distance
    if distance is None:
        return None
    many, near = math.log2(found.edges[0]), found.edges[1]
    here = math.log2(max(1, found.pictures))
    x = Axis(min(5.0, here - 1), max(15.0, here + 1), (6.0, 8.0, 10.0, 12.0, 14.0), "training pictures", doubling=True)
    y = Axis(0.0, max(0.2, 1.1 * distance), (0.0, 0.05, 0.1, 0.15, 0.2), digits=2)
    lines = [
        Line([(many, y.low), (many, y.high)], "plain", dots=False),
        Line([(x.low, near), (x.high, near)], "plain", dots=False),
        Line([(here, distance)], "transfer", joined=False, ringed=0),
    ]
    notes = [
        ((side + many) / 2, height, text)
        for side, height, text in (
            (x.low, 0.92 * y.high, "few, unlike"), (x.high, 0.92 * y.high, "many, unlike"),
            (x.low, 0.15 * near, "few, alike"), (x.high, 0.15 * near, "many, alike"),
        )
    ]  # fmt: skip
    return line_figure(lines, x, y, "Training pictures against the distance from the source", notes=notes)


def class_bars(data: ReportData) -> tuple[list[Bar], str]:
    """Images per class, split by side; of many classes the largest and the smallest."""
    rows = (
        sorted(data.audit.classes, key=lambda row: -row.images)
        if len(data.audit.classes) > BARS
        else list(data.audit.classes)
    )
    note = ""
    if len(rows) > BARS:
        note = f"The {BARS // 2} largest and the {BARS // 2} smallest of {len(rows):,} classes."
        rows = rows[: BARS // 2] + rows[-BARS // 2 :]
    widest = max((row.images for row in rows), default=1) or 1
    bars = []
    for row in rows:
        sides = (("train", row.train), ("val", row.val), ("test", row.test))
        parts = tuple((side, 100 * count / widest, f"{side}: {count:,}") for side, count in sides if count)
        bars.append(Bar(row.name, parts, f"{row.images:,}"))
    return bars, note


def confusion(test: TestReport) -> Markup:
    """The confusion matrix, with names where there is room for them."""
    names = [row.name for row in test.classes]
    if len(names) <= NAMED_CELLS:
        return heat_map(test.confusion, names)
    return compact_heat_map(test.confusion, len(names))


def confusions(test: TestReport) -> list[Confusion]:
    """The classes taken for another most often."""
    wrong = sorted((cell for cell in test.confusion if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell))
    return [
        Confusion(test.classes[label].name, test.classes[predicted].name, count, test.classes[label].support)
        for label, predicted, count in wrong[:CONFUSIONS]
    ]


def class_rows(test: TestReport) -> tuple[list[ClassRow], str]:
    """Rows of the per-class table; of many classes those with the lowest F1."""
    if len(test.classes) <= CLASS_ROWS:
        return list(test.classes), ""
    tested = [row for row in test.classes if row.f1 is not None]
    worst = sorted(tested, key=lambda row: (row.f1 or 0.0, row.name))[:CLASS_ROWS]
    none = sum(row.f1 == 0 for row in tested)
    if none > len(worst):
        return worst, f"{none:,} of {len(test.classes):,} classes have no right answer; {len(worst)} of them are shown."
    return worst, f"The {len(worst)} classes with the lowest F1 of {len(test.classes):,}."


def recall(row: ClassRow, repeats: int) -> str:
    """The exact interval of a class's recall: "39 to 100 %"."""
    count = row.support / repeats
    low, high = exact_share((row.recall or 0.0) * count, count)
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def reliability(test: TestReport) -> Markup:
    """How often right, against how sure: calibrated, and before calibration where it is known."""
    lines = []
    for bins, tone in ((test.reliability_uncalibrated, "plain"), (test.reliability, "transfer")):
        if bins is not None:
            total = sum(one.count for one in bins)
            # The area of a dot tells how many images stand behind it: a bin of three says little.
            radii = [1.5 + 7 * math.sqrt(one.count / total) for one in bins]
            points = [(one.confidence, one.accuracy) for one in bins]
            lines.append(Line(points, tone, radii=radii, joined=False))
    x, y = axis([0.0, 1.0], "how sure the model was", percent=True), axis([0.0, 1.0], percent=True)
    return line_figure(lines, x, y, "Reliability: how often right against how sure", diagonal=True)


def phases(data: ReportData) -> list[tuple[str, float, float]]:
    """(phase, seconds, percent of the longest), without the total."""
    named = [(name, spent) for name, spent in data.seconds.items() if name != "total"]
    longest = max((spent for _, spent in named), default=0.0) or 1.0
    return [(name, spent, 100 * spent / longest) for name, spent in named]


def total_seconds(data: ReportData) -> float:
    """The run's wall time: "total" where it is given, else the sum of phases."""
    return data.seconds.get("total", sum(data.seconds.values()))


def interval(found: Interval, *, percent: bool) -> str:
    """ "94.3 to 97.6 %" or "0.112 to 0.187"."""
    if percent:
        return f"{100 * found.low:.1f} to {100 * found.high:.1f} %"
    return f"{found.low:.3f} to {found.high:.3f}"
