"""Decode once, run the frozen stack once, keep the results by content."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.ahead import Ahead
from headstart.data.dataset import Dataset, Images
from headstart.data.images import Transform, load_view, load_views
from headstart.errors import BackboneError
from headstart.features.engine import BATCH, Engine, Pictures
from headstart.features.settle import key_of, settle, there, transform_of
from headstart.features.store import Store
from headstart.features.table import Table
from headstart.features.way import Way
from headstart.features.writer import Writer

T = TypeVar("T")


def batches(
    images: Images,
    indices: Sequence[int],
    transforms: Sequence[Transform],
    work: Callable[..., T],
    *,
    views: Sequence[int] = (0,),
    seed: int = 0,
    size: int = BATCH,
    ahead: Ahead | None = None,
    load: Callable[[list[int]], Sequence[Pictures]] | None = None,
) -> Iterator[tuple[list[int], T]]:
    """Decode and work, batch by batch, in order: (indices, results) of several batches, both done by the same worker.

    `work` takes pictures (N·V, H, W, 3) uint8 for each of the transforms, the V views of the first picture, then those of the next,
    and gives an array, a tensor or a tuple of them with as many rows. Each picture is decoded once (`load_views`), unless `load` is
    given: it makes what `work` takes of the pictures of a batch.
    """
    step = max(1, size // len(views))
    # Writing costs the same for one batch and for many; yet every worker should get its share of a short job.
    share = max(step, min(8 * step, len(indices) // (4 * runtime.cpu_count())) // step * step)
    chunks = [list(indices[start : start + share]) for start in range(0, len(indices), share)]

    def decoded(index: int) -> list[NDArray[np.uint8]]:
        found = [] if ahead is None else [ahead.take(index, transform) for transform in transforms]
        ready = [clean[None] for clean in found if clean is not None]
        return ready if len(ready) == len(transforms) else load_views(images, index, transforms, views, seed)

    def loaded(part: list[int]) -> list[NDArray[np.uint8]]:
        return [np.concatenate(each) for each in zip(*map(decoded, part), strict=True)]

    def run(chunk: list[int]) -> tuple[list[int], T]:
        parts = [chunk[start : start + step] for start in range(0, len(chunk), step)]
        return chunk, _joined([work(*(load or loaded)(part)) for part in parts])

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

    @property
    def spans(self) -> tuple[range, ...]:
        """The stages of each backbone in turn, as they are counted through all of them."""
        ends = list(accumulate(len(part.own) for part in (self, *self.beside)))
        return tuple(map(range, [0, *ends], ends))

    def of(self, place: int) -> Features:
        """The features of one backbone alone."""
        return self.beside[place - 1] if place else replace(self, beside=())

    def stages(self, taps: Sequence[int], indices: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Pooled outputs of the stages `taps`, in ascending order, side by side: (N, sum of their widths) float32."""
        found = []
        for part, span in zip((self, *self.beside), self.spans, strict=True):
            here = [tap - span.start for tap in taps if tap in span]
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
    """Pooled features of every stage for every picture, or for `only` those, (M,) int64; what the store holds is not run again.

    Clean views that were decoded `ahead` are taken from there, and dropped at the end.

    Raises:
        UnreadableImage: where a picture cannot be decoded.
        StoreError: where the store cannot be written.
        DamagedStore: where what it holds does not match its checksums.
    """
    engine = Engine(backbone) if engine is None else engine
    (found,) = extract_all([engine], dataset, store, only=only, view=view, seed=seed, ahead=ahead, progress=progress)
    return found


def extract_all(
    engines: Sequence[Engine],
    dataset: Dataset,
    store: Store,
    *,
    only: NDArray[np.int64] | None = None,
    view: int = 0,
    seed: int = 0,
    ahead: Ahead | None = None,
    progress: runtime.Progress = runtime.silent,
) -> list[Features]:
    """`extract` for several backbones, with `only` (M,) int64 as there: a picture is decoded once for all that lack the same pictures,
    or where the device decodes once for each of their transforms.

    Raises:
        UnreadableImage: where a picture cannot be decoded.
        StoreError: where the store cannot be written.
        DamagedStore: where what it holds does not match its checksums.
    """
    wanted = np.arange(len(dataset)) if only is None else only
    taken = ahead if view == 0 else None
    found = _extracted(engines, dataset, store, wanted, (view,), seed, "Extracting features", progress, taken)
    if ahead is not None:
        ahead.drop()
    return [features for (features,) in found]


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
    found = _extracted(engines, dataset, store, only, which, seed, title, progress)
    return together([replace(features.of(place), views=each) for place, each in enumerate(found)])


@dataclass(frozen=True)
class _Wanted:
    """What one backbone is run for: a table a view, and the pictures of which one lacks a row, in the order in which they are run;
    whether the device decodes these."""

    engine: Engine
    tables: tuple[Table, ...]
    missing: tuple[int, ...]
    decodes: bool


