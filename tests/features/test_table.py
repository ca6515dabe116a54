"""A table is right or silent: whatever is interrupted, shared, cleared or damaged, it never gives a wrong row."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.errors import StoreError
from headstart.features.store import Store
from headstart.features.table import Table

WIDTH = 5
SPEC = {"weights": "w", "stage": 3}


def digest(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=32).hexdigest()


def row(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)


def fill(table: Table, numbers: Sequence[int]) -> None:
    table.append([digest(n) for n in numbers], np.stack([row(n) for n in numbers]))


def right(table: Table, numbers: range) -> bool:
    """Whether every row that the table claims to hold is the row that was put in."""
    rows = table.locate([digest(n) for n in numbers])
    return all(np.array_equal(table.read(rows[[n]])[0], row(n)) for n in numbers if rows[n] >= 0)


def test_rows_come_back_as_they_were_put_in(store: Store) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(4))
    fill(table, range(2, 9))  # two of them are there already
    again = Store().table("pooled", SPEC, "float32", WIDTH)
    wanted = [7, 0, 3, 3, 8]
    for one in (table, again):
        assert len(one) == 9
        assert np.array_equal(one.read(one.locate([digest(n) for n in wanted])), np.stack([row(n) for n in wanted]))
        assert one.verify(np.arange(9))


def test_rows_are_right_however_often_their_pages_are_let_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["headstart.features.table"], "_RESIDENT", 1)
    table = store.table("pooled", SPEC, "float32", WIDTH)
    for start in range(0, 40, 8):
        fill(table, range(start, start + 8))
        assert right(table, range(40))


def test_a_row_that_is_there_is_never_overwritten(store: Store) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(1))
    table.append([digest(0)], np.zeros((1, WIDTH), np.float32))
    assert np.array_equal(table.read(table.locate([digest(0)]))[0], row(0))


def test_equal_contents_in_one_call_take_one_row(store: Store) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    assert table.missing([digest(1), digest(2), digest(1)]) == [0, 1]
    table.append([digest(1), digest(1)], np.stack([row(1), row(1)]))
    assert len(table) == 1


def test_what_is_not_there_is_an_error_and_not_another_row(store: Store) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(3))
    assert table.locate([digest(9)]).tolist() == [-1]
    with pytest.raises(StoreError, match="a row was asked for that the table does not hold; run again"):
        table.read(table.locate([digest(0), digest(9)]))
    with pytest.raises(StoreError, match=r"rows of shape \(1, 2\) do not fit 1 pictures × 5 values"):
        table.append([digest(9)], np.zeros((1, 2), np.float32))


@settings(max_examples=60, deadline=None)
@given(rows_cut=st.integers(0, 6 * WIDTH * 4), index_cut=st.integers(0, 6 * 36), garbage=st.binary(max_size=50))
def test_an_interrupted_write_is_used_rightly_or_ignored(
    tmp_path_factory: pytest.TempPathFactory, rows_cut: int, index_cut: int, garbage: bytes
) -> None:
    """A kill leaves any length of the two files; with rows written first, what the index names is whole or not counted."""
    root = tmp_path_factory.mktemp("cut")
    fill(Store(root).table("pooled", SPEC, "float32", WIDTH), range(6))
    folder = Store(root).table("pooled", SPEC, "float32", WIDTH).folder
    for name, length in (("rows.bin", rows_cut), ("index.bin", index_cut)):
        os.truncate(folder / name, length)
    if index_cut % 36 == 0 and rows_cut > index_cut // 36 * WIDTH * 4:
        with (folder / "rows.bin").open("ab") as file:  # a writer that was killed before it came to the index
            file.write(garbage)
    table = Store(root).table("pooled", SPEC, "float32", WIDTH)
    assert len(table) == min(rows_cut // (WIDTH * 4), index_cut // 36)
    assert right(table, range(6))
    fill(table, range(9))
    for one in (table, Store(root).table("pooled", SPEC, "float32", WIDTH)):
        assert right(one, range(9))
        assert one.missing([digest(n) for n in range(9)]) == []
        assert one.verify(np.arange(len(one)))


def test_a_table_that_another_run_lengthened_is_appended_to_behind_its_rows(store: Store) -> None:
    mine, theirs = (store.table("pooled", SPEC, "float32", WIDTH) for _ in range(2))
    fill(mine, range(3))
    fill(theirs, range(2, 6))
    fill(mine, range(5, 8))
    assert len(Store().table("pooled", SPEC, "float32", WIDTH)) == 8
    assert right(mine, range(8))
    assert mine.missing([digest(n) for n in range(8)]) == []


def test_a_flipped_bit_shows_in_the_checksum(store: Store) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(3))
    with (table.folder / "rows.bin").open("r+b") as file:
        file.seek(WIDTH * 4 + 1)
        file.write(b"\x55")
    again = Store().table("pooled", SPEC, "float32", WIDTH)
    assert [again.verify(np.array([n])) for n in range(3)] == [True, False, True]


def _write_block(root: Path, start: int) -> None:
    table = Store(root).table("pooled", SPEC, "float32", WIDTH)
    for first in range(start, start + 40, 4):
        fill(table, range(first, first + 8))  # the blocks of both writers overlap


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_block, args=(tmp_path, start)) for start in (0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    table = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    assert len(table) == 64
    assert table.missing([digest(n) for n in range(64)]) == []
    assert right(table, range(64))
    assert table.verify(np.arange(64))


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_says_what_to_do_and_leaves_the_table_right(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(3))
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_disk)
        with pytest.raises(StoreError, match=r"the disk is full.*'headstart cache clear'.*HEADSTART_CACHE"):
            fill(table, range(3, 6))
    again = Store().table("pooled", SPEC, "float32", WIDTH)
    assert len(again) == 3
    assert right(again, range(3))
    fill(again, range(3, 6))
    assert right(again, range(6))


def test_a_table_that_was_cleared_and_filled_again_is_not_mixed_up(tmp_path: Path) -> None:
    table = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    fill(table, [0, 1, 2])
    Store(tmp_path).clear()
    again = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    fill(again, [1, 0, 2])  # the last row is where it was
    with pytest.raises(StoreError, match="was cleared while this run used it"):
        fill(table, [3])
    assert right(table, range(3)) and right(again, range(3))


@pytest.mark.parametrize("refilled", [0, 2, 9])
def test_a_store_cleared_under_a_run_is_said_and_gives_no_wrong_rows(store: Store, refilled: int) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(4))
    store.clear()
    if refilled:  # by another run, in another order
        fill(store.table("pooled", SPEC, "float32", WIDTH), range(20, 20 + refilled))
    with pytest.raises(StoreError, match=r"was cleared while this run used it.*again"):
        fill(table, range(4, 6))
    assert right(table, range(4))
    again = store.table("pooled", SPEC, "float32", WIDTH)
    fill(again, range(6))
    assert right(again, range(30))
