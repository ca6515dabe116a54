"""Where raw pictures come from: files, arrays, rows of a Hugging Face data set. All fulfil `Images`."""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import Images
from headstart.data.images import quiet_pillow, reason
from headstart.errors import UnreadableImage

# Formats that Pillow opens but that are no photographs, or that start another program (EPS runs Ghostscript).
_REFUSED = frozenset({"EPS", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"})


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's names of the picture formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _REFUSED))


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """File name endings, with the dot and in lower case, that are taken for pictures."""
    known = set(formats())
    return frozenset(ending.lower() for ending, name in Image.registered_extensions().items() if name in known)


def digest_of(content: bytes | memoryview) -> str:
    """Hex BLAKE2b digest, 32 bytes long."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def open_bytes(content: bytes) -> Image.Image:
    """The encoded picture, opened and not yet decoded.

    Raises:
        UnreadableImage: with the reason.
    """
    if not content:
        raise UnreadableImage("the file is empty (0 bytes)")
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        raise UnreadableImage("a HEIC photo, which Pillow cannot open; convert it to JPEG")
    with quiet_pillow():
        try:
            return Image.open(io.BytesIO(content), formats=formats())
        except MemoryError:
            raise
        except Exception as error:  # a damaged header raises what its plugin happened to trip over
            raise UnreadableImage(reason(error)) from error


@final
@dataclass(frozen=True, eq=False)
class FileImages:
    """Pictures in files; `names` are for people, `paths` for the machine."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, index: int) -> str:
        return digest_of(self._read(index))

    def open(self, index: int) -> Image.Image:
        return self.fetch(index)[1]()

    def fetch(self, index: int) -> tuple[str, Callable[[], Image.Image]]:
        content = self._read(index)
        return digest_of(content), lambda: _named(self.names[index], content)

    def select(self, indices: Sequence[int]) -> FileImages:
        return FileImages(tuple(self.paths[i] for i in indices), tuple(self.names[i] for i in indices))

    def is_one_file(self, a: int, b: int) -> bool:
        """Whether two pictures are one file: named twice, or by a link."""
        try:
            return self.paths[a].samefile(self.paths[b])
        except OSError:
            return False

    def _read(self, index: int) -> bytes:
        path = self.paths[index]
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
                raise UnreadableImage(f"{self.names[index]}: not a regular file")
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a path with a NUL in it is no path
            raise UnreadableImage(f"{self.names[index]}: {reason(error)}") from error


@final
@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Pictures in one array `pixels` (N, H, W) or (N, H, W, 1, 3 or 4) uint8, of which `rows` are shown."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, index: int) -> str:
        pixels = np.ascontiguousarray(self.pixels[self.rows[index]])
        return digest_of(f"{pixels.shape} {pixels.dtype}\n".encode() + pixels.tobytes())

    def open(self, index: int) -> Image.Image:
        pixels = self.pixels[self.rows[index]]
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))

    def fetch(self, index: int) -> tuple[str, Callable[[], Image.Image]]:
        return self.content(index), lambda: self.open(index)

    def select(self, indices: Sequence[int]) -> ArrayImages:
        return ArrayImages(self.pixels, tuple(self.names[i] for i in indices), tuple(self.rows[i] for i in indices))


class Row(Protocol):
    """An encoded picture as Hugging Face stores it: {"bytes": ... or None, "path": ... or None}."""

    def __call__(self, row: int) -> Mapping[str, object]: ...


@final
@dataclass(frozen=True, eq=False)
class RowImages:
    """Pictures fetched by `row` from a columnar table, encoded, by the row numbers in `rows`."""

    row: Row
    names: tuple[str, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, index: int) -> str:
        return digest_of(self._read(index))

    def open(self, index: int) -> Image.Image:
        return self.fetch(index)[1]()

    def fetch(self, index: int) -> tuple[str, Callable[[], Image.Image]]:
        content = self._read(index)
        return digest_of(content), lambda: _named(self.names[index], content)

    def select(self, indices: Sequence[int]) -> RowImages:
        return RowImages(self.row, tuple(self.names[i] for i in indices), tuple(self.rows[i] for i in indices))

    def _read(self, index: int) -> bytes:
        cell = self.row(self.rows[index]) or {}
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes):
            return content
        if not isinstance(path, str):
            raise UnreadableImage(f"{self.names[index]}: the row holds neither bytes nor a path")
        return FileImages((Path(path),), (self.names[index],))._read(0)


@final
@dataclass(frozen=True, eq=False)
class Unchanged:
    """Pictures of any source that were looked at before, when their contents had these `digests`. Whatever is computed of one is kept
    under its digest, so that one which is another by now must not be taken for it.
    """

    images: Images
    digests: tuple[str, ...]

    @property
    def names(self) -> Sequence[str]:
        return self.images.names

    def __len__(self) -> int:
        return len(self.images)

    def content(self, index: int) -> str:
        return self.images.content(index)

    def open(self, index: int) -> Image.Image:
        return self.fetch(index)[1]()

    def fetch(self, index: int) -> tuple[str, Callable[[], Image.Image]]:
        content, open_picture = self.images.fetch(index)
        if content != self.digests[index]:
            raise UnreadableImage(f"{self.names[index]}: it has changed since the data were read. Read them again.")
        return content, open_picture

    def select(self, indices: Sequence[int]) -> Unchanged:
        return Unchanged(self.images.select(indices), tuple(self.digests[i] for i in indices))


def _named(name: str, content: bytes) -> Image.Image:
    try:
        return open_bytes(content)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
