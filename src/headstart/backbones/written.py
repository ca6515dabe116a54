"""A backbone written down: torch's own functions in order, and descriptions of convolutions and norms. Whoever reads that needs none
of the code that the network came with, whichever its version, and need not wait until it is imported.

What is read answers bit by bit as the network does. What a network does in training alone, such as dropout, is not in it: only where
there is no such thing can it be trained, too.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import get_testing_overrides, resolve_name

from headstart.backbones.backbone import Backbone, InputSpec, Layout, Origin, Part, Stage
from headstart.backbones.modules import Convolution, Norm, Record, describe
from headstart.backbones.ownership import part
from headstart.backbones.program import Batch, Here, Program, Step, Submodule, Value, Weight, weights_in, with_drops
from headstart.errors import BackboneError

# Beside what computes with tensors, these make some. No other function is run because a file says so: `torch.load` has a name, too.
_MAKERS = frozenset(
    f"torch.{name}" for name in ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros")
)
# Where functions are looked up. Of names with underscores on both sides only operators are, and the getters of properties.
_OPERATORS = "|".join(name.strip("_") for name in dir(operator) if name.startswith("__") and hasattr(Tensor, name))
_NAMES = re.compile(
    r"torch\.(Tensor\.|nn\.functional\.|functional\.|linalg\.|special\.|fft\.)?"
    rf"((?!__)\w+(\.__get__)?|__[ri]?({_OPERATORS})__)"
)
_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout)


class _Step(Record):
    """A function of torch, or else a module, by name, and the templates of a `Step`."""

    function: str = ""
    module: str = ""
    args: Any
    kwargs: Any = None
    result: Any


class _Held(Record):
    """A tensor; a buffer that no checkpoint has is "computed"."""

    kind: Literal["parameter", "buffer", "computed"]
    shape: tuple[int, ...]


class _Stage(Record):
    """A stage's program, the tensors that it holds, and its layout."""

    name: str
    inputs: tuple[int, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[int, ...]
    holds: dict[str, _Held]
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]
    flops: int


class Written(Record):
    """The stages, and the modules that their steps call. `trains`: whether the network does the same in training, so that what is read
    can be trained as well."""

    stages: tuple[_Stage, ...] = Field(min_length=1)
    modules: dict[str, Convolution | Norm]
    trains: bool = False


class _NoName(Exception):
    """Something that cannot be written down."""


def write(backbone: Backbone) -> Written | None:
    """The backbone as data, without its tensors, which are those of its `state()` and the `computed` ones. None where a part of it is
    code that cannot be looked into, or nothing that torch has a name for, and where weights are tied."""
    modules: dict[str, Convolution | Norm] = {}
    stages = [stage for stage in backbone.stages if isinstance(stage, Stage)]
    records = []
    if backbone.aliases:
        return None
    try:
        for stage, shapes, axes, flops in zip(stages, backbone.shapes, backbone.axes, backbone.flops, strict=True):
            if not stage.plain:
                return None
            for path in stage.inside.called():
                modules[path] = _described(stages, path)
            record = _Stage(
                name=stage.name, inputs=stage.inside.inputs, steps=tuple(map(_written, stage.inside.steps)),
                outputs=stage.inside.outputs, holds=_holds(stage), shapes=shapes, axes=axes, flops=flops,
            )  # fmt: skip
            records.append(record)
        trains = backbone.trains and all(stage.program is stage.inside for stage in stages)  # it was read itself
        return Written(stages=tuple(records), modules=dict(sorted(modules.items())), trains=trains)
    except (_NoName, BackboneError):
        return None


def computed(backbone: Backbone) -> dict[str, Tensor]:
    """What a backbone computes for itself and no checkpoint has: the tensors beside `backbone.state()`, by name."""
    kinds = [(stage.net, _holds(stage)) for stage in backbone.stages if isinstance(stage, Stage)]
    return {
        name: net.get_buffer(name) for net, holds in kinds for name, held in holds.items() if held.kind == "computed"
    }


