"""The store is right or silent: whatever is interrupted, evicted, shared or damaged, it never gives a wrong row."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.errors import StoreError
from headstart.features.store import _RECENT, Recall, Store, spec_digest
from headstart.features.table import Table
from headstart.features.writer import Writer

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


def test_every_part_of_a_spec_makes_another_table(store: Store) -> None:
    base = store.table("pooled", SPEC, "float32", WIDTH)
    others = [
        store.table("beside", SPEC, "float32", WIDTH),
        store.table("pooled", {**SPEC, "weights": "v"}, "float32", WIDTH),
        store.table("pooled", SPEC, "uint16", WIDTH),
        store.table("pooled", SPEC, "float32", WIDTH + 1),
    ]
    assert len({table.folder for table in (base, *others)}) == 5
    assert spec_digest({"a": 1, "b": 2}) == spec_digest({"b": 2, "a": 1}) != spec_digest({"a": 1, "b": 3})


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


def aged(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_the_limit_drops_the_least_recently_used_and_nothing_in_use(tmp_path: Path) -> None:
    folders = []
    for number, age in enumerate((3 * _RECENT, 4 * _RECENT, 2 * _RECENT, 5 * _RECENT)):
        table = Store(tmp_path).table("pooled", {"n": number}, "float32", WIDTH)
        fill(table, range(100))
        aged(table.folder, age)
        folders.append(table.folder)
    size = Store(tmp_path).entries()[0].bytes
    store = Store(tmp_path, limit=4 * size)
    store.table("pooled", {"n": 3}, "float32", WIDTH)  # the oldest, but now in use
    aged(folders[3], 5 * _RECENT)
    assert store.in_use() == size
    store.make_room(2 * size)
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    Store(tmp_path, limit=1).make_room(0)
    assert [folder.exists() for folder in folders] == [False, False, False, False]


def test_what_another_run_used_just_now_is_not_dropped(tmp_path: Path) -> None:
    table = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    fill(table, range(10))
    Store(tmp_path, limit=1).make_room(1000)
    assert right(Store(tmp_path).table("pooled", SPEC, "float32", WIDTH), range(10))


def test_a_table_that_is_used_for_long_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    monkeypatch.setattr("headstart.features.table._TOUCHED", 0)
    for use in (lambda: fill(table, range(10)), lambda: table.read(np.arange(10))):
        aged(table.folder, 2 * _RECENT)
        use()
        Store(tmp_path, limit=1).make_room(1000)
        assert table.folder.exists()


@pytest.mark.parametrize("limit", [None, 10**9])
def test_room_is_made_before_the_disk_is_said_to_be_full(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Store(tmp_path).table("pooled", SPEC, "uint8", 10**5)
    table.append([digest(n) for n in range(5)], np.zeros((5, 10**5), np.uint8))
    aged(table.folder, 2 * _RECENT)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**5))
    store = Store(tmp_path, limit)
    store.make_room(10**5)
    with pytest.raises(StoreError, match="needs 1 MB more"):
        store.make_room(10**6)
    assert table.folder.exists(), "dropping it would not have been enough"
    store.make_room(4 * 10**5)
    assert not table.folder.exists()


def test_a_table_that_was_cleared_and_filled_again_is_not_mixed_up(tmp_path: Path) -> None:
    table = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    fill(table, [0, 1, 2])
    Store(tmp_path).clear()
    again = Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)
    fill(again, [1, 0, 2])  # the last row is where it was
    with pytest.raises(StoreError, match="was cleared while this run used it"):
        fill(table, [3])
    assert right(table, range(3)) and right(again, range(3))


def test_entries_tell_kind_and_size_and_clear_frees_them(store: Store) -> None:
    fill(store.table("pooled", SPEC, "float32", WIDTH), range(10))
    store.artifact("rung", SPEC).save({}, {"w": np.zeros(100)})
    assert {entry.kind for entry in store.entries()} == {"pooled", "rung"}
    total = sum(entry.bytes for entry in store.entries())
    assert total >= 10 * WIDTH * 4 + 800
    assert store.clear() == total
    assert store.entries() == []
    fill(store.table("pooled", SPEC, "float32", WIDTH), range(3))  # an emptied store works


@pytest.mark.parametrize("ended", [None, KeyboardInterrupt])
def test_a_writer_writes_seldom_and_all_of_it_whatever_ends_it(store: Store, ended: type[BaseException] | None) -> None:
    tables = [store.table("pooled", SPEC | {"view": view}, "float32", WIDTH) for view in range(2)]
    with contextlib.suppress(KeyboardInterrupt), Writer() as writer:
        for number in range(9):
            for table in tables:
                writer.append(table, [digest(number)], row(number)[None])
        assert not any(map(len, tables))
        if ended:
            raise ended
    for table in tables:
        assert len(table) == 9
        assert right(table, range(9))


@pytest.mark.parametrize("limit", ["_WAITING", "_PATIENCE"])
def test_a_writer_does_not_wait_beyond_its_bytes_and_seconds(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"headstart.features.writer.{limit}", 0)
    table = store.table("pooled", SPEC, "float32", WIDTH)
    with Writer() as writer:
        for number in range(3):
            writer.append(table, [digest(number)], row(number)[None])
            assert len(table) == number + 1


def test_a_writer_on_a_full_disk_says_so_and_leaves_its_tables_right(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [store.table("pooled", SPEC | {"view": view}, "float32", WIDTH) for view in range(2)]
    with monkeypatch.context() as full, pytest.raises(StoreError, match=r"the disk is full"), Writer() as writer:
        for table in tables:
            writer.append(table, [digest(0)], row(0)[None])
        full.setattr(os, "fsync", full_disk)
    for table in tables:
        fill(table, range(3))
        assert right(table, range(3))


@pytest.mark.parametrize("where", [0, 1])
def test_a_writer_that_is_interrupted_while_it_writes_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    """And no table gets ahead of one that was appended to before it."""
    tables = [store.table("pooled", SPEC | {"view": view}, "float32", WIDTH) for view in range(2)]
    whole, calls = Table.append, [0]

    def interrupted(self: Table, digests: Sequence[str], rows: NDArray[np.float32]) -> None:
        calls[0] += 1
        if calls[0] == 1 + where:
            assert not len(tables[1])
            raise KeyboardInterrupt
        whole(self, digests, rows)

    monkeypatch.setattr(Table, "append", interrupted)
    monkeypatch.setattr("headstart.features.writer._WAITING", 3 * 4 * WIDTH)
    with pytest.raises(KeyboardInterrupt), Writer() as writer:
        for number in range(2):
            for table in tables:
                writer.append(table, [digest(number)], row(number)[None])
    assert [len(table) for table in tables] == [2, 1]
    assert all(right(table, range(2)) for table in tables)


def test_a_writer_tells_what_ended_it_and_not_that_the_disk_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.table("pooled", SPEC, "float32", WIDTH)
    with pytest.raises(KeyboardInterrupt), Writer() as writer:
        writer.append(table, [digest(0)], row(0)[None])
        monkeypatch.setattr(os, "fsync", full_disk)
        raise KeyboardInterrupt


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


def test_no_room_is_said_before_the_work_begins(store: Store) -> None:
    store.table("pooled", SPEC, "float32", WIDTH)
    with pytest.raises(
        StoreError, match=r"needs 1,000,000,000,000 MB more at .*Free some space, or set HEADSTART_CACHE"
    ):
        store.make_room(10**18)


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(
        StoreError, match=r"the folder cannot be written\. Change its permissions, or set HEADSTART_CACHE"
    ):
        Store(tmp_path / "closed").table("pooled", SPEC, "float32", WIDTH)


def test_a_file_in_the_place_of_the_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "v1").write_text("not a folder")
    with pytest.raises(StoreError, match=r"Cannot write to the store at .*set HEADSTART_CACHE"):
        Store(tmp_path).table("pooled", SPEC, "float32", WIDTH)


def test_artifacts_come_back_whole(store: Store) -> None:
    artifact = store.artifact("rung", SPEC)
    assert artifact.load() is None
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array([1], np.int64)}
    artifact.save({"rate": 0.5, "name": "größe"}, arrays)
    found = Store().artifact("rung", SPEC).load()
    assert found is not None
    assert found[0] == {"rate": 0.5, "name": "größe"}
    assert {name: (a.dtype, a.tolist()) for name, a in found[1].items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }
    assert store.artifact("rung", {**SPEC, "stage": 4}).load() is None
    artifact.drop()
    assert artifact.load() is None


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, 400))
def test_a_damaged_artifact_is_no_artifact(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    artifact = Store(tmp_path_factory.mktemp("cut")).artifact("rung", SPEC)
    artifact.save({"rate": 0.5}, {"a": np.arange(40.0)})
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[:length])
    assert artifact.load() is None or length >= len(whole)
    artifact.path.write_bytes(b"\xff" * length)
    assert artifact.load() is None


def test_an_interrupted_save_leaves_the_old_artifact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.artifact("rung", SPEC)
    artifact.save({"which": "old"}, {"a": np.zeros(3)})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            artifact.save({"which": "new"}, {"a": np.ones(3)})
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(StoreError, match="the disk is full"):
            artifact.save({"which": "new"}, {"a": np.ones(3)})
    found = artifact.load()
    assert found is not None
    assert found[0] == {"which": "old"}
    assert [path.name for path in artifact.path.parent.iterdir()] == [artifact.path.name]


def test_nothing_in_the_store_is_a_pickle(store: Store) -> None:
    fill(store.table("pooled", SPEC, "float32", WIDTH), range(4))
    store.artifact("rung", SPEC).save({"a": 1}, {"x": np.zeros(4)})
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert {path.name if path.suffix != ".safetensors" else "artifact" for path in files} == {
        "spec.json", "rows.bin", "index.bin", "lock", "artifact",
    }  # fmt: skip
    (spec,) = store.root.rglob("spec.json")
    assert json.loads(spec.read_text())["weights"] == "w"
    (rows,) = store.root.rglob("rows.bin")
    assert rows.read_bytes() == np.stack([row(n) for n in range(4)]).tobytes()
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK"]


def test_records_are_recalled_by_content(store: Store) -> None:
    recall = Recall(store, "facts", {"pillow": "1"}, 4)
    assert recall.get_many([digest(0)]) == {}
    recall.put_many({digest(0): b"abcd", digest(1): b"\x00\x01\x02\x03"})
    recall.put_many({})
    again = Recall(Store(), "facts", {"pillow": "1"}, 4)
    assert again.get_many([digest(1), digest(2), digest(0)]) == {digest(1): b"\x00\x01\x02\x03", digest(0): b"abcd"}
    assert Recall(Store(), "facts", {"pillow": "2"}, 4).get_many([digest(0)]) == {}


def test_a_store_that_cannot_be_read_or_cleared_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.artifact("rung", {}).save({}, {"x": np.zeros(50_000)})
    with monkeypatch.context() as patch:
        patch.setattr("headstart.features.store._remove", lambda path: None)
        with pytest.raises(StoreError, match=r"0\.4 of 0\.4 MB at .* cannot be removed\. Change their permissions"):
            store.clear()

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "glob", closed)
    with pytest.raises(StoreError, match=r"cannot be read\. Change its permissions, or set HEADSTART_CACHE"):
        store.entries()


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
