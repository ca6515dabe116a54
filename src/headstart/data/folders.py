"""Class folders, with or without train/, val/ and test/ above or below them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.dataset import SPLITS
from headstart.data.listing import Listing, natural, printable, split_of
from headstart.data.sources import FileImages, extensions
from headstart.data.tables import TABLES
from headstart.errors import DataError

LAYOUTS = """\
Expected one folder per class:        or the same below train/, val/ and test/:
    photos/                               photos/
      cat/  a.jpg  b.jpg                    train/  cat/  dog/
      dog/  c.jpg  d.png                    test/   cat/  dog/"""
_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})


@dataclass
class _Tree:
    """One folder as walked: its pictures, and its sub-folders that may hold more."""

    path: Path
    pictures: list[Path] = field(default_factory=list)
    folders: list[_Tree] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return printable(self.path.name)

    def all_pictures(self) -> list[Path]:
        return [*self.pictures, *(path for tree in self.folders for path in tree.all_pictures())]

    def full_folders(self) -> list[_Tree]:
        return [tree for tree in self.folders if tree.all_pictures()]


def read_folder(root: Path) -> Listing:
    """Class folders, split folders with class folders, or class folders with split folders; pictures may lie deeper inside.

    Raises:
        DataError: where there is no picture, or no class folder, or no train/ beside test/.
    """
    ignored: Counter[str] = Counter()
    tree, notes = _walk(root, ignored, ()), list[str]()
    if not tree.all_pictures():
        endings = ", ".join(f"{count} {what}" for what, count in ignored.most_common(5)) or "nothing"
        raise DataError(f"{root}: no pictures in this folder (found {endings}).\n{_hint(tree)}{LAYOUTS}")
    while not tree.pictures and len(tree.full_folders()) == 1 and tree.full_folders()[0].full_folders():
        if split_of(tree.full_folders()[0].name) == "train" and _is_class_level(tree.full_folders()[0]):
            break  # a lone train/ is a split, not a wrapper
        tree = tree.full_folders()[0]
        notes.append(f"The only folder '{tree.name}' was followed to find the classes.")
    if not tree.full_folders():
        raise DataError(
            f"{root}: got {len(tree.pictures)} pictures directly in '{tree.name}' and no class folders.\n"
            f"{_hint(tree)}{LAYOUTS}"
        )
    splits = _splits(tree)
    if not splits and len(tree.full_folders()) == 1 and len(tree.tables) == 1:
        raise DataError(
            f"{root}: got all pictures in one folder, '{tree.full_folders()[0].name}'.\n{_hint(tree)}{LAYOUTS}"
        )
    if splits:
        others = [other for other in tree.full_folders() if other not in splits.values()]
        stray = len(tree.pictures) + sum(len(part.pictures) for part in splits.values())
        for other in others:
            why = "no class folders in it" if split_of(other.name) else "not train, val or test"
            ignored[f"pictures in {other.name}/ ({why})"] = len(other.all_pictures())
    else:
        splits, stray = _splits_below(tree) or {"": tree}, len(tree.pictures)
        if "" not in splits:
            first = splits["train"].folders[0]
            notes.append(
                f"The splits lie below the classes ({first.name}/{first.folders[0].name}): read as {', '.join(splits)}."
            )
    if stray:
        ignored["pictures outside any class folder"] = stray
    return _listing(root, splits, ignored, notes, _mistakable(tree) if "" in splits else [])


def _mistakable(tree: _Tree) -> list[str]:
    """Warnings of what may be meant as a split: "train" with folders in it, beside classes without; train and test in some classes."""
    flat = [folder.name for folder in tree.full_folders() if not _is_class_level(folder)]
    below = [
        folder.name
        for folder in tree.full_folders()
        if {"train", "test"} <= {split_of(part.name) for part in folder.full_folders()}
    ]
    told = [
        f"'{name}' has folders for training and test in it, which are mixed: splits below classes are read as such only where every "
        "class holds split folders and nothing else."
        for name in below[:1]
    ]
    return told + [
        f"'{folder.name}' has folders in it, and is taken for a class as '{flat[0]}' beside it has none. If it holds what to train "
        f"on, with a folder for each class, move '{flat[0]}' elsewhere."
        for folder in tree.full_folders()
        if flat and split_of(folder.name) == "train" and _is_class_level(folder)
    ]


def _listing(
    root: Path, splits: dict[str, _Tree], ignored: Counter[str], notes: list[str], warnings: list[str]
) -> Listing:
    rows = [
        (path, printable(path.relative_to(root).as_posix()), folder.name, split)
        for split, tree in splits.items()
        for folder in sorted(tree.full_folders(), key=lambda folder: natural(folder.name))
        for path in sorted(folder.all_pictures(), key=lambda path: natural(path.as_posix()))
    ]
    told = [note for tree in splits.values() for note in _spelt_twice(tree)]
    return Listing(
        images=FileImages(tuple(row[0] for row in rows), tuple(row[1] for row in rows)),
        labels=tuple(row[2] for row in rows),
        split=tuple(row[3] for row in rows),
        group=("",) * len(rows),
        source=str(root),
        layout="split folders" if "" not in splits else "class folders",
        ignored={what: count for what, count in ignored.items() if count},
        notes=(*notes, *dict.fromkeys(told)),
        warnings=tuple(warnings),
    )


def _splits(tree: _Tree) -> dict[str, _Tree]:
    """The sub-folders that are splits; none where a class merely happens to be called "train"."""
    found: dict[str, _Tree] = {}
    full = tree.full_folders()
    for folder in full:
        split = split_of(folder.name)
        if split is None or not _is_class_level(folder):
            continue
        if split in found:
            raise DataError(
                f"{tree.path}: '{found[split].name}' and '{folder.name}' both name the {split} split. "
                "Expected one of them; rename or remove the other."
            )
        found[split] = folder
    if "train" in found:
        # A flat test/ beside it has pictures without labels, and is no class.
        return found if len(found) > 1 or all(split_of(folder.name) for folder in full) else {}
    return found if len(found) == len(full) else {}


def _splits_below(tree: _Tree) -> dict[str, _Tree]:
    """The splits where every class folder holds split folders and nothing else, train among them; else none."""
    classes = tree.full_folders()
    parts = [(folder, part, split_of(part.name) or "") for folder in classes for part in folder.full_folders()]
    named = {split for _, _, split in parts}
    if "" in named or "train" not in named or any(each.pictures or not _is_class_level(each) for each in classes):
        return {}
    found = {split: _Tree(tree.path) for split in SPLITS if split in named}
    for folder, part, split in parts:
        if any(folder.path == other.path for other in found[split].folders):
            raise DataError(
                f"{folder.path}: two folders in it, '{part.name}' one of them, name the {split} split. "
                "Expected one; rename or remove the other."
            )
        found[split].folders.append(_Tree(folder.path, folders=[part]))
    return found


def _spelt_twice(tree: _Tree) -> list[str]:
    """Notes of class folders whose names differ only in how accents are stored, and which are therefore one class."""
    spelt: dict[str, set[str]] = {}
    for folder in tree.full_folders():
        spelt.setdefault(folder.name, set()).add(folder.path.name)
    return [
        f"{len(paths)} folders are called '{name}', with accents stored in different ways (NFC, NFD): read as one class."
        for name, paths in spelt.items()
        if len(paths) > 1
    ]


def _is_class_level(tree: _Tree) -> bool:
    return bool(tree.full_folders())


def _walk(path: Path, ignored: Counter[str], above: tuple[tuple[int, int], ...]) -> _Tree:
    """The tree below `path`; links are followed except to a folder that the walk is already inside."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: natural(entry.name))
    except OSError as error:
        raise _unlisted(path, error) from error
    tree = _Tree(path)
    above = (*above, _identity(path))
    for entry in entries:
        here = path / entry.name
        ending = here.suffix.lower()
        if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
            ignored["hidden"] += 1
        elif _leads_to(entry.is_dir):
            if _identity(here) in above:
                ignored["links that lead back"] += 1
            else:
                tree.folders.append(_walk(here, ignored, above))
        elif ending in extensions() and (_leads_to(entry.is_file) or entry.is_symlink()):
            tree.pictures.append(here)  # a broken link stays: the audit names it as unreadable
        elif not _leads_to(entry.is_file):
            ignored["not regular files"] += 1
        else:
            ignored[f"{ending} files" if ending else "files without an ending"] += 1
            if ending in TABLES:
                tree.tables.append(here)
    return tree


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of that kind; a link that leads to itself, or where no one may look, is of none, as a broken one."""
    try:
        return kind()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one folder have in common."""
    try:
        info = path.stat()
    except OSError as error:  # it went away meanwhile
        raise _unlisted(path, error) from error
    return info.st_dev, info.st_ino


def _unlisted(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot list this folder ({error.strerror}). Check that it is there, and its permissions."
    )


def _hint(tree: _Tree) -> str:
    if len(tree.tables) != 1:
        return ""
    table = tree.tables[0]
    return f"There is a table '{table.name}' in it. If it holds the labels, give that instead:  {table}\n"
