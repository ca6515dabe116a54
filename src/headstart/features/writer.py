"""Rows on their way into the store, written by the second: every append waits for the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from headstart.errors import StoreError
from headstart.features.table import Table

_WAITING, _PATIENCE = 2**25, 2.0  # bytes and seconds of rows that may wait to be written together


@final
class Writer:
    """Appends to tables by the second instead of by the batch: every append waits for the disk. What waits is written at the end,
    whatever ends it, so that only a kill loses it."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Table, list[str], list[NDArray[Any]]]] = {}
        self._bytes, self._since = 0, time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What ended it is what is told, not that its last rows could not be written.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(StoreError):
            self._flush()

    def append(self, table: Table, digests: Sequence[str], rows: NDArray[Any]) -> None:
        """Have one row per digest appended to `table`, soon; `rows` must stay as they are. No table gets ahead of those that were
        appended to before it.

        Raises:
            StoreError: where what waits cannot be written.
        """
        _, names, parts = self._waiting.setdefault(id(table), (table, [], []))
        names.extend(digests)
        parts.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= _WAITING or time.monotonic() - self._since >= _PATIENCE:
            self._flush()

    def _flush(self) -> None:
        for table, names, parts in self._waiting.values():
            if names:
                # Once more, where it was interrupted: rows that are there are left as they are.
                table.append(names, np.concatenate(parts))
                names.clear()
                parts.clear()
        self._bytes, self._since = 0, time.monotonic()