def read(
    written: Written, found: Mapping[str, Tensor], input: InputSpec, origin: Origin,
    build: Callable[[], nn.Module] | None = None,
) -> Backbone:  # fmt: skip
    """The backbone again, with the tensors of its `state()` and its computed ones. `build` makes the original network, for who asks
    for that.

    Raises:
        BackboneError: where tensors are missing, unexpected or of another shape, or something is named that this torch does not have.
    """
    programs = _programs(written)
    _expect({name: held.shape for stage in written.stages for name, held in stage.holds.items()}, found, origin.name)
    holders = {name: place for place in reversed(range(len(programs))) for name in written.stages[place].holds}
    parts = [_part(stage, written.modules, found) for stage in written.stages]
    stages, layouts = [], []
    for place, (record, program) in enumerate(zip(written.stages, programs, strict=True)):
        names = [name for step in program.steps for name in weights_in(step.args, step.kwargs)]
        named = {name: _holder(name, holders, written.modules) for name in [*names, *program.called()]}
        lenders = {name: parts[at] for name, at in named.items() if at != place}
        stages.append(Stage(record.name, program, parts[place], lenders, program, plain=True))
        layouts.append(Layout(record.shapes, record.axes, record.flops))
    return Backbone(stages, layouts, input, origin, build, {}, frozenset(), trains=written.trains)


def _holder(name: str, holders: Mapping[str, int], modules: Mapping[str, Convolution | Norm]) -> int:
    """The stage that holds a tensor, or a module by one of its tensors."""
    key = name if name not in modules else next((held for held in holders if held.startswith(f"{name}.")), name)
    if key not in holders:
        raise BackboneError(f"no stage holds {name}.")
    return holders[key]


