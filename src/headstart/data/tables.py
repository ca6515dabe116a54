"""A CSV, TSV or Parquet table of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from headstart.data.listing import Columns, Listing, printable, split_of
from headstart.data.sources import FileImages
from headstart.errors import DataError, MissingExtra

TABLES = (".csv", ".tsv", ".parquet")
SHOWN = 20  # columns that a message names
Rows = Sequence[Mapping[str, str]]


def read_table(table: Path, columns: Columns) -> Listing:
    """Pictures named by a table, by absolute paths or relative to its folder; split and group may be missing.

    Raises:
        DataError: for a missing column, an empty cell or an unknown split, with the row's number.
        MissingExtra: for a Parquet table without pyarrow.
    """
    header, rows = _parquet(table) if table.suffix.lower() == ".parquet" else _csv(table)
    usual = Columns()
    for what, name, needed in (
        ("path", columns.path, True),
        ("label", columns.label, True),
        ("split", columns.split, columns.split != usual.split),
        ("group", columns.group, columns.group != usual.group),
    ):
        if name is not None and name not in header and needed:
            more = f", … ({len(header):,} columns)" if len(header) > SHOWN else ""
            raise DataError(
                f"{table}: no column '{name}' among {', '.join(header[:SHOWN]) or 'no columns'}{more}. "
                f"Name the right one with --{what}-column NAME, or {what}_column=... in Options."
            )
    if not rows:
        raise DataError(f"{table}: the table has a header and no rows. Expected one row per picture.")
    paths = [table.parent / _cell(table, rows, n, columns.path) for n in range(len(rows))]
    return Listing(
        images=FileImages(tuple(paths), tuple(printable(row[columns.path].strip()) for row in rows)),
        labels=tuple(printable(_cell(table, rows, n, columns.label)) for n in range(len(rows))),
        split=_split(table, rows, columns.split) if columns.split in header else ("",) * len(rows),
        group=tuple((row[columns.group] or "").strip() if columns.group in header else "" for row in rows),
        source=str(table),
        layout="table",
    )


def _split(table: Path, rows: Rows, column: str) -> tuple[str, ...]:
    given = [row[column].strip() for row in rows]
    if not any(given):
        return ("",) * len(rows)
    found = [split_of(name) for name in given]
    for number, (name, split) in enumerate(zip(given, found, strict=True), start=2):
        if split is None:
            raise DataError(
                f"{table}, row {number}: split is {name!r}. Expected train, val or test in every row, "
                "or no split at all."
            )
    return tuple(split or "" for split in found)


def _cell(table: Path, rows: Rows, number: int, column: str) -> str:
    text = rows[number][column].strip()
    if not text:
        raise DataError(f"{table}, row {number + 2}: the cell '{column}' is empty. Fill it in, or remove the row.")
    return text


def _csv(table: Path) -> tuple[list[str], Rows]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=delimiter, restval="", restkey=None)
            rows = [{name: value or "" for name, value in row.items() if name is not None} for row in reader]
            return [name.strip() for name in reader.fieldnames or []], _stripped(rows)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8 CSV."
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table: {error}") from error


def _stripped(rows: Rows) -> Rows:
    return [{name.strip(): value for name, value in row.items()} for row in rows]


def _parquet(table: Path) -> tuple[list[str], Rows]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(f"The table {table.name}", "parquet", "pyarrow") from error
    try:
        content = pyarrow.parquet.read_table(table)
        values = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in content.columns]
    except (
        OSError,
        ValueError,
        OverflowError,
        pyarrow.ArrowException,
    ) as error:  # text in no UTF-8, times that no calendar has
        raise DataError(f"{table}: cannot be read as Parquet: {error}") from error
    names = [str(name) for name in content.column_names]
    return names, [dict(zip(names, cells, strict=True)) for cells in zip(*values, strict=True)]
