"""The whole path tells what it suspects, the gravest first, in the terminal's record and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart as hs
from headstart.data.audit import finding, gravest_first
from headstart.data.dataset import Dataset
from headstart.diagnosis.leaks import Closeness
from headstart.options import Options
from tests.toys import TinyNet, stripes

STAGES = ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]


@pytest.mark.parametrize("count", [130, 8])
def test_a_planted_size_is_told_by_the_run(tmp_path: Path, quick: None, count: int) -> None:
    pictures, labels = stripes(count, classes=2)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = tmp_path / "pictures" / f"turn{label}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(picture)).resize((40 + 8 * int(label),) * 2).save(path)
    (tmp_path / "plan.json").write_text(
        json.dumps({"backbone": "module:TinyNet", "stages": STAGES, "rungs": [], "scratch_epochs": 1})
    )
    run = hs.fit(tmp_path / "pictures", tmp_path / "run", Options(plan=str(tmp_path / "plan.json")), module=TinyNet())
    told = {found["kind"]: found for found in run.metrics["findings"]}
    assert ("shortcut_size" in told) == (count > 100), "eight pictures tell nothing"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["findings"] == run.metrics["findings"]
    for found in told.values():
        assert found["next_step"] and found["message"].split("'")[0] in run.report_html
    if "shortcut_size" in told:
        assert "turn0: 52 of 52 are 40 x 40 pixels" in told["shortcut_size"]["items"]


def test_pairs_of_a_suspected_leak_are_shown(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = stripes(130, classes=2)
    plan = {"backbone": "module:TinyNet", "stages": STAGES, "rungs": [], "scratch_epochs": 1}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    shown: list[tuple[str, str]] = []

    def suspected(dataset: Dataset, *rest: object, **more: object) -> Closeness:
        pool, tested = dataset.indices("train"), dataset.indices("test")
        pairs = np.stack([[tested[0], pool[0]], [pool[1], pool[9]], [pool[9], pool[1]]])
        shown.extend((dataset.names[one], dataset.names[other]) for one, other in pairs[:2])
        return Closeness(9.0, 3.0, np.concatenate([pool, tested]), pairs)

    monkeypatch.setattr("headstart.diagnosis.diagnosis.suspected", suspected)
    run = hs.fit((pictures, labels), tmp_path / "run", Options(plan=str(tmp_path / "plan.json")), module=TinyNet())
    (told,) = (found for found in run.metrics["findings"] if found["kind"] == "near_copies")
    assert told["items"] == [" ~ ".join(pair) for pair in shown], "each pair once, the most striking first"
    assert 'id="pairs"' in run.report_html and "2 pairs are suspected" in run.report_html
    assert all(name in run.report_html for pair in shown for name in pair)


def test_warnings_come_before_notes() -> None:
    found = [finding("a", "note", ""), finding("b", "warning", ""), finding("c", "note", ""), finding("d", "error", "")]
    assert [each.kind for each in gravest_first(found)] == ["d", "b", "a", "c"]
