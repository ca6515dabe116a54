"""The run folder: whose it is, what may be written into it, and the command that gives the run again."""

from __future__ import annotations

import errno
import json
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import OutputError
from headstart.folder import Folder, free_folder, reproduce
from headstart.options import Options
from headstart.run import _finite
from headstart.story import Story


def claim(out: Path | None, source: object = "photos", overwrite: bool = False, **options: Any) -> Folder:
    return Folder.claim(out, source, Options(**options), overwrite=overwrite)


def test_a_new_folder_is_made_and_holds_the_options(tmp_path: Path) -> None:
    with claim(tmp_path / "deep" / "run", seed=3) as folder:
        folder.write("note.txt", "größe")
    config = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert config["options"]["seed"] == 3
    assert config["source"] == str(Path("photos").absolute())
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == ["config.json", "note.txt"]


def test_the_same_options_may_come_back_and_others_may_not(tmp_path: Path) -> None:
    with claim(tmp_path / "run"):
        pass
    with claim(tmp_path / "run", seed=2):  # what was interrupted before there was a model may be begun otherwise
        pass
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 2
    with claim(tmp_path / "run") as folder:
        folder.write("model.json", "{}")
    with claim(tmp_path / "run"):
        pass
    for changes in ({"seed": 1}, {"plan": "head"}, {"budget": None}):
        with pytest.raises(OutputError, match=r"holds a run on other data or with other options\. Give another folder"):
            claim(tmp_path / "run", **changes)
    with pytest.raises(OutputError, match=r"holds a run on other data.*--overwrite to replace it"):
        claim(tmp_path / "run", "other photos")
    with claim(tmp_path / "run", overwrite=True, seed=1) as folder:
        assert folder.stale
    with claim(tmp_path / "bare"):
        pass
    with claim(tmp_path / "bare", overwrite=True, seed=1) as folder:
        assert not folder.stale, "nothing is there to lose"
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["options"]["seed"] == 1
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"is not empty and holds no run \(thesis\.tex, …\)\. Give another folder"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with claim(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("broken", ["", "{", "[1]"])
def test_a_broken_config_is_no_reason_to_stop_nor_to_delete(tmp_path: Path, broken: str) -> None:
    (tmp_path / "config.json").write_text(broken)
    with claim(tmp_path):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1
    (tmp_path / "config.json").write_text(broken)
    (tmp_path / "report.html").write_text("of another run")
    with pytest.raises(OutputError, match="is not empty and holds no run"):
        claim(tmp_path)
    assert (tmp_path / "report.html").exists() and (tmp_path / "config.json").read_text() == broken


def test_what_is_overwritten_stays_until_there_is_a_model_in_its_place(tmp_path: Path) -> None:
    with claim(tmp_path / "run") as folder:
        for name in ("model.json", "model.safetensors", "metrics.json", "report.html"):
            folder.write(name, "old")
        folder.is_of("its data")
    with claim(tmp_path / "run", overwrite=True, seed=1) as folder:
        assert folder.stale and not folder.resumed and not folder.holds_model("its data")
    assert (tmp_path / "run" / "report.html").read_text() == "old", "it failed before it began"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 0
    with claim(tmp_path / "run", overwrite=True, seed=1) as folder:
        folder.begin()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 1


def test_one_run_at_a_time(tmp_path: Path) -> None:
    now = r"Another run is writing '.*' now\. Wait for it, or give another folder"
    with claim(tmp_path / "run"), pytest.raises(OutputError, match=now):
        claim(tmp_path / "run")
    with claim(tmp_path / "run"):
        pass


def test_a_refused_claim_lets_go_of_the_folder(tmp_path: Path) -> None:
    with claim(tmp_path / "run") as folder:
        folder.write("model.json", "{}")
    with pytest.raises(OutputError, match="other options"):
        claim(tmp_path / "run", seed=1)
    with claim(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"Cannot write the run folder '.*': Not a directory\. Give another one with --out"
    ):
        claim(tmp_path / "file" / "run")
    with claim(tmp_path / "run") as folder, monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"Cannot write '.*report\.html': No space left on device"):
            folder.write("report.html", "x")

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(OutputError, match=r"Cannot write the run folder '.*closed': Permission denied\. Give another"):
        claim(tmp_path / "closed")


def test_only_an_unfinished_run_is_resumed(tmp_path: Path) -> None:
    with claim(tmp_path / "run") as folder:
        assert not folder.resumed
    with claim(tmp_path / "run") as folder:
        assert folder.resumed
        folder.write("metrics.json", "{}")
    with claim(tmp_path / "run") as folder:
        assert not folder.resumed


def test_a_run_in_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    story = Story()
    with claim(None, ("arrays",)) as folder, story.to(folder.path):
        folder.write("note.txt", "x")
        story.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert folder.config["source"] == "builtins.tuple in memory"


def test_the_story_is_told_timed_and_kept(tmp_path: Path) -> None:
    told: list[str] = []
    story = Story(told.append)
    with claim(tmp_path / "run") as folder, story.to(folder.path):
        with story.phase("audit"):
            story.say("all is well")
        with pytest.raises(ZeroDivisionError), story.to(folder.path):
            raise ZeroDivisionError("stop")
    assert told == ["all is well"]
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(maxsplit=1)[1].split(" took")[0] for line in log] == [
        "all is well",
        "audit",
        "stopped: ZeroDivisionError: stop",
    ]
    assert story.seconds["audit"] <= story.total


def test_the_command_that_gives_the_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Typed as it is printed, it comes to the same options."""
    from headstart import cli

    asked: list[tuple[object, object, Options]] = []

    def fit(data: object, out: object, options: Options, **_: object) -> None:
        asked.append((data, out, options))

    monkeypatch.setattr(import_module("headstart.fit"), "fit", fit)
    monkeypatch.setattr(cli, "_show", lambda run: None)
    for options in (
        Options(),
        Options(seed=7, budget=90.0, plan="head", test_fraction=0.3),
        Options(budget=None, store_limit=None, weights="my weights.pth", backbone="timm:resnet18"),
        Options(unreadable="error", rare="drop", precision="float32", label_column="a 'b'", store_limit=5_000),
        Options(mirror=False, pair=False, seed=1),
    ):
        command = shlex.split(reproduce("my photos", options, tmp_path / "run"))
        assert command[:2] == ["headstart", "fit"]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0
        assert asked.pop() == ("my photos", tmp_path / "run", options)


def test_the_default_place_is_named_after_the_data(tmp_path: Path) -> None:
    assert free_folder(str(tmp_path / "moths")) == Path("runs/moths")
    assert free_folder(str(tmp_path / "moths") + "/") == Path("runs/moths")
    assert free_folder(("arrays",)) == Path("runs/run")


def test_a_run_is_called_after_its_data_or_else_after_its_folder(tmp_path: Path) -> None:
    for out, source, title in (
        (tmp_path / "run", tmp_path / "my moths", "my moths"),
        (tmp_path / "digits", ("arrays",), "digits"),
        (None, ("arrays",), ""),
    ):
        with claim(out, source) as folder:
            assert folder.title == title


def test_what_was_not_measured_is_null() -> None:
    nested = {"a": [1.0, float("nan")], "b": (float("inf"),), "c": "NaN", "d": 3}
    assert _finite(nested) == {"a": [1.0, None], "b": [None], "c": "NaN", "d": 3}
