"""What every reader returns: pictures with their labels, before anything is judged, dropped or split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from headstart.data.dataset import Images
from headstart.errors import DataError

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names under which a table, or a Hugging Face data set, holds what a reader looks for; a split of None is not looked for."""

    label: str = "label"
    path: str = "path"
    split: str | None = "split"
    group: str = "group"


@dataclass(frozen=True, eq=False)
class Listing:
    """N pictures as a reader found them.

    `labels`  N class names, printable and NFC-normalised.
    `split`   N names of `SPLITS`, or "" throughout where none were given.
    `group`   N names of given groups; "" where a picture has none.
    `ignored` what was seen and left out: reason -> number of files.
    `notes`   what a person should know about how the source was read; `warnings`, where that may be wrong.
    """

    images: Images
    labels: tuple[str, ...]
    split: tuple[str, ...]
    group: tuple[str, ...]
    source: str
    layout: str
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.images), len(self.labels), len(self.split), len(self.group)}
        if len(sizes) != 1:
            raise DataError(
                f"{self.source}: got {len(self.images)} pictures but {len(self.labels)} labels. "
                "Expected one label for each picture."
            )


def split_of(name: str) -> str | None:
    """The split that a folder or a table cell names ("valid" -> "val"), or None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def printable(name: str) -> str:
    """The name with undecodable bytes as \\udc.. escapes and accents composed (macOS stores them apart)."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode("utf-8"))


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sorting key under which "class 2" comes before "class 10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts), name
