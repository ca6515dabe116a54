"""Content-addressed, memory-mapped results: what was computed once is never computed again.

A *table* (`table`) holds one fixed-width row per picture; its folder is named by the digest of its spec (transform, view, weights,
stage, dtype, format version). An *artifact* is one safetensors file.

    <root>/v1/tables/<kind>-<digest>/  spec.json  rows.bin  index.bin  lock
    <root>/v1/artifacts/<kind>-<digest>.safetensors
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from headstart import runtime
from headstart.errors import StoreError
from headstart.features.table import Table, reading, touch, writing

FORMAT = "v1"
_RECENT = 900.0  # seconds; younger tables may be in use by another run and are not evicted


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Hex BLAKE2b (16 bytes) of a JSON-able mapping; the order of its keys does not matter."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """One result (named arrays and a JSON-able record) that a later run may take instead of computing it."""

    path: Path

    def load(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """The record and its arrays, or None where there is none or it is damaged."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                record = json.loads((file.metadata() or {})["record"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None
        touch(self.path)
        return record, arrays

    def save(self, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write record and arrays, atomically.

        Raises:
            StoreError: where they cannot be written.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The process number keeps two runs at once from writing the same temporary file.
            part = self.path.with_suffix(f".{os.getpid()}.part")
            try:
                whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
                save_file(whole, part, metadata={"record": json.dumps(record)})
                part.replace(self.path)
            except SafetensorError as error:
                raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
            finally:
                part.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forget this result."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """One table or artifact as `headstart cache` shows it."""

    kind: str
    path: Path
    bytes: int
    used: float


@final
class Store:
    """The tables and artifacts below one folder, held under `limit` bytes by dropping the least recently used."""

    def __init__(self, root: str | Path | None = None, limit: int | None = None) -> None:
        self.root = (runtime.cache_folder() if root is None else Path(root)) / FORMAT
        self.limit = limit
        self._open: set[Path] = set()

    def table(self, kind: str, spec: Mapping[str, Any], dtype: str, width: int) -> Table:
        """The table of this spec, made if it is not there.

        Raises:
            StoreError: where the folder cannot be written.
        """
        full = {**spec, "kind": kind, "dtype": dtype, "width": width, "format": FORMAT}
        folder = self.root / "tables" / f"{kind}-{spec_digest(full)}"
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "spec.json").exists():
                _write_spec(folder, full)
            touch(folder)
        self._open.add(folder)
        return Table(folder, np.dtype(dtype), width)

    def artifact(self, kind: str, spec: Mapping[str, Any]) -> Artifact:
        """The artifact of this spec, whether or not it has been computed."""
        full = {**spec, "kind": kind, "format": FORMAT}
        path = self.root / "artifacts" / f"{kind}-{spec_digest(full)}.safetensors"
        self._open.add(path)
        return Artifact(path)

    def entries(self) -> list[Entry]:
        """Everything that is stored, least recently used first.

        Raises:
            StoreError: where it cannot be read.
        """
        found = []
        with reading(self.root):
            paths = [*(self.root / "tables").glob("*"), *(self.root / "artifacts").glob("*.safetensors")]
        for path in paths:
            with reading(self.root), contextlib.suppress(FileNotFoundError):  # another run may clear it meanwhile
                size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
                found.append(Entry(path.name.rsplit("-", 1)[0], path, size, path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def in_use(self) -> int:
        """Bytes of what this process has opened, which no eviction frees."""
        return sum(entry.bytes for entry in self.entries() if entry.path in self._open)

    def make_room(self, wanted: int) -> None:
        """Drop least recently used entries until `wanted` more bytes fit under the limit and on the disk, or nothing is left that may
        be dropped: what is in use stays, and the planner asks for no more than it leaves (`in_use`).

        Raises:
            StoreError: where the disk has no such room.
        """
        limit = math.inf if self.limit is None else self.limit
        where = self.root if self.root.exists() else self.root.parent
        free = shutil.disk_usage(where).free if where.exists() else math.inf
        if self.limit is None and wanted <= free:
            return
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        spare = [each for each in entries if each.path not in self._open and time.time() - each.used > _RECENT]
        if wanted > free + sum(entry.bytes for entry in spare):
            raise StoreError(
                f"The store needs {wanted / 1e6:,.0f} MB more at {self.root}, and {free / 1e6:,.0f} MB are free. "
                "Free some space, or set HEADSTART_CACHE to a folder with room."
            )
        for entry in spare:
            if total + wanted <= limit and wanted <= free:
                return
            _remove(entry.path)
            total, free = total - entry.bytes, free + entry.bytes

    def clear(self) -> int:
        """Drop everything; returns the bytes freed.

        Raises:
            StoreError: where something is left.
        """
        before = sum(entry.bytes for entry in self.entries())
        for part in ("tables", "artifacts"):
            _remove(self.root / part)
        left = sum(entry.bytes for entry in self.entries())
        if left:
            raise StoreError(
                f"{left / 1e6:,.1f} of {before / 1e6:,.1f} MB at {self.root} cannot be removed. Change their permissions."
            )
        return before


@final
class Recall:
    """Records of `size` bytes by content digest, kept in a table: what `data.facts` remembers pictures with."""

    def __init__(self, store: Store, kind: str, spec: Mapping[str, Any], size: int) -> None:
        self._table = store.table(kind, spec, "uint8", size)

    def get_many(self, digests: Sequence[str]) -> dict[str, bytes]:
        """The records that are known, of those asked for."""
        rows = self._table.locate(digests)
        found = np.flatnonzero(rows >= 0)
        records = self._table.read(rows[found])
        return {digests[int(place)]: record.tobytes() for place, record in zip(found, records, strict=True)}

    def put_many(self, records: Mapping[str, bytes]) -> None:
        """Remember records."""
        if records:
            rows = np.frombuffer(b"".join(records.values()), np.uint8).reshape(len(records), -1)
            self._table.append(list(records), rows)


def _write_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write a table's spec, once, and beside it what tells the table from one that is made anew after it was cleared."""
    with FileLock(folder / "lock", timeout=60):
        if not (folder / "spec.json").exists():
            part = folder / "spec.part"
            made = {"made": uuid.uuid4().hex}
            part.write_text(json.dumps({**spec, **made}, indent=1, sort_keys=True), encoding="utf-8")
            part.replace(folder / "spec.json")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
