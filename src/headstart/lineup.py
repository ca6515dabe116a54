"""The line-up: whether another network on this machine is worth having beside the first, or before it.

Candidates run over a sample of the training pictures, small ones first. One whose frozen head is clearly better
takes the first place, which is the one that is fine-tuned; one whose head makes the first's answers more likely stands beside it, and
both answer together. Networks that saw the same source err on different pictures, and their mean gains most where pictures are few.
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
from headstart.data.splits import thinned
from headstart.errors import BackboneError
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, extract_all, together
from headstart.features.store import Store
from headstart.race import Race, race

TRIED = 400  # training pictures that a candidate is tried on, about; each class has its share, and 20 at least
SIFTED, LONG = 100, 10.0  # of these as many first, where the others would take more seconds than that
_WARM, _FIRST = 8, 40  # the first of them settle how it runs, the next tell how fast that is
PASS_SHARE = 0.15  # of the time that is left, which one more pass over all pictures may take
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

    They are loaded in that order, one after the other; what cannot be loaded, or cut, is told and passed over. One that would take
    long is first tried on fewer pictures, and dropped where it is surely less right there (successive halving, Jamieson &
    Talwalkar 2016, arXiv 1502.07943). What is decided depends on the time that is left, and is remembered: the same run with the
    same `budget` decides the same.
    """
    pool = dataset.indices("train")
    sample, few = (pool[thinned(dataset.labels[pool], most)] for most in (TRIED, SIFTED))
    unsealed = np.flatnonzero(dataset.split != "test")

    def raced(found: Features, indices: NDArray[np.int64]) -> Race:
        labels, folds, groups = dataset.labels[indices], dataset.fold[indices], dataset.groups[indices]
        return race(found, labels, folds, len(dataset.classes), indices, groups=groups, store=store, progress=progress)

    def better(one: Race, other: Race, indices: NDArray[np.int64]) -> bool:
        """Whether one is surely right more often."""
        labels, group = dataset.labels[indices], numbered(dataset.groups[indices])
        return clearly_better(one.best.logits, other.best.logits, labels, group)

    def left_out(name: str, other: Engine) -> str:
        """Why `other` is not tried on the whole sample; empty where it is."""
        pace = _pace(other, dataset, store, sample, progress)
        needed = len(unsealed) * pace
        if needed > PASS_SHARE * (deadline - time.monotonic()):
            return f"{name} was not tried: to run all pictures through it would take about {needed:.0f} s"
        if pace * (len(sample) - len(few)) > LONG:
            found = extract(other.backbone, dataset, store, engine=other, only=few, progress=progress)
            if better(raced(features, few), raced(found, few), few):
                return f"{name} was dropped after {len(few)} training pictures: it is surely less right"
        return ""

    spec = {
        "data": dataset.digest,
        "first": engine.backbone.digest(),
        "names": list(names),
        "budget": budget,
        "pair": pair,
    }
    memo = store.artifact("lineup", spec)
    stored = memo.load()
    names, reasons = (names, []) if stored is None else (stored[0]["tried"], stored[0]["reasons"])
    candidates = [_Candidate(_named(engine), engine, features, raced(features, sample))]
    entering: list[tuple[str, Engine]] = []
    last = time.monotonic() + _ROOM * (deadline - time.monotonic())
    for place, name in enumerate(names):
        if stored is None and time.monotonic() > last:
            rest = f"{', '.join(names[place:])} {'was' if names[place:] == names[-1:] else 'were'} not tried"
            reasons.append(
                f"{rest}: {'other networks had taken their share of the time' if place else 'no time is left'}"
            )
            break
        try:
            other = load(name)
            reason = left_out(name, other) if stored is None else ""
        except BackboneError as error:
            reason = f"{name} was not tried: {error}"
        if reason:
            reasons.append(reason)
        else:
            entering.append((name, other))
    entering.sort(key=lambda each: sum(each[1].backbone.flops))
    try:
        seen = extract_all([other for _, other in entering], dataset, store, only=sample, progress=progress)
    except BackboneError:  # one of them
        entering, seen = _one_by_one(entering, dataset, store, sample, progress, reasons)
    for (name, other), found in zip(entering, seen, strict=True):
        candidates.append(_Candidate(name, other, found, raced(found, sample)))
    first = candidates[0]
    for candidate in candidates[1:]:
        if better(candidate.heads, first.heads, sample):
            first = candidate
    others = [candidate for candidate in candidates if candidate is not first]
    rivals = others if pair else []
    tried = together([candidate.features for candidate in (first, *rivals)])
    used = _used(tried, raced(tried, sample))
    chosen = [first, *(candidate for candidate, here in zip(rivals, used, strict=True) if here)]
    if stored is None:
        memo.save({"tried": [other.name for other in candidates[1:]], "reasons": reasons}, {})
    whole = len(sample) == len(pool)
    engines = tuple(candidate.engine for candidate in chosen)
    features = together(extract_all(engines, dataset, store, only=unsealed, progress=progress))
    lineup = Lineup(engines, features, first.heads, tried, tuple(candidate.engine for candidate in (first, *rivals)))
    # What helped on the sample need not help on all of them.
    lineup = lineup.narrowed(lambda read: raced(read, pool))
    reasons += [_said(first, others, lineup.engines, lineup.heads, pair)] if others else []
    if not whole:
        lineup = replace(lineup, tried=lineup.features, entrants=lineup.engines)
    return replace(lineup, reasons=tuple(reasons))


def _one_by_one(
    entering: Sequence[tuple[str, Engine]],
    dataset: Dataset,
    store: Store,
    sample: NDArray[np.int64],
    progress: runtime.Progress,
    reasons: list[str],
) -> tuple[list[tuple[str, Engine]], list[Features]]:
    """Those that can be run on the sample, and their features; `reasons` why the others cannot."""
    able, seen = list[tuple[str, Engine]](), list[Features]()
    for name, other in entering:
        try:
            seen += extract_all([other], dataset, store, only=sample, progress=progress)
            able.append((name, other))
        except BackboneError as error:
            reasons.append(f"{name} was not tried: {error}")
    return able, seen


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
        why = "no other network clearly adds to it" if pair else "a pair was not wanted, and no other is surely better"
        return f"{first.name} answers alone: {why} (on {count} training pictures, {alone})"
    cost = sum(sum(each.backbone.flops) for each in engines) / max(1, sum(engines[0].backbone.flops))
    names = " and ".join(map(_named, engines))
    return (
        f"{names} answer together, with {cost:.1f} times the computation of {_named(engines[0])} alone: {heads.reason} "
        f"(each alone, on {count} training pictures: {alone})"
    )
