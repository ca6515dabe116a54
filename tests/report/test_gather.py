"""What a run's report shows is bounded, and it says so."""

from __future__ import annotations

import json
from pathlib import Path

import headstart as hs
from tests.conftest import BACKBONE, STAGES
from tests.toys import folder

from .test_report import Document


def test_of_many_classes_the_first_are_shown_and_it_says_how_many(tmp_path: Path, weights: Path, quick: None) -> None:
    plan = {"backbone": f"timm:{BACKBONE}", "stages": STAGES, "rungs": [], "scratch_epochs": 1}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    options = hs.Options(backbone=BACKBONE, weights=str(weights), plan=str(tmp_path / "plan.json"))
    run = hs.fit(folder(tmp_path / "pictures", 140, classes=14, contrast=22), None, options)
    found = Document(run.report_html)
    assert "12 of 14 classes." in found.text
    sets = [attrs for tag, attrs in found.elements if attrs.get("class") == "set"]
    assert len(sets) == 12 and run.report_html.split('id="confusion"')[0].count("<img") == 12 * 5
    assert len(run.metrics["test"]["classes"]) == 14
