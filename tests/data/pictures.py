"""Pictures and folders that the tests of the data room are made of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A picture with the slow changes of a photograph: random colours on a coarse grid, smoothly enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def write(path: Path, seed: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed).save(path, **options)  # type: ignore[arg-type]
    return path


def class_folders(root: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
    """`counts[name]` different pictures in `root/name`."""
    seed = first_seed
    for name, count in counts.items():
        for number in range(count):
            write(root / name / f"{number}.png", seed)
            seed += 1
    return root
