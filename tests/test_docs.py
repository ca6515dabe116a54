"""README and docs are true: every command and every Python block in them runs, on small real pictures, as it stands."""

from __future__ import annotations

import ast
import csv
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import headstart as hs
from headstart import proof
from headstart.cli import app
from headstart.cost import FOLDS_JUDGED, scratch_epochs
from headstart.data import audit, load
from headstart.diagnosis import exactness
from headstart.diagnosis.growth import FARTHEST, FEWEST, Prior
from headstart.diagnosis.similarity import LARGE, NEAR, SURE
from headstart.features import engine
from headstart.features.shift import ANSWERS, PICTURES
from headstart.plan import Budget, Evidence, Rung, load_plan
from headstart.planner import FEW_EACH, FEW_IMAGES, FEW_LADDER, LADDER
from headstart.report.text import MODELS
from headstart.tuning import ALPHAS
from headstart.unknown import AXES, LOST

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DEMO = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/headstart demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest"
# Commands that are not run here, why, and what of them the command line must at least understand.
NOT_RUN = {
    DEMO: ("installs into a fresh environment and takes minutes", "headstart demo"),
    TESTS: ("is these very tests; .ci/run runs it", ""),
    "headstart backbones get mobilenetv2_100": ("needs a package index", "headstart backbones get mobilenetv2_100"),
}
CLASSES = {"daisy": (230, 230, 210), "roses": (200, 30, 50), "tulips": (60, 20, 160)}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What a person types: every line of a bash block, lines after "$ " of a console block; comments dropped."""
        joined = self.text.replace("\\\n", " ")
        lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
        if self.kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line.split("  #")[0].strip() for line in lines]


def blocks(document: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(kind, text) for kind, text in found]


def shown(document: Path) -> list[str]:
    return [line for block in blocks(document) if block.kind in ("bash", "console") for line in block.commands]


def picture(name: str, seed: int) -> Image.Image:
    """A picture that is easy to tell by its colour, and unlike any other of its class."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3))
    tinted = (0.5 * grid + 0.5 * np.array(CLASSES[name])).astype(np.uint8)
    return Image.fromarray(tinted).resize((40, 36), Image.Resampling.BICUBIC)


