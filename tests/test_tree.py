"""The source tree in the README is the source tree, and every link in the documents leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_imports import ROOMS, SEEN_BY_ALL

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def drawn(readme: str) -> dict[str, str]:
    """Path -> what is said of it, for every file in the drawing; folders end in "/" and give their indent to what follows."""
    drawing = re.search(r"```text\nsrc/headstart/\n(.*?)```", readme, re.DOTALL)
    assert drawing is not None
    found: dict[str, str] = {}
    folder = ""
    for line in drawing[1].splitlines():
        indent = len(line) - len(line.lstrip())
        name, _, words = line.strip().partition(" ")
        if indent == 2:
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            found[(folder if indent == 4 else "") + name] = words.strip()
    return found


def test_the_tree_in_the_readme_is_the_tree() -> None:
    source = ROOT / "src/headstart"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    there = {
        path.relative_to(source).as_posix() for path in files if path.name != "__init__.py" or path.read_bytes().strip()
    }
    tree = drawn((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(tree) == there
    assert [name for name, words in tree.items() if not words] == []


def test_the_import_law_is_written_down_as_it_is_tested() -> None:
    law = re.search(
        r"```text\n(errors runtime .*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert law is not None
    assert tuple(law[1].replace("|", " ").split()) == (*SEEN_BY_ALL, *ROOMS)


def slug(heading: str) -> str:
    """The anchor that a heading gets: lower case, punctuation dropped, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_internal_link_resolves(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        goal = (document.parent / path).resolve() if path else document
        assert goal.exists(), f"{document.name} links to {target}, which is not there"
        assert goal.is_relative_to(ROOT), f"{document.name} links out of the repository: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{document.name}: no heading for {target}"


def test_documents_are_in_the_drawing_or_linked() -> None:
    linked = " ".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    for document in (ROOT / "docs").glob("*.md"):
        assert f"{document.name})" in linked, f"nothing links to docs/{document.name}"
