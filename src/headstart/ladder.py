"""The ladder: unfreeze rung by rung, judge each rung on pictures that it did not train on, keep what pays.

The last stage's trained head is the start of the first rung (LP-FT, Kumar et al. 2022, arXiv 2202.10054). A head on several stages
may be the better frozen model, but it fits its training pictures so well that it leaves the stages below nothing to learn from.
What a rung reaches is interpolated with where it started (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). The head that won
the race stays a candidate to the end. A rung is kept for what it gains on held-out pictures; where these are few, what recorded runs
let expect (forecast.py) counts as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.cost import ON_EPOCHS, ON_RATE, Tried, too_long, too_slow
from headstart.data.dataset import Dataset
from headstart.features.engine import Engine
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.forecast import Forecast
from headstart.heads import Head, Score, merged
from headstart.judge import judge, said
from headstart.plan import Plan, Rung
from headstart.planner import FEW_EACH
from headstart.race import Race
from headstart.tasks.classification import fit_temperature
from headstart.train import Epoch
from headstart.tuning import ALPHAS, Split, Tuned, Tuning

_DIVERGED = "dropped: its training diverged; a plan file with smaller learning rates (lr_body, lr_head) may do better"


@dataclass(frozen=True, eq=False)
class RungResult:
    """What one rung did on the pictures held out from it.

    `gain` and `gain_se`: accuracy over the best so far, paired picture by picture. `likelier`: by how many nats it makes the labels
    likelier, and the standard error. `alpha`: the interpolation share chosen. `curves`: one per judged split. `complete` is false
    where time ran out in the middle. `together`: all that is told here is of its answers together with the frozen head's. `with_head`:
    `likelier` as it would be with that head and with all that training changed, where that was looked at. `posterior`: what is then to
    be expected of the gain, by recorded runs and held-out pictures, where that decided. `caching`: of `seconds`, those that
    running the frozen stages took. `cleared`: a kept rung's gain less the optimism of having chosen it.
    """

    rung: Rung
    accuracy: float
    gain: float
    gain_se: float
    likelier: tuple[float, float]
    alpha: float
    epochs: int
    kept: bool
    complete: bool
    curves: tuple[tuple[Epoch, ...], ...]
    seconds: float
    reason: str
    together: bool = False
    with_head: tuple[float, float] | None = None
    posterior: Forecast | None = None
    caching: float = 0.0
    cleared: float | None = None

    @property
    def passes(self) -> int:
        """Epochs of all trainings that judged it."""
        return sum(map(len, self.curves))

    @property
    def tried(self) -> Tried:
        """The rung, these, and the seconds that they took."""
        return self.rung, self.passes, sum(epoch.seconds for curve in self.curves for epoch in curve)


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The chosen backbone and head, how every rung did, and held-out logits (M, K) of what was chosen.

    `held` (M,) are the indices of the held-out pictures. `refit`: whether the model saw all training pictures in the end. For rungs
    that are `left_out` the pace of those above left no time: a plan that repeats this has none of them. Where it answers `together`
    with the frozen head, the head counts the stages of the original backbone on from those of the trained one.
    """

    backbone: Backbone
    head: Head
    rungs: tuple[RungResult, ...]
    held: NDArray[np.int64]
    logits: NDArray[np.float32]
    refit: bool
    reasons: tuple[str, ...]
    left_out: tuple[Rung, ...] = ()
    judgings: int | None = None

    @property
    def kept(self) -> tuple[RungResult, ...]:
        """The rungs that are part of the model."""
        return tuple(result for result in self.rungs if result.kept)

    @property
    def together(self) -> bool:
        """Whether trained and original backbone answer together."""
        return bool(self.kept) and self.kept[-1].together

    def carried_out(self, plan: Plan) -> Plan:
        """The plan as it was carried out, which repeats this."""
        rungs = [rung for rung in plan.rungs if rung not in self.left_out]
        return plan.model_copy(update={"rungs": rungs, "judgings": self.judgings or plan.judgings})


