"""A trained model at work on paths and on labelled data: what is left out is said, and what is written over is no picture."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart import cli
from headstart.backbones.backbone import Backbone
from headstart.errors import DataError
from headstart.heads import Head
from headstart.model import Model
from headstart.serve import Asked, measure, write_predictions
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
