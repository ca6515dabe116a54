"""Small pictures that can be learnt, and small networks to learn them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.from_module import load_module
from headstart.choice import Ways
from headstart.data.dataset import Dataset
from headstart.data.load import load_dataset
from headstart.features.precision import has_fast_bfloat16

SIDE = 32
SPEC = InputSpec(size=(SIDE, SIDE), mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2), interpolation="bilinear", crop=1.0)
# oneDNN computes nothing in bfloat16 on a processor that lacks it, whatever a test pretends.
needs_bfloat16 = pytest.mark.skipif(not has_fast_bfloat16(torch.device("cpu")), reason="no bfloat16 in this processor")
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def clouds(
    count: int = 90, width: int = 12, classes: int = 3, apart: float = 1.2, seed: int = 0
) -> tuple[Floats, Labels]:
    """Overlapping clouds on features of very different scales and offsets."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = apart * draw.standard_normal((classes, width))
    raw = centres[labels] + draw.standard_normal((count, width))
    return (raw * 10 ** draw.uniform(-1, 1, width) + draw.uniform(-50, 50, width)).astype(np.float32), labels


def stripes(
    count: int, classes: int = 3, seed: int = 0, contrast: float = 60.0, side: int = SIDE
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, side, side, 3) of stripes over a random background, and labels (N,): the class is the orientation."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    down, across = np.mgrid[0:side, 0:side] / side
    pictures = np.empty((count, side, side, 3), np.uint8)
    for place, label in enumerate(labels):
        angle = np.pi * label / classes
        wave = np.sin(2 * np.pi * (4 * (across * np.cos(angle) + down * np.sin(angle)) + draw.random()))
        grid = Image.fromarray(draw.integers(40, 216, (4, 4, 3), dtype=np.uint8))
        ground = np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
        noise = draw.normal(0, 12, (side, side, 3))
        pictures[place] = np.clip(ground + contrast * wave[:, :, None] + noise, 0, 255).astype(np.uint8)
    return pictures, labels


def striped(count: int = 150, classes: int = 3, seed: int = 0, contrast: float = 60.0) -> Dataset:
    """Stripes as a data set: from 120 pictures on with a sealed test set."""
    return load_dataset(stripes(count, classes, seed, contrast))


def folder(root: Path, count: int, classes: int = 3, seed: int = 0, contrast: float = 60.0) -> Path:
    """Stripes as PNG files, one sub-folder per class."""
    pictures, labels = stripes(count, classes, seed, contrast)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = root / f"turn{label}" / f"{place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root


def settle_statistics(network: nn.Module) -> nn.Module:
    """Norms whose statistics, weights and biases are far from neutral."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                nn.init.normal_(tensor)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
    return network.eval()


class Twice(nn.Module):
    """A convolution whose output is also read beside its norm, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.again, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.relu(y - 0.5 * self.norm(y))
        y = torch.relu(self.again(y))
        y = torch.relu(self.second(self.again(y)))
        return self.last(y).mean((2, 3))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block with running statistics and dropout: all that freezing must leave alone."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.short = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop(self.norm(self.conv(x))) + self.short(x))


class TinyNet(nn.Module):
    """32 px to (N, 8) features in five convolutions; weights and running statistics drawn from `seed`."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        drawn = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(Block(width, 1 + place % 2) for place in range(4)))
        for norm in (module for module in self.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean = 0.1 * torch.randn(width)
            norm.running_var = 0.5 + torch.rand(width)
        torch.random.set_rng_state(drawn)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.blocks(self.stem(x))).mean((2, 3))


def tiny_backbone(seed: int = 0) -> Backbone:
    """`TinyNet` cut into stages."""
    return load_module(TinyNet(seed), SPEC)


def clearly_likelier(a: Floats, b: Floats, labels: Labels) -> bool:
    """Whether logits `a` (N, K), calibrated, make the labels likelier than `b` do, by more than a standard error."""
    return Ways.of([a, b], labels).clearly_likelier(0, 1)
