"""What one pass over the pictures finds out: readable or why not, size, mode, format, hash, thumbnails."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import Images
from headstart.data.images import decode, quiet_pillow
from headstart.errors import UnreadableImage
from headstart.runtime import Progress, cpu_count, silent

_GREY = 32  # side of the grey picture that hash and thumbnail are made of
_COLOUR = 8  # side of the picture in colour: pairs that are alike in grey are compared by it
_DECODED = 64  # shortest side to decode at: twice `_GREY`, so that the reduction still averages
_CHUNK = 64  # pictures whose file contents are held at a time; 64 large photographs are about 300 MB
_RECORD = struct.Struct("<I?II8s8s2d1024s192s200s")
_VERSION = zlib.crc32(f"facts-3 pillow-{PIL.__version__}".encode())  # another Pillow may read what this one cannot


class Memory(Protocol):
    """Remembers facts between runs: content digest -> a record of `RECORD_BYTES` bytes."""

    def get_many(self, digests: Sequence[str]) -> Mapping[str, bytes]:
        """The records that are known, of those asked for."""
        ...

    def put_many(self, records: Mapping[str, bytes]) -> None:
        """Remember records."""
        ...


RECORD_BYTES = _RECORD.size


@dataclass(frozen=True)
class Fact:
    """One picture: upright size in pixels, `grey` (32 * 32 bytes), `colour` (8 * 8 * 3), `span` from the lowest to the highest value
    where it is 16 bits deep; or the `reason` why it is unreadable."""

    reason: str
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    grey: bytes = b""
    colour: bytes = b""
    span: tuple[float, float] | None = None

    def pack(self) -> bytes:
        """The fact as a record of fixed length."""
        why = self.reason.encode()[:200].decode(errors="ignore").encode()
        readable = not self.reason
        return _RECORD.pack(
            _VERSION,
            readable,
            self.width,
            self.height,
            self.mode.encode()[:8],
            self.format.encode()[:8],
            *(self.span or (math.nan, math.nan)),
            self.grey,
            self.colour,
            why,
        )

    @classmethod
    def unpack(cls, record: bytes) -> Fact | None:
        """The fact in a record; None for a record of another version or length."""
        if len(record) != _RECORD.size:
            return None
        version, readable, width, height, mode, kind, low, high, grey, colour, why = _RECORD.unpack(record)
        if version != _VERSION:
            return None
        text = [field.rstrip(b"\0").decode() for field in (why, mode, kind)]
        if not readable:
            return cls(text[0], width, height, text[1], text[2])
        return cls("", width, height, text[1], text[2], grey, colour, None if math.isnan(low) else (low, high))


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts of N pictures.

    `digests` N content digests; "" where nothing could be read.  `reasons` N texts; "" where readable.
    `width`, `height` (N,) int64 pixels, upright.  `modes`, `formats` N of Pillow's names.
    `hashes` (N,) uint64 perceptual hash.  `thumbnails` (N, 32, 32) uint8 grey.  `colours` (N, 8, 8, 3) uint8 RGB.
    `spans` (N, 2) float64 lowest and highest value of pictures of 16 bits, but for one in a thousand at either end; NaN of others.
    """

    digests: tuple[str, ...]
    reasons: tuple[str, ...]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    modes: tuple[str, ...]
    formats: tuple[str, ...]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    spans: NDArray[np.float64]

    @property
    def readable(self) -> NDArray[np.int64]:
        """Indices (M,) of the pictures that can be used."""
        return np.flatnonzero(np.array([not why for why in self.reasons], dtype=bool))


def measure(images: Images, memory: Memory | None = None, progress: Progress = silent) -> Facts:
    """Read every picture once for its digest and, unless remembered, decode it whole at a reduced scale.

    A damaged picture is a fact and no error; only pictures whose content could not even be read are never
    remembered.
    """
    digests: list[str] = []
    facts: list[Fact] = []  # without their small pictures, which lie side by side
    grey, colour = bytearray(), bytearray()
    total = len(images)
    with (
        quiet_pillow(),
        ThreadPoolExecutor(cpu_count()) as pool,
        progress("Reading pictures", total) as advance,
    ):
        for start in range(0, total, _CHUNK):
            chunk = range(start, min(start + _CHUNK, total))
            fetched = list(pool.map(partial(_fetch, images), chunk))
            known = _remembered(memory, [digest for digest, _ in fetched])
            missing = [index for index, (digest, _) in zip(chunk, fetched, strict=True) if digest not in known]
            looks = [fetched[index - start][1] for index in missing]
            advance(len(chunk) - len(missing))
            found = {}
            for index, fact in zip(missing, pool.map(_call, looks), strict=True):
                found[index] = fact
                advance()
            if memory is not None:
                memory.put_many(
                    {d: found[i].pack() for i, (d, _) in zip(chunk, fetched, strict=True) if d and i in found}
                )
            digests += [digest for digest, _ in fetched]
            for index, (digest, _) in zip(chunk, fetched, strict=True):
                fact = found[index] if index in found else known[digest]
                grey += fact.grey or bytes(_GREY * _GREY)
                colour += fact.colour or bytes(_COLOUR * _COLOUR * 3)
                mode, kind = sys.intern(fact.mode), sys.intern(fact.format)
                facts.append(replace(fact, grey=b"", colour=b"", mode=mode, format=kind))
    return _assemble(
        digests,
        facts,
        np.frombuffer(grey, np.uint8).reshape(total, _GREY, _GREY),
        np.frombuffer(colour, np.uint8).reshape(total, _COLOUR, _COLOUR, 3),
    )


