"""Program: one stage's computation as plain data: which modules and functions run, in which order, on which values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

Activation = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that was computed; numbered in the order of the original forward pass, 0 is the network's input."""

    id: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer, under its name in the original network."""

    path: str


@dataclass(frozen=True, slots=True)
class Submodule:
    """A module of the original network, under its name there."""

    path: str


@dataclass(frozen=True, slots=True)
class Batch:
    """An integer that follows the batch size: `factor * batch + offset`."""

    factor: int
    offset: int


@dataclass(frozen=True, slots=True)
class Here:
    """The device of the stage's input, in place of the device that the network was recorded on."""


# What is told by its `repr`.
_RECORDS = (Value, Weight, Submodule, Batch, Here)
_CONSTANTS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True, slots=True)
class Step:
    """Call `target` and name the tensors of its result.

    `args`, `kwargs` and `result` are templates: nested tuples, lists, dicts and slices whose leaves are
    constants or the records above. `drop` are the values that no later step of the stage reads.
    """

    target: Callable[..., Any] | Submodule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    drop: tuple[int, ...] = ()

    def __str__(self) -> str:
        target = told(self.target) if isinstance(self.target, Submodule) else function_name(self.target)
        return f"{told(self.result)} = {target}{told(self.args)}{told(self.kwargs)}"

    @property
    def is_plain(self) -> bool:
        """Whether it takes one value and nothing else."""
        return len(self.args) == 1 and type(self.args[0]) is Value and not self.kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        # Some of torch's functions cannot be pickled but by the name that torch has for them.
        name = "" if isinstance(self.target, Submodule) else resolve_name(self.target) or ""
        return _named, (name, None if name else self.target, self.args, self.kwargs, self.result, self.drop)


def _named(name: str, target: Any, *rest: Any) -> Step:
    found: Any = functools.reduce(getattr, name.split(".")[1:], torch) if name else target
    return Step(found, *rest)


def leaves(template: Any) -> Iterator[Any]:
    """Every leaf of a template, depth first."""
    if isinstance(template, (tuple, list)):
        for part in template:
            yield from leaves(part)
    elif isinstance(template, Mapping):
        for part in template.values():
            yield from leaves(part)
    elif isinstance(template, slice):
        yield from (template.start, template.stop, template.step)
    else:
        yield template


def told(template: Any) -> str:
    """A template as text, the same in every process. Of what is neither plain data nor has a name, only the class is told."""
    if isinstance(template, (tuple, list)):
        kind = "list" if isinstance(template, list) else ""
        return f"{kind}({','.join(map(told, template))})"
    if isinstance(template, Mapping):
        return f"{{{','.join(f'{told(key)}:{told(part)}' for key, part in template.items())}}}"
    if isinstance(template, slice):
        return f"slice{told((template.start, template.stop, template.step))}"
    if template is None or template is Ellipsis or isinstance(template, _RECORDS + _CONSTANTS):
        return repr(template)
    return function_name(template) if callable(template) else _class_name(template)


def function_name(function: Any) -> str:
    """What a function is known by: torch's name for it, or else its own and what it does."""
    name: str | None = resolve_name(function)
    if name is not None:
        return name
    own = getattr(function, "__qualname__", _class_name(function))
    return f"{getattr(function, '__module__', '')}.{own} {code_text(getattr(function, '__code__', None))}"


def code_text(code: CodeType | None) -> str:
    """What Python runs for a function, as text; "" for one that is not written in Python. Unlike its source, it is always there."""
    if code is None:
        return ""

    def constant(each: Any) -> str:
        if isinstance(each, CodeType):
            return code_text(each)
        return str(sorted(map(repr, each))) if isinstance(each, frozenset) else repr(each)

    return f"{code.co_code.hex()} {code.co_names} {[*map(constant, code.co_consts)]}"


def _class_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def values_in(*templates: Any) -> set[int]:
    """The ids of the values that the templates name."""
    return {leaf.id for template in templates for leaf in leaves(template) if isinstance(leaf, Value)}


