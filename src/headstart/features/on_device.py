"""JPEG files decoded and resized where the network runs (on a GPU by nvJPEG, through torchvision). No GPU has measured it yet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress

import torch
from PIL import ImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg  # deprecated in 0.29: once it has gone, Pillow decodes everything
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from headstart.data.dataset import Images
from headstart.data.images import Transform, load_view, quiet_pillow, turn_of

_KNOWN = ("bilinear", "bicubic")  # ways to resize that torchvision has for tensors


def load_there(images: Images, indices: Sequence[int], transform: Transform, device: torch.device) -> Tensor:
    """Clean views (N, H, W, 3) uint8 on the device. What is no upright 8-bit JPEG, is elongated, or is to be resized in a way that
    torchvision has not, is decoded by Pillow.

    Raises:
        UnreadableImage: with the picture's name and the reason.
    """
    views: dict[int, Tensor] = {}
    with quiet_pillow():
        files = {place: found for place, i in enumerate(indices) if (found := _jpeg(images, i, transform)) is not None}
        # A damaged or unusual file among them, or no memory left: Pillow decodes them all, and says what is wrong with which.
        with suppress(RuntimeError):
            decoded = decode_jpeg(list(files.values()), mode=ImageReadMode.RGB, device=device) if files else []
            views = {place: _clean(pixels, transform) for place, pixels in zip(files, decoded, strict=True)}
    for place in set(range(len(indices))) - set(views):
        views[place] = torch.from_numpy(load_view(images, indices[place], transform).copy()).to(device)
    return torch.stack([views[place] for place in range(len(indices))])


def _jpeg(images: Images, index: int, transform: Transform) -> Tensor | None:
    """The bytes of a JPEG file that any decoder reads alike; None for everything else."""
    with images.open(index) as opened:
        file = opened.fp if isinstance(opened, ImageFile.ImageFile) else None
        plain = opened.format == "JPEG" and opened.mode in ("RGB", "L") and turn_of(opened) is None
        across, down, *_ = transform.placed(*opened.size)
        if not plain or transform.interpolation not in _KNOWN or transform.is_elongated(across, down):
            return None
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8) if isinstance(file, io.BytesIO) else None


def _clean(pixels: Tensor, transform: Transform) -> Tensor:
    """The clean view (H, W, 3) of a decoded picture (3, height, width) uint8."""
    across, down, left, top = transform.placed(pixels.shape[2], pixels.shape[1])
    how = InterpolationMode(transform.interpolation)
    resized = functional.resize(pixels, [down, across], interpolation=how, antialias=True)
    return torch.as_tensor(resized)[:, top : top + transform.size[0], left : left + transform.size[1]].permute(1, 2, 0)
