"""The small network from scratch: what the same time buys without a pretrained network."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart import runtime
from headstart.backbones.backbone import Activation, Backbone, InputSpec
from headstart.baselines import Thumbnails
from headstart.cost import SCRATCH_BATCH, SCRATCH_SEARCH
from headstart.data.dataset import Dataset
from headstart.features.engine import normalize
from headstart.features.precision import Precision, has_fast_bfloat16
from headstart.features.store import Store
from headstart.heads import Head
from headstart.plan import Rung
from headstart.suffix import Net, held_out_logits
from headstart.train import Checkpoint, train

RATES = (1e-3, 3e-3, 1e-2)
USUAL_RATES = (1e-2,)  # where held-out pictures are too few to choose by: the best in most trials
_VIEWS = 64
_SEARCH_STEPS = 40  # fewer tell no learning rate from another
_SEARCH = SCRATCH_SEARCH / len(RATES)  # share of the epochs that each learning rate gets in the search


@final
class SmallNet(nn.Module):
    """Four blocks of two 3×3 convolutions, 16 to 128 channels, pooled to (N, 128): 0.3 million parameters.

    With `coarse`, the first convolution halves the resolution, too.
    """

    def __init__(self, coarse: bool) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128)
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2 if place or coarse else 1, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                    nn.Conv2d(b, b, 3, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                )
                for place, (a, b) in enumerate(pairwise(widths))
            ]
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.blocks(images)).mean((2, 3))


@final
@dataclass(frozen=True)
class FromThumbnails:
    """Thumbnails as input of a whole network: view 0 as they are, view v shifted by up to an eighth and perhaps mirrored."""

    thumbs: Thumbnails | _Noise
    spec: InputSpec
    flip: bool

    def batch(
        self, indices: NDArray[np.int64], views: NDArray[np.int64], device: torch.device
    ) -> tuple[Activation, Tensor]:
        pictures, side = self.thumbs.read(indices), self.thumbs.side
        if views.any():
            draw = np.random.default_rng([*views[:4].tolist(), len(views)])
            shift = draw.integers(-(side // 8), side // 8 + 1, size=(len(views), 2)) * (views > 0)[:, None]
            # Shifted around the border: on an eighth of the side that is as good as padding.
            down, across = ((np.arange(side) - shift[:, axis, None]) % side for axis in (0, 1))
            mirrored = (views > 0) & (draw.random(len(views)) < 0.5) & self.flip
            across[mirrored] = across[mirrored, ::-1]
            pictures = pictures[np.arange(len(views))[:, None, None], down[:, :, None], across[:, None, :]]
        return normalize(pictures, self.spec, device), torch.empty(len(indices), 0, device=device)


@dataclass(frozen=True, eq=False)
class Scratch:
    """The small network from scratch: logits (M, K) of the pictures asked for, its rate, epochs, seconds, whether it ran to its end,
    and whether the rate is the best of several on held-out pictures."""

    logits: NDArray[np.float32]
    rate: float
    epochs: int
    seconds: float
    complete: bool
    searched: bool


@dataclass(frozen=True, eq=False)
class Scratching:
    """One baseline from scratch: the learning rate that does best on `held` at the end of a short training on `fit` trains on `whole`.

    A single rate is taken as it is. Where the pace of the short trainings (of a single rate one epoch) says that `epochs` would not
    end until `due`, it is as many as do, but no fewer than `fewest`, and all where that is None; at the `deadline` it is cut off. Both
    are on `time.monotonic`'s clock.
    """

    thumbs: Thumbnails
    dataset: Dataset
    store: Store
    epochs: int
    fit: NDArray[np.int64]
    held: NDArray[np.int64]
    whole: NDArray[np.int64]
    test: NDArray[np.int64]
    rates: tuple[float, ...] = RATES
    seed: int = 0
    deadline: float = math.inf
    fewest: int | None = None
    due: float = math.inf
    progress: runtime.Progress = runtime.silent

    def is_stored(self) -> bool:
        """Whether the outcome was computed before."""
        return self.store.artifact("scratch", self._spec()).load() is not None

    def run(self) -> Scratch:
        """Train, or take the stored outcome."""
        memo = self.store.artifact("scratch", self._spec())
        stored = memo.load()
        if stored is not None:
            record, arrays = stored
            return Scratch(
                arrays["logits"],
                float(record["rate"]),
                self.epochs,
                float(record["seconds"]),
                True,
                len(self.rates) > 1,
            )
        began = time.monotonic()
        steps = math.ceil(len(self.fit) / SCRATCH_BATCH)
        short = max(round(_SEARCH * self.epochs), math.ceil(_SEARCH_STEPS / steps))
        nobody, searched = np.empty(0, np.int64), self.rates
        if len(self.rates) == 1:
            short, searched = 1, self.rates if self.fewest is not None else ()
        with self.progress("Baseline from scratch", short * len(searched) + self.epochs, "epochs") as advance:
            trials = [self._train(rate, short, self.fit, self.held, self.held, advance) for rate in searched]
            # Of equals the rate that is the best in most trials, and not the first, which is the slowest.
            rate = (
                max(trials, key=lambda each: (each.accuracy, each.rate in USUAL_RATES)).rate
                if trials
                else self.rates[0]
            )
            ending = replace(self, epochs=self._epochs_until_due(trials))
            last = ending._train(rate, ending.epochs, self.whole, nobody, self.test, advance)
            advance(self.epochs - ending.epochs)
        took = time.monotonic() - began
        complete = last.complete and all(trial.complete for trial in trials)
        if complete:
            memo = self.store.artifact("scratch", ending._spec())
            memo.save({"rate": rate, "seconds": took}, {"logits": last.logits})
            for trial in (*trials, last):
                trial.checkpoint.drop()
        return Scratch(last.logits, rate, ending.epochs, took, complete, len(self.rates) > 1)

    def _epochs_until_due(self, trials: Sequence[_Trial]) -> int:
        """As many epochs as end until then at the pace of the trials, within what may be."""
        pictures = len(self.fit) * sum(trial.epochs for trial in trials)
        if self.fewest is None or not pictures:
            return self.epochs
        once = len(self.whole) * sum(trial.seconds for trial in trials) / pictures
        return int(min(self.epochs, max(self.fewest, (self.due - time.monotonic()) / once)))

    def _train(
        self,
        rate: float,
        epochs: int,
        fit: NDArray[np.int64],
        held: NDArray[np.int64],
        asked: NDArray[np.int64],
        advance: runtime.Advance,
    ) -> _Trial:
        net, source = _fresh(self.thumbs, len(self.dataset.classes), self.seed, self.dataset.mirror)
        rung = _rung(rate, epochs)
        checkpoint = Checkpoint(
            self.store.artifact("checkpoint", {**self._spec(), "rate": rate, "run": [epochs, len(fit)]})
        )
        done = train(
            net,
            source,
            self.dataset.labels,
            fit,
            held,
            rung,
            seed=self.seed,
            precision=_precision(),
            checkpoint=checkpoint,
            deadline=self.deadline,
            advance=advance,
        )
        accuracy = done.curve[-1].val_accuracy if done.curve else 0.0
        logits, seconds = held_out_logits(net, source, asked, _precision()), sum(each.seconds for each in done.curve)
        return _Trial(rate, accuracy, logits, done.complete, len(done.curve), seconds, checkpoint)

    def _spec(self) -> dict[str, Any]:
        parts = {"fit": self.fit, "held": self.held, "whole": self.whole, "test": self.test}
        content = "\n".join(
            f"{name} {self.dataset.digests[i]} {self.dataset.labels[i]}" for name, part in parts.items() for i in part
        )
        return {
            "content": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
            "epochs": self.epochs,
            "classes": len(self.dataset.classes),
            "mirror": self.dataset.mirror,
            "seed": self.seed,
            "side": self.thumbs.side,
            "rates": self.rates,
            "precision": _precision(),
            "torch": torch.__version__,
            "version": 7,
        }


def scratch_backbone(side: int, seed: int) -> Backbone:
    """The small network as a backbone with fresh weights; `seed` decides them."""
    torch.manual_seed(seed)
    spec = InputSpec(
        size=(side, side), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear", crop=1.0
    )
    from headstart.backbones.from_module import load_module  # slow to import: the first model need not wait for it

    return load_module(SmallNet(coarse=side > 32), spec)


def scratch_seconds(side: int = 64, count: int = SCRATCH_BATCH) -> float:
    """Seconds that one picture takes in the training of the small network on this machine, all that belongs to it included."""
    net, source = _fresh(_Noise(side), 2, 0)
    rung, nobody = _rung(1e-2, 1, count), np.empty(0, np.int64)
    fit, best = np.arange(3 * count), math.inf
    for _ in range(3):  # the first pays for what is set up once
        began = time.perf_counter()
        train(net, source, fit % 2, fit, nobody, rung, seed=0, precision=_precision())
        best = min(best, (time.perf_counter() - began) / len(fit))
    return best


def _precision() -> Precision:
    """Of the small network's training: plain 3×3 convolutions gain from bfloat16 wherever a machine multiplies in it."""
    return "bfloat16" if has_fast_bfloat16(runtime.device()) else "float32"


