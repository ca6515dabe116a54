"""A table of the store: one fixed-width row per picture, found by the digest of the picture's content.

`rows.bin` is written before `index.bin`, under a lock, so a kill at any moment leaves a shorter table, never a wrong one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from headstart.errors import DamagedStore, StoreError

_ENTRY = np.dtype([("digest", "V32"), ("crc", "<u4")])
_RESIDENT = 64 * 2**20  # bytes of a table that are mapped at a time, more or less
_AROUND = 2**21  # bytes that the system may map around each page that is asked for
_CHECKED = 64  # rows whose checksums are looked at, about, and as many of the last
_TOUCHED = 60.0  # seconds after which a table that is in use is touched again


@final
class Table:
    """Rows (n, width) of one dtype, appended once and read through a memory map."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], width: int) -> None:
        self.folder, self.dtype, self.width = folder, dtype, width
        self._rows: dict[bytes, int] = {}
        self._entries: NDArray[Any] = np.empty(0, _ENTRY)
        self._map: NDArray[Any] = np.empty((0, width), dtype)
        self._resident = 0  # bytes read from the map since its pages were let go
        self._used = time.monotonic()  # when it was last touched
        self._spec = self._read_spec()
        self._load()

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.width

    def __len__(self) -> int:
        return len(self._map)

    def locate(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers (N,) int64 of pictures by their hex content digest; -1 where there is none."""
        return np.array([self._rows.get(bytes.fromhex(digest), -1) for digest in digests], dtype=np.int64)

    def missing(self, digests: Sequence[str]) -> list[int]:
        """Positions in `digests` that have no row yet; of equal digests only the first."""
        seen: set[str] = set()
        wanted = []
        for position, digest in enumerate(digests):
            if digest not in seen and bytes.fromhex(digest) not in self._rows:
                wanted.append(position)
            seen.add(digest)
        return wanted

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """A copy (M, width) of the given rows, in their order.

        Raises:
            StoreError: a row is asked for that is not there.
        """
        self._in_use()
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise StoreError(f"{self.folder}: a row was asked for that the table does not hold; run again.")
        found = np.empty((len(rows), self.width), self.dtype)
        step = max(1, _RESIDENT // max(self.row_bytes, _AROUND))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found[start : start + step] = self._map[part]
            self._resident += len(np.unique(part * self.row_bytes // _AROUND)) * max(self.row_bytes, _AROUND)
            if self._resident > _RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
                # What was read stays in the system's cache, but does not count as this process's memory.
                self._file.madvise(mmap.MADV_DONTNEED)
                self._resident = 0
        return found

    def content(self, rows: NDArray[np.int64]) -> str:
        """Hex digest of which pictures, in which order, the given rows are of."""
        return hashlib.blake2b(self._entries["digest"][rows].tobytes(), digest_size=16).hexdigest()

    def append(self, digests: Sequence[str], rows: NDArray[Any]) -> None:
        """Add one row per digest; rows that are there already are left as they are.

        Raises:
            StoreError: the rows are of another shape, the table was cleared meanwhile, or it cannot be written.
        """
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        if rows.shape != (len(digests), self.width):
            raise StoreError(f"rows of shape {rows.shape} do not fit {len(digests)} pictures × {self.width} values")
        with writing(self.folder), self._lock():
            if not self._still_there():
                raise StoreError(f"{self.folder} was cleared while this run used it; run the same command again.")
            self._load()
            fresh = self.missing(digests)
            if not fresh:
                return
            entries = np.zeros(len(fresh), _ENTRY)
            for place, position in enumerate(fresh):
                entries["digest"][place] = np.void(bytes.fromhex(digests[position]))
                entries["crc"][place] = zlib.crc32(rows[position])
            count, taken = len(self), rows if len(fresh) == len(rows) else rows[fresh]
            _write_at(self.folder / "rows.bin", count * self.row_bytes, taken.data)
            _write_at(self.folder / "index.bin", count * _ENTRY.itemsize, entries.tobytes())
            self._load()
        self._in_use()

    def verify(self, rows: NDArray[np.int64]) -> bool:
        """Whether the stored checksums of these rows still hold."""
        crcs = self._entries["crc"]
        return all(zlib.crc32(self._map[row].tobytes()) == int(crcs[row]) for row in rows)

    def check(self, rows: NDArray[np.int64]) -> None:
        """Look at some of the rows (-1: not there) and at the last of them, where a power cut leaves its traces.

        Raises:
            DamagedStore: where one does not match its checksum.
        """
        there = np.sort(rows[rows >= 0])
        if not self.verify(np.concatenate([there[:: max(1, len(there) // _CHECKED)], there[-_CHECKED:]])):
            raise DamagedStore(
                f"What is stored in {self.folder} does not match its checksums, as after a power cut or a broken disk. "
                "Type 'headstart cache clear' and run the same command again."
            )

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "lock", timeout=60)

    def _in_use(self) -> None:
        """Keep another run from evicting the table."""
        if time.monotonic() - self._used > _TOUCHED:
            touch(self.folder)
            self._used = time.monotonic()

    def _read_spec(self) -> bytes:
        """The table's spec, in which a number stands that was drawn when it was made."""
        with contextlib.suppress(FileNotFoundError), reading(self.folder):
            return (self.folder / "spec.json").read_bytes()
        return b""

    def _still_there(self) -> bool:
        """Whether it is the table that was opened, and the last row known is where it was; behind a cleared one, appending would leave
        a hole of zeros, and in one that was made anew other rows stand where these were."""
        index, known = self.folder / "index.bin", len(self._entries)
        if self._read_spec() != self._spec:
            return False
        if not known:
            return True
        if not index.is_file():
            return False
        last = np.fromfile(index, _ENTRY, 1, offset=(known - 1) * _ENTRY.itemsize)
        return len(last) == 1 and last.tobytes() == self._entries[-1:].tobytes()

    def _load(self) -> None:
        index, data = self.folder / "index.bin", self.folder / "rows.bin"
        if not index.is_file() or not data.is_file():
            return
        known = len(self._entries)
        count = min(index.stat().st_size // _ENTRY.itemsize, data.stat().st_size // max(1, self.row_bytes))
        if count <= known:
            return
        # Only what is new is read: a table of a million rows must not be read again at every append.
        with reading(self.folder):
            fresh = np.fromfile(index, _ENTRY, count - known, offset=known * _ENTRY.itemsize)
            with data.open("rb") as file:
                self._file = mmap.mmap(file.fileno(), count * self.row_bytes, access=mmap.ACCESS_READ)
        self._entries = np.concatenate([self._entries, fresh])
        self._rows.update({bytes(digest): known + row for row, digest in enumerate(fresh["digest"])})
        self._map = np.frombuffer(self._file, self.dtype).reshape(count, self.width)


def _write_at(path: Path, offset: int, payload: bytes | memoryview) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(offset)  # drop what an interrupted writer left behind
        file.seek(offset)
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a folder that may not be read into words."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(
            f"The store at {path} cannot be read. Change its permissions, or set HEADSTART_CACHE to another folder."
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a full or read-only disk into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = "the disk is full. Free some space, run 'headstart cache clear'"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "the folder cannot be written. Change its permissions"
        else:
            reason = f"{error.strerror or error}. Check the folder"
        raise StoreError(
            f"Cannot write to the store at {path}: {reason}, or set HEADSTART_CACHE to a folder with room."
        ) from error


def touch(path: Path) -> None:
    """Say that a table or artifact is in use, which keeps it from being evicted."""
    with contextlib.suppress(OSError):  # the time of last use is a courtesy to eviction
        os.utime(path)
