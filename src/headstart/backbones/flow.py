"""Flow: what lives where in a recorded forward pass, hence where it may be cut."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.backbones.program import Value, leaves, values_in
from headstart.backbones.record import Call, Op, Recording


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
        """Where one to `widest` floating tensors with the batch as first axis are all that is still needed."""
        found = []
        for position in range(len(self.order) - 1):
            live = self.live[position]
            if 1 <= len(live) <= widest and all(self._crosses(value, batch) for value in live):
                depth = sum(first <= position < last for first, last in self.spans.values())
                found.append(Candidate(position, tuple(sorted(live)), depth))
        return found

    def _crosses(self, value: int, batch: int) -> bool:
        shape = self.recording.shapes[value]
        floating = self.recording.dtypes[value].is_floating_point
        return value in self.worked and len(shape) >= 2 and shape[0] == batch and floating

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
