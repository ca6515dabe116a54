"""The ladder: unfreeze rung by rung, judge each rung on pictures that it did not train on, keep what pays.

The last stage's trained head is the start of the first rung (LP-FT, Kumar et al. 2022, arXiv 2202.10054). A head on several stages
may be the better frozen model, but it fits its training pictures so well that it leaves the stages below nothing to learn from.
What a rung reaches is interpolated with where it started (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). The head that won
the race stays a candidate to the end. A rung is kept for what it gains on held-out pictures; where these are few, what recorded runs
let expect (forecast.py) counts as well.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.cost import FOLDS_JUDGED
from headstart.data.dataset import Dataset
from headstart.features.engine import Engine
from headstart.features.extract import Features, cache_activations
from headstart.features.store import Store
from headstart.forecast import Forecast
from headstart.heads import Head, Score, merged
from headstart.judge import Judged, judge
from headstart.plan import Plan, Rung
from headstart.race import Race, fit_winner
from headstart.solvers import spread
from headstart.suffix import FromImages, FromStore, Net, Source, digest, fastest, held_out_logits, training
from headstart.tasks.classification import fit_temperature
from headstart.train import Checkpoint, Epoch, Trained, train

ALPHAS = (1.0, 0.75, 0.5, 0.25)  # shares of the trained weights in the interpolation with the start


@dataclass(frozen=True, eq=False)
class RungResult:
    """What one rung did on the pictures held out from it.

    `gain` and `gain_se`: accuracy over the best so far, paired picture by picture. `alpha`: the interpolation share chosen.
    `curves`: one per judged split. `complete` is false where time ran out in the middle. `together`: it was judged as it answers
    together with the frozen head. `likelier`: by how many nats it makes the held-out labels likelier together with that head than the
    best so far did, and the standard error. `posterior`: what is to be expected of the gain together with it, by recorded runs and
    held-out pictures, where that decided.
    """

    rung: Rung
    accuracy: float
    gain: float
    gain_se: float
    alpha: float
    epochs: int
    kept: bool
    complete: bool
    curves: tuple[tuple[Epoch, ...], ...]
    seconds: float
    reason: str
    together: bool = False
    likelier: tuple[float, float] | None = None
    posterior: Forecast | None = None


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The chosen backbone and head, how every rung did, and held-out logits (M, K) of what was chosen.

    `held` (M,) are the indices of the held-out pictures. `refit`: whether the model saw all training pictures in the end. Where it
    answers `together` with the frozen head, the head counts the stages of the original backbone on from those of the trained one.
    """

    backbone: Backbone
    head: Head
    rungs: tuple[RungResult, ...]
    held: NDArray[np.int64]
    logits: NDArray[np.float32]
    refit: bool
    reasons: tuple[str, ...]

    @property
    def kept(self) -> tuple[RungResult, ...]:
        """The rungs that are part of the model."""
        return tuple(result for result in self.rungs if result.kept)

    @property
    def together(self) -> bool:
        """Whether trained and original backbone answer together."""
        return bool(self.kept) and self.kept[-1].together


@dataclass(frozen=True, eq=False)
class _Split:
    """One way to judge: train on `fit`, look at `held`; the next rung starts from `backbone` and `head`."""

    fit: NDArray[np.int64]
    held: NDArray[np.int64]
    backbone: Backbone
    head: Head