def _extracted(
    engines: Sequence[Engine],
    dataset: Dataset,
    store: Store,
    wanted: NDArray[np.int64],
    views: tuple[int, ...],
    seed: int,
    title: str,
    progress: runtime.Progress,
    ahead: Ahead | None = None,
) -> list[tuple[Features, ...]]:
    """Features by engine and view; pictures decoded ahead are clean ones."""
    digests = [dataset.digests[i] for i in wanted]
    each: list[_Wanted] = []
    for engine in engines:
        way = settle(engine, dataset, store, ahead.enough if ahead else runtime.nothing)
        way = replace(way, decodes=way.decodes and views == (0,) and there() is not None)
        tables = tuple(_pooled_table(engine, way, dataset, store, view, seed) for view in views)
        for table in tables:
            table.check(table.locate(digests))
        lacking = {place for table in tables for place in table.missing(digests)}
        # In the order of the contents: who shares a batch moves the last bits, and names and order of files must not.
        missing = sorted((int(wanted[place]) for place in lacking), key=lambda i: dataset.digests[i])
        each.append(_Wanted(engine, tables, tuple(missing), way.decodes))
    for alike in dict.fromkeys((one.missing, one.decodes) for one in each if one.missing):
        group = [one for one in each if (one.missing, one.decodes) == alike]
        _run(group, dataset, store, views, seed, title, progress, ahead)
    return [
        tuple(Features(table, table.locate(dataset.digests), tuple(one.engine.backbone.widths)) for table in one.tables)
        for one in each
    ]


def pooled_table(engine: Engine, dataset: Dataset, store: Store, view: int, seed: int) -> Table:
    """Where the pooled outputs of every stage of an augmented view lie.

    Raises:
        StoreError: where the store cannot be written.
    """
    return _pooled_table(engine, replace(settle(engine, dataset, store), decodes=False), dataset, store, view, seed)


def _pooled_table(engine: Engine, way: Way, dataset: Dataset, store: Store, view: int, seed: int) -> Table:
    """The same for an engine that has just been settled."""
    spec = key_of(engine.backbone, None, view, seed, dataset.mirror, engine.weights) | {"precision": str(way)}
    return store.table("pooled", spec, "float32", sum(engine.backbone.widths))


def _run(
    group: Sequence[_Wanted],
    dataset: Dataset,
    store: Store,
    views: tuple[int, ...],
    seed: int,
    title: str,
    progress: runtime.Progress,
    ahead: Ahead | None,
) -> None:
    """Run the pictures that all of the group lack, and keep what comes out. The device decodes for all of the group or for none."""
    missing, transforms = group[0].missing, [transform_of(one.engine.backbone, dataset.mirror) for one in group]
    on_device = there() if group[0].decodes else None
    store.make_room(len(missing) * sum(table.row_bytes for one in group for table in one.tables))

    def work(*pictures: Pictures) -> tuple[NDArray[np.float32], ...]:
        return tuple(one.engine.pooled(part) for one, part in zip(group, pictures, strict=True))

    def load(part: list[int]) -> list[Pictures]:
        assert on_device is not None
        device = group[0].engine.device
        found = {each: on_device(dataset.images, part, each, device) for each in dict.fromkeys(transforms)}
        return [found[each] for each in transforms]

    with progress(title, len(missing)) as advance, Writer() as writer:
        if ahead is not None:
            ahead.enough()
        for chunk, found in batches(
            dataset.images,
            missing,
            transforms,
            work,
            views=views,
            seed=seed,
            size=min(one.engine.batch for one in group),
            ahead=ahead,
            load=None if on_device is None else load,
        ):
            digests = [dataset.digests[i] for i in chunk]
            for one, rows in zip(group, found, strict=True):
                _finite(rows, chunk, one.engine.backbone, dataset)
                for place, table in enumerate(one.tables):
                    writer.append(table, digests, rows[place :: len(views)])
            advance(len(chunk))


def _finite(rows: NDArray[np.float32], chunk: list[int], backbone: Backbone, dataset: Dataset) -> None:
    """Refuse features that are no numbers: no head can be fitted to them, and the solvers' errors would not say why."""
    odd = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(odd):
        name = dataset.names[chunk[int(odd[0]) * len(chunk) // len(rows)]]
        raise BackboneError(
            f"{backbone.origin.name} gives features of {name} that are infinite or not a number. Its weights may be damaged, or too "
            "large for a rounded precision: give others with --weights, another --backbone, or --precision float32."
        )


def decode_seconds(dataset: Dataset, backbone: Backbone, count: int = 8) -> float:
    """Seconds that one worker takes to decode and transform one picture, over the workers: its share of the wall time."""
    transform = transform_of(backbone)
    sample = range(0, len(dataset), max(1, len(dataset) // count))
    began = time.perf_counter()
    for index in sample:
        load_view(dataset.images, index, transform)
    return (time.perf_counter() - began) / len(sample) / runtime.cpu_count()
