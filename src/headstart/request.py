"""What a person asks for, and the data it is asked of: all that needs no network. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import PIL

from headstart import runtime
from headstart.data.audit import Audit
from headstart.data.dataset import Dataset
from headstart.data.facts import RECORD_BYTES
from headstart.data.load import audit, load_dataset
from headstart.errors import TooLittleData
from headstart.features.store import Recall, Store


@dataclass(frozen=True)
class Options:
    """What a person may say about a run; the same options on the same data give the same run.

    `backbone` a name, see `headstart backbones`, or "auto": those on this machine race; `weights` a local file for it. `plan` "auto",
    "head", "full" or a plan file. `engine` what runs the frozen stages: torch ("eager"), a compiler, or what is fastest ("auto").
    `budget` wall time in seconds, None for no bound. `store_limit` bytes. `unreadable` "skip" or "error"; `rare` what to do with a
    class of one image: "train" on it untested, "drop" it, "error". `mirror`: whether a picture still shows its class in the mirror.
    `pair`: whether two networks may answer together. Column names apply to tables.
    """

    backbone: str = "auto"
    weights: str | None = None
    plan: str = "auto"
    budget: float | None = 600.0
    store_limit: int | None = 20_000_000_000
    test_fraction: float = 0.2
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["auto", "eager", "openvino", "compile"] = "auto"
    unreadable: Literal["skip", "error"] = "skip"
    rare: Literal["train", "drop", "error"] = "train"
    mirror: bool = True
    pair: bool = True
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"


def audited(source: object, options: Options, store: Store, progress: runtime.Progress = runtime.silent) -> Dataset:
    """The data set, audited, de-duplicated and split; what was measured about each picture is remembered by content.

    Raises:
        DataError: where it cannot be read, or holds too little.
    """
    dataset = load_dataset(source, **_reading(options, store), progress=progress)
    pool = dataset.indices("train")
    if len(pool) > 1 and len(np.unique(dataset.groups[pool])) < 2:
        raise TooLittleData(
            f"{dataset.source}: all {len(pool)} training images belong to one group, so that nothing could be held out to judge by. "
            "Add images of other groups, or give the groups apart."
        )
    if len(np.unique(dataset.fold[pool])) < 2 or len(pool) < 8:
        raise TooLittleData(
            f"{dataset.source}: {len(pool)} usable training images of {len(dataset.classes)} classes. "
            "Headstart needs at least 8, with two or more in some class, to cross-validate anything; add images."
        )
    apart = {(int(label), int(group)) for label, group in zip(dataset.labels[pool], dataset.groups[pool], strict=True)}
    # Whoever is asked about a group has to learn from two pictures of others.
    learnt = len(pool) - np.bincount(dataset.groups[pool]).max()
    if not len(dataset.indices("test")) and (learnt < 2 or len(apart) == len({label for label, _ in apart})):
        raise TooLittleData(
            f"{dataset.source}: no test set could be cut, and the images of each class (or all but one image) belong to one group, "
            "so that nothing could be held out to test on. Add images of other groups, or give the groups apart."
        )
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