@dataclass(frozen=True, eq=False)
class _Trained:
    """One training: the net, the weights it started from, how it went, and the held-out logits (A, M, K) at every share of ALPHAS."""

    net: Net
    start: dict[str, Tensor]
    outcome: Trained
    shares: NDArray[np.float32]

    def at(self, share: float) -> Net:
        """The net with `share` of what training changed."""
        return self.net.moved(self.start, self.outcome.weights, share)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Everything that the rungs of one run share."""

    dataset: Dataset
    features: Features
    store: Store
    engine: Engine
    plan: Plan
    heads: Race
    deadline: float = math.inf
    progress: runtime.Progress = runtime.silent
    cached: bool = True

    def climb(self) -> Finetuned:
        """Try the rungs in order and refit what paid.

        Raises:
            StoreError: where the store cannot be written.
        """
        pool = self.dataset.indices("train")
        if not self.plan.rungs:
            head = self._head(pool, self.heads.best)
            return Finetuned(self.engine.backbone, head, (), self.heads.pool, self.heads.best.logits, True, ())
        judging, last = self._judging(pool), self.heads.last
        splits = [_Split(fit, held, self.engine.backbone, self._head(fit, last)) for fit, held in judging]
        held = np.concatenate([split.held for split in splits])
        truth = self.dataset.labels[held]
        best, partner = self._held_out(self.heads.best, judging), self._partner()
        beside = None if partner is None else self._held_out(partner[0], judging) / np.float32(partner[1])
        cool = np.float32(fit_temperature(best, truth))
        # Never more than two answer together.
        frozen = np.divide(best, cool, dtype=np.float32) if partner is None else None
        heat = 1.0
        results: list[RungResult] = []
        reasons: list[str] = []
        for rung in self.plan.rungs:
            if time.monotonic() > self.deadline:
                reasons.append(f"the rung from {self.plan.stages[rung.cut]} on was not tried: the time was used up")
                continue
            result, after, logits, warmth = self._try(rung, len(results), splits, best, truth, beside, frozen)
            results.append(result)
            if not result.kept:
                break
            splits, best, heat = after, logits, warmth
            if result.posterior is not None:  # no bar for the next rung: it may be lower than the frozen head's
                break
        backbone, head, refit = self._final(pool, splits, tuple(results), reasons)
        tuned = Finetuned(backbone, head, tuple(results), held, best, refit, tuple(reasons))
        if partner is not None and tuned.kept:
            head = merged([(head, heat), (self._head(pool, partner[0]), partner[1])], self.features.widths)
        elif tuned.together:
            own, still = self.features.own, self._head(pool, self.heads.best)
            still = replace(still, taps=tuple(tap + len(own) for tap in still.taps))
            head = merged([(head, heat), (still, float(cool))], own + own)
        return replace(tuned, head=head)

    def _partner(self) -> tuple[Score, float] | None:
        """The head on another backbone that answers together with the first's, and what its logits are divided by."""
        joined = self.heads.best.parts[-1:]
        return joined[0] if joined and joined[0][0].taps[0] >= len(self.features.own) else None

    def _judging(self, pool: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if self.plan.judge == "val":
            return [(pool, self.dataset.indices("val"))]
        fold = self.dataset.fold[pool]
        numbers = np.unique(fold)
        if self.plan.judge == "fold":
            numbers = numbers[:1]
        elif len(self.dataset.indices("test")):  # else the folds are all the proof that there is
            numbers = numbers[:FOLDS_JUDGED]
        return [(pool[fold != number], pool[fold == number]) for number in numbers]

    def _head(self, fit: NDArray[np.int64], score: Score) -> Head:
        labels, classes = self.dataset.labels[fit], len(self.dataset.classes)
        return fit_winner(score, self.features, labels, classes, fit, self.store)

    def _held_out(
        self, score: Score, judging: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        """Held-out logits (M, K) of a head on frozen features; those of the race's winner are what the first rung has to beat."""
        return np.concatenate([self._head(fit, score).answers(self.features, held) for fit, held in judging])

    def _try(
        self,
        rung: Rung,
        number: int,
        splits: list[_Split],
        best: NDArray[np.float32],
        truth: NDArray[np.int64],
        beside: NDArray[np.float32] | None,
        frozen: NDArray[np.float32] | None,
    ) -> tuple[RungResult, list[_Split], NDArray[np.float32], float]:
        """Train one rung on every split; its result, the splits after it, their held-out logits, and the temperature that its own
        were divided by to answer together with another backbone's, `beside` (M, K), or with the frozen head's, `frozen` (M, K)."""
        began = time.monotonic()
        with self.progress(f"Rung {number + 1}: training", rung.epochs * len(splits), "epochs") as advance:
            trained = [
                self._train(rung, number, split, self._source(rung, split.backbone, split.fit, split.held), advance)
                for split in splits
            ]
        outcomes = [each.outcome for each in trained]
        shares = np.concatenate([each.shares for each in trained], axis=1)
        expected = self._expected(rung) if not number and all(outcome.complete for outcome in outcomes) else None
        found = judge(shares, best, truth, beside=beside, frozen=frozen, expected=expected, forced=rung.forced)
        after = []
        for split, each in zip(splits, trained, strict=True):
            net = each.at(ALPHAS[found.share])
            after.append(_Split(split.fit, split.held, net.backbone, net.linear(split.head.kind, split.head.strength)))
        best_epochs = [outcome.best_epoch + 1 for outcome in outcomes]
        result = RungResult(
            rung,
            found.accuracy,
            found.gain,
            found.gain_se,
            ALPHAS[found.share],
            rung.epochs if self.plan.refit else max(1, round(float(np.mean(best_epochs)))),
            found.kept,
            all(outcome.complete for outcome in outcomes),
            tuple(outcome.curve for outcome in outcomes),
            time.monotonic() - began,
            _said(rung, found),
            found.together,
            found.likelier,
            found.posterior,
        )
        return result, after, found.logits, found.heat

    def _expected(self, rung: Rung) -> Forecast | None:
        """What recorded runs let expect of a first rung that is like theirs, where pictures are few."""
        like = rung.cut > 0 and rung.until is None and rung.trains == "all" and self.plan.judge == "folds"
        return self.plan.evidence.forecast if like and self.plan.evidence is not None else None

    def _source(self, rung: Rung, backbone: Backbone, fit: NDArray[np.int64], held: NDArray[np.int64]) -> Source:
        # The prefix of a split may have been trained by an earlier rung, so it is that split's backbone that runs.
        engine = self.engine if backbone is self.engine.backbone else self.engine.alike(backbone)
        if rung.cut == 0 or not self.cached:
            return FromImages(engine, self.dataset, rung.cut, self.plan.seed)
        everyone = np.concatenate([fit, held]) if self.plan.judge != "val" else fit
        cached = cache_activations(
            backbone,
            self.dataset,
            self.store,
            rung.cut,
            rung.views,
            augmented=everyone,
            clean=held,
            seed=self.plan.seed,
            engine=engine,
            rounded=rung.rounded,
            progress=self.progress,
        )
        return FromStore(backbone, cached)

    def _train(
        self,
        rung: Rung,
        number: int,
        split: _Split,
        source: Source,
        advance: runtime.Advance,
    ) -> _Trained:
        """One training, or its stored outcome: that takes no pass through the network at all."""
        raw = torch.from_numpy(self.features.stages(split.head.taps, split.fit))
        backbone = copy.deepcopy(split.backbone)
        backbone.to(memory_format=torch.channels_last)
        net = Net(backbone, split.head, rung.cut, raw.mean(0), spread(raw)).to(self.engine.device)
        start = net.weights()
        seed, how = self.plan.seed * 1000 + number, fastest(self.engine.device)
        # A refit repeats the whole schedule, so that is what must be judged, not the luckiest of its epochs.
        keep: Literal["best", "last"] = "last" if self.plan.refit else "best"
        spec = {
            "start": digest(start),
            "prefix": backbone.digest(rung.cut),
            "rung": rung.model_dump(exclude={"reason", "forced"}),
            "fit": self._content(split.fit),
            "held": self._content(split.held),
            "seed": seed,
            "keep": keep,
            "shares": ALPHAS,
            "precision": how,
            "transform": self.features.table.folder.name,
            "torch": torch.__version__,
            "version": 2,
        }
        memo = self.store.artifact("rung", spec)
        stored = memo.load()
        if stored is not None:
            record, arrays = stored
            shares = arrays.pop("shares")
            weights = {name: torch.from_numpy(array).to(self.engine.device) for name, array in arrays.items()}
            advance(rung.epochs)
            curve = tuple(Epoch(**row) for row in record["curve"])
            return _Trained(net, start, Trained(weights, int(record["best_epoch"]), curve, True), shares)
        checkpoint = Checkpoint(self.store.artifact("checkpoint", spec))
        with training(net, how) as precision:
            outcome = train(
                net,
                source,
                self.dataset.labels,
                split.fit,
                split.held,
                rung,
                seed=seed,
                keep=keep,
                checkpoint=checkpoint,
                precision=precision,
                deadline=self.deadline,
                advance=advance,
            )
        moved = (net.moved(start, outcome.weights, share) for share in ALPHAS)
        shares = np.stack([held_out_logits(each, source, split.held) for each in moved])
        if outcome.complete:
            arrays = {name: value.cpu().numpy() for name, value in outcome.weights.items()}
            record = {"best_epoch": outcome.best_epoch, "curve": [vars(row) for row in outcome.curve]}
            memo.save(record, {**arrays, "shares": shares})
            checkpoint.drop()
        return _Trained(net, start, outcome, shares)

    def _content(self, indices: NDArray[np.int64]) -> str:
        """Digest of the contents and labels of pictures, in their order."""
        lines = [f"{self.dataset.digests[i]} {self.dataset.labels[i]}" for i in indices]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    def _final(
        self, pool: NDArray[np.int64], splits: list[_Split], results: tuple[RungResult, ...], reasons: list[str]
    ) -> tuple[Backbone, Head, bool]:
        """The kept rungs trained again on all training pictures; without time for it, the first split's model."""
        kept = [result for result in results if result.kept]
        if not kept:
            return self.engine.backbone, self._head(pool, self.heads.best), True
        if not self.plan.refit:
            return splits[0].backbone, splits[0].head, False
        refitted = self.refit([(result.rung, result.alpha) for result in kept])
        if refitted is None:
            reasons.append("the time was used up before the refit ended: the model of the first split is kept")
            return splits[0].backbone, splits[0].head, False
        return *refitted, True

    def refit(self, rungs: Sequence[tuple[Rung, float]]) -> tuple[Backbone, Head] | None:
        """Backbone and head after rungs, each with its share of what training changed, on all training pictures; None where the
        time was used up."""
        pool, nobody = self.dataset.indices("train"), np.empty(0, np.int64)
        state = _Split(pool, nobody, self.engine.backbone, self._head(pool, self.heads.last))
        with self.progress("Refitting on all", sum(rung.epochs for rung, _ in rungs), "epochs") as advance:
            for number, (rung, share) in enumerate(rungs):
                source = self._source(rung, state.backbone, pool, nobody)
                each = self._train(rung, number, state, source, advance)
                if not each.outcome.complete:
                    return None
                net = each.at(share)
                state = _Split(pool, nobody, net.backbone, net.linear(state.head.kind, state.head.strength))
        return state.backbone, state.head


def _said(rung: Rung, found: Judged) -> str:
    kept = "kept, as asked for" if rung.forced else "kept" if found.kept else "dropped"
    points = f"{100 * found.gain:+.1f} ± {100 * found.gain_se:.1f} points on {len(found.logits)} held-out pictures"
    if found.posterior is not None and found.likelier is not None:
        nats, error = found.likelier
        points += ", whose" if found.together else "; together with the frozen head their"
        points += f" labels are {nats:+.2f} ± {error:.2f} nats likelier: {found.posterior} with what runs on other data let expect"
    return f"{kept}: {'together with the frozen head ' if found.together else ''}{points}"


def finetune(
    engine: Engine,
    heads: Race,
    features: Features,
    dataset: Dataset,
    plan: Plan,
    store: Store,
    *,
    deadline: float = math.inf,
    progress: runtime.Progress = runtime.silent,
) -> Finetuned:
    """Climb the ladder of `plan`; the head that won the race is what it has to beat.

    Raises:
        StoreError: where the store cannot be written.
    """
    return Ladder(dataset, features, store, engine, plan, heads, deadline, progress).climb()
