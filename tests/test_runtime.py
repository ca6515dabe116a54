"""The machine's side of things: order and bounds of parallel work, seeds, where the cache lies, quiet bars."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart import runtime


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", "~/somewhere")
    assert runtime.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder().name == "headstart"


def test_parallel_keeps_the_order_and_gives_each_worker_one_thread() -> None:
    torch.set_num_threads(3)
    try:
        slowest_first = [0.05, 0.0, 0.02, 0.0, 0.0, 0.01]

        def work(seconds: float) -> tuple[float, int]:
            time.sleep(seconds)
            return seconds, torch.get_num_threads()

        found = list(runtime.parallel(work, slowest_first))
        assert [seconds for seconds, _ in found] == slowest_first
        assert {threads for _, threads in found} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_parallel_takes_no_more_than_it_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cpu_count", lambda: 2)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    found = runtime.parallel(lambda item: item, items())
    assert next(found) == 0
    assert len(taken) <= 6
    found.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_parallel_passes_an_error_on_and_leaves_no_worker() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    before = threading.active_count()
    found = []
    with pytest.raises(ValueError, match="three"):
        for item in runtime.parallel(work, range(10)):
            found.append(item)
    assert found == [0, 1, 2]
    assert threading.active_count() == before


def test_however_many_work_side_by_side_the_interpreter_is_left_as_it_was() -> None:
    before = sys.getswitchinterval()
    one, other = (runtime.parallel(lambda item: item, range(3)) for _ in range(2))
    next(one), next(other)
    assert sys.getswitchinterval() < before
    assert list(one) == [1, 2] and sys.getswitchinterval() < before, "the other goes on"
    assert list(other) == [1, 2] and sys.getswitchinterval() == before


def test_one_seed_for_everything_that_draws() -> None:
    drawn = []
    for seed in (5, 5, 6):
        runtime.seed_everything(seed)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))  # noqa: NPY002
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_environment_of_a_measurement_is_told() -> None:
    found = runtime.environment()
    assert {"python", "torch", "timm", "processor", "instructions", "cores", "device", "memory_bytes"} <= set(found)
    assert torch.__version__.startswith(runtime.versions()["torch"])
    assert 10_000_000 < runtime.peak_memory_bytes() < 10**12
    assert runtime.cpu_count() >= 1


def test_torch_keeps_its_threads_where_users_overlap() -> None:
    torch.set_num_threads(3)
    begun, ended, seen = threading.Barrier(2), threading.Event(), list[int]()

    def first() -> None:
        with runtime.threads_kept():
            torch.set_num_threads(1)
            begun.wait(10)
            ended.wait(10)

    def second() -> None:
        begun.wait(10)
        with runtime.threads_kept():
            ended.set()
            one.join(10)
            torch.set_num_threads(1)
        seen.append(torch.get_num_threads())

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    try:
        for thread in (one, other):
            thread.start()
        for thread in (one, other):
            thread.join(20)
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join(10)
        assert [*seen, torch.get_num_threads()] == [3, 3, 3]
    finally:
        torch.set_num_threads(1)


def test_idle_threads_sleep_unless_the_person_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    runtime.patient_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    runtime.patient_threads()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "4000")


def test_bars_are_quiet_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (runtime.silent, runtime.bar):
        with progress("Working", 3, "images") as advance:
            advance(2)
            advance(accuracy="0.5")
    assert capfd.readouterr() == ("", "")


def test_a_bar_tells_what_is_done_how_fast_and_how_long(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with runtime.bar("Extracting features", 4, "images") as advance:
        for _ in range(4):
            advance(1, accuracy="0.75")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Extracting features" in err and "4/4" in err and "images/s" in err and "accuracy 0.75" in err
