"""The import law: a room imports only from rooms that stand before it on the way of the data, and the command line is light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

SOURCE = Path(headstart.__file__).parent
ROOMS = (
    "options", "data", "tasks", "backbones", "features", "request", "folder", "solvers", "heads", "choice", "winner", "race",
    "intervals", "lineup", "views", "unknown", "model", "forecast", "plan", "cost", "planner", "suffix", "train", "tuning", "judge",
    "ladder", "baselines", "scratch", "evidence", "evaluate", "verdict", "proof", "diagnosis", "card", "bundle",
    "report", "story", "run", "transfer", "fit", "serve", "demo", "show", "cli",
)  # fmt: skip
SEEN_BY_ALL = ("errors", "runtime")
UNWANTED = {"utils", "helpers", "common", "manager", "misc"}


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[tuple[str, bool]]:
    """Rooms of headstart that a file imports, anywhere in it, and whether only for the type checker."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides the room that it comes from"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "headstart" else [module]
        found |= {(name.split(".")[1], id(node) in typed) for name in names if name.startswith("headstart.")}
    return found


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or not path.name.startswith("__")]


def test_every_room_is_in_the_law() -> None:
    assert {room(path.relative_to(SOURCE).parts) for path in files()} == {*ROOMS, *SEEN_BY_ALL}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    here = room(path.relative_to(SOURCE).parts)
    before = ("errors",) if here in SEEN_BY_ALL else (*SEEN_BY_ALL, *ROOMS[: ROOMS.index(here) + 1])
    behind = {name for name, _ in imports(path)} - set(before)
    assert not behind, f"{here} stands before {', '.join(sorted(behind))} and must not import from there"


def test_the_law_can_be_broken() -> None:
    """The graph sees imports inside functions and for the type checker, so that the test above can fail."""
    assert ("fit", False) in imports(SOURCE / "cli.py")
    assert ("run", True) in imports(SOURCE / "cli.py")
    assert ("transfer", False) in imports(SOURCE / "fit.py")


def test_no_drawer_for_what_has_no_place() -> None:
    stems = {part for path in files() for part in (path.stem, *path.relative_to(SOURCE).parent.parts)}
    assert not stems & UNWANTED


def test_package_files_of_rooms_are_empty() -> None:
    assert all(not path.read_text().strip() for path in SOURCE.glob("*/__init__.py"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=os.environ.copy()
    )


def test_help_imports_nothing_heavy() -> None:
    done = run("-X", "importtime", "-m", "headstart", "--help")
    assert done.returncode == 0
    assert "From a folder of labelled images to a proven classifier" in done.stdout
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "headstart" in loaded and "typer" in loaded
    heavy = loaded & {"torch", "torchvision", "timm", "numpy", "scipy", "sklearn", "PIL", "pydantic", "safetensors"}
    assert not heavy


def test_data_are_read_before_torch_is_imported(tmp_path: Path) -> None:
    """What is wrong with the data is said at once, and pictures are decoded while torch is on its way."""
    (tmp_path / "a").mkdir()
    done = run("-X", "importtime", "-m", "headstart", "fit", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "error: " in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]


@pytest.mark.parametrize("module", ["headstart", "headstart.cli"])
def test_importing_is_light(module: str) -> None:
    done = run("-c", f"import sys, {module}; print(sorted({{'torch', 'timm', 'numpy'}} & set(sys.modules)))")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