def _call(look: Callable[[], Fact]) -> Fact:
    return look()


def _fetch(images: Images, index: int) -> tuple[str, Callable[[], Fact]]:
    prefix = f"{images.names[index]}: "
    try:
        digest, open_picture = images.fetch(index)
    except UnreadableImage as error:
        lost = Fact(str(error).removeprefix(prefix))
        return "", lambda: lost
    return digest, lambda: _look(open_picture, prefix)


def _look(open_picture: Callable[[], Image.Image], prefix: str) -> Fact:
    try:
        with open_picture() as opened:
            mode, kind, full = opened.mode, opened.format or "", opened.size
            picture = decode(opened, _DECODED)
            span = _span(opened)
    except UnreadableImage as error:
        return Fact(str(error).removeprefix(prefix) or "unreadable")
    # `decode` may have turned the picture and reduced it; only the turning matters for the size on record.
    turned = (picture.width > picture.height) != (full[0] > full[1]) and picture.width != picture.height
    width, height = (full[1], full[0]) if turned else full
    grey = picture.convert("L").resize((_GREY, _GREY), Image.Resampling.BILINEAR)
    colour = picture.resize((_COLOUR, _COLOUR), Image.Resampling.BOX, reducing_gap=2.0)
    return Fact("", width, height, mode, kind, grey.tobytes(), colour.tobytes(), span)


def _span(image: Image.Image) -> tuple[float, float] | None:
    """Lowest and highest value, but for one in a thousand at either end, of a picture that `decode` takes for 16 bits deep."""
    if not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    step = math.ceil(math.sqrt(values.size) / 256)  # about 65,536 of its pixels tell enough
    low, high = np.percentile(values[::step, ::step], (0.1, 99.9)).tolist()
    is_deep = values.dtype.itemsize == 2 or (low >= 0 and 255 < high <= 65535)
    return (low, high) if is_deep else None


def _remembered(memory: Memory | None, digests: Sequence[str]) -> dict[str, Fact]:
    if memory is None:
        return {}
    unpacked = {digest: Fact.unpack(record) for digest, record in memory.get_many([d for d in digests if d]).items()}
    return {digest: fact for digest, fact in unpacked.items() if fact is not None}


def _assemble(
    digests: Sequence[str], facts: Sequence[Fact], grey: NDArray[np.uint8], colour: NDArray[np.uint8]
) -> Facts:
    return Facts(
        digests=tuple(digests),
        reasons=tuple(fact.reason for fact in facts),
        width=np.array([fact.width for fact in facts], dtype=np.int64),
        height=np.array([fact.height for fact in facts], dtype=np.int64),
        modes=tuple(fact.mode for fact in facts),
        formats=tuple(fact.format for fact in facts),
        hashes=perceptual_hash(grey),
        thumbnails=grey,
        colours=colour,
        spans=np.array([fact.span or (math.nan, math.nan) for fact in facts], np.float64).reshape(-1, 2),
    )


def perceptual_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits per picture: which of its 8 x 8 lowest cosine frequencies lie above their median.

    Args:
        grey: (N, 32, 32) uint8.

    Returns:
        (N,) uint64. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 (pHash).
    """
    # Rows k = 0..7 of the cosine transform (DCT-II) of 32 samples n: cos(pi k (2 n + 1) / 64).
    cosine = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(_GREY) + 1)).astype(np.float32)
    parts = []
    for start in range(0, len(grey), 4096):  # bounds the float copies
        low = (cosine @ grey[start : start + 4096].astype(np.float32) @ cosine.T).reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        parts.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)