def _expect(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], network: str) -> None:
    faults = [
        *(f"{name} is missing" for name in sorted(shapes.keys() - found.keys())),
        *(f"{name} is unexpected" for name in sorted(found.keys() - shapes.keys())),
        *(
            f"{name} is {tuple(found[name].shape)}, expected {shape}"
            for name, shape in shapes.items()
            if name in found and tuple(found[name].shape) != shape
        ),
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BackboneError(f"the tensors do not fit what is written down of {network}: {', '.join(faults[:3])}{more}.")


def _part(stage: _Stage, modules: Mapping[str, Convolution | Norm], found: Mapping[str, Tensor]) -> Part:
    """What a stage owns, under the original names and in their order, by which optimizers count."""
    net, done = Part(), set[str]()
    for name, held in stage.holds.items():
        path, _, last = name.rpartition(".")
        if path in modules:
            if path not in done:
                done.add(path)
                own = [other for other in stage.holds if other.rpartition(".")[0] == path]
                built, (holder, _, leaf) = modules[path].build(), path.rpartition(".")
                try:
                    built.load_state_dict(
                        {other.rpartition(".")[2]: found[other].clone() for other in own}, assign=True
                    )
                except RuntimeError as error:
                    reason = str(error).splitlines()[-1].strip()
                    raise BackboneError(f"the tensors of {path} do not fit it: {reason}") from error
                part(net, holder).register_module(leaf, built)
        elif held.kind == "parameter":
            part(net, path).register_parameter(last, nn.Parameter(found[name].clone(), requires_grad=False))
        else:
            part(net, path).register_buffer(last, found[name].clone(), persistent=held.kind == "buffer")
    return net


def _described(stages: list[Stage], path: str) -> Convolution | Norm:
    for stage in stages:
        try:
            description = describe(stage.net.get_submodule(path))
        except AttributeError:
            continue  # another stage holds it
        if description is not None:
            return description
    raise _NoName(path)


def _holds(stage: Stage) -> dict[str, _Held]:
    state = stage.net.state_dict(keep_vars=True)
    kinds = {name: "parameter" if isinstance(tensor, nn.Parameter) else "buffer" for name, tensor in state.items()}
    computed = {name: tensor for name, tensor in stage.net.named_buffers() if name not in state}
    every = {**state, **computed}
    return {name: _Held(kind=kinds.get(name, "computed"), shape=tuple(t.shape)) for name, t in every.items()}  # type: ignore[arg-type]


def _written(step: Step) -> _Step:
    args, result = _data(step.args), _data(step.result)
    kwargs = _data(step.kwargs) if step.kwargs else None
    if isinstance(step.target, Submodule):
        return _Step(module=step.target.path, args=args, kwargs=kwargs, result=result)
    name = resolve_name(step.target)
    if name is None or _function(name) != step.target:
        raise _NoName(str(step.target))
    return _Step(function=name, args=args, kwargs=kwargs, result=result)


def _programs(written: Written) -> list[Program]:
    programs = []
    for stage in written.stages:
        steps = [
            Step(
                Submodule(step.module) if step.module else _function(step.function),
                _template(step.args), {} if step.kwargs is None else _template(step.kwargs), _template(step.result),
            )
            for step in stage.steps
        ]  # fmt: skip
        programs.append(Program(stage.inputs, with_drops(steps, stage.outputs), stage.outputs))
        unknown = [path for path in programs[-1].called() if path not in written.modules]
        if unknown:
            raise BackboneError(f"the module {unknown[0]} is called and not described.")
    return programs


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    """The function of that name, as `torch.overrides.resolve_name` gives it."""
    found: Any = torch
    if _NAMES.fullmatch(name):
        for step in name.split(".")[1:]:
            found = getattr(found, step, None)
    known = callable(found) and (
        found in get_testing_overrides()
        or getattr(found, "__module__", "") == functional.__name__  # of which torch does not list all
        or name in _MAKERS
    )
    if not known:
        raise BackboneError(f"this torch has no function {name!r} that computes with tensors.")
    return found  # type: ignore[no-any-return]


def _data(template: Any) -> Any:
    """A template as JSON has it: an array is a tuple, an object of one key anything else that is no plain constant."""
    if isinstance(template, Value):
        return {"value": template.id}
    if isinstance(template, Weight):
        return {"weight": template.path}
    if isinstance(template, Batch):
        return {"batch": [template.factor, template.offset]}
    if isinstance(template, Here):
        return {"here": True}
    if isinstance(template, tuple):
        return [_data(part) for part in template]
    if isinstance(template, list):
        return {"list": [_data(part) for part in template]}
    if isinstance(template, Mapping):
        return {"dict": {key: _data(part) for key, part in template.items()}}
    if isinstance(template, slice):
        return {"slice": [_data(part) for part in (template.start, template.stop, template.step)]}
    if isinstance(template, _CONSTANTS):
        return {"torch": str(template).removeprefix("torch.")}
    if template is Ellipsis:
        return {"ellipsis": True}
    if type(template) is float and not math.isfinite(template):
        return {"float": str(template)}
    if template is None or type(template) in (bool, int, float, str):
        return template
    raise _NoName(str(template))


def _template(data: Any) -> Any:
    """The template that was written so."""
    if isinstance(data, list):
        return tuple(_template(part) for part in data)
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        ((kind, content),) = data.items()
        if kind in _KINDS:
            try:
                return _KINDS[kind](content)
            except (TypeError, ValueError, AttributeError):
                pass  # not what stands there in what `_data` has written
    raise BackboneError(f"{str(data)[:80]} stands for nothing that is known.")


def _constant(name: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, _CONSTANTS):
        raise BackboneError(f"this torch has no constant {name!r}.")
    return found


_KINDS: dict[str, Callable[[Any], Any]] = {
    "value": Value, "weight": Weight, "batch": lambda both: Batch(*both), "here": lambda _: Here(),
    "list": lambda parts: [_template(part) for part in parts], "slice": lambda parts: slice(*map(_template, parts)),
    "dict": lambda parts: {key: _template(part) for key, part in parts.items()}, "torch": _constant,
    "ellipsis": lambda _: Ellipsis, "float": float,
}  # fmt: skip
