"""Every layout that labelled pictures may come in: one visible table. A new one is one file and one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headstart.data.arrays import has_idx, is_idx, read_idx, read_memory, read_npz
from headstart.data.folders import LAYOUTS, read_folder
from headstart.data.huggingface import is_huggingface, read_huggingface
from headstart.data.listing import Columns, Listing
from headstart.data.tables import TABLES, read_table
from headstart.errors import DataError


@dataclass(frozen=True)
class Reader:
    """One layout: `accepts(source)` says whether it is this one, `read` lists its pictures."""

    name: str
    accepts: Callable[[object], bool]
    read: Callable[[object, Columns], Listing]


def read(source: object, columns: Columns | None = None) -> Listing:
    """List the pictures of `source` in whatever layout it has.

    Args:
        source: a path, a tuple (images, labels) of arrays, a dict of such tuples by split, or a Hugging Face
            data set.

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
        advice = ""
        if is_idx(source):
            advice = " Give the folder that it lies in."
        elif source.suffix.lower() in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar"):
            advice = " Unpack it first."
        got = f"{source}: a file ending in '{source.suffix}', which is not a layout of labelled pictures.{advice}"
    else:
        got = (
            f"Got a {type(source).__module__}.{type(source).__qualname__}, which is not a layout of labelled pictures."
        )
    raise DataError(
        f"{got}\n{LAYOUTS}\nor a table (.csv, .tsv, .parquet) with the columns "
        "path,label[,split][,group], or .npz, "
        "or a folder of IDX files, or a tuple (images, labels) of arrays, or a Hugging Face data set."
    )


def _in_idx_folder(source: object) -> bool:
    return isinstance(source, Path) and source.is_dir() and has_idx(source)


def _in_folder(source: object) -> bool:
    return isinstance(source, Path) and source.is_dir()


def _in_table(source: object) -> bool:
    return isinstance(source, Path) and source.is_file() and source.suffix.lower() in TABLES


def _in_npz(source: object) -> bool:
    return isinstance(source, Path) and source.is_file() and source.suffix.lower() == ".npz"


def _are_arrays(source: object) -> bool:
    return type(source) is dict or (isinstance(source, tuple) and len(source) == 2)


def _of_path(listing: Callable[[Path], Listing]) -> Callable[[object, Columns], Listing]:
    return lambda source, _: listing(Path(str(source)))


READERS = (  # the first that accepts reads
    Reader("idx", _in_idx_folder, _of_path(read_idx)),
    Reader("folder", _in_folder, _of_path(read_folder)),
    Reader("table", _in_table, lambda source, columns: read_table(Path(str(source)), columns)),
    Reader("npz", _in_npz, _of_path(read_npz)),
    Reader("arrays", _are_arrays, lambda source, _: read_memory(source)),
    Reader("huggingface", is_huggingface, read_huggingface),
)