def lay_out(desk: Path) -> None:
    """Everything that the documents speak of: photos/, new/, more/, labels.csv, plan.json.

    The test split is given: without one it would take 120 pictures to have one cut, and four times as long.
    """
    rows = [("path", "species", "plant", "split")]
    seed = 0
    for folder, count in (("photos/train", 10), ("photos/test", 4), ("more", 3)):
        for name in CLASSES:
            (desk / folder / name).mkdir(parents=True)
            for number in range(count):
                path = f"{folder}/{name}/{number}.jpg"
                picture(name, seed).save(desk / path, quality=95)
                seed += 1
                if folder != "more":
                    rows.append((path, name, f"plant {seed}", folder.removeprefix("photos/")))
    (desk / "new").mkdir()
    for letter in "abc":
        picture("roses", seed := seed + 1).save(desk / "new" / f"{letter}.jpg", quality=95)
    with (desk / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    (desk / "plan.json").write_text(plan_example(), encoding="utf-8")


def plan_example() -> str:
    return next(block.text for block in blocks(ROOT / "docs/plan-files.md") if block.kind == "json")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all documents: the same pictures go through the network once."""
    return tmp_path_factory.mktemp("docs-cache")


@pytest.fixture
def desk(tmp_path: Path, cache: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the pictures in it, as a reader of the documents sits before; what trains there trains briefly."""
    monkeypatch.setenv("HEADSTART_CACHE", str(shared_cache))
    monkeypatch.setattr("headstart.planner.epochs_for", lambda images: 2)
    monkeypatch.setattr("headstart.proof.RATES", (3e-3,))
    monkeypatch.setattr("headstart.proof.scratch_epochs", lambda *_: (1, "one epoch"))
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def perform(command: str) -> str:
    """Run one line as it stands; returns what it printed."""
    *before, words = _pipeline(command)
    given = "".join(subprocess.run(one, check=True, capture_output=True, text=True).stdout for one in before)
    assert words[0] == "headstart", f"a command that nothing here can run, and that is not listed in NOT_RUN: {command}"
    done = CliRunner().invoke(app, words[1:], input=given)
    assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    return done.stdout


def _pipeline(command: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in shlex.split(command):
        parts.append([]) if word == "|" else parts[-1].append(word)
    return parts


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_every_python_block_runs(document: Path, desk: Path) -> None:
    names: dict[str, Any] = {"images": torch.rand(2, 3, 224, 224)}  # what docs/backbones.md calls `images`
    for block in blocks(document):
        if block.kind == "python":
            exec(compile(block.text, document.name, "exec"), names)
        elif block.kind in ("bash", "console"):
            for command in block.commands:
                if command not in NOT_RUN:
                    perform(command)


def test_commands_that_are_not_run_are_shown_and_understood() -> None:
    everything = {line for document in DOCUMENTS for line in shown(document)}
    assert set(NOT_RUN) <= everything
    for _, understood in NOT_RUN.values():
        if understood:
            # Options and subcommands are parsed before --help ends the matter: a wrong name would fail.
            assert CliRunner().invoke(app, [*shlex.split(understood)[1:], "--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["demo", "--no-such-option", "--help"]).exit_code == 2


def test_ci_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci/run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert TESTS in lines
    assert {".venv/bin/ruff check", ".venv/bin/ruff format --check", ".venv/bin/mypy"} <= set(lines)
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert {DEMO, TESTS} <= set(shown(ROOT / "README.md"))


def test_constraints_are_exact_and_name_every_requirement() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[name] = version
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = set(re.findall(r'^  "([a-z0-9-]+)[>=]', project, re.MULTILINE)) | {"mlxtend", "pyarrow", "datasets"}
    assert "torch" in wanted
    assert wanted <= set(pinned)


def test_the_plan_example_fits_the_default_backbone(desk: Path) -> None:
    backbone = hs.load_backbone("tf_efficientnet_lite0")
    plan = load_plan(desk / "plan.json", backbone=backbone.origin.name, stages=list(backbone.names))
    # Complete: nothing is left to a default but what `fit` notes.
    assert set(json.loads(plan_example())) == set(type(plan).model_fields) - {"evidence", "budget"}
    assert all(set(rung) == set(Rung.model_fields) for rung in json.loads(plan_example())["rungs"])


def test_plan_fields_are_described_with_their_defaults() -> None:
    text = (ROOT / "docs/plan-files.md").read_text(encoding="utf-8")
    for name in (*Rung.model_fields, *hs.Plan.model_fields):
        assert f"`{name}`" in text or name == "format", name
    assert f"| {hs.Plan.model_fields['scratch_epochs'].default} |" in text
    assert f"| {Rung.model_fields['views'].default} |" in text
    assert f"| {Rung.model_fields['lr_decay'].default} |" in text


def test_the_run_folder_is_as_described(desk: Path) -> None:
    run = hs.fit("photos", "runs/photos", hs.Options(plan="head", budget=60.0))
    text = (ROOT / "docs/run-folder.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([\w.]+)`", text))
    assert {path.name for path in (desk / "runs/photos").iterdir()} <= described
    for record in ("config.json", "audit.json", "metrics.json", "model.json", "plan.json"):
        assert json.loads((desk / "runs/photos" / record).read_text(encoding="utf-8"))["format"] == 1
    test = run.metrics["test"]
    fields = [*run.metrics, *test, *test["models"], *test["models"]["final"], *test["differences"][0]]
    fields += [*test["classes"][0], *test["reliability"][0], *run.metrics["seconds"]]
    assert set(fields) <= described
    card = json.loads((desk / "runs/photos/model.json").read_text(encoding="utf-8"))
    assert set(card) <= described
    assert set(type(run.dataset.audit).model_fields) <= described
    header = (desk / "runs/photos/predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert f"`{header}`" in text


def test_every_finding_of_the_audit_is_described() -> None:
    text = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
    described = {name.strip() for row in re.findall(r"^\| ([\w, ]+) \|", text, re.MULTILINE) for name in row.split(",")}
    kinds = set()
    for file in (ROOT / "src/headstart/data").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "finding":
                assert isinstance(node.args[0], ast.Constant)
                kinds.add(node.args[0].value)
    assert "unreadable" in kinds
    assert kinds <= described


def test_thresholds_in_the_text_are_those_of_the_code() -> None:
    start = _flowing("docs/getting-started.md")
    decides = _flowing("docs/how-it-decides.md")
    assert f"Below {load.SMALL_POOL} usable pictures no test set is cut" in start
    assert f"fewer than {audit.FEW} pictures" in start
    assert f"has {audit.IMBALANCE:g} times the pictures" in start
    assert f"a cosine of at least {engine.AGREES:g} with float32 in every stage" in decides
    assert f"keep {engine.COSINE:g} in every stage" in decides
    assert f"answers up to {exactness.PICTURES} of the test pictures in plain float32" in decides
    assert f"(sign test, {100 * exactness.SURE:g} %)" in decides
    assert f"about {100 * LADDER[0]:.0f} % and about {100 * LADDER[1]:.0f} %" in decides
    assert f"about {100 * FEW_LADDER[0]:.0f} % stays frozen" in decides
    assert f"three of the five folds below {FEW_IMAGES} training pictures" in decides and FOLDS_JUDGED == 3
    assert f"on one with up to {FEW_EACH} pictures per class to train on" in decides
    assert f"drawn towards {Prior.exponent:g} the more" in decides and f"give or take {Prior.spread:g}" in decides
    assert f"fewer than {FEWEST} pictures, nor further than four times" in decides and FARTHEST == 4
    assert (
        f"{LARGE:,} to train on divide them" in decides
        and f"a distance of {NEAR:g}; without one, an entropy of {SURE:g}" in decides
    )
    assert (
        f"{PICTURES} training pictures give the same" in decides and f"up to {ANSWERS:,} training pictures" in decides
    )
    assert f"variance along {AXES} axes" in decides and f"at most {100 * LOST:g} % of known pictures" in decides
    assert ALPHAS == (1.0, 0.75, 0.5, 0.25) and "a quarter, half, three quarters or all" in decides
    assert proof.REPEATS == 3 and "in three repeats of five-fold" in decides
    assert f"falls by a factor {Rung.model_fields['lr_decay'].default} per stage" in decides
    assert f"Below {load.SMALL_POOL} pictures no test set is cut" in _flowing("README.md")


def test_the_pages_of_results_are_what_the_results_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    results = tables.loaded(ROOT / "benchmarks" / "results")
    for name in tables.PAGES:
        assert tables.page(f"{name}.jinja", results) == (ROOT / "docs" / name).read_text(encoding="utf-8"), name
    assert tables.page("readme.md.jinja", results) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_edge_of_likeness_is_where_the_benchmark_has_it() -> None:
    cases = json.loads((ROOT / "benchmarks/results/shift.json").read_text(encoding="utf-8"))["cases"]
    near = {case: found["distance"] < NEAR for case, found in cases.items()}
    assert len(near) >= 16
    for case, below in near.items():
        assert below == case.endswith(("flowers", "ants_bees", "groceries", "satellite")), case


def test_epochs_in_the_text_are_those_that_are_planned() -> None:
    few, many = planned(images=40, speed=1e-6), planned(images=10**6, speed=1e3)
    assert few.evidence is not None and many.evidence is not None
    text = _flowing("docs/how-it-decides.md")
    assert f"epochs between {many.rungs[0].epochs} and {few.rungs[0].epochs}" in text
    steps, most = 2 * scratch_epochs(few.evidence, 0.0, 1)[0], scratch_epochs(many.evidence, 1e12, 1)[0]
    least = scratch_epochs(planned(images=10**6, speed=1e-9).evidence, 0.0, 1)[0]  # type: ignore[arg-type]
    assert f"at least {least} and {steps} steps, at most {most}" in text
    assert f"{few.rungs[0].views} cached views per picture" in text


def planned(images: int, speed: float) -> hs.Plan:
    """What is planned for a network of four like stages that take `speed` seconds each, without a bound on the time."""
    evidence = Evidence(
        images=images, classes=2, smallest_class=images // 2, tested=images // 4, head="", head_accuracy=0.5,
        head_accuracy_se=0.1, last_stage_accuracy=0.5, profile=[0.5] * 4, stages=list("abcd"), flops=[1] * 4,
        activation_bytes=[1] * 4, forward_seconds=[speed] * 4, training_seconds=[speed] * 4, decode_seconds=0.0,
        scratch_seconds=1e-3,
    )  # fmt: skip
    return hs.decide(evidence, Budget(), backbone="four")


def _flowing(document: str) -> str:
    return " ".join((ROOT / document).read_text(encoding="utf-8").replace("**", "").split())


def test_the_output_in_the_readme_is_that_of_the_example_run() -> None:
    metrics = json.loads((ROOT / "docs/example/metrics.json").read_text(encoding="utf-8"))
    text = next(block.text for block in blocks(ROOT / "README.md") if "headstart fit" in block.text)
    assert metrics["sentence"] in " ".join(text.split())
    for name, scores in metrics["test"]["models"].items():
        accuracy = scores["accuracy"]
        row = next(line.split() for line in text.splitlines() if line.strip().startswith(MODELS[name]))
        expected = f"{100 * accuracy['value']:.1f} {100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f}"
        assert expected in " ".join(row)
    assert metrics["growth"]["sentence"] in " ".join(text.split())
    doubts = metrics["doubts"]
    assert (
        f"({doubts['pictures']} of {doubts['of']} labels are worth a second look, "
        f"{doubts['confident']} contradicted with confidence)" in text
    )


def test_the_example_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "examples/python_api.py", desk)
    runpy.run_path("python_api.py", run_name="__main__")
    said = capsys.readouterr().out
    assert "sealed test images" in said
    assert "scikit-learn on blocks.4 and blocks.5" in said
