"""Record one forward pass of a network: a tree of module calls with the tensor functions between them.

Concrete values flow through the network's own Python code, so its control flow follows them by itself; a
symbolic tracer cannot. Every module is looked into; what cannot be followed inside a module (a tensor that
came out of nowhere, a value read back into Python) makes that module *opaque*: one step that no cut may
divide.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from headstart.backbones.program import (
    Batch,
    Submodule,
    Value,
    Weight,
    device_free,
    leaves,
    map_leaves,
    rebuild,
)
from headstart.errors import PartitionError

UNSEEN = -1  # stands for values that have no number
# Reading a tensor's content back into Python makes the path depend on the data.
_READS_DATA = frozenset(
    {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose"}
)


@dataclass(eq=False)
class Op:
    """A tensor function, or a module that is called as a whole. `changed` are values that it altered in place; `inside` is what such
    a module did, where that could be followed."""

    target: Callable[..., Any] | Submodule
    args: Any
    kwargs: Any
    result: Any
    changed: frozenset[int]
    flops: int
    inside: Call | None = None


@dataclass(eq=False)
class Call:
    """A module call that was looked into."""

    path: str
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    result: Any = None
    children: list[Op | Call] = field(default_factory=list)
    opaque: bool = False

    def ops(self) -> Iterator[Op]:
        """All functions and leaf modules inside, in the order in which they ran."""
        for child in self.children:
            if isinstance(child, Op):
                yield child
            else:
                yield from child.ops()


@dataclass(frozen=True)
class Recording:
    """The call tree of the root module, and shape and dtype of every value (value 0 is the input). `kept` are the values that modules
    keep on themselves afterwards; `UNSEEN` among them is any that could not be followed."""

    root: Call
    shapes: dict[int, tuple[int, ...]]
    dtypes: dict[int, torch.dtype]
    kept: frozenset[int]


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up multiply-add FLOPs of matrix products and convolutions, as `torch.utils.flop_counter` defines them."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class _Recorder(TorchFunctionMode):
    """Keeps the stack of open module calls and gives every new tensor a number."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.held = [*network.named_parameters(), *network.named_buffers()]  # some networks replace buffers
        self.weights = {id(tensor): path for path, tensor in self.held}
        self.values: dict[int, int] = {}
        self.kept: list[Tensor] = []  # alive to the end, so that no id() is given out twice
        self.stack: list[Call] = []
        self.quiet = False
        self.flops = _Flops()  # type: ignore[no-untyped-call]

    def number(self, tensor: Tensor) -> Value | Weight:
        """The record that stands for a tensor that exists; a new one gets the next number."""
        if id(tensor) in self.weights:
            return Weight(self.weights[id(tensor)])
        if id(tensor) not in self.values:
            self.values[id(tensor)] = len(self.kept)
            self.kept.append(tensor)
        return Value(self.values[id(tensor)])

    def read(self, nest: Any) -> Any:
        """A template of arguments; a tensor of unknown birth makes the innermost open call opaque."""

        def leaf(part: Any) -> Any:
            if not isinstance(part, Tensor):
                return device_free(part, self.device)
            if id(part) not in self.weights and id(part) not in self.values:
                self.stack[-1].opaque = True
            return self.number(part)

        return map_leaves(nest, leaf)

    def written(self, nest: Any) -> Any:
        """A template of a result: only its tensors matter."""
        return map_leaves(nest, lambda part: self.number(part) if isinstance(part, Tensor) else None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.quiet or not self.stack:
            return func(*args, **kwargs)
        if func is Tensor.__iter__:  # an iterator hides its tensors; the tuple behind it does not
            return iter(self.op(torch.unbind, torch.unbind, args, kwargs))
        if getattr(func, "__name__", "") in _READS_DATA and any(isinstance(a, Tensor) for a in args):
            self.stack[-1].opaque = True
        return self.op(func, func, args, kwargs)

    def op(self, target: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one function and note it, if it made or changed a tensor."""
        positional, named = self.read((args, kwargs))
        touched, before = _Touched(args, kwargs), self.flops.total
        outer, self.quiet = self.quiet, True
        try:
            result = run(*args, **kwargs)
        finally:
            self.quiet = outer
        self.note(target, (positional, named), self.written(result), touched, before)
        return result

    def note(
        self, target: Any, given: Any, result: Any, touched: _Touched, before: int, inside: Call | None = None
    ) -> None:
        """Note what has run, unless it neither made nor changed a tensor."""
        changed = touched.now()
        if changed or any(isinstance(leaf, (Value, Weight)) for leaf in leaves(result)):
            known = frozenset(self.values[id(tensor)] for tensor in changed if id(tensor) in self.values)
            args, kwargs = given
            self.stack[-1].children.append(Op(target, args, kwargs, result, known, self.flops.total - before, inside))

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Stand in for `nn.Module.__call__` while recording."""
        path = self.paths.get(id(module))
        if self.quiet or path is None:
            return original(module, *args, **kwargs)
        call = Call(path)
        if self.stack:
            call.args, call.kwargs = self.read((args, kwargs))
        touched, before = _Touched(args, kwargs), self.flops.total
        self.stack.append(call)
        result = original(module, *args, **kwargs)
        made = [part for part in leaves(result) if isinstance(part, Tensor)]
        call.opaque |= any(id(part) not in self.values and id(part) not in self.weights for part in made)
        call.result = self.written(result)
        self.stack.pop()
        if self.stack:
            if call.opaque or not any(True for _ in module.children()):
                inside = None if call.opaque else call
                self.note(Submodule(path), (call.args, call.kwargs), call.result, touched, before, inside)
            else:
                self.stack[-1].children.append(call)
        elif call.opaque:
            raise PartitionError(
                f"{type(module).__name__} computes with tensors that cannot be followed at its top level (a scripted "
                "function, or values read back into Python). Wrap that part in a module of its own, or use another "
                "backbone."
            )
        else:
            self.root = call
        return result


class _Touched:
    """The tensors among some arguments, and which of them have been altered in place since."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.tensors = [part for part in leaves((args, kwargs)) if isinstance(part, Tensor)]
        self.versions = [tensor._version for tensor in self.tensors]

    def now(self) -> list[Tensor]:
        return [t for t, version in zip(self.tensors, self.versions, strict=True) if t._version != version]


_turn = threading.RLock()  # of who records: what is put in the place of a class attribute must be taken out in order


@contextmanager
def _calls_go_to(recorder: _Recorder) -> Iterator[None]:
    # The way torch.fx traces: the class attribute is the one place that every module call passes. Modules of
    # other networks (other threads) are told apart by identity and go straight through.
    with _turn:
        original = nn.Module.__call__

        def patched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return recorder.call(original, module, args, kwargs)

        nn.Module.__call__ = patched  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]


def record(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Recording:
    """Run `network` once in eval mode on a batch of `shape` (N, C, H, W), float32, and record what happens.

    Raises:
        PartitionError: the top level of the network cannot be followed.
    """
    recorder = _Recorder(network, device)
    x = torch.zeros(shape, device=device)
    recorder.number(x)
    before = {id(tensor): (tensor, tensor._version) for tensor in _tensors_on(network)}
    with torch.no_grad(), recorder.flops, _calls_go_to(recorder), recorder:
        network(x)
    shapes = {number: tuple(tensor.shape) for number, tensor in enumerate(recorder.kept)}
    dtypes = {number: tensor.dtype for number, tensor in enumerate(recorder.kept)}
    kept = [t for t in _tensors_on(network) if id(t) not in recorder.weights and before.get(id(t)) != (t, t._version)]
    return Recording(recorder.root, shapes, dtypes, frozenset(recorder.values.get(id(t), UNSEEN) for t in kept))


def _tensors_on(network: nn.Module) -> list[Tensor]:
    """Every tensor that a module keeps on itself."""
    found = (leaf for module in network.modules() for kept in vars(module).values() for leaf in leaves(kept))
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def unify(one: Recording, other: Recording, batches: tuple[int, int]) -> Recording:
    """One recording out of two of the same network at different batch sizes: what differs follows the batch.

    Raises:
        PartitionError: the two passes took different ways.
    """
    merged = _merge_calls(one.root, other.root, batches)
    return Recording(merged, one.shapes, one.dtypes, one.kept & other.kept)


def _merge_calls(one: Call, other: Call, batches: tuple[int, int]) -> Call:
    if one.path != other.path or len(one.children) != len(other.children):
        raise _differs(one.path)
    children: list[Op | Call] = []
    for a, b in zip(one.children, other.children, strict=True):
        if isinstance(a, Call) and isinstance(b, Call):
            children.append(_merge_calls(a, b, batches))
        elif isinstance(a, Op) and isinstance(b, Op) and a.target == b.target and a.changed == b.changed:
            args, kwargs = _merge((a.args, a.kwargs), (b.args, b.kwargs), batches, one.path)
            inside = _merge_inside(a.inside, b.inside, batches)
            children.append(Op(a.target, args, kwargs, a.result, a.changed, a.flops // batches[0], inside))
        else:
            raise _differs(one.path)
    args, kwargs = _merge((one.args, one.kwargs), (other.args, other.kwargs), batches, one.path)
    return Call(one.path, args, kwargs, one.result, children)


def _merge_inside(one: Call | None, other: Call | None, batches: tuple[int, int]) -> Call | None:
    """What a module did that is called as a whole; it may do so in different ways."""
    if one is None or other is None:
        return None
    try:
        return _merge_calls(one, other, batches)
    except PartitionError:
        return None


def _merge(a: Any, b: Any, batches: tuple[int, int], path: str) -> Any:
    """The template that gives `a` at the first batch size and `b` at the second."""
    if type(a) is not type(b):
        raise _differs(path)
    if isinstance(a, (tuple, list)):
        if len(a) != len(b):
            raise _differs(path)
        parts = [_merge(x, y, batches, path) for x, y in zip(a, b, strict=True)]
        return parts if isinstance(a, list) else rebuild(a, parts)
    if isinstance(a, dict):
        return {key: _merge(part, b[key], batches, path) for key, part in a.items()}
    if isinstance(a, slice):
        return slice(*_merge((a.start, a.stop, a.step), (b.start, b.stop, b.step), batches, path))
    if isinstance(a, int) and not isinstance(a, bool) and a != b:
        factor = (b - a) // (batches[1] - batches[0])
        return Batch(factor, a - factor * batches[0])
    if isinstance(a, (float, str, bool)) and a != b:
        raise _differs(path)
    return a


def _differs(path: str) -> PartitionError:
    return PartitionError(
        f"the forward pass of '{path or 'the network'}' took different ways at batch sizes 2 and 3, expected the "
        "same steps at every batch size. Use another backbone."
    )


def meta_copy(network: nn.Module) -> nn.Module:
    """The same network without its weights' memory: every parameter and buffer on the `meta` device."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo)
