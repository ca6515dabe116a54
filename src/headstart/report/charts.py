"""Charts as inline SVG. Colours are CSS classes, which print and dark mode change; all text is escaped.

Two kinds: *tracks* are as wide as the page lets them be (positions in percent, so that text keeps its size),
*figures* have a drawing area of their own and shrink with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from headstart.report.text import shortened, shown

WIDTH, HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40


@dataclass(frozen=True)
class Axis:
    """From `low` to `high` with labelled `ticks`; `percent` writes shares as percentages, `doubling` what log2 was taken of."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ""
    percent: bool = False
    digits: int = 0
    doubling: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`, never outside."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def text(self, value: float) -> str:
        """A tick's label."""
        if self.doubling:
            return f"{2**value:,.0f}"
        return f"{100 * value:g}\u00a0%" if self.percent else f"{value:.{self.digits}f}"

    def exact(self, value: float) -> str:
        """A value between ticks, for a tooltip."""
        if self.doubling:
            return self.text(value)
        return f"{100 * value:.1f}\u00a0%" if self.percent else f"{value:.4g}"


def axis(
    values: Sequence[float],
    title: str = "",
    *,
    percent: bool = False,
    floor: float | None = None,
    ceiling: float | None = None,
    whole: bool = False,
    count: int = 5,
) -> Axis:
    """Round ends and ticks around `values`, not past `floor` and `ceiling`; `whole`: ticks at integers."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - (0.05 if percent else 0.5), high + (0.05 if percent else 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # A step of 0.025 needs three digits: the least number of them that writes it exactly.
    digits = next(d for d in range(20) if round(step * 10**d) and abs(step * 10**d % 1 - 0.5) > 0.499)
    ticks = [round(i * step, digits) for i in range(first, last + 1)]
    if floor is not None:
        ticks = [tick for tick in ticks if tick >= floor - 1e-9]
    if ceiling is not None:
        ticks = [tick for tick in ticks if tick <= ceiling + 1e-9]
    ends = [*ticks, low, high]
    return Axis(min(ends), max(ends), tuple(ticks), title, percent, digits)


def interval_track(value: float, low: float, high: float, scale: Axis, tone: str, name: str) -> Markup:
    """A dot with its interval on a scale, as wide as its box."""
    grid = Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(_percent(scale, tick))
        for tick in scale.ticks
    )
    label = f"{shown(name)}: {scale.exact(value)}, {scale.exact(low)} to {scale.exact(high)}"
    return Markup(
        '<svg class="track {tone}" width="100%" height="30" role="img"><title>{label}</title>{grid}'
        '<line class="whisker" x1="{low}%" x2="{high}%" y1="15" y2="15"/>'
        '<circle class="dot" cx="{value}%" cy="15" r="5"/></svg>'
    ).format(
        tone=tone,
        label=label,
        grid=grid,
        low=_percent(scale, low),
        high=_percent(scale, high),
        value=_percent(scale, value),
    )


def axis_track(scale: Axis) -> Markup:
    """The labels under a column of tracks."""
    marks = Markup("").join(
        Markup('<text x="{0}%" y="12" text-anchor="middle">{1}</text>').format(_percent(scale, tick), scale.text(tick))
        for tick in scale.ticks
    )
    return Markup('<svg class="track" width="100%" height="16" aria-hidden="true">{}</svg>').format(marks)


def _percent(scale: Axis, value: float) -> str:
    return f"{100 * scale.place(value):.2f}"


@dataclass(frozen=True)
class Line:
    """Points (x, y) of a `tone`, with dots and `joined` by a line or one of the two.

    `errors` are half-widths of whiskers, `radii` those of the dots; `ringed` is the place of one marked dot; `band` the lower and the
    upper end of an interval around each point.
    """

    points: Sequence[tuple[float, float]]
    tone: str
    errors: Sequence[float] = ()
    radii: Sequence[float] = ()
    ringed: int | None = None
    dots: bool = True
    joined: bool = True
    band: Sequence[tuple[float, float]] = ()


def line_figure(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    name: str,
    *,
    diagonal: bool = False,
    notes: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """Lines over labelled axes. `diagonal` draws x = y, what a calibrated model would follow; `notes` are centred on (x, y)."""
    parts = [_frame(x, y)]
    parts += [
        Markup('<text x="{}" y="{}" dy="4" text-anchor="middle">{}</text>').format(_x(px, x), _y(py, y), text)
        for px, py, text in notes
    ]
    if diagonal:
        ends = [(max(x.low, y.low),) * 2, (min(x.high, y.high),) * 2]
        parts.append(Markup('<path class="diagonal" d="{}"/>').format(_path(ends, x, y)))
    for line in lines:
        parts.append(Markup('<g class="{}">').format(line.tone))
        if line.band:
            along = [px for px, _ in line.points]
            lower, upper = (list(zip(along, ends, strict=True)) for ends in zip(*line.band, strict=True))
            parts.append(Markup('<path class="band" d="{}Z"/>').format(_path([*lower, *reversed(upper)], x, y)))
        for (px, py), error in zip(line.points, line.errors, strict=False):
            parts.append(
                Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                    _x(px, x), _y(py - error, y), _y(py + error, y)
                )
            )
        if line.joined:
            parts.append(Markup('<path class="line" d="{}"/>').format(_path(line.points, x, y)))
        for place, (px, py) in enumerate(line.points if line.dots else ()):
            kind = "dot ringed" if place == line.ringed else "dot"
            radius = line.radii[place] if line.radii else 3.5
            parts.append(
                Markup('<circle class="{}" cx="{}" cy="{}" r="{:.1f}"><title>{}: {}</title></circle>').format(
                    kind, _x(px, x), _y(py, y), radius, x.exact(px), y.exact(py)
                )
            )
        parts.append(Markup("</g>"))
    return _figure(WIDTH, HEIGHT, name, Markup("").join(parts))


def _figure(width: float, height: float, name: str, inside: Markup, kind: str = "figure") -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" style="max-width:{:g}px" role="img"><title>{}</title>{}</svg>'
    ).format(kind, width, height, width * 1.25 if kind == "figure" else width, name, inside)


def _frame(x: Axis, y: Axis) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dy="4" '
            'text-anchor="end">{}</text>'
        ).format(_LEFT, right, _LEFT - 6, y.text(tick), y=_y(tick, y))
        for tick in y.ticks
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(_x(tick, x), bottom + 16, x.text(tick))
        for tick in x.ticks
    ]
    parts.append(Markup('<line class="rule" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(_LEFT, right, y=bottom))
    middle = (_LEFT + right) / 2
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 6, x.title)
    )
    return Markup("").join(parts)


def _x(value: float, scale: Axis) -> str:
    return f"{_LEFT + scale.place(value) * (WIDTH - _LEFT - _RIGHT):.1f}"


def _y(value: float, scale: Axis) -> str:
    return f"{HEIGHT - _BOTTOM - scale.place(value) * (HEIGHT - _TOP - _BOTTOM):.1f}"


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{_x(px, x)} {_y(py, y)}" for px, py in points) if points else ""


def heat_map(confusion: Sequence[tuple[int, int, int]], names: Sequence[str]) -> Markup:
    """Rows are labels, columns predictions; a cell's strength is its share of the row, its text the count."""
    cell, count = 30, len(names)
    whole = [shown(name) for name in names]
    labels = [shortened(name, 20) for name in whole]
    margin = 14 + 6.4 * max(len(label) for label in labels)
    totals = _row_totals(confusion, count)
    parts = [Markup('<rect class="sheet" x="{0}" y="{0}" width="{1}" height="{1}"/>').format(margin, cell * count)]
    for row, column, number in confusion:
        share = number / totals[row]
        left, top = margin + column * cell, margin + row * cell
        kind = "hit" if row == column else "miss"
        parts.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill-opacity="{:.2f}">'
                "<title>{} → {}: {}</title></rect>"
                '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
            ).format(
                kind,
                left + 1,
                top + 1,
                cell - 2,
                cell - 2,
                0.12 + 0.88 * share,
                whole[row],
                whole[column],
                number,
                "count strong" if share > 0.5 else "count",
                left + cell / 2,
                top + cell / 2 + 4,
                number,
            )
        )
    for place, label in enumerate(labels):
        middle = margin + (place + 0.5) * cell
        parts.append(
            Markup(
                '<text x="{0}" y="{1}" dy="4" text-anchor="end"><title>{3}</title>{2}</text>'
                '<text transform="translate({1} {0}) rotate(-90)" dy="4"><title>{3}</title>{2}</text>'
            ).format(f"{margin - 7:.1f}", f"{middle:.1f}", label, whole[place])
        )
    side = margin + cell * count + 6
    return _figure(side, side, "Confusion matrix", Markup("").join(parts), "matrix")


def compact_heat_map(confusion: Sequence[tuple[int, int, int]], classes: int, cells: int = 64) -> Markup:
    """A confusion matrix without names; neighbours share a cell where they are more than `cells`, of which as much counts as right as
    is."""
    per_cell = math.ceil(classes / cells)
    count, size = math.ceil(classes / per_cell), 6
    sums: dict[tuple[int, int], int] = {}
    right: dict[tuple[int, int], int] = {}
    for row, column, number in confusion:
        place = (row // per_cell, column // per_cell)
        sums[place] = sums.get(place, 0) + number
        right[place] = right.get(place, 0) + number * (row == column)
    totals = _row_totals([(row, column, number) for (row, column), number in sums.items()], count)

    def cell(tone: str, place: tuple[int, int], start: float, width: float) -> Markup:
        (row, column), opacity = place, 0.15 + 0.85 * sums[place] / totals[place[0]]
        return Markup('<rect class="{}" x="{:g}" y="{}" width="{:g}" height="{}" fill-opacity="{:.2f}"/>').format(
            tone, column * size + start, row * size, width, size, opacity
        )

    parts = [Markup('<rect class="sheet" x="0" y="0" width="{0}" height="{0}"/>').format(count * size)]
    for place in sorted(sums):
        blue = size * right[place] / sums[place]  # as wide as its share
        parts += [cell("hit", place, 0.0, blue)] * (blue > 0) + [cell("miss", place, blue, size - blue)] * (blue < size)
    return _figure(count * size, count * size, "Confusion matrix", Markup("").join(parts), "matrix")


def _row_totals(confusion: Sequence[tuple[int, int, int]], classes: int) -> list[int]:
    totals = [0] * classes
    for row, _, number in confusion:
        totals[row] += number
    return totals
