"""A trained model at work: predictions for paths, and its score on other labelled data."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from headstart import bundle, runtime
from headstart.data.listing import Columns
from headstart.data.readers import read
from headstart.data.sources import extensions
from headstart.errors import DataError, OutputError
from headstart.evaluate import TestReport, evaluate
from headstart.features.extract import batches, transform_of
from headstart.model import Model, Prediction
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
    progress: runtime.Progress = runtime.silent,
) -> TestReport:
    """Metrics of the model in `run` on every labelled picture of `source`; unreadable ones are fatal, not left out.

    Raises:
        BundleError: where the run cannot be loaded.
        DataError: where the data cannot be read, or hold classes that the model does not know.
    """
    model = bundle.load(run)
    listing = read(source, Columns(path_column, label_column))
    unknown = sorted(set(listing.labels) - set(model.classes))
    if unknown:
        raise DataError(
            f"{listing.source} has labels that the model does not know: {', '.join(unknown[:5])}. "
            f"It knows: {', '.join(model.classes[:10])}{', …' if len(model.classes) > 10 else ''}."
        )
    labels = np.array([model.classes.index(label) for label in listing.labels], dtype=np.int64)
    blocks = []
    with progress("Evaluating", len(labels)) as advance:
        transform = transform_of(model.backbone)
        for chunk, part in batches(listing.images, range(len(labels)), transform, model.logits):
            blocks.append(part)
            advance(len(chunk))
    logits = np.concatenate(blocks)
    return evaluate(
        labels,
        {"final": model.probabilities(logits)},
        uncalibrated={"final": softmax(logits)},
        classes=model.classes,
    )


def report_of(run: Path) -> Path:
    """The report page of a run.

    Raises:
        OutputError: where there is none.
    """
    page = run / "report.html"
    if not page.is_file():
        raise OutputError(f"'{run}' has no report.html. Give the folder that 'headstart fit' wrote, or run fit again.")
    return page.resolve()
