"""Activations at a cut, kept for as many views as a rung trains on: the prefix runs once for them, however many epochs follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.errors import StoreError
from headstart.features.engine import Engine
from headstart.features.extract import batches, pooled_table
from headstart.features.settle import key_of, settle, transform_of
from headstart.features.store import Store
from headstart.features.table import Table
from headstart.features.writer import Writer

_Tables = dict[int, tuple[Table, Table]]  # by view: activations, and the pooled outputs of the stages before them


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
    which, own = range(views), (cut, rounded)
    kept = {each: _tables(engine, dataset, store, *each, which, seed) for each in sorted({own, *also})}
    tables = kept[own]
    every = {view: augmented if view else np.concatenate([augmented, np.setdiff1d(clean, augmented)]) for view in which}
    work, title = _lacking(tables, dataset, every), "Caching activations"
    try:
        _run(engine, dataset, store, kept, {}, work, seed, title, progress)
    except StoreError:  # without room for all, there may be enough for the one that is asked for now
        if len(kept) == 1:
            raise
        work = _lacking(tables, dataset, every)
        _run(engine, dataset, store, {own: tables}, {}, work, seed, title, progress)
    return Cached(
        cut,
        tuple(table for table, _ in tables.values()),
        tuple(beside for _, beside in tables.values()),
        np.stack([table.locate(dataset.digests) for table, _ in tables.values()]),
        np.stack([beside.locate(dataset.digests) for _, beside in tables.values()]),
    )


def cache_views(
    engine: Engine,
    dataset: Dataset,
    store: Store,
    cuts: Sequence[int],
    views: int,
    *,
    only: NDArray[np.int64],
    seed: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> bool:
    """Run augmented views 1 to `views` of the pictures `only` (M,) once, for `with_views` and for `cache_activations` alike: the
    pooled outputs of every stage are kept, and what enters `cuts`, as it is computed. No compiler may run the engine.

    Whether the activations are there. They are not where the pooled outputs were there before, as after a run that trained the head
    alone: nothing is run then, since who trains from the cuts would run no more.

    Raises:
        StoreError: where the activations do not fit or cannot be written.
    """
    which = range(1, views + 1)
    kept = {(cut, False): _tables(engine, dataset, store, cut, False, which, seed) for cut in sorted(set(cuts))}
    ends = {view: pooled_table(engine, dataset, store, view, seed) for view in which}
    both = {view: [*(table for tables in kept.values() for table in tables[view]), ends[view]] for view in which}
    every = dict.fromkeys(which, only)
    work = _lacking(both, dataset, every)
    if work and not _lacking({view: [table] for view, table in ends.items()}, dataset, every):
        return False
    _run(engine, dataset, store, kept, ends, work, seed, f"Extracting {views} more views", progress)
    return True


def _tables(
    engine: Engine, dataset: Dataset, store: Store, cut: int, rounded: bool, views: Sequence[int], seed: int
) -> _Tables:
    """Where the activations of a cut lie: computed as the engine is settled, kept so or `rounded` to bfloat16."""
    backbone, how = engine.backbone, settle(engine, dataset, store).before_compiling
    dtype = "uint16" if rounded or engine.settled == "bfloat16" else "float32"
    values = sum(int(np.prod(shape)) for shape in backbone.shapes[cut - 1])
    found, weights = {}, backbone.digest(cut)
    for view in views:
        spec = key_of(backbone, cut, view, seed, dataset.mirror, weights) | {"precision": how}
        beside = store.table("beside", spec, "float32", sum(backbone.widths[:cut]))
        found[view] = (store.table("activations", spec, dtype, values), beside)
    return found


def _run(
    engine: Engine,
    dataset: Dataset,
    store: Store,
    kept: Mapping[tuple[int, bool], _Tables],
    ends: Mapping[int, Table],
    work: Mapping[tuple[int, ...], list[int]],
    seed: int,
    title: str,
    progress: runtime.Progress,
) -> None:
    """Run pictures in the views that they lack, and keep what enters the cuts of `kept`, and in `ends`, where there are any, the
    pooled outputs of all stages."""
    total = sum(len(indices) * len(which) for which, indices in work.items())
    rows = [table.row_bytes for tables in kept.values() for table in next(iter(tables.values()))]
    store.make_room(total * (sum(rows) + sum(table.row_bytes for table in [*ends.values()][:1])))
    transform = transform_of(engine.backbone, dataset.mirror)
    stops = sorted({cut for cut, _ in kept} | ({len(engine.backbone.stages)} if ends else set()))
    with progress(title, total, "views") if total else nullcontext(runtime.nothing) as advance, Writer() as writer:
        for which, indices in work.items():
            for chunk, found in batches(
                dataset.images,
                indices,
                [transform],
                lambda x: engine.activations_at(x, stops),
                views=which,
                seed=seed,
                size=engine.batch,
            ):
                digests = [dataset.digests[i] for i in chunk]
                for (cut, _), tables in kept.items():
                    flat, pooled = found[stops.index(cut)]
                    short = tables[which[0]][0].dtype == np.uint16
                    raw = (flat.to(torch.bfloat16).view(torch.uint16) if short else flat).numpy()
                    for place, view in enumerate(which):
                        writer.append(tables[view][0], digests, raw[place :: len(which)])
                        writer.append(tables[view][1], digests, pooled[place :: len(which)])
                for place, view in enumerate(which if ends else ()):
                    writer.append(ends[view], digests, found[-1][1][place :: len(which)])
                advance(len(chunk) * len(which))


def _lacking(
    tables: Mapping[int, Sequence[Table]], dataset: Dataset, asked: Mapping[int, NDArray[np.int64]]
) -> dict[tuple[int, ...], list[int]]:
    """The pictures `asked` for in each view of which any of its tables lacks a row, of equal contents the first.

    The clean view is run apart from the others, and these together, whichever of them is lacking, in the order of the contents: who
    shares a batch moves the last bits, and neither the order of files nor what was cached before must.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for which in (tuple(view for view in asked if view), (0,) * (0 in asked)):
        pictures = asked[which[0]] if which else np.empty(0, np.int64)
        digests = [dataset.digests[i] for i in pictures]
        missing = {place for view in which for table in tables[view] for place in table.missing(digests)}
        if missing:
            found[which] = sorted((int(pictures[place]) for place in missing), key=lambda i: dataset.digests[i])
    return found
