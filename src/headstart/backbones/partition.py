"""Cut any network into stages: record its forward pass, find where one tensor carries everything, group, verify."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbones.backbone import Backbone, InputSpec, Layout, Origin, Part, Stage
from headstart.backbones.equality import check_complete, check_equal, reads_the_same
from headstart.backbones.flow import Channels, Flow
from headstart.backbones.grouping import Span, Work, group
from headstart.backbones.modules import describe, is_whole
from headstart.backbones.ownership import Owners
from headstart.backbones.program import Program, Step, Submodule, Value, values_in, weights_in, with_drops
from headstart.backbones.record import UNSEEN, Call, Op, Recording, meta_copy, record, unify
from headstart.errors import PartitionError

BATCHES = (2, 3)  # two recordings; an integer that differs between them follows the batch size
WIDEST = 4  # tensors that may cross a cut together


def partition(network: nn.Module, input: InputSpec, origin: Origin, *, verify: bool = True) -> Backbone:
    """Cut `network` (images to one tensor, no classifier) into stages that hold its own modules and weights.

    `verify` runs network and stages once on a random image and compares bit by bit; only what is too large to
    run should go without.

    Raises:
        PartitionError: fewer than three stages can be cut, or the stages do not equal the network; its weights are not in float32;
            what it gives for a picture is no function of picture and weights.
    """
    network.eval()
    _check_kinds(network, origin.name)
    recording = _record(network, (3, *input.size), origin.name)
    flow = Flow(recording)
    owners = Owners(network, (op.target.path for op in flow.ops if isinstance(op.target, Submodule)))
    if not isinstance(recording.root.result, Value) or not flow.order:
        raise PartitionError(
            f"{origin.name} must return one tensor that depends on the image; it returned something else. "
            "Give a module whose forward returns its features, or its logits, alone."
        )
    spans, channels = _spans(flow, owners), Channels(flow, network)
    if len(spans) < 3:
        raise PartitionError(
            f"{origin.name} can be cut into {len(spans)} stages, expected at least 3: it has too few layers, or too many "
            "tensors stay in use along its whole depth. Use another backbone; `headstart backbones` lists some."
        )
    parts: list[Part] = [Part() for _ in spans]
    stages: list[Stage] = []
    layouts: list[Layout] = []
    inputs: tuple[int, ...] = (0,)
    for index, span in enumerate(spans):
        items = _items(flow, owners, span, index)
        outputs = span.end.live if span.end else flow.final
        ran = _with_static(flow, items, inputs)
        program = Program(inputs, with_drops(map(_step, ran), outputs), outputs)
        inside, plain = _looked_into(network, ran, inputs, outputs)
        lenders = {path: parts[at] for path, at in _take(owners, program, index).items() if at != index}
        name = _name(items, index, [s.name for s in stages])
        stages.append(Stage(name, program, parts[index], lenders, inside, plain))
        layouts.append(_layout(flow, span, outputs, network, channels))
        inputs = outputs
    owners.take_rest(len(spans) - 1)
    owners.fill(parts)
    fixed = frozenset(name for name, p in network.named_parameters() if not p.requires_grad)
    fixed = frozenset() if len(fixed) == sum(1 for _ in network.parameters()) else fixed
    alone = bool(recording.kept & (flow.dynamic | {UNSEEN}))
    backbone = Backbone(stages, layouts, input, origin, _Kept(network), owners.aliases, fixed, alone=alone)
    check_complete(backbone, network)
    backbone.computes()  # now: some modules keep on themselves what they have computed
    x, pooled = check_equal(backbone, network, batch=1) if verify else (None, ())
    if x is None or not reads_the_same(backbone, x, pooled):
        for stage in stages:
            stage.plain = False
    return backbone


@dataclass(frozen=True, eq=False)
class _Kept:
    """The original network, given out as copies; copies of a backbone share it."""

    network: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.network)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


def _check_kinds(network: nn.Module, name: str) -> None:
    """Refuse state that is no tensor, and weights that are not in float32."""
    for key, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise PartitionError(
                f"{name} keeps {key} in its state, a {type(tensor).__name__}, expected tensors alone (get_extra_state). Give the "
                "network without it."
            )
    for key, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise PartitionError(
                f"{name} has weights in {parameter.dtype} ({key}), expected torch.float32: Headstart rounds by itself, where that is "
                "faster and exact enough. Give network.float()."
            )


def _record(network: nn.Module, image: tuple[int, ...], name: str) -> Recording:
    """Two recordings made one. On the meta device, for speed; on the network's own where it insists on values."""
    try:  # a copy for each pass: some networks keep tables from the first pass to the second
        on = torch.device("meta")
        first, second = (record(meta_copy(network), (batch, *image), on) for batch in BATCHES)
        return unify(first, second, BATCHES)
    except Exception:  # whatever meta tensors cannot do in somebody's network; a true fault shows again below
        on = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        first, second = (record(copy.deepcopy(network), (batch, *image), on) for batch in BATCHES)
        return unify(first, second, BATCHES)
    except PartitionError:
        raise
    except Exception as error:
        raise PartitionError(
            f"{name} cannot run on images of shape {image}: {error}. Give the input size that it expects."
        ) from error


