"""The line-up: whether another network on this machine is worth having beside the first, or before it.

Candidates run over a sample of the training pictures, small ones first. One whose frozen head is clearly better takes the first
place, which is the one that is fine-tuned; one whose head makes the labels likelier beside the first's stands there, and both answer
together. Networks that saw the same source err on different pictures, and their mean gains most where pictures are few.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.choice import clearly_better, numbered
from headstart.data.dataset import Dataset
from headstart.data.splits import least_each, thinned
from headstart.errors import BackboneError
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, extract_all, together
from headstart.features.store import Store
from headstart.intervals import exact_share
from headstart.race import Race, race

TRIED = 400  # training pictures that a candidate is tried on, about; each class has its share, and 20 at least
CROWD = 2000  # or fewer, 5 at least, where the classes are so many that these would be more pictures
SIFTED, LONG = 100, 10.0  # of these as many first, where the others would take more seconds than that
_WARM, _FIRST = 8, 40  # the first of them settle how it runs, the next tell how fast that is
PASS_SHARE = 0.15  # of the time that is left, which one more pass over all pictures may take
FLAWED = 0.01  # of the pictures: where the first is surely wrong of fewer, no other is tried
_ROOM = 0.25  # of the time that is left, after which no further candidate is loaded: a machine may hold dozens


@dataclass(frozen=True, eq=False)
class Lineup:
    """Engines in use, the one that may be fine-tuned first; the features and heads of the pictures that are not sealed; reasons.

    `tried` are the features of everybody that was tried, where all training pictures were: a test by cross-validation chooses anew.
    `entrants` are their engines.
    """

    engines: tuple[Engine, ...]
    features: Features
    heads: Race
    tried: Features
    entrants: tuple[Engine, ...]
    reasons: tuple[str, ...] = ()

    @classmethod
    def alone(cls, engine: Engine, features: Features, heads: Race) -> Lineup:
        """One network, and no other tried."""
        return cls((engine,), features, heads, features, (engine,))

    def narrowed(self, run: Callable[[Features], Race]) -> Lineup:
        """With the heads of the race `run` on these features; the first network alone where the winner reads no other."""
        heads = run(self.features)
        if any(_used(self.features, heads)):
            return replace(self, heads=heads)
        features = self.features.of(0)
        return replace(self, engines=self.engines[:1], features=features, heads=run(features))

    def doubled(self) -> Lineup:
        """The first network twice: once as a rung trains it, and once as it was."""
        return replace(self, engines=(self.engines[0],) * 2, features=together([self.features] * 2))


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    engine: Engine
    features: Features
    heads: Race


def line_up(
    engine: Engine,
    features: Features,
    dataset: Dataset,
    store: Store,
    names: Sequence[str],
    load: Callable[[str], Engine],
    *,
    deadline: float = math.inf,
    budget: float | None = None,
    pair: bool = True,
    progress: runtime.Progress = runtime.silent,
) -> Lineup:
    """Try the networks `names`, which `load` brings, beside `engine`, whose features of all unsealed pictures are given, or, without
    `pair`, in its place alone.

    None is where the first is surely wrong of less than one picture in a hundred. They are loaded in that order, one after the other;
    what cannot be loaded, or cut, is told and passed over. One that would take long is first tried on fewer pictures, and dropped
    where it is surely less right there (successive halving, Jamieson & Talwalkar 2016, arXiv 1502.07943). What is decided depends on
    the time that is left, and is remembered: the same run with the same `budget` decides the same.
    """
    ground = _Ground(dataset, store, _sample(dataset, TRIED), progress)
    alone = ground.raced(features, dataset.indices("train"))
    if _sound(alone):
        sure = f"it is surely right for {100 * (1 - FLAWED):.0f} % of the pictures, so no other was tried"
        return replace(Lineup.alone(engine, features, alone), reasons=(f"{_named(engine)} answers alone: {sure}",))
    spec = {
        "data": dataset.digest,
        "first": engine.backbone.digest(),
        "names": list(names),
        "budget": budget,
        "pair": pair,
    }
    memo = store.artifact("lineup", spec)
    given = _Candidate(_named(engine), engine, features, ground.raced(features, ground.sample))
    if (stored := memo.load()) is None:
        entering, reasons = _entering(given, ground, names, load, deadline)
    else:
        entering, reasons = _loaded(stored[0]["tried"], load, stored[0]["reasons"])
    entering.sort(key=lambda each: sum(each[1].backbone.flops))
    candidates = [given, *_on_sample(entering, ground, reasons)]
    if stored is None:
        memo.save({"tried": [each.name for each in candidates[1:]], "reasons": reasons}, {})
    return _chosen(candidates, ground, reasons, pair)


def _sound(heads: Race) -> bool:
    """Whether hardly anything is left to gain, as pictures and, where they belong together, groups of them say."""
    count = len(heads.pool)
    low, _ = exact_share(heads.accuracy * count, count)
    return min(low, heads.accuracy - 2 * heads.best.accuracy_se) >= 1 - FLAWED


@dataclass(frozen=True, eq=False)
class _Ground:
    """Where candidates are tried: on the pictures `sample` (M,) of the training pictures."""

    dataset: Dataset
    store: Store
    sample: NDArray[np.int64]
    progress: runtime.Progress

    @property
    def unsealed(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.dataset.split != "test")

    def raced(self, found: Features, indices: NDArray[np.int64]) -> Race:
        data = self.dataset
        labels, folds, groups = data.labels[indices], data.fold[indices], data.groups[indices]
        classes = len(data.classes)
        return race(found, labels, folds, classes, indices, groups=groups, store=self.store, progress=self.progress)

    def better(self, one: Race, other: Race) -> bool:
        """Whether one is surely right more often, on the same pictures."""
        pictures = one.pool
        group = numbered(self.dataset.groups[pictures])
        return clearly_better(one.best.logits, other.best.logits, self.dataset.labels[pictures], group)


def _sample(dataset: Dataset, most: int) -> NDArray[np.int64]:
    """About `most` of the training pictures (M,)."""
    pool = dataset.indices("train")
    return pool[thinned(dataset.labels[pool], most, least_each(CROWD, len(dataset.classes)))]


def _entering(
    first: _Candidate, ground: _Ground, names: Sequence[str], load: Callable[[str], Engine], deadline: float
) -> tuple[list[tuple[str, Engine]], list[str]]:
    """Those of the networks that are worth trying on the whole sample, and why the others are not."""
    entering, reasons = list[tuple[str, Engine]](), list[str]()
    last = time.monotonic() + _ROOM * (deadline - time.monotonic())
    for place, name in enumerate(names):
        if time.monotonic() > last:
            rest = f"{', '.join(names[place:])} {'was' if names[place:] == names[-1:] else 'were'} not tried"
            why = "other networks had taken their share of the time" if place else "no time is left"
            return entering, [*reasons, f"{rest}: {why}"]
        try:
            other = load(name)
            reason = _left_out(name, other, first, ground, deadline)
        except BackboneError as error:
            reason = _not_tried(name, error)
        if reason:
            reasons.append(reason)
        else:
            entering.append((name, other))
    return entering, reasons


def _loaded(
    names: Sequence[str], load: Callable[[str], Engine], told: Sequence[str]
) -> tuple[list[tuple[str, Engine]], list[str]]:
    """Those that an earlier run tried; `told` is why it left others out."""
    entering, reasons = list[tuple[str, Engine]](), list(told)
    for name in names:
        try:
            entering.append((name, load(name)))
        except BackboneError as error:
            reasons.append(_not_tried(name, error))
    return entering, reasons


def _left_out(name: str, other: Engine, first: _Candidate, ground: _Ground, deadline: float) -> str:
    """Why `other` is not tried on the whole sample; empty where it is."""
    dataset, store, progress = ground.dataset, ground.store, ground.progress
    few = _sample(dataset, SIFTED)
    pace = _pace(other, dataset, store, ground.sample, progress)
    needed = len(ground.unsealed) * pace
    if needed > PASS_SHARE * (deadline - time.monotonic()):
        return f"{name} was not tried: to run all pictures through it would take about {needed:.0f} s"
    if pace * (len(ground.sample) - len(few)) > LONG:
        found = extract(other.backbone, dataset, store, engine=other, only=few, progress=progress)
        if ground.better(ground.raced(first.features, few), ground.raced(found, few)):
            return f"{name} was dropped after {len(few)} training pictures: it is surely less right"
    return ""


def _not_tried(name: str, error: BackboneError) -> str:
    return f"{name} was not tried: {error}"


def _on_sample(entering: Sequence[tuple[str, Engine]], ground: _Ground, reasons: list[str]) -> list[_Candidate]:
    """Those that can be run on the sample, with their features and heads; `reasons` why the others cannot."""

    def through(engines: Sequence[Engine]) -> list[Features]:
        return extract_all(engines, ground.dataset, ground.store, only=ground.sample, progress=ground.progress)

    able, seen = list(entering), list[Features]()
    try:
        seen = through([other for _, other in entering])
    except BackboneError:  # one of them
        able = []
        for name, other in entering:
            try:
                seen += through([other])
                able.append((name, other))
            except BackboneError as error:
                reasons.append(_not_tried(name, error))
    return [
        _Candidate(name, other, found, ground.raced(found, ground.sample))
        for (name, other), found in zip(able, seen, strict=True)
    ]


def _chosen(candidates: Sequence[_Candidate], ground: _Ground, reasons: Sequence[str], pair: bool) -> Lineup:
    """The best of the candidates first, and those beside it that it answers better with, on all pictures that are not sealed."""
    pool, first = ground.dataset.indices("train"), candidates[0]
    for candidate in candidates[1:]:
        if ground.better(candidate.heads, first.heads):
            first = candidate
    others = [candidate for candidate in candidates if candidate is not first]
    rivals = others if pair else []
    tried = together([candidate.features for candidate in (first, *rivals)])
    used = _used(tried, ground.raced(tried, ground.sample))
    engines = (first.engine, *(each.engine for each, here in zip(rivals, used, strict=True) if here))
    features = together(
        extract_all(engines, ground.dataset, ground.store, only=ground.unsealed, progress=ground.progress)
    )
    lineup = Lineup(engines, features, first.heads, tried, tuple(each.engine for each in (first, *rivals)))
    # What helped on the sample need not help on all of them.
    lineup = lineup.narrowed(lambda read: ground.raced(read, pool))
    if others:
        reasons = [*reasons, _said(first, others, lineup.engines, lineup.heads, pair)]
    if len(ground.sample) < len(pool):
        lineup = replace(lineup, tried=lineup.features, entrants=lineup.engines)
    return replace(lineup, reasons=tuple(reasons))


def _named(engine: Engine) -> str:
    return engine.backbone.origin.name.removeprefix("timm:")


def _pace(
    engine: Engine, dataset: Dataset, store: Store, sample: NDArray[np.int64], progress: runtime.Progress
) -> float:
    """About how many seconds a picture takes; what the store holds takes hardly any."""
    extract(engine.backbone, dataset, store, engine=engine, only=sample[:_WARM], progress=progress)
    began = time.monotonic()
    extract(engine.backbone, dataset, store, engine=engine, only=sample[_WARM:_FIRST], progress=progress)
    return (time.monotonic() - began) / max(1, len(sample[_WARM:_FIRST]))


def _used(features: Features, heads: Race) -> list[bool]:
    """Whether the winner reads each of the backbones beside the first."""
    return [any(tap in span for tap in heads.best.taps) for span in features.spans[1:]]


def _said(first: _Candidate, others: Sequence[_Candidate], engines: Sequence[Engine], heads: Race, pair: bool) -> str:
    alone = ", ".join(f"{each.name} {100 * each.heads.accuracy:.1f} %" for each in (first, *others))
    count = len(first.heads.pool)
    if len(engines) == 1:
        why = "no other network adds to it" if pair else "a pair was not wanted, and no other is surely better"
        return f"{first.name} answers alone: {why} (on {count} training pictures, {alone})"
    cost = sum(sum(each.backbone.flops) for each in engines) / max(1, sum(engines[0].backbone.flops))
    names = " and ".join(map(_named, engines))
    return (
        f"{names} answer together, with {cost:.1f} times the computation of {_named(engines[0])} alone: {heads.reason} "
        f"(each alone, on {count} training pictures: {alone})"
    )
