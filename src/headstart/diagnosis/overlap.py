"""How far pictures show the same thing: as many places as look alike in both and lie alike, but for one move, turn and scale.

Places are the cells of a feature map of a low stage. Each is matched with the cell of the other picture that looks most like it, if
that prefers it, too; and the matches that agree on one similarity transform are counted (RANSAC, Fischler & Bolles 1981, doi
10.1145/358669.358692). Two shots of one thing share dozens, two things of a class a few. It tells parts of one scene apart from
scenes of one kind, which pooled features do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import load_view
from headstart.errors import UnreadableImage
from headstart.features.engine import Engine
from headstart.features.extract import batches
from headstart.features.settle import key_of, settle, transform_of
from headstart.features.store import Store

FINE, COARSE = 20, 40  # cells on a side of the map: at least, and about at most
WIDE = 64  # numbers that a cell is told by, at most
TRIED = 256  # pairs of matches that propose a transform
NEAR = 1 / 16  # of a side: how far a match may lie from where the transform puts it
SCALES, TURN = (0.7, 1.4), 0.25  # of a transform, the turn in radians
_SAMPLE = 32  # pictures that cells are standardised by
_VERSION = 1


@dataclass(frozen=True)
class Map:
    """The feature map whose cells are compared: what enters stage `cut`, every `step`-th cell of it either way."""

    cut: int
    height: int
    width: int
    step: int

    @classmethod
    def of(cls, backbone: Backbone) -> Map | None:
        """The highest map that is fine enough in the first half of the forward pass; None where there is none."""
        done = np.cumsum(backbone.flops) / max(1, sum(backbone.flops))
        for place in reversed(range(len(backbone.stages))):
            size = backbone.map_size(place)
            if size is not None and min(size) >= FINE and done[place] <= 0.5:
                step = max(1, min(-(-max(size) // COARSE), min(size) // FINE))
                return cls(place + 1, -(-size[0] // step), -(-size[1] // step), step)
        return None

    @property
    def places(self) -> Tensor:
        """Where every cell lies (G,), as complex numbers: down, and across times i."""
        down, across = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return torch.complex(down.flatten().float(), across.flatten().float())


def shared_places(
    engine: Engine,
    dataset: Dataset,
    rows: NDArray[np.int64],
    mates: NDArray[np.int64],
    store: Store,
    progress: runtime.Progress = runtime.silent,
) -> NDArray[np.int64] | None:
    """How many places each of the pictures `rows` (R,) shares with each of its `mates` (R, B): (R, B); None where the network has
    no map that is fine enough, or a picture is gone. What was counted is remembered."""
    found = Map.of(engine.backbone)
    if found is None or not mates.size:
        return None
    way = str(settle(engine, dataset, store))
    asked = hashlib.blake2b(" ".join(dataset.digests[i] for i in (*rows, *mates.flatten())).encode()).hexdigest()
    spec = {**key_of(engine.backbone, found.cut, 0, 0), "precision": way, "asked": asked, "version": _VERSION}
    memo = store.artifact("overlap", spec)
    known = memo.load()
    if known is not None:
        return known[1]["shared"]
    needed = np.unique(np.concatenate([rows, mates.flatten()]))
    # In the order of the contents: who shares a batch moves the last bits, and names and order of files must not.
    needed = needed[np.argsort([dataset.digests[index] for index in needed])]
    place = {int(index): position for position, index in enumerate(needed)}
    try:
        with progress("Comparing places", len(needed) + len(rows), "pictures") as advance:
            cells = _cells(engine, dataset, found, needed, advance)
            shared = np.empty(mates.shape, np.int64)
            for row, (index, others) in enumerate(zip(rows.tolist(), mates.tolist(), strict=True)):
                shared[row] = agreeing(cells[place[index]], cells[[place[other] for other in others]], found).numpy()
                advance(1)
    except UnreadableImage:  # gone since it was extracted: no reason to end a run
        return None
    memo.save({}, {"shared": shared})
    return shared


def _cells(
    engine: Engine, dataset: Dataset, chosen: Map, indices: NDArray[np.int64], advance: runtime.Advance
) -> Tensor:
    """What every cell of the pictures `indices` (N,), given in no order, looks like (N, G, C), at length one."""
    transform = transform_of(engine.backbone)

    def looked_at(pictures: NDArray[np.uint8]) -> Tensor:
        return engine.maps(pictures, chosen.cut)[:, :: chosen.step, :: chosen.step].flatten(1, 2)

    sample = [load_view(dataset.images, int(index), transform) for index in indices[:_SAMPLE]]
    describe = _descriptor(looked_at(np.stack(sample)))
    parts = []
    for chunk, cells in batches(
        dataset.images, indices.tolist(), [transform], lambda pictures: describe(looked_at(pictures)), size=engine.batch
    ):
        parts.append(cells)
        advance(len(chunk))
    return torch.cat(parts)


def _descriptor(maps: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes unit vectors (N, G, C) of cells, standardised as they are in a sample of `maps`: few numbers, in half the digits."""
    mean, spread = maps.mean((0, 1)), maps.std((0, 1)) + 1e-6
    channels = len(mean)
    turn = torch.eye(channels)
    if channels > WIDE:  # random projections keep angles (Johnson & Lindenstrauss 1984)
        turn = torch.randn(channels, WIDE, generator=torch.Generator().manual_seed(0))

    def describe(maps: Tensor) -> Tensor:
        return torch.nn.functional.normalize(((maps - mean) / spread) @ turn, dim=2).half()

    return describe


def agreeing(one: Tensor, others: Tensor, layout: Map) -> Tensor:
    """How many matches of the cells (G, C) of one picture with those (B, G, C) of others agree on a transform: (B,)."""
    places, side = layout.places, min(layout.height, layout.width)
    sparse = (places.real % 2 + places.imag % 2 == 0).nonzero()[:, 0]  # a quarter of one picture's cells is enough
    alike = (one[sparse].float() @ others.float().transpose(1, 2)).numpy()  # whose argmax is several times as fast
    there, back = torch.from_numpy(alike.argmax(2)), torch.from_numpy(alike.argmax(1))
    mutual = torch.gather(back, 1, there) == torch.arange(len(sparse))
    here, there = places[sparse], places[there]
    lots = torch.Generator().manual_seed(0)
    a, b = (torch.multinomial(mutual + 1e-9, TRIED, replacement=True, generator=lots) for _ in range(2))
    apart = here[a] - here[b]
    far = apart.abs() > side / 5
    scale = (torch.gather(there, 1, a) - torch.gather(there, 1, b)) / torch.where(far, apart, torch.ones_like(apart))
    sound = far & torch.gather(mutual, 1, a) & torch.gather(mutual, 1, b)
    sound &= (scale.abs() > SCALES[0]) & (scale.abs() < SCALES[1]) & (scale.angle().abs() < TURN)
    move = torch.gather(there, 1, a) - scale * here[a]
    return torch.stack(
        [_most(*each, here, NEAR * side) for each in zip(scale, move, sound, there, mutual, strict=True)]
    )


def _most(
    scale: Tensor, move: Tensor, sound: Tensor, there: Tensor, mutual: Tensor, here: Tensor, near: float
) -> Tensor:
    """How many `mutual` matches (M,), from `here` to `there`, one of the `sound` transforms (T,) puts within `near` at most."""
    off = scale[sound, None] * here[mutual] + move[sound, None] - there[mutual]
    return (off.abs() < near).sum(1).max() if len(off) else torch.tensor(0)
