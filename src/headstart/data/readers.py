"""Every layout that labelled pictures may come in: one visible table. A new format is one file plus one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headstart.data.arrays import has_idx, read_arrays, read_idx, read_npz
from headstart.data.folders import LAYOUTS, read_folder
from headstart.data.huggingface import is_huggingface, read_huggingface
from headstart.data.listing import Columns, Listing
from headstart.data.tables import read_table
from headstart.errors import DataError


@dataclass(frozen=True)
class Reader:
    """One layout: `accepts(source)` says whether it is this one, `read(source, columns)` lists its pictures."""

    name: str
    accepts: Callable[[object], bool]
    read: Callable[[object, Columns], Listing]


READERS = (  # the first that accepts reads
    Reader("idx files", lambda source: _is_folder(source) and has_idx(Path(str(source))), lambda source, _: read_idx(Path(str(source)))),
    Reader("folder", lambda source: _is_folder(source), lambda source, _: read_folder(Path(str(source)))),
    Reader("table", lambda source: _is_file(source, ".csv", ".tsv", ".parquet"), lambda source, columns: read_table(Path(str(source)), columns)),
    Reader("npz", lambda source: _is_file(source, ".npz"), lambda source, _: read_npz(Path(str(source)))),
    Reader("arrays", lambda source: isinstance(source, tuple) and len(source) == 2, lambda source, _: _pair(source)),
    Reader("arrays by split", lambda source: type(source) is dict, lambda source, _: _by_split(source)),
    Reader("huggingface", is_huggingface, read_huggingface),
)


def read(source: object, columns: Columns | None = None) -> Listing:
    """List the pictures of `source` in whatever layout it has.

    Args:
        source: a path, a tuple (images, labels) of arrays, a dict of such tuples by split, or a Hugging Face data set.

    Raises:
        DataError: says what was got and which layouts are known.
    """
    if isinstance(source, str | Path):
        source = Path(source).expanduser()
        if not source.exists():
            raise DataError(f"{source}: no such file or folder. Check the spelling; the current folder is {Path.cwd()}")
    for reader in READERS:
        if reader.accepts(source):
            listing = reader.read(source, columns or Columns())
            if not listing.labels:
                raise DataError(f"{listing.source}: no pictures in it.\n{LAYOUTS}")
            return listing
    if isinstance(source, Path):
        advice = " Unpack it first." if source.suffix.lower() in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar") else ""
        got = f"{source}: a file ending in '{source.suffix}', which is not a layout of labelled pictures.{advice}"
    else:
        got = f"Got a {type(source).__module__}.{type(source).__qualname__}, which is not a layout of labelled pictures."
    raise DataError(
        f"{got}\n{LAYOUTS}\nor a table (.csv, .tsv, .parquet) with the columns path,label[,split][,group], or .npz, "
        "or a folder of IDX files, or a tuple (images, labels) of arrays, or a Hugging Face data set."
    )


def _is_folder(source: object) -> bool:
    return isinstance(source, Path) and source.is_dir()


def _is_file(source: object, *endings: str) -> bool:
    return isinstance(source, Path) and source.is_file() and source.suffix.lower() in endings


def _pair(source: object) -> Listing:
    assert isinstance(source, tuple)
    images, labels = source
    return read_arrays({"": (images, labels)}, "arrays")


def _by_split(source: object) -> Listing:
    assert isinstance(source, Mapping)
    from headstart.data.listing import split_of

    parts = {}
    for name, part in source.items():
        split = split_of(str(name))
        if split is None or not (isinstance(part, tuple) and len(part) == 2):
            raise DataError(f"Got a dict with the key {name!r}. Expected train, val or test, each with a tuple (images, labels).")
        parts[split] = part
    if "train" not in parts:
        raise DataError(f"Got a dict with {', '.join(map(str, source)) or 'nothing'} in it. Expected at least train.")
    return read_arrays(parts, "arrays")