def weights_in(*templates: Any) -> list[str]:
    """The names of the parameters and buffers that the templates refer to, in order, without repetition."""
    found = (leaf.path for template in templates for leaf in leaves(template) if isinstance(leaf, Weight))
    return list(dict.fromkeys(found))


def rebuild(template: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    """A tuple like `template` with other parts: named tuples keep their type, `torch.Size` becomes a plain one."""
    make: Callable[[list[Any]], tuple[Any, ...]] = getattr(type(template), "_make", tuple)
    return make(parts)


def map_leaves(template: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest with every leaf replaced."""
    if isinstance(template, tuple):
        return rebuild(template, [map_leaves(part, change) for part in template])
    if isinstance(template, list):
        return [map_leaves(part, change) for part in template]
    if isinstance(template, Mapping):
        return {key: map_leaves(part, change) for key, part in template.items()}
    if isinstance(template, slice):
        return slice(*(map_leaves(part, change) for part in (template.start, template.stop, template.step)))
    return change(template)


@dataclass(frozen=True)
class Program:
    """The steps between two cuts; `inputs` and `outputs` are the values that cross them.

    It holds names, never tensors or modules, so that copies of a stage may share it.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def __str__(self) -> str:
        return "\n".join([told(self.inputs), *map(str, self.steps), told(self.outputs)])

    def called(self) -> list[str]:
        """The names of the modules that the steps call, in order, without repetition."""
        return list(dict.fromkeys(s.target.path for s in self.steps if isinstance(s.target, Submodule)))

    def run(
        self, activation: Activation, module: Callable[[str], nn.Module], weight: Callable[[str], Tensor]
    ) -> Activation:
        """Run the steps on one activation; `module` and `weight` look up what the names stand for."""
        given = (activation,) if isinstance(activation, Tensor) else activation
        known = dict(zip(self.inputs, given, strict=True))
        batch, device = given[0].shape[0], given[0].device

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return known[leaf.id]
            if isinstance(leaf, Weight):
                return weight(leaf.path)
            if isinstance(leaf, Batch):
                return leaf.factor * batch + leaf.offset
            return device if isinstance(leaf, Here) else leaf

        del activation, given  # so that the input's memory is free once its last reader has run
        for step in self.steps:
            target = module(step.target.path) if isinstance(step.target, Submodule) else step.target
            if step.is_plain:  # most are, and there are many
                result = target(known[step.args[0].id])
            else:
                result = target(*map_leaves(step.args, fill), **map_leaves(step.kwargs, fill))
            _name(step.result, result, known)
            for value in step.drop:
                known.pop(value, None)
        outputs = tuple(known[value] for value in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def _name(template: Any, result: Any, known: dict[int, Tensor]) -> None:
    """Note the tensors of `result` under the ids that stand in their places in `template`."""
    if isinstance(template, Value):
        known[template.id] = result
    elif isinstance(template, (tuple, list)):
        for place, part in zip(template, result, strict=True):
            _name(place, part, known)
    elif isinstance(template, Mapping):
        for key, place in template.items():
            _name(place, result[key], known)


def with_drops(steps: Iterable[Step], outputs: tuple[int, ...]) -> tuple[Step, ...]:
    """The same steps, each forgetting the values that nothing after it needs."""
    needed, result = set(outputs), []
    for step in reversed(list(steps)):
        touched = values_in(step.args, step.kwargs, step.result)
        result.append(replace(step, drop=tuple(sorted(touched - needed))))
        needed |= touched
    return tuple(result[::-1])


def device_free(leaf: Any, recorded_on: torch.device) -> Any:
    """The constant as it is written into a program: a device is replaced by `Here`, a size by plain integers."""
    if isinstance(leaf, torch.device) and leaf.type == recorded_on.type:
        return Here()
    if isinstance(leaf, str) and leaf in {recorded_on.type, str(recorded_on)}:
        return Here()
    return leaf
