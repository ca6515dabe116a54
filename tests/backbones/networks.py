"""Small networks that differ in what makes cutting hard."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.partition import partition

SIZE = (32, 32)


class Residual(nn.Module):
    def __init__(self, width: int, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(drop)
        self.act = nn.ReLU(inplace=True)
        self.short = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.conv(x)))
        y += self.short(x)
        return self.act(y)


class ConvNet(nn.Module):
    """Stem, residual blocks with in-place operations and dropout, pooling; a buffer and a parameter at the
    top."""

    def __init__(self, width: int = 8, blocks: int = 4, drop: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((1, 3, 1, 1), 0.1))
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), 1.5))
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Residual(width, 1 + i % 2, drop) for i in range(blocks)))
        self.blocks[1].drop = self.blocks[0].drop  # one dropout object for two blocks
        self.unused = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem_norm(self.stem(x - self.shift)))
        x = self.blocks(x * self.scale)
        return x.mean((2, 3))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, width).permute(2, 0, 1, 3)
        weights = (q @ k.transpose(1, 2) * width**-0.5 + bias).softmax(-1)
        return x + self.out(weights @ v)


class Tokens(nn.Module):
    """A transformer: class token expanded to the batch, one bias table that all blocks share."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.table = nn.Parameter(torch.randn(17, 17))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        bias = self.table.tanh()
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)[:, 0]


class TwoStreams(nn.Module):
    """Two tensors run side by side to the end."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(3, 2 * width, 3, 4, 1)
        self.fines = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(depth))
        self.coarses = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, 1, 1) for _ in range(depth))
        self.down = nn.ModuleList(nn.Conv2d(width, 2 * width, 3, 2, 1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fine(x), self.coarse(x)
        for fine, coarse, down in zip(self.fines, self.coarses, self.down, strict=True):
            a = F.relu(fine(a))
            b = F.relu(coarse(b) + down(a))
        return torch.cat([a.mean((2, 3)), b.mean((2, 3))], dim=1)


def cut(network: nn.Module, size: tuple[int, int] = SIZE) -> Backbone:
    """The network as a backbone."""
    return partition(network, InputSpec(size=size), Origin("module:test", "", "", "", ""))


def images(count: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Random images (count, 3, *size)."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
