"""The suffix: `stages[cut:]` and a linear head, where its input comes from, and how its training runs fastest."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart import runtime
from headstart.backbones.backbone import Activation, Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import load_view
from headstart.features.activations import Cached
from headstart.features.engine import Engine, as_activation, normalize
from headstart.features.extract import columns
from headstart.features.fused import fused
from headstart.features.precision import Precision, autocast, has_fast_bfloat16, synchronize
from headstart.features.settle import transform_of
from headstart.heads import Head, Kind
from headstart.plan import Rung, Trains

_EVAL_BATCH = 64
Training = Literal["float32", "bfloat16", "mixed"]


class Source(Protocol):
    """Where activations at the cut come from: the store, or the pictures themselves."""

    def batch(
        self, indices: NDArray[np.int64], views: NDArray[np.int64], device: torch.device
    ) -> tuple[Activation, Tensor]:
        """Float32 activation that enters `stages[cut]`, and pooled outputs (M, P) of `stages[:cut]`."""
        ...


@final
@dataclass(frozen=True)
class FromStore:
    """Activations that were computed once."""

    backbone: Backbone
    cached: Cached

    def batch(
        self, indices: NDArray[np.int64], views: NDArray[np.int64], device: torch.device
    ) -> tuple[Activation, Tensor]:
        flat, beside = self.cached.read(indices, views)
        return as_activation(self.backbone, flat, self.cached.cut, device), torch.from_numpy(beside).to(device)


@final
@dataclass(frozen=True)
class FromImages:
    """Activations computed anew from the pictures, view by view; with cut 0, the normalised pictures themselves. All cores decode a
    batch."""

    engine: Engine
    dataset: Dataset
    cut: int
    seed: int

    def batch(
        self, indices: NDArray[np.int64], views: NDArray[np.int64], device: torch.device
    ) -> tuple[Activation, Tensor]:
        transform = transform_of(self.engine.backbone, self.dataset.mirror)

        def seen(place: int) -> NDArray[np.uint8]:
            index, view = int(indices[place]), int(views[place])
            return load_view(self.dataset.images, index, transform, view=view, seed=self.seed)

        pictures = np.stack(list(runtime.parallel(seen, range(len(indices)))))
        if self.cut == 0:
            images = normalize(pictures, self.engine.backbone.input, device)
            return images, torch.empty(len(indices), 0, device=device)
        flat, beside = self.engine.activations(pictures, self.cut)
        # The engine's tensors are made without autograd; a copy may enter the stages that train.
        activation = self.engine.backbone.unflatten(self.cut, flat.to(device).float().clone())
        return activation, torch.from_numpy(beside).to(device)


@final
class Net(nn.Module):
    """`stages[cut:]` of a backbone and a linear head on the pooled outputs of the stages `taps`.

    The head works on features standardised by fixed `mean` and `scale` (D,), so that one learning rate suits all of them.
    """

    def __init__(self, backbone: Backbone, head: Head, cut: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.backbone, self.cut, self.taps = backbone, cut, head.taps
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        weight = torch.from_numpy(head.weight).to(mean.device)
        self.head = nn.Linear(*weight.shape)
        with torch.no_grad():
            self.head.weight.copy_((weight * scale[:, None]).T)
            self.head.bias.copy_(torch.from_numpy(head.bias).to(mean.device) + mean @ weight)
        chosen = columns(backbone.widths, head.taps)
        self.register_buffer("columns", torch.from_numpy(chosen))

    def forward(self, activation: Activation, beside: Tensor) -> Tensor:
        """Activation at the cut and pooled prefix (M, P) to logits (M, K)."""
        pooled = torch.cat([beside, *self.backbone.pooled(activation, self.cut)], dim=1)
        return self.head((pooled[:, self.columns] - self.mean) / self.scale)  # type: ignore[no-any-return, operator, index]

    def unfreeze(self, rung: Rung) -> None:
        """Make exactly what the rung trains trainable, and put it into train mode; running statistics too where it learns them."""
        self.backbone.train_from(self.cut)
        for place, stage in enumerate(self.backbone.stages[self.cut :], self.cut):
            still = rung.until is not None and place >= rung.until
            for name, parameter in stage.named_parameters():
                if still or not _trains(rung.trains, name, parameter):
                    parameter.requires_grad_(False)
            if still:
                stage.eval()
            elif rung.statistics == "learnt":
                stage.train()

    def linear(self, kind: Kind, strength: float) -> Head:
        """The head as a linear layer on raw pooled features."""
        with torch.no_grad():
            weight = (self.head.weight / self.scale).T  # type: ignore[operator]
            bias = self.head.bias - self.mean @ weight  # type: ignore[operator]
        return Head(kind, self.taps, strength, weight.cpu().numpy().copy(), bias.cpu().numpy().copy())

    def weights(self) -> dict[str, Tensor]:
        """Copies of all that may change: parameters and buffers of `stages[cut:]`, and the head."""
        return {name: value.detach().clone() for name, value in self._living().items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put copies from `weights()` back."""
        living = self._living()
        with torch.no_grad():
            for name, value in weights.items():
                living[name].copy_(value)

    def moved(self, start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> Net:
        """The same net with weights that lie `share` of the way from `start` to `end`."""
        self.load(between(start, end, share))
        return self

    def _living(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place in range(self.cut, len(self.backbone.stages)):
            stage = self.backbone.stages[place]
            found |= {f"stage{place}.{name}": value for name, value in stage.named_parameters()}
            found |= {f"stage{place}.{name}": value for name, value in stage.named_buffers()}
        return found | {f"head.{name}": value for name, value in self.head.named_parameters()}


def between(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights a share of the way from start to end; what is no floating-point number is taken from the end."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() and share < 1 else value
        for name, value in end.items()
    }


def digest(weights: dict[str, Tensor]) -> str:
    """Digest of names and values."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        total.update(name.encode())
        total.update(np.asarray(weights[name].cpu().numpy(), order="C").tobytes())
    return total.hexdigest()


def _trains(what: Trains, name: str, parameter: nn.Parameter) -> bool:
    return what == "all" or (parameter.ndim <= 1 and (what == "norms" or name.endswith("bias")))


@torch.no_grad()
def held_out_logits(
    net: Net, source: Source, indices: NDArray[np.int64], precision: Precision = "float32"
) -> NDArray[np.float32]:
    """Logits (M, K) float32 of the clean views of `indices` (M,)."""
    net.eval()
    device = net.head.weight.device
    blocks = [np.empty((0, net.head.out_features), np.float32)]
    for start in range(0, len(indices), _EVAL_BATCH):
        part = indices[start : start + _EVAL_BATCH]
        with autocast(device, precision):
            logits = net(*source.batch(part, np.zeros(len(part), np.int64), device))
        blocks.append(logits.float().cpu().numpy())
    return np.concatenate(blocks)


def fastest(device: torch.device) -> Training:
    """The fastest precision in which unfrozen stages train as well as in float32 on this device.

    On a CPU 1×1 convolutions gain from bfloat16, and depthwise ones lose several times as much.
    """
    if not has_fast_bfloat16(device):
        return "float32"
    return "bfloat16" if device.type == "cuda" else "mixed"


@contextmanager
def training(net: Net, how: Training) -> Iterator[Precision]:
    """Within, the stages that train run as fast as they can (features/fused.py), "mixed" with 1×1 convolutions in bfloat16; gives the
    precision of all else."""
    with fused(net.backbone, net.cut, low=how == "mixed"):
        yield "bfloat16" if how == "bfloat16" else "float32"


def stage_seconds(backbone: Backbone, device: torch.device, count: int = 8) -> list[float]:
    """Seconds per picture and stage of a training step, forward and backward, at the precision that is fastest here.

    With fewer pictures than 8 a step takes up to half as long again for each as with the 16 or 32 of a rung.
    """
    own = copy.deepcopy(backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    width = own.widths[-1]
    head = Head("ridge", (len(own.stages) - 1,), 0.0, np.zeros((width, 2), np.float32), np.zeros(2, np.float32))
    net = Net(own, head, 0, torch.zeros(width), torch.ones(width))
    own.train_from(0)
    best = [math.inf] * len(own.stages)
    with training(net, fastest(device)) as precision:
        for _ in range(2):  # the first pass pays for what is set up once
            images = torch.zeros(count, 3, *own.input.size, device=device)
            activation: Activation = images.to(memory_format=torch.channels_last)
            for place in range(len(best)):
                parts = [activation] if isinstance(activation, Tensor) else list(activation)
                entering = tuple(part.detach().requires_grad_(part.is_floating_point()) for part in parts)
                synchronize(device)
                began = time.perf_counter()
                with autocast(device, precision):
                    # Stages may work in place, which a leaf forbids.
                    given = tuple(part.clone() for part in entering)
                    activation = own.run(given[0] if len(given) == 1 else given, place, place + 1)
                    pooled = own.pool(place, activation)
                pooled.sum().backward()
                synchronize(device)
                best[place] = min(best[place], (time.perf_counter() - began) / count)
    return best
