"""Fit what fine-tuning may be expected to gain to the depth suite, and test it on data sets that were left out.

    python benchmarks/forecast.py

Writes src/headstart/forecast.json from benchmarks/results/depth.json. Rungs answer together with the frozen head, as those do that
are kept on little evidence. Nothing is fitted to the data set `UNSEEN`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cells import headed
from contest import LITE
from headstart.forecast import PROMISING, WORTH, Forecast, terms
from headstart.planner import FEW_IMAGES, epochs_for
from regret import JUDGED, LADDER

import numpy as np  # isort: skip
from scipy.optimize import nnls  # isort: skip
from scipy.stats import spearmanr  # isort: skip

HERE = Path(__file__).parent
RECORD, LEARNT = HERE / "results" / "depth.json", HERE.parent / "src" / "headstart" / "forecast.json"
RUNGS = ("from 6", "from 4")  # alone and unjudged: where plans cut
UNSEEN = "groceries"  # no number is fitted to it: it tells what they are worth on data that they have never met
LEAST = 0.01  # standard error that is left to what pictures say, at least: a dozen data sets are no proof of less


@dataclass(frozen=True, eq=False)
class Recorded:
    """Rungs that were tried: what was known before (M, 3), gains (M,), the data set of each (M,), and training pictures (M,)."""

    terms: np.ndarray
    gain: np.ndarray
    source: np.ndarray
    images: np.ndarray
    place: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, cases: Mapping[str, Any]) -> Recorded:
        rows = [
            (_terms(case), _share(rung["right_with_head"]) - _share(case["right"]["head"]), case["set"],
             case["images"], (key, name))
            for key, case in cases.items()
            for name, rung in case["rungs"].items()
            if name in RUNGS
        ]  # fmt: skip
        known, gains, sources, images, places = zip(*rows, strict=True)
        return cls(np.array(known), np.array(gains), np.array(sources), np.array(images), places)

    def weights(self, chosen: np.ndarray) -> np.ndarray:
        """Least squares over the `chosen` rungs (M,) bool."""
        return np.linalg.lstsq(self.terms[chosen], self.gain[chosen], rcond=None)[0]

    def left_out(self, chosen: np.ndarray) -> np.ndarray:
        """Forecasts (M,) of the `chosen` rungs, for every data set by weights that it had no part in; 0 for the others."""
        found = np.zeros(len(self.gain))
        for source in np.unique(self.source[chosen]):
            inside = self.source == source
            found[inside & chosen] = self.terms[inside & chosen] @ self.weights(~inside & chosen & _fitted(self.source))
        return found

    def errors(self, chosen: np.ndarray) -> np.ndarray:
        """Standard error of a forecast: a constant, and one times the first term, from `chosen` rungs of sets that were left out."""
        squares = (self.left_out(chosen) - self.gain)[chosen] ** 2
        return np.sqrt(nnls(np.stack([np.ones_like(squares), self.terms[chosen, 0] ** 2], axis=1), squares)[0])

    def spread(self) -> np.ndarray:
        """Standard errors (M,) of forecasts, for every data set by numbers that it had no part in."""
        found = np.empty(len(self.gain))
        for source in np.unique(self.source):
            inside = self.source == source
            constant, slope = self.errors(~inside & _fitted(self.source))
            found[inside] = np.hypot(constant, slope * self.terms[inside, 0])
        return found


@dataclass(frozen=True, eq=False)
class Seen:
    """Rungs that were judged: by how much likelier they made held-out labels and the standard error (M, 2), what they gained on the
    test (M,), the forecasts of it, gain and error (M, 2), and the data set of each (M,)."""

    likelier: np.ndarray
    gain: np.ndarray
    told: np.ndarray
    source: np.ndarray

    @classmethod
    def of(cls, cases: Mapping[str, Any]) -> Seen | None:
        """None where no rung was judged yet."""
        recorded = Recorded.of(cases)
        told, error = recorded.left_out(np.full(len(recorded.gain), True)), recorded.spread()
        row = {place: number for number, place in enumerate(recorded.place)}
        found = []
        for name, case in cases.items():
            seen = case["rungs"].get(JUDGED)
            number = None if seen is None else row.get((name, f"from {seen['cut']}"))
            if seen is not None and number is not None:
                pair = seen["likelier"], seen["likelier_se"]
                found.append((pair, recorded.gain[number], (told[number], error[number]), case["set"]))
        if not found:
            return None
        likelier, gain, both, source = zip(*found, strict=True)
        return cls(np.array(likelier), np.array(gain), np.array(both), np.array(source))

    def line(self, chosen: np.ndarray) -> np.ndarray:
        """Constant and slope of the gain by least squares over the `chosen` (M,) bool."""
        return np.linalg.lstsq(self.known[chosen], self.gain[chosen], rcond=None)[0]

    @property
    def known(self) -> np.ndarray:
        """What the gain is linear in (M, 2)."""
        return np.stack([np.ones(len(self.gain)), self.likelier[:, 0]], axis=1)

    def rest(self, chosen: np.ndarray) -> float:
        """The standard error beyond that of the likelihood, from the `chosen` rungs of data sets that were left out."""
        squares = []
        for source in np.unique(self.source[chosen]):
            inside = chosen & (self.source == source)
            weights = self.line(chosen & ~inside)
            squares += [(self.gain - self.known @ weights)[inside] ** 2 - (weights[1] * self.likelier[inside, 1]) ** 2]
        return float(np.sqrt(max(np.mean(np.concatenate(squares)), LEAST**2)))

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """What pictures say of each, and that together with its forecast: gains and errors, (M, 2) and (M, 2)."""
        seen, both = np.empty_like(self.told), np.empty_like(self.told)
        for source in np.unique(self.source):
            inside = self.source == source
            others = ~inside & _fitted(self.source)
            (constant, slope), rest = self.line(others), self.rest(others)
            for place in np.flatnonzero(inside):
                nats, error = self.likelier[place]
                seen[place] = constant + slope * nats, np.hypot(slope * error, rest)
                posterior = Forecast(*self.told[place]).updated(*seen[place])
                both[place] = posterior.gain, posterior.error
        return seen, both


def _fitted(source: np.ndarray) -> np.ndarray:
    """The rungs that numbers may be fitted to (M,) bool, by the data set of each."""
    return source != UNSEEN


def _terms(case: Mapping[str, Any]) -> tuple[float, float, float]:
    return terms(case["head_log_loss"], case["shift"], case["images"] / case["classes"], case["classes"])


def _share(marks: str) -> float:
    return marks.count("1") / len(marks)


def learnt(cases: Mapping[str, Any], *, without: str | None = None) -> dict[str, Any]:
    """What the package is to know; or what it would know `without` one more data set than `UNSEEN`."""
    cases = {name: case for name, case in cases.items() if case["set"] not in (without, UNSEEN)}
    recorded = Recorded.of(cases)
    everything = np.full(len(recorded.gain), True)
    constant, slope = recorded.errors(everything).tolist()
    found = {}
    if (seen := Seen.of(cases)) is not None:
        each = np.full(len(seen.gain), True)
        line, rest = seen.line(each), seen.rest(each)
        found["held_out"] = {
            "weights": [round(weight, 5) for weight in line.tolist()],
            "error": round(rest, 5),
            "rungs": len(seen.gain),
        }
    return found | {
        "backbone": f"timm:{LITE}", "weights": [round(weight, 5) for weight in recorded.weights(everything).tolist()],
        "error": round(constant, 5), "error_slope": round(slope, 5),
        "shift": _range(case["shift"] for case in cases.values()),
        "each": _range(case["images"] / case["classes"] for case in cases.values()),
        "room": max(_range(_terms(case)[0] for case in cases.values())),
        "rungs": len(recorded.gain), "cases": len(cases), "sets": sorted(set(recorded.source.tolist())),
    }  # fmt: skip


def _range(values: Iterable[float]) -> list[float]:
    found = [round(value, 5) for value in values]
    return [min(found), max(found)]


def left_out(cases: Mapping[str, Any]) -> list[str]:
    """The forecast beside the gains of each data set, which it was not fitted to."""
    recorded = Recorded.of(cases)
    told = recorded.left_out(np.full(len(recorded.gain), True))
    rows = headed("| data set left out | rungs | gain, mean | forecast, mean | rank correlation within it |")
    for source in np.unique(recorded.source):
        inside = recorded.source == source
        rows.append(
            f"| {source} | {inside.sum()} | {100 * recorded.gain[inside].mean():+.1f} | {100 * told[inside].mean():+.1f} | "
            f"{_rank(told[inside], recorded.gain[inside]):+.2f} |"
        )
    rows.append(
        f"| all | {len(told)} | {100 * recorded.gain.mean():+.1f} | {100 * told.mean():+.1f} | {_rank(told, recorded.gain):+.2f} |"
    )
    return rows


@dataclass(frozen=True)
class HeldUp:
    """The forecast on data sets that were left out: its rank correlation with true gains, and the share of these that lie `within` one
    stated standard error; of the `few` rungs with few pictures those that are `skipped` as promising too little, the share of passes
    over pictures there that this has `saved`, and the accuracy that is `lost` by it on the mean."""

    rank: float
    within: float
    few: int
    skipped: int
    saved: float
    lost: float


def held_up(cases: Mapping[str, Any]) -> HeldUp:
    """How well the forecast and what is skipped by it hold up."""
    recorded = Recorded.of(cases)
    told = recorded.left_out(np.full(len(recorded.gain), True))
    within = float(np.mean(np.abs(told - recorded.gain) <= recorded.spread()))
    few = recorded.images < FEW_IMAGES
    tried = _promising(told, recorded.spread())
    skipped = int((few & ~tried).sum())
    return HeldUp(_rank(told, recorded.gain), within, int(few.sum()), skipped, *_saved(recorded, tried))


def _promising(told: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Whether forecasts and their errors (M,) have a rung tried."""
    return np.array([Forecast(*pair).promise >= PROMISING for pair in zip(told, spread, strict=True)])


