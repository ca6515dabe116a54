"""Decode once, run the frozen stack once, keep the results by content."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.ahead import Ahead
from headstart.data.dataset import Dataset, Images
from headstart.data.images import Transform, load_view, load_views
from headstart.features.engine import BATCH, Engine
from headstart.features.settle import key_of, settle, transform_of
from headstart.features.store import Store, Table

T = TypeVar("T")


def batches(
    images: Images,
    indices: Sequence[int],
    transform: Transform,
    work: Callable[[NDArray[np.uint8]], T],
    *,
    views: Sequence[int] = (0,),
    seed: int = 0,
    size: int = BATCH,
    ahead: Ahead | None = None,
) -> Iterator[tuple[list[int], T]]:
    """Decode and work, batch by batch, in order: (indices, results) of several batches, both done by the same worker.

    `work` takes pictures (N·V, H, W, 3) uint8, the V views of the first picture, then those of the next, and gives an array, a
    tensor or a tuple of them with as many rows. Each picture is decoded once.
    """
    step = max(1, size // len(views))
    # Writing costs the same for one batch and for many; yet every worker should get its share of a short job.
    share = max(step, min(8 * step, len(indices) // (4 * runtime.cpu_count())) // step * step)
    chunks = [list(indices[start : start + share]) for start in range(0, len(indices), share)]

    def decoded(index: int) -> NDArray[np.uint8]:
        found = None if ahead is None else ahead.take(index, transform)
        return load_views(images, index, transform, views, seed) if found is None else found[None]

    def run(chunk: list[int]) -> tuple[list[int], T]:
        parts = [chunk[start : start + step] for start in range(0, len(chunk), step)]
        return chunk, _joined([work(np.concatenate([decoded(i) for i in part])) for part in parts])

    return runtime.parallel(run, chunks)


def _joined(parts: list[Any]) -> Any:
    """Results of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)


