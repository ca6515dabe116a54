"""The data that a person asks about, read as the options say: all that needs no network. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import PIL

from headstart import runtime
from headstart.data.audit import Audit
from headstart.data.dataset import Dataset
from headstart.data.facts import RECORD_BYTES
from headstart.data.load import audit, lacking, load_dataset
from headstart.errors import TooLittleData
from headstart.features.store import Recall, Store
from headstart.options import Options


def audited(source: object, options: Options, store: Store, progress: runtime.Progress = runtime.silent) -> Dataset:
    """The data set, audited, de-duplicated and split; what was measured about each picture is remembered by content.

    Raises:
        DataError: where it cannot be read, or holds too little.
    """
    dataset = load_dataset(source, **_reading(options, store), progress=progress)
    if found := lacking(dataset):
        raise TooLittleData(f"{dataset.source}: {found[0].message} {found[0].next_step}")
    return replace(dataset, mirror=options.mirror)


def examined(source: object, options: Options, *, progress: runtime.Progress = runtime.silent) -> Audit:
    """The audit alone, also where the data cannot be used as they are."""
    return audit(source, **_reading(options, Store()), progress=progress)


def _reading(options: Options, store: Store) -> dict[str, Any]:
    return {
        "label": options.label_column, "path": options.path_column, "split": options.split_column,
        "group": options.group_column, "unreadable": options.unreadable, "rare": options.rare,
        "test_fraction": options.test_fraction, "seed": options.seed,
        "memory": Recall(store, "facts", {"pillow": PIL.__version__}, RECORD_BYTES),
    }  # fmt: skip
