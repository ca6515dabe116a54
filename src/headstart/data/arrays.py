"""Arrays of pixels: in memory, in an .npz file, in IDX files as MNIST is distributed."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.listing import Listing, printable, split_of
from headstart.data.sources import ArrayImages
from headstart.errors import DataError

_IDX = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?$")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NPZ_PAIRS = (("x", "y"), ("images", "labels"), ("X", "y"), ("data", "labels"))


def read_arrays(parts: Mapping[str, tuple[ArrayLike, ArrayLike]], source: str, layout: str = "arrays") -> Listing:
    """Pictures from arrays: split name ("" where none is given) -> (images, labels).

    Args:
        parts: images (N, H, W) or (N, H, W, C) with C in 1, 3, 4; integers or floats in 0..255, floats in
            0..1, booleans or 0 and 1. Labels (N,) integers or strings.

    Raises:
        DataError: for another shape, type or range, or where the lengths differ.
    """
    blocks = [
        (split, *_checked(images, labels, f"{source} {split}".strip())) for split, (images, labels) in parts.items()
    ]
    shapes = {block[1].shape[1:] for block in blocks}
    if len(shapes) > 1:
        raise DataError(f"{source}: the parts hold pictures of different shapes: {', '.join(map(str, shapes))}.")
    pixels = np.concatenate([block[1] for block in blocks]) if len(blocks) > 1 else blocks[0][1]
    names = tuple(f"{split or 'images'}[{row}]" for split, images, _ in blocks for row in range(len(images)))
    count = len(pixels)
    return Listing(
        images=ArrayImages(pixels, names, tuple(range(count))),
        labels=tuple(printable(str(label)) for _, _, labels in blocks for label in labels.tolist()),
        split=tuple(split for split, images, _ in blocks for _ in range(len(images))),
        group=("",) * count,
        source=source,
        layout=layout,
    )


def read_memory(source: object) -> Listing:
    """Arrays in memory: a tuple (images, labels), or a dict from train, val and test to such tuples.

    Raises:
        DataError: for another key or value, or no "train"; and as `read_arrays`.
    """
    if isinstance(source, tuple):
        images, labels = source
        return read_arrays({"": (images, labels)}, "arrays")
    parts: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    for name, part in source.items() if isinstance(source, dict) else ():
        split = split_of(str(name))
        if split is None or not (isinstance(part, tuple) and len(part) == 2):
            raise DataError(
                f"Got a dict with the key {name!r}. Expected train, val or test, each with a tuple (images, labels)."
            )
        if split in parts:
            raise DataError(f"Got a dict with two keys that mean {split}, {name!r} among them. Keep one.")
        parts[split] = part
    if "train" not in parts:
        raise DataError(f"Got a dict of {', '.join(parts) or 'nothing'}. Expected at least 'train' in it.")
    return read_arrays(parts, "arrays")


def read_npz(path: Path) -> Listing:
    """An .npz file: x and y (or images and labels), or x_train, y_train, x_test, y_test, x_val, y_val."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npz of plain arrays: {error}") from error
    for images, labels in _NPZ_PAIRS:
        if images in held and labels in held:
            return read_arrays({"": (held[images], held[labels])}, str(path), "npz")
    parts: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    for name in held:
        match = re.fullmatch(r"(x|X|images|(?P<before>\w+)_images)(_(?P<after>\w+))?", name)
        split = split_of((match["before"] or match["after"] or "") if match else "")
        partner = re.sub(r"^[xX](?=_)", "y", name).replace("images", "labels")
        if split is not None and partner in held:
            parts[split] = (held[name], held[partner])
    if "train" not in parts:
        raise DataError(
            f"{path}: got the arrays {', '.join(held) or 'none'}. Expected x and y, or images and labels, or "
            "x_train, y_train, x_test, y_test."
        )
    return read_arrays(parts, str(path), "npz")