@dataclass(frozen=True)
class Features:
    """Pooled outputs of every stage for a data set, read from the store through a memory map.

    `own` pooled width per stage; `rows` (N,) row numbers in the table, -1 for a picture that was not run yet. `beside` are the
    features of other backbones for the same pictures, whose stages are counted on from the last one here. `views` are the features of
    augmented views of the same pictures, where there are any.
    """

    table: Table
    rows: NDArray[np.int64]
    own: tuple[int, ...]
    beside: tuple[Features, ...] = ()
    views: tuple[Features, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def widths(self) -> tuple[int, ...]:
        """Pooled width per stage, of all backbones in turn."""
        return sum((other.own for other in self.beside), self.own)

    def of(self, place: int) -> Features:
        """The features of one backbone alone."""
        return self.beside[place - 1] if place else replace(self, beside=())

    def stages(self, taps: Sequence[int], indices: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Pooled outputs of the stages `taps`, in ascending order, side by side: (N, sum of their widths) float32."""
        found, first = [], 0
        for place in range(1 + len(self.beside)):
            part = self.of(place)
            here = [tap - first for tap in taps if first <= tap < first + len(part.own)]
            first += len(part.own)
            if here:
                rows = part.rows if indices is None else part.rows[indices]
                found.append(np.asarray(part.table.read(rows)[:, columns(part.own, here)], dtype=np.float32))
        if not found:
            return np.empty((len(self.rows if indices is None else indices), 0), np.float32)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def apart(self, taps: Sequence[int], indices: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The same, an array (N, width) for each of the stages `taps`."""
        ends = np.cumsum([self.widths[tap] for tap in taps])[:-1]
        return np.split(self.stages(taps, indices), ends, axis=1) if taps else []

    def in_views(self, taps: Sequence[int], indices: NDArray[np.int64], views: int) -> NDArray[np.float32]:
        """`stages` of the pictures as they are, then in each of the first augmented `views`: (views + 1, M, D)."""
        parts = [self.of(place) for place in range(1 + len(self.beside))]
        looks = [together([part.views[view] for part in parts]) for view in range(views)]
        return np.stack([each.stages(taps, indices) for each in (self, *looks)])


def together(features: Sequence[Features]) -> Features:
    """The features of several backbones for the same pictures; the stages of each are counted on from those before it."""
    return replace(features[0], beside=tuple(features[1:]))


def columns(widths: Sequence[int], taps: Sequence[int]) -> NDArray[np.int64]:
    """Columns of the stages `taps` in a row that holds every stage side by side."""
    ends = np.cumsum([0, *widths])
    return np.concatenate([np.arange(0), *(np.arange(ends[tap], ends[tap + 1]) for tap in taps)])


def extract(
    backbone: Backbone,
    dataset: Dataset,
    store: Store,
    *,
    engine: Engine | None = None,
    only: NDArray[np.int64] | None = None,
    view: int = 0,
    seed: int = 0,
    ahead: Ahead | None = None,
    progress: runtime.Progress = runtime.silent,
) -> Features:
    """Pooled features of every stage for every picture, or for `only` those; what the store holds is not run again.

    Clean views that were decoded `ahead` are taken from there, and dropped at the end.

    Raises:
        UnreadableImage: where a picture cannot be decoded.
        StoreError: where the store cannot be written.
        DamagedStore: where what it holds does not match its checksums.
    """
    engine = Engine(backbone) if engine is None else engine
    wanted = np.arange(len(dataset)) if only is None else only
    taken = ahead if view == 0 else None
    (found,) = _extracted(engine, dataset, store, wanted, (view,), seed, "Extracting features", progress, taken)
    if ahead is not None:
        ahead.drop()
    return found


def with_views(
    features: Features,
    engines: Sequence[Engine],
    dataset: Dataset,
    store: Store,
    views: int,
    *,
    only: NDArray[np.int64],
    seed: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> Features:
    """The features of `engines`' backbones with those of augmented views 1 to `views` of the pictures `only` (M,) beside them.

    The views are those that a rung trains on with the same seed.

    Raises:
        UnreadableImage: where a picture cannot be decoded.
        StoreError: where the store cannot be written.
        DamagedStore: where what it holds does not match its checksums.
    """
    which, title = tuple(range(1, views + 1)), f"Extracting {views} more views"
    return together(
        [
            replace(
                features.of(place),
                views=_extracted(engine, dataset, store, only, which, seed, title, progress),
            )
            for place, engine in enumerate(engines)
        ]
    )


def _extracted(
    engine: Engine,
    dataset: Dataset,
    store: Store,
    wanted: NDArray[np.int64],
    views: tuple[int, ...],
    seed: int,
    title: str,
    progress: runtime.Progress,
    ahead: Ahead | None = None,
) -> tuple[Features, ...]:
    """Features of each of the views; pictures decoded ahead are clean ones."""
    backbone = engine.backbone
    way = settle(engine, dataset, store, ahead.enough if ahead else runtime.nothing)
    specs = [key_of(backbone, None, view, seed, dataset.mirror) | {"precision": str(way)} for view in views]
    tables = [store.table("pooled", spec, "float32", sum(backbone.widths)) for spec in specs]
    # In the order of the contents: who shares a batch moves the last bits, and names and order of files must not.
    digests = [dataset.digests[i] for i in wanted]
    for table in tables:
        table.check(table.locate(digests))
    lacking = {place for table in tables for place in table.missing(digests)}
    missing = sorted((int(wanted[place]) for place in lacking), key=lambda i: dataset.digests[i])
    if missing:
        store.make_room(len(missing) * sum(table.row_bytes for table in tables))
        with progress(title, len(missing)) as advance:
            if ahead is not None:
                ahead.enough()
            for chunk, rows in batches(
                dataset.images,
                missing,
                transform_of(backbone, dataset.mirror),
                engine.pooled,
                views=views,
                seed=seed,
                size=engine.batch,
                ahead=ahead,
            ):
                for place, table in enumerate(tables):
                    table.append([dataset.digests[i] for i in chunk], rows[place :: len(views)])
                advance(len(chunk))
    return tuple(Features(table, table.locate(dataset.digests), tuple(backbone.widths)) for table in tables)


def decode_seconds(dataset: Dataset, backbone: Backbone, count: int = 8) -> float:
    """Seconds that one worker takes to decode and transform one picture, over the workers: its share of the wall time."""
    transform = transform_of(backbone)
    sample = range(0, len(dataset), max(1, len(dataset) // count))
    began = time.perf_counter()
    for index in sample:
        load_view(dataset.images, index, transform)
    return (time.perf_counter() - began) / len(sample) / runtime.cpu_count()
