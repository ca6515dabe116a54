"""Axes, places on charts, and numbers as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.report import text
from headstart.report.charts import Axis, Line, axis, compact_heat_map, heat_map, interval_track, line_figure

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20))
def test_an_axis_holds_its_values_and_few_even_ticks(values: list[float]) -> None:
    found = axis(values)
    assert found.low <= min(values) and found.high >= max(values)
    assert 2 <= len(found.ticks) <= 8
    steps = [b - a for a, b in zip(found.ticks, found.ticks[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-4)
    assert len({found.text(tick) for tick in found.ticks}) == len(found.ticks)  # no two ticks read the same


def test_an_axis_of_shares_stops_at_one_hundred_percent() -> None:
    found = axis([0.912, 0.998], percent=True, floor=0.0, ceiling=1.0)
    assert found.ticks[-1] == 1.0 and found.high == 1.0
    assert found.text(found.ticks[-1]) == "100\u00a0%"


def test_a_track_places_value_and_interval_in_percent() -> None:
    svg = interval_track(0.5, 0.25, 0.75, axis([0.0, 1.0], percent=True), "plain", "<b>")
    assert 'cx="50.00%"' in svg and 'x1="25.00%" x2="75.00%"' in svg
    assert "&lt;b&gt;: 50.0\u00a0%, 25.0\u00a0% to 75.0\u00a0%" in svg


def test_lines_run_from_bottom_left_to_top_right() -> None:
    scale = axis([0.0, 1.0])
    svg = line_figure([Line([(0.0, 0.0), (1.0, 1.0)], "plain")], scale, scale, "up")
    path = re.search(r'class="line" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    assert path is not None
    x0, y0, x1, y1 = map(float, path.groups())
    assert x0 < x1 and y0 > y1


def test_a_band_lies_around_its_line_and_a_doubling_axis_says_what_was_doubled() -> None:
    x, y = Axis(5, 7, (5, 6, 7), doubling=True), axis([0.0, 1.0], percent=True)
    svg = line_figure([Line([(6, 0.5), (7, 0.6)], "plain", band=[(0.4, 0.7), (0.5, 0.8)])], x, y, "more")
    assert [x.text(tick) for tick in x.ticks] == re.findall(r">(\d+)</text>", svg) == ["32", "64", "128"]
    band = re.search(r'class="band" d="M([^"]+)Z"', svg)
    assert band is not None
    left_low, right_low, right_high, left_high = [tuple(map(float, p.split())) for p in band[1].split("L")]
    assert left_low[0] == left_high[0] < right_low[0] == right_high[0]
    assert left_low[1] > left_high[1] and right_low[1] > right_high[1]
    assert "64: 50.0" in svg


def test_a_heat_map_draws_each_count_once() -> None:
    svg = heat_map([(0, 0, 8), (0, 1, 2), (1, 1, 5)], ["cat", "<dog>"])
    assert svg.count('class="hit"') == 2 and svg.count('class="miss"') == 1
    assert "cat → &lt;dog&gt;: 2" in svg
    assert 'fill-opacity="1.00"' in svg and 'fill-opacity="0.30"' in svg  # 0.12 + 0.88 · 2/10


def test_a_heat_map_tells_long_names_apart() -> None:
    names = [f"Inocybe geophylla var. {kind} sensu lato" for kind in ("lilacina", "violacea")]
    svg = heat_map([(0, 1, 2)], names)
    assert f"{names[0]} → {names[1]}: 2" in svg
    assert all(
        svg.count(f"<title>{name}</title>Inocybe g…") == 2 for name in names
    )  # where it stands at rows and columns


def test_a_compact_heat_map_is_bounded_and_keeps_the_diagonal() -> None:
    cells = [(k, (k + shift) % 1000, 3) for k in range(1000) for shift in (0, 7, 500)]
    svg = compact_heat_map(cells, 1000)
    assert len(svg) < 64 * 64 * 100
    assert svg.count('class="hit"') == 63


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.42, "0.4 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 0 min"),
        (8000, "2 h 13 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said.replace(" ", "\N{NO-BREAK SPACE}")


def test_quantities_and_memory() -> None:
    assert [text.quantity(n) for n in (0, 950, 4_652_008, 407e6, 1.2e12)] == [
        "0",
        "950",
        "4.65 M",
        "407 M",
        "1.2 T",
    ]
    assert [text.memory(n) for n in (12, 1_500_000_000)] == ["12 B", "1.5 GB"]


def test_names_are_shortened_in_the_middle() -> None:
    assert text.shortened("x" * 10, 10) == "x" * 10
    assert text.shortened("species_alpha_2041", 9) == "spec…2041"
    assert all(len(text.shortened("abcdefghij", n)) == n for n in range(2, 10))