@dataclass(frozen=True, eq=False)
class Ladder:
    """The rungs of a plan, and the heads on frozen features that they have to beat; with `pair`, the original network may answer
    beside the trained one."""

    tuning: Tuning
    heads: Race
    pair: bool = True

    def climb(self) -> Finetuned:
        """Try the rungs in order and refit what paid.

        Raises:
            StoreError: where the store cannot be written.
        """
        tuning, plan = self.tuning, self.tuning.plan
        pool = tuning.dataset.indices("train")
        if not plan.rungs:
            head = tuning.head(self.heads.best, pool)
            return Finetuned(tuning.engine.backbone, head, (), self.heads.pool, self.heads.best.logits, True, ())
        every = splits = [tuning.start(self.heads.last, fit, held) for fit, held in tuning.judging()]
        held = np.concatenate([split.held for split in splits])
        truth = tuning.dataset.labels[held]
        best, partner = tuning.held_out(self.heads.best), self._partner()
        beside = None if partner is None else tuning.held_out(partner[0]) / np.float32(partner[1])
        # Never more than two answer together.
        frozen = best if partner is None and self.pair else None
        heat = 1.0
        results: list[RungResult] = []
        reasons: list[str] = []
        left_out: list[Rung] = []
        fewer: int | None = None
        for rung in plan.rungs:
            if time.monotonic() > tuning.deadline:
                reasons.append(f"the rung from {plan.stages[rung.cut]} on was not tried: the time was used up")
                continue
            if why := too_long(plan, rung, [each.tried for each in results]):
                left_out.append(rung)
                reasons.append(f"the rung from {plan.stages[rung.cut]} on was not tried: {why}")
                continue
            result, after, logits, warmth = self._try(rung, results, splits, best, truth, beside, frozen)
            results.append(result)
            if result.complete and len(after) < len(every):
                fewer = len(after)
            if not result.kept:
                break
            splits, best, heat = after, logits, warmth
            held, truth = held[: len(best)], truth[: len(best)]
            if result.posterior is not None:  # no bar for the next rung: it may be lower than the frozen head's
                break
        backbone, head, refit = self._final(pool, splits, tuple(results), reasons)
        tuned = Finetuned(backbone, head, tuple(results), held, best, refit, tuple(reasons), tuple(left_out), fewer)
        if partner is not None and tuned.kept:
            head = merged([(head, heat), (tuning.head(partner[0], pool), partner[1])], tuning.features.widths)
        elif tuned.together and frozen is not None:
            cool = float(_coolness(frozen, truth))
            own, still = tuning.features.own, tuning.head(self.heads.best, pool)
            still = replace(still, taps=tuple(tap + len(own) for tap in still.taps))
            head = merged([(head, heat), (still, cool)], own + own)
        return replace(tuned, head=head)

    def _partner(self) -> tuple[Score, float] | None:
        """The head on another backbone that answers together with the first's, and what its logits are divided by."""
        joined = self.heads.best.parts[-1:]
        return joined[0] if joined and joined[0][0].taps[0] not in self.tuning.features.spans[0] else None

    def _try(
        self,
        rung: Rung,
        before: Sequence[RungResult],
        splits: list[Split],
        best: NDArray[np.float32],
        truth: NDArray[np.int64],
        beside: NDArray[np.float32] | None,
        frozen: NDArray[np.float32] | None,
    ) -> tuple[RungResult, list[Split], NDArray[np.float32], float]:
        """Train a rung, after those `before`, on every split, or on as many as there is time for; its result, these splits after it,
        their held-out logits, and the temperature that its own were divided by to answer together with another backbone's, `beside`
        (M, K), or with the frozen head's, calibrated, `frozen` (M, K)."""
        began, number, trained = time.monotonic(), len(before), list[Tuned]()
        with self.tuning.progress(f"Rung {number + 1}: training", rung.epochs * len(splits), "epochs") as advance:
            for split in splits:
                # Where the time was used up already, all go on, and tell so.
                if trained and not before and trained[-1].outcome.complete and self._too_slow(rung, trained):
                    break
                trained.append(self.tuning.train(rung, number, split, advance))
        outcomes = [each.outcome for each in trained]
        shares = np.concatenate([each.shares for each in trained], axis=1)
        count = shares.shape[1]
        best, truth = best[:count], truth[:count]
        beside = None if beside is None else beside[:count]
        frozen = None if frozen is None else frozen[:count] / _coolness(frozen, truth)
        ended = sum(outcome.complete for outcome in outcomes)
        complete = ended == len(outcomes)
        expected = self._expected(rung) if complete and not number else None
        groups = self.tuning.dataset.groups[np.concatenate([split.held for split in splits])[:count]]
        found = judge(
            shares, best, truth, beside=beside, frozen=frozen, expected=expected, forced=rung.forced, groups=groups
        )
        late = len(outcomes) > 1 and not complete and not rung.forced
        diverged = any(outcome.diverged for outcome in outcomes)
        if late or diverged:  # of several, what is judged would not be what is kept
            found = replace(found, kept=False, cleared=None)
        told = said(rung, found)
        if diverged:
            told = _DIVERGED
        elif late:
            told = f"dropped: the time was used up after {ended} of {len(outcomes)} trainings"
        elif len(trained) < len(splits):
            told += f"; judged on {len(trained)} of {len(splits)} folds, as at their pace there was no time for all"
        after = []
        for split, each in zip(splits, trained, strict=False):
            net = each.at(ALPHAS[found.share])
            after.append(Split(split.fit, split.held, net.backbone, net.linear(split.head.kind, split.head.strength)))
        result = RungResult(
            rung,
            found.accuracy,
            found.gain,
            found.gain_se,
            found.likelier,
            ALPHAS[found.share],
            min(len(outcome.curve) for outcome in outcomes),
            found.kept,
            complete,
            tuple(outcome.curve for outcome in outcomes),
            time.monotonic() - began,
            told,
            found.together,
            found.with_head,
            found.posterior,
            sum(each.caching for each in trained),
            found.cleared,
        )
        return result, after, found.logits, found.heat

    def _too_slow(self, rung: Rung, trained: Sequence[Tuned]) -> bool:
        """Whether there is no time for another training of a first rung, by the pace of those that `trained`. Where no test set proves
        the model, all folds have to."""
        epochs = [epoch for each in trained for epoch in each.outcome.curve]
        tested = len(self.tuning.dataset.indices("test")) > 0
        return tested and too_slow(self.tuning.plan, (rung, len(epochs), sum(epoch.seconds for epoch in epochs)))

    def _expected(self, rung: Rung) -> Forecast | None:
        """What recorded runs let expect of a first rung that is like theirs, where pictures are few, in all or of each class."""
        plan, known = self.tuning.plan, self.tuning.plan.evidence
        like = rung.cut > 0 and rung.until is None and rung.trains == "all"
        if known is None or not like or plan.judge == "val":
            return None
        return known.forecast if plan.judge == "folds" or known.images <= FEW_EACH * known.classes else None

    def _final(
        self, pool: NDArray[np.int64], splits: list[Split], results: tuple[RungResult, ...], reasons: list[str]
    ) -> tuple[Backbone, Head, bool]:
        """The model after the kept rungs, once it has seen all training pictures; without time for it, the first split's."""
        kept = [result for result in results if result.kept]
        if not kept:
            return self.tuning.engine.backbone, self.tuning.head(self.heads.best, pool), True
        if self.tuning.plan.refit == "on":
            refitted = self._on(splits[0], kept[-1].rung, len(results))
        elif self.tuning.plan.refit == "again":
            refitted = self.refit([(result.rung, result.alpha) for result in kept])
        else:
            return splits[0].backbone, splits[0].head, False
        if refitted is None:
            reasons.append(
                "the refit did not end, for want of time or as it diverged: the model of the first split is kept"
            )
            return splits[0].backbone, splits[0].head, False
        return *refitted, True

    def _on(self, split: Split, last: Rung, number: int) -> tuple[Backbone, Head] | None:
        """Backbone and head of a split after a few more epochs of the `last` rung, at a small rate, over all training pictures; None
        where that did not end."""
        rates = {"lr_body": ON_RATE * last.lr_body, "lr_head": ON_RATE * last.lr_head}
        rung = last.model_copy(update={"epochs": ON_EPOCHS, **rates})
        pool, nobody = self.tuning.dataset.indices("train"), np.empty(0, np.int64)
        with self.tuning.progress("Going on with all", rung.epochs, "epochs") as advance:
            each = self.tuning.train(rung, number, replace(split, fit=pool, held=nobody), advance)
        if not each.outcome.complete:
            return None
        net = each.at(1.0)
        return net.backbone, net.linear(split.head.kind, split.head.strength)

    def refit(self, rungs: Sequence[tuple[Rung, float]]) -> tuple[Backbone, Head] | None:
        """Backbone and head after rungs, each with its share of what training changed, on all training pictures; None where that
        did not end."""
        pool, nobody = self.tuning.dataset.indices("train"), np.empty(0, np.int64)
        state = self.tuning.start(self.heads.last, pool, nobody)
        with self.tuning.progress("Refitting on all", sum(rung.epochs for rung, _ in rungs), "epochs") as advance:
            for number, (rung, share) in enumerate(rungs):
                each = self.tuning.train(rung, number, state, advance)
                if not each.outcome.complete:
                    return None
                net = each.at(share)
                state = Split(pool, nobody, net.backbone, net.linear(state.head.kind, state.head.strength))
        return state.backbone, state.head


def _coolness(frozen: NDArray[np.float32], truth: NDArray[np.int64]) -> np.float32:
    """What calibrates the frozen head's answers on the held-out pictures that judge, the first of those that it answers."""
    return np.float32(fit_temperature(frozen[: len(truth)], truth))


def finetune(
    engine: Engine,
    heads: Race,
    features: Features,
    dataset: Dataset,
    plan: Plan,
    store: Store,
    *,
    deadline: float = math.inf,
    pair: bool = True,
    progress: runtime.Progress = runtime.silent,
) -> Finetuned:
    """Climb the ladder of `plan`; the head that won the race is what it has to beat. With `pair`, the original network may answer
    beside the trained one.

    Raises:
        StoreError: where the store cannot be written.
    """
    return Ladder(Tuning(dataset, features, store, engine, plan, deadline, progress), heads, pair).climb()
