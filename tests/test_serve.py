"""A trained model at work on paths and on labelled data: what is left out is said, and what is written over is no picture."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart import cli
from headstart.backbones.backbone import Backbone
from headstart.errors import DataError, OutputError
from headstart.heads import Head
from headstart.model import Model
from headstart.serve import Asked, _as_they_come, measure, write_predictions
from tests.conftest import Trained
from tests.toys import folder, stripes, tiny_backbone


@pytest.fixture
def model() -> Model:
    backbone: Backbone = tiny_backbone()
    weight = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    return Model(backbone, Head("ridge", (4,), 1e-4, weight, np.zeros(2, np.float32)), ("ä", "名"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(stripes(1)[0][0]).save(tmp_path / "ü 名.png")
    return tmp_path / "ü 名.png"


def told(
    model: Model, *asked: object, as_json: bool = True
) -> tuple[Asked, tuple[int, int, int], list[dict[str, str]]]:
    """What was asked, what was counted, and the rows."""
    given, stream = Asked([*map(str, asked)]), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        counts = write_predictions(model, given, None, as_json=as_json)
    stream.seek(0)
    return given, counts, [json.loads(line) for line in stream]


def test_pictures_that_are_left_out_of_a_measurement_are_told(trained: Trained, tmp_path: Path) -> None:
    fresh = folder(tmp_path / "fresh", 12, seed=9)
    _, warnings = measure(trained.run, fresh)
    assert warnings == []
    shutil.copy(fresh / "turn0" / "000.png", fresh / "stray.png")
    (fresh / "turn1" / "a.heic").write_text("a photo")
    report, warnings = measure(trained.run, fresh)
    assert report.images == 12
    assert warnings == [
        "2 files left aside: 1 .heic files, 1 pictures outside any class folder. Convert them to JPEG to use them."
    ]


def test_other_files_in_a_folder_are_counted(model: Model, picture: Path) -> None:
    for name in ("a.heic", "b.HEIC", "notes", ".hidden.heic"):
        (picture.parent / name).write_text("no picture")
    asked, counts, _ = told(model, picture.parent)
    assert counts == (1, 0, 0)
    assert asked.aside == {".heic": 2, "without an ending": 1}
    picture.unlink()
    with pytest.raises(
        DataError,
        match=r"holds no picture\. 3 files left aside: 2 \.heic, 1 without an ending\. Convert them to JPEG to use them\.$",
    ):
        told(model, picture.parent)


def test_what_was_left_aside_is_told_on_standard_error(
    trained: Trained, picture: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (picture.parent / "a.heic").write_text("no picture")
    monkeypatch.setattr(sys, "argv", ["headstart", "predict", str(trained.run), str(picture.parent)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capfd.readouterr()
    assert left.value.code == 0 and len(said.out.splitlines()) == 2
    assert "1 file left aside: 1 .heic. Convert them to JPEG to use them.\n" in said.err


def test_what_holds_no_picture_is_a_row_beside_others(model: Model, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty {}").mkdir()
    pattern = f"{tmp_path}/*.jpg"
    _, counts, rows = told(model, pattern, picture, tmp_path / "empty {}", tmp_path / "missing.png")
    assert counts == (4, 3, 0)
    assert [row["path"] for row in rows] == [
        pattern,
        *map(str, (picture, tmp_path / "empty {}", tmp_path / "missing.png")),
    ]
    assert rows[0]["error"] == f"No file matches '{pattern}'. Check the pattern, or put it in quotes."
    assert rows[1]["error"] == "" and rows[3]["error"] == "no such file (or a broken link)"
    assert rows[2]["error"].startswith(f"'{tmp_path}/empty {{}}' holds no picture. Give files")
    for alone in (pattern, tmp_path / "empty {}"):
        with pytest.raises(DataError, match=r"No file matches|holds no picture"):
            told(model, alone)


def test_a_pattern_names_pictures_before_other_files_and_folders(picture: Path, tmp_path: Path) -> None:
    (inside := tmp_path / "all" / "inside").mkdir(parents=True)
    for file in (tmp_path / "all" / "a.png", tmp_path / "all" / "b.PNG", inside / "c.png", inside / "d.dat"):
        file.write_bytes(picture.read_bytes())
    (tmp_path / "all" / "notes.txt").write_text("no picture")
    asked = Asked([f"{tmp_path}/all/*"])
    assert [Path(path).name for path in asked] == ["a.png", "b.PNG"] and asked.aside == {".txt": 1}
    assert [Path(path).name for path in Asked([f"{tmp_path}/a*"])] == ["a.png", "b.PNG", "c.png"], "a folder alone"
    assert [Path(path).name for path in Asked([f"{tmp_path}/all/inside/*.dat"])] == ["d.dat"], "asked for by its ending"


def test_a_picture_is_not_written_over(
    model: Model, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture.read_bytes()
    (tmp_path / "link.csv").hardlink_to(picture)
    for out in (picture, tmp_path / "link.csv"):
        with pytest.raises(
            OutputError, match=r"is a picture, and would be written over\. Give another file with --out"
        ):
            write_predictions(model, Asked([str(tmp_path)]), out, as_json=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(picture))))
    with pytest.raises(OutputError, match="would be written over"):
        write_predictions(model, Asked(["-"]), picture, as_json=False)
    assert picture.read_bytes() == before
    (tmp_path / "answers.csv").write_text("older")
    assert write_predictions(model, Asked([str(picture)]), tmp_path / "answers.csv", as_json=False) == (1, 0, 0)
    assert "older" not in (tmp_path / "answers.csv").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_that_takes_nothing_is_said(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(
            OutputError, match=r"Cannot write standard output: No space left on device\. Give a file with --out"
        ):
            write_predictions(model, Asked([str(picture)]), None, as_json=False)


def test_standard_input_that_breaks_off_is_no_fault_of_the_output(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken())))
    with pytest.raises(DataError, match=r"Cannot read standard input: Input/output error\. Check"):
        write_predictions(model, Asked([str(picture), "-"]), None, as_json=False)


@pytest.mark.parametrize("as_json", [False, True])
def test_letters_that_an_encoding_lacks_are_written_with_a_backslash(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    write_predictions(model, Asked([str(picture)]), None, as_json=as_json)
    stream.seek(0)
    last = stream.read().splitlines()[-1]
    assert json.loads(last)["path"] == str(picture) if as_json else r"ü \u540d.png,\u540d," in last or ",ä," in last


def test_paths_are_taken_as_they_come() -> None:
    def slowly() -> Iterator[str]:
        yield from "ab"
        time.sleep(0.5)
        yield "c"

    assert [*_as_they_come(slowly())] == [["a", "b"], ["c"]]
    assert [*_as_they_come([])] == []
    assert sum(map(len, _as_they_come(map(str, range(25_000))))) == 25_000

    def broken() -> Iterator[str]:
        yield "a"
        raise DataError("gone")

    taken = _as_they_come(broken())
    assert next(taken) == ["a"]
    with pytest.raises(DataError, match="gone"):
        next(taken)


def test_answers_to_a_list_come_before_it_ends(trained: Trained) -> None:
    path = min(trained.pictures.rglob("*.png"))
    command = [sys.executable, "-m", "headstart", "predict", str(trained.run), "-", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(2):
            process.stdin.write(os.fsencode(path) + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 120)[0], "no answer while the list is held open"
            assert json.loads(process.stdout.readline())["path"] == str(path)
        process.stdin.close()
        assert (process.stdout.read(), process.wait()) == (b"", 0)
