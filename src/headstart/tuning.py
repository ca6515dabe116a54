"""One training of one rung: where it starts, what it trains on and what it is asked about, how it went; remembered."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.cost import judgings
from headstart.data.dataset import Dataset
from headstart.data.splits import by_likeness
from headstart.features.activations import cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import Head, Score
from headstart.plan import Plan, Rung
from headstart.solvers import spread
from headstart.suffix import FromImages, FromStore, Net, Source, digest, fastest, held_out_logits, training
from headstart.train import Checkpoint, Epoch, Trained, train
from headstart.winner import fit_winner

ALPHAS = (1.0, 0.75, 0.5, 0.25)  # shares of the trained weights in the interpolation with the start
Judging = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # each: pictures to train on, and those held out from them


@dataclass(frozen=True, eq=False)
class Split:
    """One way to judge: train on `fit`, look at `held`; the next rung starts from `backbone` and `head`."""

    fit: NDArray[np.int64]
    held: NDArray[np.int64]
    backbone: Backbone
    head: Head


@dataclass(frozen=True, eq=False)
class Tuned:
    """One training: the net, the weights it started from, how it went, the held-out logits (A, M, K) at every share of ALPHAS, and the
    seconds that running the frozen stages took before."""

    net: Net
    start: dict[str, Tensor]
    outcome: Trained
    shares: NDArray[np.float32]
    caching: float = 0.0

    def at(self, share: float) -> Net:
        """The net with `share` of what training changed."""
        return self.net.moved(self.start, self.outcome.weights, share)


@dataclass(frozen=True, eq=False)
class Tuning:
    """Everything that the trainings of one run share."""

    dataset: Dataset
    features: Features
    store: Store
    engine: Engine
    plan: Plan
    deadline: float = math.inf
    progress: runtime.Progress = runtime.silent
    cached: bool = True

    def judging(self) -> Judging:
        """The ways to judge a rung: the validation set, or folds, as many as are judged; all, where nothing else proves it."""
        pool = self.dataset.indices("train")
        if self.plan.judge == "val":
            return [(pool, self.dataset.indices("val"))]
        fold = self.dataset.fold[pool]
        numbers = by_likeness(self.dataset.labels[pool], fold)
        if self.plan.judge == "fold" or len(self.dataset.indices("test")):
            many, _ = judgings(len(numbers), self.plan.judge)
            numbers = numbers[: self.plan.judgings or many] if self.plan.judge == "folds" else numbers[:many]
        return [(pool[fold != number], pool[fold == number]) for number in numbers]

    def start(self, score: Score, fit: NDArray[np.int64], held: NDArray[np.int64]) -> Split:
        """Where a first rung starts: the backbone as it came, and the head that `score` speaks of."""
        return Split(fit, held, self.engine.backbone, self.head(score, fit))

    def head(self, score: Score, fit: NDArray[np.int64]) -> Head:
        """The head on frozen features that `score` speaks of, fitted on the pictures `fit` (M,)."""
        labels, classes = self.dataset.labels[fit], len(self.dataset.classes)
        return fit_winner(score, self.features, labels, classes, fit, self.store)

    def held_out(self, score: Score) -> NDArray[np.float32]:
        """Held-out logits (M, K) of that head, in the order of `judging`."""
        return np.concatenate([self.head(score, fit).answers(self.features, held) for fit, held in self.judging()])

    def train(self, rung: Rung, number: int, split: Split, advance: runtime.Advance = runtime.nothing) -> Tuned:
        """One training, or its stored outcome: that takes no pass through the network at all. The `number` of the rung, from 0, makes
        its draws; those after it in the plan may share its pass.

        Raises:
            StoreError: where the store cannot be written.
        """
        raw = torch.from_numpy(self.features.stages(split.head.taps, split.fit))
        backbone = copy.deepcopy(split.backbone)
        backbone.to(memory_format=torch.channels_last)
        net = Net(backbone, split.head, rung.cut, raw.mean(0), spread(raw)).to(self.engine.device)
        start = net.weights()
        seed, how = self.plan.seed * 1000 + number, fastest(self.engine.device)
        spec = {
            "start": digest(start),
            "prefix": backbone.digest(rung.cut),
            "rung": rung.model_dump(exclude={"reason", "forced"}),
            "fit": self._content(split.fit),
            "held": self._content(split.held),
            "seed": seed,
            "shares": ALPHAS,
            "precision": how,
            "transform": self.features.table.folder.name + " never mirrored" * (not self.dataset.mirror),
            "torch": torch.__version__,
            "version": 6,
        }
        memo = self.store.artifact("rung", spec)
        stored = memo.load()
        if stored is not None:
            record, arrays = stored
            shares = arrays.pop("shares")
            weights = {name: torch.from_numpy(array).to(self.engine.device) for name, array in arrays.items()}
            advance(rung.epochs)
            curve = tuple(Epoch(**row) for row in record["curve"])
            return Tuned(net, start, Trained(weights, curve, True), shares)
        began = time.monotonic()
        source, checkpoint = self._source(rung, number, split), Checkpoint(self.store.artifact("checkpoint", spec))
        caching = time.monotonic() - began
        with training(net, how) as precision:
            outcome = train(
                net,
                source,
                self.dataset.labels,
                split.fit,
                split.held,
                rung,
                seed=seed,
                checkpoint=checkpoint,
                precision=precision,
                deadline=self.deadline,
                advance=advance,
            )
        moved = (net.moved(start, outcome.weights, share) for share in ALPHAS)
        shares = np.stack([held_out_logits(each, source, split.held) for each in moved])
        if outcome.complete:
            arrays = {name: value.cpu().numpy() for name, value in outcome.weights.items()}
            record = {"curve": [vars(row) for row in outcome.curve]}
            memo.save(record, {**arrays, "shares": shares})
        if outcome.complete or outcome.diverged:
            checkpoint.drop()
        return Tuned(net, start, outcome, shares, caching)

    def _source(self, rung: Rung, number: int, split: Split) -> Source:
        # The prefix of a split may have been trained by an earlier rung, so it is that split's backbone that runs.
        engine = self.engine if split.backbone is self.engine.backbone else self.engine.alike(split.backbone)
        if rung.cut == 0 or not self.cached:
            return FromImages(engine, self.dataset, rung.cut, self.plan.seed)
        later = self.plan.rungs[number + 1 :]
        everyone = np.concatenate([split.fit, split.held]) if self.plan.judge != "val" else split.fit
        cached = cache_activations(
            split.backbone,
            self.dataset,
            self.store,
            rung.cut,
            rung.views,
            augmented=everyone,
            clean=split.held,
            seed=self.plan.seed,
            engine=engine,
            rounded=rung.rounded,
            also=[
                (other.cut, other.rounded) for place, other in enumerate(later) if other.rides([rung, *later[:place]])
            ],
            progress=self.progress,
        )
        return FromStore(split.backbone, cached)

    def _content(self, indices: NDArray[np.int64]) -> str:
        """Digest of the contents and labels of pictures, in their order."""
        lines = [f"{self.dataset.digests[i]} {self.dataset.labels[i]}" for i in indices]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