def by_mean(cases: Mapping[str, Any]) -> tuple[float, float]:
    """Passes saved and points lost, if rungs were skipped of which less than `WORTH` is expected on the mean."""
    recorded = Recorded.of(cases)
    return _saved(recorded, recorded.left_out(np.full(len(recorded.gain), True)) >= WORTH)


def _saved(recorded: Recorded, tried: np.ndarray) -> tuple[float, float]:
    few, work = recorded.images < FEW_IMAGES, recorded.images * np.array([epochs_for(each) for each in recorded.images])
    skipped = few & ~tried
    return float(work[skipped].sum() / work[few].sum()), float(recorded.gain[skipped].sum() / few.sum())


def planned_away(cases: Mapping[str, Any]) -> tuple[float, float]:
    """Where pictures are few: the share of the passes over them that plans leave out, for whatever reason, and the points lost by it,
    by what a rung from 4 would have gained with the head."""
    few = [case for case in cases.values() if case["images"] < FEW_IMAGES and LADDER in case["rungs"]]
    work = [case["images"] * epochs_for(case["images"]) for case in few]
    left = [not case["rungs"][LADDER]["rungs"] for case in few]
    gains = [_share(case["rungs"]["from 4"]["right_with_head"]) - _share(case["right"]["head"]) for case in few]
    return float(np.dot(left, work) / sum(work)), float(np.dot(left, gains) / len(few))


