"""Flow: what lives where in a recorded forward pass, hence where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from headstart.backbones.program import Submodule, Value, leaves, values_in
from headstart.backbones.record import Call, Op, Recording

# What takes and gives channels in a certain place: on the axis behind the batch, or on the last one.
_FIRST = frozenset(
    [f"conv{n}d" for n in (1, 2, 3)]
    + [f"conv_transpose{n}d" for n in (1, 2, 3)]
    + [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]
    + ["batch_norm", "group_norm", "instance_norm", "interpolate", "pixel_shuffle"]
)
_LAST = frozenset(["linear", "layer_norm", "rms_norm"])
_MAPS, _ROWS = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d), (nn.Linear, nn.LayerNorm)
# What leaves every axis where it is, though not always as long as it was; what mixes them though shapes may stay.
_ALONG = frozenset(["cat", "concat", "chunk", "split", "narrow", "pad"])
_SHAPING = frozenset(["reshape", "view", "flatten", "unflatten", "reshape_as", "view_as"])
_MIXING = frozenset(["matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "scaled_dot_product_attention"])
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A possible cut, after dynamic op `position`: `live` values cross it, `depth` module calls are open there."""

    position: int
    live: tuple[int, ...]
    depth: int


class Flow:
    """The ops of a recording in order, split into *dynamic* (they depend on the image) and *static* (they do
    not).

    ops: every op; place: op -> its number among all ops.
    order: the dynamic ops; a position is an index into this list.
    index: dynamic op -> position.
    dynamic: the values that depend on the image.
    makers: static value -> the static ops that make or change it, in order.
    spans: module call -> (first, last) position of its dynamic ops; absent where it has none.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.ops = list(recording.root.ops())
        self.place = {op: number for number, op in enumerate(self.ops)}
        self.reads = {op: values_in(op.args, op.kwargs) for op in self.ops}
        self.made = {op: values_in(op.result) | op.changed for op in self.ops}
        self.dynamic = dynamic = self._dynamic_values()
        self.order = [op for op in self.ops if self.made[op] & dynamic]
        self.index = {op: position for position, op in enumerate(self.order)}
        self.makers: dict[int, list[Op]] = {}
        self.readers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in self.reads[op]:
                self.readers.setdefault(value, []).append(op)
            if op not in self.index:
                for value in self.made[op]:
                    self.makers.setdefault(value, []).append(op)
        self.spans: dict[Call, tuple[int, int]] = {}
        self._measure(recording.root)
        self.final = tuple(leaf.id for leaf in leaves(recording.root.result) if isinstance(leaf, Value))
        self.live = self._liveness(dynamic)
        self.worked = self._worked(dynamic)

    def candidates(self, batch: int, widest: int) -> list[Candidate]:
        """Where one to `widest` float32 tensors with the batch as first axis are all that is still needed."""
        found = []
        for position in range(len(self.order) - 1):
            live = self.live[position]
            if 1 <= len(live) <= widest and all(self._crosses(value, batch) for value in live):
                depth = sum(first <= position < last for first, last in self.spans.values())
                found.append(Candidate(position, tuple(sorted(live)), depth))
        return found

    def _crosses(self, value: int, batch: int) -> bool:
        shape = self.recording.shapes[value]
        exact = self.recording.dtypes[value] == torch.float32  # what is kept at a cut comes back in float32
        return value in self.worked and len(shape) >= 2 and shape[0] == batch and exact

    def _dynamic_values(self) -> set[int]:
        """Values that depend on the image, directly or because something dependent was written into them."""
        dynamic, before = {0}, 0
        while len(dynamic) != before:
            before = len(dynamic)
            for op in self.ops:
                if self.reads[op] & dynamic:
                    dynamic |= self.made[op]
        return dynamic

    def _worked(self, dynamic: set[int]) -> set[int]:
        """Dynamic values that some product or convolution went into: more than the image itself, resized or cropped."""
        worked: set[int] = set()
        for op in self.order:
            if op.flops or self.reads[op] & worked:
                worked |= self.made[op] & dynamic
        return worked

    def _measure(self, call: Call) -> None:
        inside = [self.index[op] for op in call.ops() if op in self.index]
        if inside:
            self.spans[call] = (inside[0], inside[-1])
        for child in call.children:
            if isinstance(child, Call):
                self._measure(child)

    def _liveness(self, dynamic: set[int]) -> list[frozenset[int]]:
        """After each position, the dynamic values that exist and are still to be read."""
        last: dict[int, int] = {value: len(self.order) for value in self.final}
        for op, position in self.index.items():
            for value in self.reads[op] & dynamic:
                last[value] = max(last.get(value, -1), position)
        alive, after = {0}, []
        for position, op in enumerate(self.order):
            alive |= self.made[op] & dynamic
            alive = {value for value in alive if last.get(value, -1) > position}
            after.append(frozenset(alive))
        return after


class Channels:
    """Tells which axis of a value is that of the channels, by the modules and functions nearest to it that make or read it."""

    def __init__(self, flow: Flow, network: nn.Module) -> None:
        self.network = network
        self.shapes = flow.recording.shapes
        self.makers: dict[int, list[Op]] = {}
        self.readers: dict[int, list[Op]] = {}
        for op in _looked_into(flow.order):
            for value in values_in(op.result) | op.changed:
                self.makers.setdefault(value, []).append(op)
            for value in values_in(op.args, op.kwargs):
                self.readers.setdefault(value, []).append(op)

    def axis(self, value: int) -> int | None:
        """The axis, the batch axis not counted; None where nothing tells it."""
        queue, seen = [(value, tuple(range(len(self.shapes[value]))))], {value}
        last = len(self.shapes[value]) - 1
        for one, axes in queue:  # it grows: what is near comes first
            for op, makes in [
                *((op, True) for op in self.makers.get(one, [])),
                *((op, False) for op in self.readers.get(one, [])),
            ]:
                found = self._told(op, one, axes, makes, last)
                if found > 0:
                    return found - 1
                for other, moved in self._beyond(op, one, axes, makes):
                    if other not in seen:
                        seen.add(other)
                        queue.append((other, moved))
        return None

    def _told(self, op: Op, value: int, axes: Axes, makes: bool, last: int) -> int:
        """Which axis of the first value, whose `last` one that is, an op says has the channels; 0 or less where it says nothing."""
        place = self._place(op)
        if place is None or not (makes or value in values_in(op.args[:1], op.kwargs.get("input"))):
            return 0
        if place == "first":
            return axes[1] if len(axes) > 2 else 0
        # Products may mix tokens, in what is turned for that; norms do not.
        return axes[-1] if _name(op) == "layer_norm" or axes[-1] == last else 0

    def _place(self, op: Op) -> Literal["first", "last"] | None:
        if isinstance(op.target, Submodule):
            module = self.network.get_submodule(op.target.path)
            return "first" if isinstance(module, _MAPS) else "last" if isinstance(module, _ROWS) else None
        if _name(op) == "layer_norm" and len([*leaves(op.args[1:2] or op.kwargs.get("normalized_shape"))]) != 1:
            return None
        return "first" if _name(op) in _FIRST else "last" if _name(op) in _LAST else None

    def _beyond(self, op: Op, value: int, axes: Axes, makes: bool) -> Iterator[tuple[int, Axes]]:
        """The values on the other side of an op that leaves axes what they are, and which of the first value's axes they have;
        -1 where that is none."""
        if isinstance(op.target, Submodule) or self._place(op) is not None or _name(op) in _MIXING:
            return
        order = _order(op, len(axes))
        for other in values_in(op.args, op.kwargs) if makes else values_in(op.result):
            shape, own = self.shapes[other], self.shapes[value]
            if order is not None:
                yield other, tuple(axes[order.index(at) if makes else order[at]] for at in range(len(axes)))
            elif shape == own or (_name(op) in _ALONG and len(shape) == len(axes)):
                yield other, axes
            elif _name(op) in _SHAPING:
                few = min(len(shape), len(own))
                ahead = next((at for at in range(few) if shape[at] != own[at]), few)
                behind = next((at for at in range(few - ahead) if shape[-1 - at] != own[-1 - at]), few - ahead)
                between = (-1,) * (len(shape) - ahead - behind)
                yield other, (*axes[:ahead], *between, *axes[len(axes) - behind :])


def _looked_into(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        if op.inside is None:
            yield op
        else:
            yield from _looked_into(op.inside.ops())


def _name(op: Op) -> str:
    return getattr(op.target, "__name__", "")


def _order(op: Op, count: int) -> list[int] | None:
    """Which axis of what it takes each axis of what it gives is, for an op that only turns them; None for another."""
    numbers = [leaf % count for leaf in leaves(op.args[1:]) if type(leaf) is int]
    if _name(op) == "permute" and len(numbers) == count:
        return numbers
    if _name(op) in ("transpose", "swapaxes") and len(numbers) == 2:
        order, (one, other) = list(range(count)), numbers
        order[one], order[other] = other, one
        return order
    return None
