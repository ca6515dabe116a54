"""The store is right or silent: whatever is interrupted, evicted, shared or damaged, it never gives a wrong row."""

from __future__ import annotations

import contextlib
import errno
import json
import os
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
from tests.features.test_table import SPEC, WIDTH, digest, fill, full_disk, right, row


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
