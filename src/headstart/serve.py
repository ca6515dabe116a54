"""A trained model at work: predictions for paths, and its score on other labelled data."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from headstart import bundle, runtime
from headstart.data.audit import plural
from headstart.data.facts import measure as examine
from headstart.data.listing import Columns
from headstart.data.readers import read
from headstart.data.sources import extensions
from headstart.errors import DataError, OutputError, UnreadableImage
from headstart.evaluate import TestReport, evaluate
from headstart.features.extract import batches, transform_of
from headstart.model import Model, Prediction
from headstart.run import SEEN_DIGITS, trained_on
from headstart.tasks.classification import softmax

FIELDS = ("path", "label", "probability", "second", "second_probability", "error")


def listed(paths: Iterable[str]) -> Iterator[str]:
    """The pictures meant by files, folders, globs and "-" (a path a line on standard input), one after the other.

    Raises:
        DataError: where a folder or a glob holds no picture.
    """
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(path):  # noqa: PTH112  (a Path would normalise what the person typed)
            yield from _in_folder(path)
        elif any(mark in path for mark in "*?[") and not os.path.exists(path):  # noqa: PTH110
            found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
            if not found:
                raise DataError(f"No file matches '{path}'. Check the pattern, or put it in quotes.")
            yield from found
        else:
            yield path


def _in_folder(path: str) -> Iterator[str]:
    known, empty = extensions(), True
    for folder, inside, files in os.walk(path):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in known:  # noqa: PTH122
                empty = False
                yield os.path.join(folder, name)  # noqa: PTH118
    if empty:
        raise DataError(
            f"'{path}' holds no picture. Give files, a folder with pictures, a glob, or - for a list on stdin."
        )


def write_predictions(
    model: Model, paths: Iterable[str], out: Path | None, *, as_json: bool, progress: runtime.Progress = runtime.silent
) -> int:
    """Print a row per picture as it is answered; returns how many could not be read.

    Raises:
        OutputError: where `out` cannot be written.
    """
    pictures = list(paths)
    failed = 0
    with _opened(out) as file, progress("Predicting", len(pictures)) as advance:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not as_json:
            writer.writeheader()
        for rows, _ in model.stream(pictures):
            for row in rows:
                failed += bool(row.error)
                if as_json:
                    file.write(json.dumps(_shown(row), ensure_ascii=False) + "\n")
                else:
                    writer.writerow({name: "" if value is None else value for name, value in _shown(row).items()})
            file.flush()
            advance(len(rows))
    return failed


def _shown(row: Prediction) -> dict[str, str | float | None]:
    read = not row.error
    return {
        "path": os.fsencode(row.path).decode(errors="backslashreplace"),
        "label": row.label,
        "probability": round(row.probability, 6) if read else None,
        "second": row.second,
        "second_probability": round(row.second_probability, 6) if read else None,
        "error": row.error.encode(errors="backslashreplace").decode(),
    }


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise OutputError(f"Cannot write '{out}': {error.strerror or error}. Give another file with --out.") from error


def measure(
    run: Path,
    source: object,
    *,
    path_column: str = "path",
    label_column: str = "label",
    unreadable: Literal["skip", "error"] = "skip",
    progress: runtime.Progress = runtime.silent,
    tell: Callable[[str], object] = str,
) -> TestReport:
    """Metrics of the model in `run` on every labelled picture of `source`, whatever its split.

    `tell` hears of pictures that were left out, and of those that the model was made from: they do not test it.

    Raises:
        BundleError: where the run cannot be loaded.
        DataError: where the data cannot be read, or hold classes that the model does not know.
        UnreadableImage: where a picture cannot be read and that is to be an error, or none can be.
    """
    model = bundle.load(run)
    listing = read(source, Columns(path_column, label_column))
    unknown = sorted(set(listing.labels) - set(model.classes))
    if unknown:
        raise DataError(
            f"{listing.source} has labels that the model does not know: {', '.join(unknown[:5])}. "
            f"It knows: {', '.join(model.classes[:10])}{', …' if len(model.classes) > 10 else ''}."
        )
    facts = examine(listing.images, progress=progress)
    bad = [f"{listing.images.names[i]} ({why})" for i, why in enumerate(facts.reasons) if why]
    if bad:
        words = (
            f"{listing.source}: {plural(len(bad), 'picture')} of {len(facts.reasons):,} cannot be read: {_first(bad)}."
        )
        if unreadable == "error" or len(bad) == len(facts.reasons):
            raise UnreadableImage(f"{words} Repair or remove them{', or --unreadable skip' * (unreadable == 'error')}.")
        tell(f"warning: {words} They do not count.")
    seen = trained_on(run)
    known = sum(digest[:SEEN_DIGITS] in seen for digest in facts.digests)
    if known:
        tell(
            f"warning: the model was made from {known:,} of these {len(facts.digests):,} pictures, and may know them by heart. "
            "Give pictures that it has not seen."
        )
    labels = np.array([model.classes.index(listing.labels[i]) for i in facts.readable], dtype=np.int64)
    blocks = []
    with progress("Evaluating", len(labels)) as advance:
        transform = transform_of(model.backbone)
        for chunk, part in batches(listing.images, facts.readable.tolist(), transform, model.logits):
            blocks.append(part)
            advance(len(chunk))
    logits = np.concatenate(blocks)
    return evaluate(
        labels,
        {"final": model.probabilities(logits)},
        uncalibrated={"final": softmax(logits)},
        classes=model.classes,
        protocol="given pictures",
    )


def _first(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most:,} more" if len(items) > most else "")


def report_of(run: Path) -> Path:
    """The report page of a run.

    Raises:
        OutputError: where there is none.
    """
    page = run / "report.html"
    if not page.is_file():
        raise OutputError(f"'{run}' has no report.html. Give the folder that 'headstart fit' wrote, or run fit again.")
    return page.resolve()