def alternatives(cases: Mapping[str, Any]) -> list[str]:
    """What else a forecast could be linear in, each on data sets that were left out; and what is the most that a rank correlation
    could reach, were everything known but the luck of the test."""
    recorded = Recorded.of(cases)
    case = [cases[key] for key, _ in recorded.place]
    everything, few = np.full(len(case), True), recorded.images < FEW_IMAGES
    work = recorded.images * np.array([epochs_for(images) for images in recorded.images])
    room, by_shift, by_each = recorded.terms.T
    error = np.array([1 - each["head_accuracy"] for each in case])
    shift, each = by_shift / room, by_each / room
    entropy, gap = (
        np.array([number(each) for each in case])
        for number in (lambda c: c["entropy"], lambda c: c["head_accuracy"] - c["last_stage_accuracy"])
    )
    profile = np.array([max(each["profile"]) - each["profile"][-1] for each in case])
    classes = np.log([each["classes"] for each in case])
    depth = np.array([float(name.split()[1]) for _, name in recorded.place])
    ways = {
        "room, and that times log shift and log pictures a class": recorded.terms,
        "the head's error in place of the room": np.stack([error, error * shift, error * each], 1),
        "the room alone": recorded.terms[:, :1],
        "no shift": recorded.terms[:, [0, 2]],
        "the source classifier's entropy in place of the shift": np.stack([room, room * entropy, by_each], 1),
        "the source classifier's entropy as well": np.column_stack([recorded.terms, room * entropy]),
        "how far the best stage is ahead of the last as well": np.column_stack([recorded.terms, room * profile]),
        "how far the best head is ahead of the last stage as well": np.column_stack([recorded.terms, gap]),
        "log classes as well": np.column_stack([recorded.terms, room * classes]),
        "where the cut lies as well": np.column_stack([recorded.terms, room * depth]),
        "a constant as well": np.column_stack([recorded.terms, np.ones_like(room)]),
    }
    rows = headed("| linear in | rank correlation | off by, RMS | passes saved | points lost by that |")
    for title, known in ways.items():
        other = replace(recorded, terms=known)
        told = other.left_out(everything)
        (saved, lost), off = _saved(other, _promising(told, other.spread())), told - recorded.gain
        rows.append(
            f"| {title} | {_rank(told, recorded.gain):+.2f} | {100 * np.sqrt(np.mean(off**2)):.1f} | {100 * saved:.0f} % | "
            f"{100 * lost:.2f} |"
        )
    luck = np.array([_luck(cases[key], name) for key, name in recorded.place])
    share = max(0.0, 1 - np.mean(luck**2) / recorded.gain.var())
    true, draw = recorded.gain.mean() + share**0.5 * (recorded.gain - recorded.gain.mean()), np.random.default_rng(0)
    most = np.mean([_rank(true, true + draw.normal(0, luck)) for _ in range(500)])
    saved = work[few & (recorded.gain < WORTH)].sum() / work[few].sum()
    rows.append(
        f"| the true gains, were they known | {most:+.2f} | {100 * np.sqrt(np.mean(luck**2)):.1f} | {100 * saved:.0f} % | |"
    )
    return rows


