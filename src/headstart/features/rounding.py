"""Weights rounded to bfloat16 such that a convolution gives the same on average.

What rounding does to features is hardly noise: every picture meets the same rounded weights, and what they add to the mean of a
channel is passed on by every stage that follows. Two corrections take most of it away (Nagel et al. 2019, arXiv 1906.04721,
section 4.2). The sum of a kernel over its positions is kept, since neighbouring pixels are nearly alike; and what is left of the
change of a channel's mean is taken off its bias. The means come from drawn pictures whose statistics are close to those of
photographs, so that rounded weights depend on nothing but the weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

_DISCS, _SMALLEST, _LARGEST = 300, 0.02, 0.5  # per picture; radii as shares of its side


def rounded(kernels: Tensor, dtype: torch.dtype) -> Tensor:
    """Kernels (K, C, H, W) float32 in `dtype`; the weight that is smallest, and so has the finest steps, makes up for what the others
    of its kernel have lost."""
    exact = kernels.flatten(2)
    found = exact.to(dtype).float()
    smallest = exact.abs().masked_fill(exact == 0, torch.inf).argmin(2, keepdim=True)
    found.scatter_add_(2, smallest, (exact - found).sum(2, keepdim=True))
    return found.view_as(kernels).to(dtype)


def lost(kernels: Tensor, rounded: Tensor, groups: int, means: Tensor) -> Tensor:
    """What rounding takes off the mean of each output channel, (K,) float32, where input channels have these means (C,)."""
    change = (kernels.double() - rounded.double()).sum((2, 3))
    moved = torch.einsum(
        "gki,gi->gk", change.view(groups, -1, change.shape[1]), means.double().view(groups, -1)
    ).flatten()
    return moved.to(
        torch.bfloat16
    ).float()  # digits that the order of a sum decides are dropped: threads must not matter


def leaves(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) of discs that cover one another, always the same.

    Their radii have a density of r^-3, which gives edges and areas the statistics of photographs at every scale (Lee, Mumford & Huang
    2001, the dead leaves model, doi 10.1023/A:1011109015675).
    """
    rng, side = np.random.default_rng(0), max(height, width)
    pictures = []
    for _ in range(count):
        base, spread = rng.uniform(30, 225, 3), rng.uniform(20, 90)
        picture = Image.new("RGB", (width, height), _colour(base))
        pen = ImageDraw.Draw(picture)
        for _ in range(_DISCS):
            radius = side * _SMALLEST / np.sqrt(1 - rng.random() * (1 - (_SMALLEST / _LARGEST) ** 2))
            x, y = rng.uniform(-0.1, 1.1, 2) * (width, height)
            shade = base + spread * rng.standard_normal() + 0.3 * spread * rng.standard_normal(3)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(shade))
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def _colour(values: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
