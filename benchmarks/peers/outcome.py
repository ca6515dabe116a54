"""What every peer leaves: its answer to each test picture, its accuracy, and where its seconds went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def laps(times: Iterable[float]) -> list[float]:
    """Seconds of every epoch: `times` are when the first began and when each ended."""
    return [end - begin for begin, end in pairwise(times)]


def write(out: Path, tree: Path, files: Iterable[str | Path], answers: Sequence[str], **found: Any) -> None:
    """Write OUT.json: `answers` are class names, one per file below TREE/test, whose folder names the right one."""
    paths = [Path(file).relative_to(tree / "test") for file in files]
    given = dict(zip((path.as_posix() for path in paths), answers, strict=True))
    right = [given[path.as_posix()] == path.parts[0] for path in paths]
    record = {"accuracy": sum(right) / len(right), **found, "answers": given}
    out.write_text(json.dumps(record), encoding="utf-8")