def _luck(case: Mapping[str, Any], name: str) -> float:
    """Standard error of a gain that was tested."""
    after, before = (
        np.array([mark == "1" for mark in marks], float)
        for marks in (case["rungs"][name]["right_with_head"], case["right"]["head"])
    )
    return float((after - before).std() / len(after) ** 0.5)


def corrected(cases: Mapping[str, Any]) -> list[str]:
    """How far off the forecast is, what held-out pictures say, and both together, on data sets that they were not fitted to; and what
    the rungs give that are kept by each."""
    seen = Seen.of(cases)
    assert seen is not None
    pictures, both = seen.left_out()
    likelier, everything = seen.likelier[:, 0] > -seen.likelier[:, 1], np.full(len(seen.gain), True)
    rows = headed("| by | rungs | off by, RMS | within one stated error | kept | gain of these, mean over all |")
    for title, told, allowed in (
        ("the forecast", seen.told, everything), ("held-out pictures", pictures, everything), ("both", both, everything),
        ("both, where the labels become no less likely", both, likelier),
        ("that, if trying it promises enough", both, likelier & _promising(*seen.told.T)),
        ("that, if the mean of the forecast is enough", both, likelier & (seen.told[:, 0] >= WORTH)),
    ):  # fmt: skip
        off, kept = told[:, 0] - seen.gain, (told[:, 0] >= WORTH) & allowed
        rows.append(
            f"| {title} | {len(kept)} | {100 * np.sqrt(np.mean(off**2)):.1f} | {100 * np.mean(np.abs(off) <= told[:, 1]):.0f} % | "
            f"{kept.sum()} | {100 * np.mean(seen.gain * kept):+.2f} |"
        )
    kept = np.full(len(seen.gain), False)
    for source in np.unique(seen.source):
        inside = seen.source == source
        others = ~inside & _fitted(seen.source) & likelier
        bar = max(BARS, key=lambda bar: float(seen.gain[others & (both[:, 0] >= bar)].sum()))
        kept[inside] = (likelier & (both[:, 0] >= bar))[inside]
    rows.append(
        f"| both, at the bar that was best on the other data sets | {len(kept)} | | | {kept.sum()} | "
        f"{100 * np.mean(seen.gain * kept):+.2f} |"
    )
    rows.append(
        f"| nothing: all are kept | {len(seen.gain)} | | | {len(seen.gain)} | {100 * np.mean(seen.gain):+.2f} |"
    )
    return rows


BARS = (-0.01, 0.0, 0.0025, WORTH, 0.01, 0.02, 0.04)  # gains from which a rung could be kept, shares


def _rank(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def main() -> None:
    """Write the numbers."""
    cases = json.loads(RECORD.read_text(encoding="utf-8"))["cases"]
    LEARNT.write_text(json.dumps(learnt(cases), indent=2) + "\n", encoding="utf-8")
    print(*left_out(cases), "", held_up(cases), "", *corrected(cases), sep="\n")


if __name__ == "__main__":
    main()
