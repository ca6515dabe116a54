"""A trained model at work: predictions for paths, and its score on other labelled data."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from headstart import bundle, runtime
from headstart.data.audit import left_aside, plural
from headstart.data.dataset import Images
from headstart.data.images import views_of
from headstart.data.listing import Columns
from headstart.data.readers import read
from headstart.data.sources import extensions
from headstart.errors import DataError, OutputError, UnreadableImage
from headstart.folder import SEEN, SEEN_DIGITS, trained_on
from headstart.model import Model, Prediction
from headstart.tasks.classification import softmax

if TYPE_CHECKING:
    from headstart.evaluate import TestReport

FIELDS = ("path", "label", "probability", "second", "second_probability", "error", "unknown", "typicality")
_PATIENCE = 0.1  # seconds that the first path waits for others to be answered with it
_TOGETHER = 10_000  # paths that are answered together at most


@dataclass(frozen=True, eq=False)
class Asked:
    """What a person asks to have answered: files, folders, globs and "-", a path a line on standard input. Iterate to have the paths
    that are meant, one after the other.

    While that is done `aside` counts the visible files in folders that are no pictures, by ending; and a folder or a glob that holds
    none stands for itself, which cannot be read, and has its reason in `why`.

    Raises:
        DataError: where a folder or a glob holds no picture and is all that was asked, or where the paths cannot be read.
    """

    arguments: Sequence[str]
    aside: Counter[str] = field(default_factory=Counter)
    why: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._paths()
        except OSError as error:
            name = "standard input" if error.filename is None else f"'{error.filename}'"
            raise DataError(f"Cannot read {name}: {error.strerror or error}. Check what gives the paths.") from error

    def _paths(self) -> Iterator[str]:
        for path in self.arguments:
            if path == "-":
                # Names are bytes; what no encoding explains stays as it is, as everywhere in `os`.
                lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
                yield from (line for line in lines if line.strip())
            elif os.path.isdir(path):  # noqa: PTH112  (a Path would normalise what the person typed)
                yield from self._in_folder(path)
            elif any(mark in path for mark in "*?[") and not os.path.exists(path):  # noqa: PTH110
                yield from self._matching(path)
            else:
                yield path

    def _matching(self, pattern: str) -> Iterator[str]:
        """The pictures that a pattern names; where it names none, its files as they are, or what lies in its folders."""
        found, known = sorted(glob.glob(pattern, recursive=True)), extensions()  # noqa: PTH207
        files = [path for path in found if not os.path.isdir(path)]  # noqa: PTH112
        pictures = [path for path in files if _ending(path) in known]
        if pictures:
            self.aside.update(_ending(path) or "without an ending" for path in files if _ending(path) not in known)
        elif not found:
            pictures = self._without(pattern, f"No file matches '{pattern}'. Check the pattern, or put it in quotes.")
        yield from pictures or files or (file for folder in found for file in self._in_folder(folder))

    def _in_folder(self, path: str) -> Iterator[str]:
        known, empty, others = extensions(), True, Counter[str]()
        for file in _visible(path):
            ending = _ending(file)
            if ending in known:
                empty = False
                yield file
            else:
                others[ending or "without an ending"] += 1
        self.aside.update(others)
        if empty:
            usual = "Give files, a folder with pictures, a glob, or - for a list on stdin."
            aside = left_aside(others)
            more = usual if aside is None else aside.words if aside.next_step else f"{aside.message} {usual}"
            yield from self._without(path, f"'{path}' holds no picture. {more}")

    def _without(self, path: str, words: str) -> list[str]:
        if len(self.arguments) == 1:
            raise DataError(words)
        self.why[path] = words
        return [path]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


def _visible(path: str) -> Iterator[str]:
    """Files below a folder whose names, and those of the folders that they lie in, begin with no dot; links are followed."""
    within = {path: {_identity(path)}}  # of every folder that is still to come: itself, and those that it lies in
    for folder, inside, files in os.walk(path, followlinks=True):
        above, seen = within.pop(folder), sorted(name for name in inside if not name.startswith("."))
        # A link may lead back to where the walk is already.
        found = {name: _identity(os.path.join(folder, name)) for name in seen}  # noqa: PTH118
        inside[:] = [name for name in seen if found[name] not in above]
        within |= {os.path.join(folder, name): above | {found[name]} for name in inside}  # noqa: PTH118
        yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))  # noqa: PTH118


def _identity(path: str) -> tuple[int, int]:
    """What two names of one folder have in common."""
    info = os.stat(path)  # noqa: PTH116
    return info.st_dev, info.st_ino


def write_predictions(
    model: Model,
    asked: Asked,
    out: Path | None,
    *,
    as_json: bool,
    views: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> tuple[int, int, int]:
    """Print a row per picture as it is answered, averaged over `views` (see `Model.predict`); returns how many there were, could
    not be read, and are unknown. What comes on standard input is answered as it comes.

    Raises:
        DataError: where nothing but a folder or a glob without pictures was asked.
        OutputError: where `out` cannot be written, or is one of the pictures.
    """
    known = None if "-" in asked.arguments else list(asked)
    _spare_pictures(out, known)
    batches, bar = (_as_they_come(asked), runtime.silent) if known is None else ([known], progress)
    count = failed = unknown = 0
    with _opened(out) as file, bar("Predicting", len(known or ())) as advance:
        put = _printer(file, as_json=as_json)
        for rows, _ in (answer for batch in batches for answer in model.stream(batch, views=views)):
            for row in rows:
                count, failed, unknown = count + 1, failed + bool(row.error), unknown + row.unknown
                put(replace(row, error=row.error and asked.why.get(row.path, row.error)))
            file.flush()
            advance(len(rows))
    return count, failed, unknown


def _as_they_come(paths: Iterable[str]) -> Iterator[list[str]]:
    """Lists of those paths that are there, once there is one: the next list is what came while this one was looked at."""
    ready: queue.Queue[str | BaseException | None] = queue.Queue(_TOGETHER)

    def listen() -> None:
        try:
            for path in paths:
                ready.put(path)
            ready.put(None)
        except BaseException as error:  # is raised again where the paths are taken
            ready.put(error)

    threading.Thread(target=listen, daemon=True).start()
    item: str | BaseException | None = ""
    while isinstance(item, str):
        item = ready.get()
        batch, until = list[str](), time.monotonic() + _PATIENCE
        with suppress(queue.Empty):
            while isinstance(item, str):
                batch.append(item)
                if len(batch) == _TOGETHER:
                    break
                item = ready.get(timeout=max(0.0, until - time.monotonic()))
        if batch:
            yield batch
    if item is not None:
        raise item


def _spare_pictures(out: Path | None, pictures: Sequence[str] | None) -> None:
    """Stop before one of the pictures is written over. Those that are still to come, None, are told by the ending of `out` alone.

    Raises:
        OutputError: where that would happen.
    """
    if out is None or not out.is_file():
        return
    there = out.stat()

    def is_it(path: str) -> bool:
        try:
            return os.path.samestat(os.stat(path), there)  # noqa: PTH116
        except (OSError, ValueError):  # it will be told of as unreadable
            return False

    if out.suffix.lower() in extensions() if pictures is None else any(map(is_it, pictures)):
        raise OutputError(f"'{out}' is a picture, and would be written over. Give another file with --out.")


def _printer(file: TextIO, *, as_json: bool) -> Callable[[Prediction], None]:
    """What writes a row, as JSON or as CSV below the names of its columns."""
    if as_json:
        escaped = not (file.encoding or "utf-8").lower().startswith("utf")  # not every encoding has every letter
        return lambda row: print(json.dumps(_shown(row), ensure_ascii=escaped), file=file)
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    return lambda row: writer.writerow({name: _cell(value) for name, value in _shown(row).items()})


def _cell(value: str | float | bool | None) -> str | float:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def _shown(row: Prediction) -> dict[str, str | float | bool | None]:
    read = not row.error
    return {
        "path": os.fsencode(row.path).decode(errors="backslashreplace"),
        "label": row.label,
        "probability": round(row.probability, 6) if read else None,
        "second": row.second,
        "second_probability": round(row.second_probability, 6) if read else None,
        "error": row.error.encode(errors="backslashreplace").decode(),
        "unknown": None if math.isnan(row.typicality) else row.unknown,
        "typicality": None if math.isnan(row.typicality) else round(row.typicality, 6),
    }


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    """Standard output, where what an encoding lacks is written with a backslash, or a file."""
    name, instead = ("standard output", "a file") if out is None else (f"'{out}'", "another file")
    try:
        if out is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="backslashreplace")
            yield sys.stdout
            sys.stdout.flush()
        else:
            with out.open("w", encoding="utf-8", newline="") as file:
                yield file
    except BrokenPipeError:  # the reader has gone
        raise
    except OSError as error:
        raise OutputError(f"Cannot write {name}: {error.strerror or error}. Give {instead} with --out.") from error


def measure(
    run: Path,
    source: object,
    *,
    path_column: str = "path",
    label_column: str = "label",
    group_column: str = "group",
    unreadable: Literal["skip", "error"] = "skip",
    views: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> tuple[TestReport, list[str]]:
    """Metrics of the model in `run` on every labelled picture of `source`, whatever its split, and warnings in words. Answers are
    averaged over `views` (see `Model.predict`).

    The warnings name pictures that were left out, and count those that the model was made from: they do not test it.

    Raises:
        BundleError: where the run cannot be loaded.
        DataError: where the data cannot be read, or hold classes that the model does not know.
        UnreadableImage: where a picture cannot be read and that is to be an error, or none can be.
    """
    from headstart.evaluate import evaluate  # predictions do without

    model = bundle.load(run)
    listing = read(source, Columns(path=path_column, label=label_column, split=None, group=group_column))
    unknown = sorted(set(listing.labels) - set(model.classes))
    if unknown:
        raise DataError(
            " ".join(
                [
                    f"{listing.source} has labels that the model does not know: {', '.join(unknown[:5])}.",
                    f"It knows: {', '.join(model.classes[:10])}{', …' if len(model.classes) > 10 else ''}.",
                    "Rename those, or leave them out.",
                    *listing.warnings,
                    *listing.notes,
                ]
            )
        )
    seen, count = trained_on(run), len(listing.labels)
    blocks, bad, used, groups, known = [], [], [], [], 0
    with progress("Evaluating", count) as advance:
        for looks, logits in _answered(model, listing.images, views):
            for index, digest, reason in looks:
                known += digest[:SEEN_DIGITS] in seen
                if reason:
                    bad.append(reason)
                else:
                    used.append(model.classes.index(listing.labels[index]))
                    groups.append(listing.group[index] or f"\0{index}")  # a picture without a group stands alone
            blocks.append(logits)
            advance(len(looks))
    warnings = [*listing.warnings, *listing.notes]
    if aside := left_aside(listing.ignored):
        warnings.append(aside.words)
    if bad:
        more = f", and {len(bad) - 3:,} more" if len(bad) > 3 else ""
        words = (
            f"{listing.source}: {plural(len(bad), 'picture')} of {count:,} cannot be read: {'; '.join(bad[:3])}{more}."
        )
        if unreadable == "error" or not used:
            raise UnreadableImage(f"{words} Repair or remove them{', or --unreadable skip' * (unreadable == 'error')}.")
        warnings.append(f"{words} They do not count.")
    if not seen:
        warnings.append(f"There is no {SEEN} beside the model: whether it was made from these pictures is not known.")
    if known:
        warnings.append(
            f"The model was made from {known:,} of these {count:,} pictures, and may know them by heart. "
            "Give pictures that it has not seen."
        )
    logits = np.concatenate(blocks)
    report = evaluate(
        np.array(used, dtype=np.int64),
        {"final": model.probabilities(logits)},
        uncalibrated={"final": softmax(logits)},
        classes=model.classes,
        groups=np.unique(groups, return_inverse=True)[1],
        protocol="given pictures",
    )
    return report, warnings


_Look = tuple[int, str, str]  # index, content digest, why it cannot be read


def _answered(model: Model, images: Images, views: int) -> Iterator[tuple[list[_Look], NDArray[np.float32]]]:
    """What was looked at, batch by batch, and the logits of those that could be read; each picture is decoded once."""

    def answer(chunk: range) -> tuple[list[_Look], NDArray[np.float32]]:
        looks, seen = [], []
        for index in chunk:
            digest, reason, name = "", "", images.names[index]
            try:
                digest, open_picture = images.fetch(index)
                seen.append(views_of(open_picture, model.transforms, views))
            except UnreadableImage as error:
                reason = f"{name}: {str(error).removeprefix(f'{name}: ')}"
            looks.append((index, digest, reason))
        if not seen:
            return looks, np.empty((0, len(model.classes)), np.float32)
        return looks, model.logits(*map(np.concatenate, zip(*seen, strict=True)), views=views)

    step = model.engine.batch
    chunks = [range(start, min(start + step, len(images))) for start in range(0, len(images), step)]
    return runtime.parallel(answer, chunks)