def _spans(flow: Flow, owners: Owners) -> list[Span]:
    """Where each stage begins and ends."""
    fresh: list[int] = []
    counted: set[str] = set()
    for op in flow.order:
        names = weights_in(op.args, op.kwargs)
        if isinstance(op.target, Submodule):
            names += owners.under(op.target.path)
        needed = {owners.aliases.get(name, name) for name in names}
        # A module that shares any weight with an earlier one goes to that one's stage: nothing of it is
        # fresh.
        shared = isinstance(op.target, Submodule) and needed & counted
        fresh.append(0 if shared else sum(owners.weights[name].numel() for name in needed - counted))
        counted |= needed
    work = Work([op.flops for op in flow.order], fresh)
    return group(flow.candidates(BATCHES[0], 1), flow.candidates(BATCHES[0], WIDEST), work)


def _items(flow: Flow, owners: Owners, span: Span, stage: int) -> list[Op | Call]:
    """What runs in a span: whole module calls where they fit, single ops where a call is cut through."""
    items: list[Op | Call] = []

    def walk(call: Call) -> None:
        for child in call.children:
            if isinstance(child, Op):
                if child in flow.index and span.start <= flow.index[child] < span.stop:
                    items.append(child)
            elif child in flow.spans:
                first, last = flow.spans[child]
                within = span.start <= first and last < span.stop
                if within and owners.free(stage, child.path) and _closed(flow, child):
                    items.append(child)
                elif last >= span.start and first < span.stop:
                    walk(child)

    walk(flow.recording.root)
    return items


def _closed(flow: Flow, call: Call) -> bool:
    """Whether a module call takes in all that it reads, and hands out all that is read of it, through its signature."""
    inside = set(call.ops())
    given, handed = values_in(call.args, call.kwargs), values_in(call.result)
    made: set[int] = set().union(*(flow.made[op] for op in inside))
    read: set[int] = set().union(*(flow.reads[op] for op in inside))
    born = made - given
    escaped = {
        value
        for value in born - handed
        if value not in flow.makers and (value in flow.final or not set(flow.readers.get(value, [])) <= inside)
    }
    unread = given - read - handed  # an argument that the module ignores need not exist any more at a cut
    return read - made <= given and not escaped and not unread


def _with_static(flow: Flow, items: list[Op | Call], inputs: tuple[int, ...]) -> list[Op | Call]:
    """The items, preceded by the static ops that they need (recomputed in every stage that uses them)."""
    known, static = set(inputs), set[Op]()

    def need(value: int) -> None:
        for op in flow.makers.get(value, []):
            if op not in static:
                static.add(op)
                for other in flow.reads[op]:
                    need(other)
        if value not in flow.makers:
            raise PartitionError("a value is used across a cut that was not counted; please report this network.")

    for item in items:
        for value in values_in(item.args, item.kwargs) - known:
            need(value)
        known |= values_in(item.result)
    return [*sorted(static, key=flow.place.__getitem__), *items]