def has_idx(folder: Path) -> bool:
    """Whether a folder holds the IDX files of a training set."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot list this folder ({error.strerror}). Check its permissions.") from error
    return any(match["part"] == "train" for match in map(_IDX.match, names) if match)


def is_idx(path: Path) -> bool:
    """Whether a file is called like one of the IDX files that a folder of them holds."""
    return _IDX.match(path.name) is not None


def read_idx(folder: Path) -> Listing:
    """A folder of IDX files: train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-... for test.

    Format: http://yann.lecun.com/exdb/mnist (big-endian; magic 0 0 type dimensions, sizes, values).
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        match = _IDX.match(path.name)
        if match is None:
            continue
        key = ("train" if match["part"] == "train" else "test", match["what"])
        if key in found and found[key].name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DataError(
                f"{folder}: '{found[key].name}' and '{path.name}' are both {key[0]} {key[1]}. Keep "
                "one data set per folder."
            )
        found.setdefault(key, path)
    parts: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    for split in ("train", "test"):
        present = [what for what in ("images", "labels") if (split, what) in found]
        if len(present) == 1:
            raise DataError(
                f"{folder}: found '{found[split, present[0]].name}' but not its counterpart. Both files are needed."
            )
        if present:
            parts[split] = (idx_array(found[split, "images"]), idx_array(found[split, "labels"]))
    return read_arrays(parts, str(folder), "idx")


def idx_array(path: Path) -> NDArray[np.generic]:
    """The array in one IDX file, gzipped or not.

    Raises:
        DataError: for a wrong magic number or a length that does not fit the header.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}. Download it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(f"{path}: not an IDX file (starts with {content[:4].hex(' ')}). Expected 00 00 08 ...")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4")) if len(content) >= start else ()
    kind = np.dtype(_IDX_TYPES[content[2]])
    expected = start + math.prod(shape) * kind.itemsize
    if len(shape) != dimensions or len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes where its header promises {expected}. Download it again.")
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def _checked(images: ArrayLike, labels: ArrayLike, what: str) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
    try:
        pixels, names = np.asarray(images), np.asarray(labels)
    except ValueError as error:
        raise DataError(
            f"{what}: the images (or labels) make no array: {error}. Bring pictures to one size, or give a folder or a table of files."
        ) from error
    except (TypeError, RuntimeError) as error:
        # A tensor that is to be trained, lies on a device, or has a dtype of torch alone.
        raise DataError(
            f"{what}: the images (or labels) make no array: {error} Give arrays, or such as  tensor.detach().cpu().float()"
        ) from error
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        channels_first = pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4)
        hint = " Move the channels last:  numpy.moveaxis(images, 1, -1)" if channels_first else ""
        raise DataError(
            f"{what}: got images of shape {pixels.shape}. Expected (N, H, W) or (N, H, W, 1, 3 or 4).{hint}"
        )
    if names.ndim != 1 or len(names) != len(pixels):
        raise DataError(
            f"{what}: got {len(pixels)} images and labels of shape {names.shape}. Expected one label "
            f"per image, ({len(pixels)},)."
        )
    if names.dtype.kind == "f" and np.array_equal(names, np.rint(names)):
        names = names.astype(np.int64)
    # NumPy makes text of all labels, of nan too, where some are text already: the list as it was given still tells.
    missing = [name for name in (labels if isinstance(labels, list | tuple) else names.tolist()) if _is_missing(name)]
    if missing:
        raise DataError(f"{what}: {len(missing)} of {len(names)} labels are {missing[0]}. Leave these pictures out.")
    empty = sum(not str(name).strip() for name in names.tolist())
    if empty:
        raise DataError(f"{what}: {empty} of {len(names)} labels are empty. Name them, or leave these pictures out.")
    if names.dtype.kind not in "iuUbO":
        raise DataError(f"{what}: got labels of type {names.dtype}. Expected integers or strings.")
    return _to_bytes(pixels, what), names


def _is_missing(label: object) -> bool:
    """Whether a label is none: None, or what pandas puts in its place (nan, NaT, NA)."""
    return label is None or (not isinstance(label, str) and str(label) in ("nan", "NaT", "<NA>"))


def _to_bytes(pixels: NDArray[np.generic], what: str) -> NDArray[np.uint8]:
    if pixels.dtype.kind not in "biuf":
        raise DataError(f"{what}: got images of type {pixels.dtype}. Expected numbers in 0..255 or 0..1.")
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255):  # written so that NaN fails too
        raise DataError(
            f"{what}: got pixel values from {low:g} to {high:g}. Expected 0..255, or 0..1 in floats; scale them first."
        )
    if high > 1 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    scaled = pixels.astype(np.float32) * (255.0 if high <= 1 else 1.0)  # 0 and 1 are black and white
    return np.asarray(np.rint(scaled), dtype=np.uint8)
