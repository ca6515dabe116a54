"""A Hugging Face `datasets.Dataset` or `DatasetDict` with a column of pictures and one of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.data.listing import Columns, Listing, printable, split_of
from headstart.data.sources import RowImages
from headstart.errors import DataError

if TYPE_CHECKING:
    import datasets


def is_huggingface(source: object) -> bool:
    """Whether an object comes from the `datasets` package, told without importing it."""
    return type(source).__module__.split(".")[0] == "datasets"


def read_huggingface(source: object, columns: Columns) -> Listing:
    """Every split of a DatasetDict (train, validation, test), or one Dataset without splits.

    Raises:
        DataError: for a streaming data set, an unknown split name, or a missing column.
    """
    import datasets  # given an object of it, the package is there

    if isinstance(source, datasets.DatasetDict):
        parts: dict[str, datasets.Dataset] = {}
        for name, part in source.items():
            if (split := _split(str(name))) in parts:
                raise DataError(
                    f"The DatasetDict has two splits that mean {split}: {', '.join(map(str, source))}. Keep one."
                )
            parts[split] = part
        if "train" not in parts:
            raise DataError(
                f"The DatasetDict has the splits {', '.join(map(str, source))}. Expected one called 'train'."
            )
    elif isinstance(source, datasets.Dataset):
        parts = {"": source}
    else:
        raise DataError(
            f"Got a {type(source).__name__}. Expected a datasets.Dataset or DatasetDict; "
            "load it without streaming=True."
        )
    listings = [_part(split, part, columns) for split, part in parts.items()]
    rows = [(table, row) for table, _, _, count in listings for row in range(count)]

    def fetch(row: int) -> dict[str, object]:
        table, inner = rows[row]
        cell: dict[str, object] = table[inner]["_picture"]
        return cell

    names = tuple(
        f"{split or 'images'}[{row}]"
        for split, (_, _, _, count) in zip(parts, listings, strict=True)
        for row in range(count)
    )
    return Listing(
        images=RowImages(fetch, names, tuple(range(len(rows)))),
        labels=tuple(label for _, labels, _, _ in listings for label in labels),
        split=tuple(split for split, (_, _, _, count) in zip(parts, listings, strict=True) for _ in range(count)),
        group=tuple(group for _, _, groups, _ in listings for group in groups),
        source="a Hugging Face data set",
        layout="huggingface",
    )


def _part(split: str, part: datasets.Dataset, columns: Columns) -> tuple[datasets.Dataset, list[str], list[str], int]:
    """The pictures (undecoded, as column `_picture`), class names and groups of one split."""
    import datasets

    part = part.with_format(None)  # plain values, whatever the caller has them turned into
    kinds = dict(part.features)
    pictures = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    if columns.path in pictures:
        pictures = [columns.path]
    if not pictures:
        raise DataError(
            f"The data set has the columns {', '.join(kinds)} and none of type Image. Cast one: "
            ".cast_column(NAME, datasets.Image())"
        )
    label = columns.label
    if label not in kinds:
        classes = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        if len(classes) != 1:
            raise DataError(
                f"The data set has the columns {', '.join(kinds)} and no '{label}'. Name the one with "
                "the classes with label_column=... in Options."
            )
        label = classes[0]
    raw, kind = part[label], kinds[label]
    if isinstance(kind, datasets.ClassLabel):
        unlabelled = sum(value is None or not 0 <= value < kind.num_classes for value in raw)
        if unlabelled:
            raise DataError(
                f"The column '{label}' gives {unlabelled} of {len(raw)} pictures no class (such as -1). "
                "Leave them out with .filter(...), or give another split."
            )
    elif any(value is None for value in raw):
        raise DataError(
            f"The column '{label}' gives {sum(value is None for value in raw)} of {len(raw)} pictures no class. "
            "Leave them out with .filter(...)."
        )
    if columns.group not in kinds and columns.group != Columns().group:
        raise DataError(
            f"The data set has the columns {', '.join(kinds)} and no '{columns.group}'. Name the one with "
            "the groups with group_column=... in Options."
        )
    labels = [printable(str(kind.int2str(v)) if isinstance(kind, datasets.ClassLabel) else str(v)) for v in raw]
    given = part[columns.group] if columns.group in kinds else [None] * len(labels)
    groups = ["" if value is None else str(value) for value in given]
    table = part.select_columns([pictures[0]]).rename_column(pictures[0], "_picture")
    return table.cast_column("_picture", datasets.Image(decode=False)), labels, groups, len(labels)


def _split(name: str) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(
            f"The DatasetDict has a split '{name}'. Expected train, validation and test; pick or "
            "rename with del or [...]"
        )
    return split