@dataclass(frozen=True)
class _Noise:
    """Pictures as `Thumbnails` gives them, of nothing."""

    side: int

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        draw = np.random.default_rng(0)
        return draw.integers(0, 256, (len(indices), self.side, self.side, 3), dtype=np.uint8)


def _rung(rate: float, epochs: int, batch: int = SCRATCH_BATCH) -> Rung:
    return Rung(
        cut=0,
        epochs=epochs,
        lr_body=rate,
        lr_head=rate,
        lr_decay=1.0,
        views=_VIEWS,
        batch=batch,
        weight_decay=0.05,
        statistics="learnt",
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    rate: float
    accuracy: float
    logits: NDArray[np.float32]
    complete: bool
    epochs: int
    seconds: float
    checkpoint: Checkpoint


def _fresh(thumbs: Thumbnails | _Noise, classes: int, seed: int, mirror: bool = True) -> tuple[Net, FromThumbnails]:
    backbone = scratch_backbone(thumbs.side, seed)
    backbone.to(memory_format=torch.channels_last)
    width, last = backbone.widths[-1], len(backbone.widths) - 1
    head = Head("logistic", (last,), 0.0, np.zeros((width, classes), np.float32), np.zeros(classes, np.float32))
    net = Net(backbone, head, 0, torch.zeros(width), torch.ones(width)).to(runtime.device())
    return net, FromThumbnails(thumbs, backbone.input, flip=mirror)
