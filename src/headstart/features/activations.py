"""Activations at a cut, kept for as many views as a rung trains on: the prefix runs once for them, however many epochs follow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.features.engine import Engine
from headstart.features.extract import batches
from headstart.features.settle import key_of, settle, transform_of
from headstart.features.store import Store, Table

_Tables = list[tuple[Table, Table]]  # by view: activations, and the pooled outputs of the stages before them


@dataclass(frozen=True)
class Cached:
    """Activations at a cut for V views of a data set, and the pooled outputs of the stages before it.

    `activations[v]` and `beside[v]` are tables; `rows` (V, N) and `beside_rows` (V, N) are their row numbers.
    """

    cut: int
    activations: tuple[Table, ...]
    beside: tuple[Table, ...]
    rows: NDArray[np.int64]
    beside_rows: NDArray[np.int64]

    @property
    def views(self) -> int:
        return len(self.activations)

    def read(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Activations (M, L) and pooled prefix (M, P) of picture `indices[m]` in view `views[m]`."""
        flat = np.empty((len(indices), self.activations[0].width), self.activations[0].dtype)
        beside = np.empty((len(indices), self.beside[0].width), np.float32)
        for view in np.unique(views):
            here = np.flatnonzero(views == view)
            flat[here] = self.activations[view].read(self.rows[view, indices[here]])
            beside[here] = self.beside[view].read(self.beside_rows[view, indices[here]])
        return flat, beside


def activation_bytes(backbone: Backbone, cut: int, precision: str) -> int:
    """Bytes of one picture's activation at the cut in the store."""
    values = sum(int(np.prod(shape)) for shape in backbone.shapes[cut - 1])
    return values * (2 if precision == "bfloat16" else 4)


def cache_activations(
    backbone: Backbone,
    dataset: Dataset,
    store: Store,
    cut: int,
    views: int,
    *,
    augmented: NDArray[np.int64],
    clean: NDArray[np.int64],
    seed: int = 0,
    engine: Engine | None = None,
    rounded: bool = False,
    also: Sequence[tuple[int, bool]] = (),
    progress: runtime.Progress = runtime.silent,
) -> Cached:
    """Run `stages[:cut]` once over fixed views: view 0, the clean one, of the pictures `augmented` and `clean`; views 1 to
    V-1 of the pictures `augmented` only. Activations are kept as they are computed, or `rounded` to bfloat16.

    The same pass keeps what enters the cuts of `also`, deeper ones each with its own `rounded`, for whoever asks for them later.

    Raises:
        StoreError: where the activations do not fit or cannot be written.
    """
    engine = Engine(backbone) if engine is None else engine
    how = settle(engine, dataset, store).before_compiling

    def tables_at(cut: int, rounded: bool) -> _Tables:
        dtype = "uint16" if rounded or engine.settled == "bfloat16" else "float32"
        values = sum(int(np.prod(shape)) for shape in backbone.shapes[cut - 1])
        specs = [key_of(backbone, cut, view, seed, dataset.mirror) | {"precision": how} for view in range(views)]
        wide = sum(backbone.widths[:cut])
        return [
            (store.table("activations", spec, dtype, values), store.table("beside", spec, "float32", wide))
            for spec in specs
        ]

    kept = {each: tables_at(each, short) for each, short in sorted([*also, (cut, rounded)])}
    tables = kept[cut]
    whole = _lacking(tables, dataset, augmented)
    work = [(whole, tuple(range(views))), (_lacking(tables[:1], dataset, np.setdiff1d(clean, whole)), (0,))]
    total = sum(len(indices) * len(which) for indices, which in work)
    store.make_room(total * sum(table.row_bytes for each in kept.values() for table in each[0]))
    transform = transform_of(backbone, dataset.mirror)
    with progress("Caching activations", total, "views") if total else nullcontext(runtime.nothing) as advance:
        for indices, which in work:
            for chunk, found in batches(
                dataset.images,
                indices.tolist(),
                [transform],
                lambda x: engine.activations_at(x, tuple(kept)),
                views=which,
                seed=seed,
                size=engine.batch,
            ):
                digests = [dataset.digests[i] for i in chunk]
                for each, (flat, pooled) in zip(kept.values(), found, strict=True):
                    short = each[0][0].dtype == np.uint16
                    raw = (flat.to(torch.bfloat16).view(torch.uint16) if short else flat).numpy()
                    for place, view in enumerate(which):
                        each[view][0].append(digests, raw[place :: len(which)])
                        each[view][1].append(digests, pooled[place :: len(which)])
                advance(len(chunk) * len(which))
    return Cached(
        cut,
        tuple(table for table, _ in tables),
        tuple(beside for _, beside in tables),
        np.stack([table.locate(dataset.digests) for table, _ in tables]),
        np.stack([beside.locate(dataset.digests) for _, beside in tables]),
    )


def _lacking(tables: _Tables, dataset: Dataset, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `indices` (M,) whose rows are missing from any of the tables; of equal contents the first."""
    digests = [dataset.digests[i] for i in indices]
    return indices[sorted({place for pair in tables for table in pair for place in table.missing(digests)})]
