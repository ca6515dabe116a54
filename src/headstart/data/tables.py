"""A CSV, TSV or Parquet table of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from headstart.data.listing import Columns, Listing, printable, split_of
from headstart.data.sources import FileImages
from headstart.errors import DataError, MissingExtra

TABLES = (".csv", ".tsv", ".parquet")
SHOWN = 20  # columns that a message names


@dataclass(frozen=True)
class _Table:
    """A table as it was read: each row's cells by column, and where it begins: "line 3" of a text, whose cells may span several."""

    path: Path
    header: list[str]
    rows: list[dict[str, str]]
    places: Sequence[int]
    unit: str

    def at(self, number: int) -> str:
        """Where the row of that number, from 0, is found."""
        return f"{self.path}, {self.unit} {self.places[number]}"


def read_table(table: Path, columns: Columns) -> Listing:
    """Pictures named by a table, by absolute paths or relative to its folder; split and group may be missing.

    Raises:
        DataError: for a column that is missing or there twice, an empty cell or an unknown split, with its line.
        MissingExtra: for a Parquet table without pyarrow.
    """
    found = _parquet(table) if table.suffix.lower() == ".parquet" else _csv(table)
    header, rows = found.header, found.rows
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
        if name is not None and header.count(name) > 1:
            raise DataError(
                f"{table}: got {header.count(name)} columns named '{name}', expected one. Rename the others."
            )
    if not rows:
        raise DataError(f"{table}: the table has a header and no rows. Expected one row per picture.")
    paths = [table.parent / _cell(found, n, columns.path) for n in range(len(rows))]
    return Listing(
        images=FileImages(tuple(paths), tuple(printable(row[columns.path].strip()) for row in rows)),
        labels=tuple(printable(_cell(found, n, columns.label)) for n in range(len(rows))),
        split=_split(found, columns.split) if columns.split in header else ("",) * len(rows),
        group=tuple((row[columns.group] or "").strip() if columns.group in header else "" for row in rows),
        source=str(table),
        layout="table",
    )


def _split(table: _Table, column: str) -> tuple[str, ...]:
    given = [row[column].strip() for row in table.rows]
    if not any(given):
        return ("",) * len(given)
    found = [split_of(name) for name in given]
    for number, (name, split) in enumerate(zip(given, found, strict=True)):
        if split is None:
            raise DataError(
                f"{table.at(number)}: split is {name!r}. Expected train, val or test in every row, or no split at all."
            )
    return tuple(split or "" for split in found)


def _cell(table: _Table, number: int, column: str) -> str:
    text = table.rows[number][column].strip()
    if not text:
        raise DataError(f"{table.at(number)}: the cell '{column}' is empty. Fill it in, or remove the row.")
    return text


def _csv(table: Path) -> _Table:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            rows, lines, line = list[dict[str, str]](), list[int](), reader.line_num + 1
            for cells in reader:
                if cells:  # not a blank line
                    rows.append(dict(zip_longest(header, cells[: len(header)], fillvalue="")))
                    lines.append(line)
                line = reader.line_num + 1
            return _Table(table, header, rows, lines, "line")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8 CSV."
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table: {error}") from error


def _parquet(table: Path) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(f"The table {table.name}", "parquet", "pyarrow") from error
    try:
        content = pyarrow.parquet.read_table(table)
        values = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in content.columns]
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        # Text in no UTF-8, and times that no calendar has, too.
        raise DataError(f"{table}: cannot be read as Parquet: {error}") from error
    names = [str(name) for name in content.column_names]
    rows = [dict(zip(names, cells, strict=True)) for cells in zip(*values, strict=True)]
    return _Table(table, names, rows, range(1, len(rows) + 1), "row")