def _step(item: Op | Call) -> Step:
    return Step(Submodule(item.path) if isinstance(item, Call) else item.target, item.args, item.kwargs, item.result)


def _looked_into(
    network: nn.Module, ran: list[Op | Call], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[Program, bool]:
    """The same as steps that need none of the network's own code, as far as that goes: torch's functions, and modules that can be
    described; and whether it goes all the way. What cannot be looked into is called as a whole."""
    steps: list[Step] = []

    def walk(items: Sequence[Op | Call]) -> bool:
        looked = [look(item) for item in items]  # at all of them, whatever comes first
        return all(looked)

    def look(item: Op | Call) -> bool:
        step = _step(item)
        if not isinstance(step.target, Submodule):
            steps.append(step)
            return True
        module, inside = network.get_submodule(step.target.path), item if isinstance(item, Call) else item.inside
        rest = inside.children if inside is not None else None
        if describe(module) is not None:
            if is_whole(module):
                steps.append(step)
                return True
            if rest and isinstance(rest[0], Op) and rest[0].target is functional.batch_norm:
                steps.append(replace(step, result=rest[0].result))  # the norm alone; its activation follows
                rest = rest[1:]
        if rest is None:
            steps.append(step)
            return False
        return walk(rest)

    plain = walk(ran)
    return Program(inputs, with_drops(steps, outputs), outputs), plain


def _take(owners: Owners, program: Program, stage: int) -> dict[str, int]:
    """Claim what a program refers to; the stage that holds each name."""
    held: dict[str, int] = {}
    for step in program.steps:
        if isinstance(step.target, Submodule):
            held[step.target.path] = owners.take_module(stage, step.target.path)
        for path in weights_in(step.args, step.kwargs):
            held[path] = owners.take_weight(stage, path)
    return held


def _name(items: list[Op | Call], index: int, taken: list[str]) -> str:
    """The original names of the first and last module that do the stage's work, without repeating their prefix."""
    paths = []
    for item in items:
        cost = item.flops if isinstance(item, Op) else sum(op.flops for op in item.ops())
        if cost and isinstance(item, Call):
            paths.append(item.path)
        elif cost and isinstance(item, Op) and isinstance(item.target, Submodule):
            paths.append(item.target.path)
    if not paths:
        return f"part{index}"
    first, last = paths[0].split("."), paths[-1].split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    name = paths[0] if first == last else f"{paths[0]}-{'.'.join(last[shared:])}"
    return name if name not in taken else f"{name}#{index}"


def _layout(flow: Flow, span: Span, outputs: tuple[int, ...], network: nn.Module, channels: Channels) -> Layout:
    """Shapes of a stage's outputs and their channel axes."""
    shapes = tuple(flow.recording.shapes[value][1:] for value in outputs)
    told = [0 if len(shape) == 1 else channels.axis(value) for value, shape in zip(outputs, shapes, strict=True)]
    axes = tuple(
        _likely_axis(shape, flow, span.stop, network) if axis is None else axis
        for shape, axis in zip(shapes, told, strict=True)
    )
    return Layout(shapes, axes, sum(op.flops for op in flow.order[span.start : span.stop]))


def _likely_axis(shape: tuple[int, ...], flow: Flow, stop: int, network: nn.Module) -> int:
    """The axis that is as long as the last module with weights before the cut is wide; where that leaves a choice, or what it made was
    put beside something else, the last axis for token sequences and the first for maps."""
    for op in reversed(flow.order[:stop]):
        if op.target in (torch.cat, torch.concat):
            break
        weights = [p for p in _weights_of(op, network) if p.ndim]
        matches = {axis for p in weights[:1] for axis, length in enumerate(shape) if length == p.shape[0]}
        if len(matches) == 1:
            return matches.pop()
    return 0 if len(shape) == 3 else len(shape) - 1


def _weights_of(op: Op, network: nn.Module) -> list[Tensor]:
    return list(network.get_submodule(op.target.path).parameters()) if isinstance(op.target, Submodule) else []
