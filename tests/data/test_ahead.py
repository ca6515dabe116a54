"""Pictures decoded ahead are the same pictures, and whatever goes wrong there goes wrong later, where it can be said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headstart.data import ahead as room
from headstart.data.ahead import Ahead
from headstart.data.images import Transform, load_view
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.settle import transform_of
from headstart.features.store import Store
from tests.toys import folder, striped, tiny_backbone

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

# Torch is loaded in the process of the tests: what is done before that needs one of its own.
SCRIPT = """
import os, sys, time
import numpy as np
from headstart.data import ahead as room
from headstart.data.images import Transform, load_view
from headstart.data.load import load_dataset
from headstart.runtime import cpu_count

dataset, transform = load_dataset(sys.argv[1]), Transform((24, 24))
spoiled = int(dataset.indices("train")[0])
with open(os.path.join(sys.argv[1], dataset.names[spoiled]), "wb") as file:
    file.write(b"no picture")
room.runtime.cpu_count = lambda: 3
unsealed = np.flatnonzero(dataset.split != "test")
with room.Ahead.of(dataset, transform) as ahead:
    print("begun")  # buffered: it must not be said by the workers as well
    assert ahead.take(int(unsealed[1]), transform) is None, "nothing is taken while others write"
    while int(ahead._done[:-1].sum()) < len(unsealed) - 1:
        time.sleep(0.01)
    ahead.enough()
    for index in map(int, unsealed):
        found = ahead.take(index, transform)
        if index == spoiled:
            assert found is None
        else:
            assert np.array_equal(found, load_view(dataset.images, index, transform))
    assert ahead.take(int(unsealed[1]), Transform((24, 24), "bilinear")) is None
    assert all(ahead.take(int(index), transform) is None for index in dataset.indices("test"))
assert ahead.take(int(unsealed[1]), transform) is None, "dropped"
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child is left,", "torch" in sys.modules)
"""


@linux
def test_other_processes_decode_the_unsealed_pictures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder(tmp_path / "photos", 150))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "begun\nno child is left, False\n"), done.stderr


def test_nothing_is_begun_where_it_cannot_help() -> None:
    dataset = striped(30)
    for transform in (None, Transform((24, 24))):  # torch is loaded here
        with Ahead.of(dataset, transform) as ahead:
            ahead.enough()
            assert ahead.take(0, Transform((24, 24))) is None


@linux
def test_room_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = striped(30)
    monkeypatch.setattr(room, "ROOM", 5 * 24 * 24 * 3)
    monkeypatch.delitem(sys.modules, "torch")
    forks: list[int] = []
    monkeypatch.setattr(room.os, "fork", lambda: forks.append(1) or 10**9)
    monkeypatch.setattr(room.runtime, "cpu_count", lambda: 4)
    ahead = Ahead.of(dataset, Transform((24, 24)))
    assert (len(forks), len(ahead._order)) == (3, 5)
    assert [dataset.digests[i] for i in ahead._order] == sorted(dataset.digests[i] for i in ahead._order)


def test_features_are_the_same_and_what_was_decoded_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, backbone = load_dataset(folder(tmp_path / "photos", 30)), tiny_backbone()
    engine, transform = Engine(backbone, precision="float32"), transform_of(backbone)
    plain = extract(backbone, dataset, Store(tmp_path / "plain"), engine=engine)
    ahead = Ahead(dataset, np.arange(20), transform, 0)
    for place in range(20):
        ahead._pixels[place] = load_view(dataset.images, place, transform)
        ahead._done[place] = 1
    asked: list[int] = []
    extracting = sys.modules["headstart.features.extract"]
    whole = extracting.load_views
    monkeypatch.setattr(extracting, "load_views", lambda images, i, *rest: asked.append(i) or whole(images, i, *rest))
    found = extract(backbone, dataset, Store(tmp_path / "ahead"), engine=engine, ahead=ahead)
    taps = range(len(backbone.stages))
    assert np.array_equal(found.stages(taps), plain.stages(taps))
    assert sorted(asked) == list(range(20, 30))
    assert ahead.take(0, transform) is None, "the memory is free again"
