"""A trained model at work on paths and on labelled data: what is left out is said, and what is written over is no picture."""

from __future__ import annotations

import shutil
from pathlib import Path

from headstart.serve import measure
from tests.conftest import Trained
from tests.toys import folder


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
