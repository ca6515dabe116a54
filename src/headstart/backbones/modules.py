"""Modules that are built again from a description, without the package that they came from: convolutions, and the norms behind them.

Whatever else a network does is a function of torch (`written`). These stay modules, since they are what is folded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbones.program import code_text, leaves, told

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
}


class Record(BaseModel):
    """What is written down cannot be changed, and has nothing that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Convolution(Record):
    """A convolution. `same`: it pads as TensorFlow does, as much as its input needs."""

    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    same: bool

    def build(self) -> nn.Module:
        """The module, without memory for its weights."""
        kind = Conv2dSame if self.same else nn.Conv2d
        return kind(
            *self.channels, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias, device="meta"
        )


class Norm(Record):
    """Batch normalisation by running statistics, with the activation after it."""

    channels: int
    eps: float
    momentum: float | None
    affine: bool
    activation: str
    inplace: bool

    def build(self) -> nn.Module:
        """The module, without memory for its weights."""
        activation = ACTIVATIONS[self.activation](**{"inplace": True} if self.inplace else {})
        return BatchNormAct2d(self.channels, self.eps, self.momentum, self.affine, device="meta", act=activation)


def describe(module: nn.Module) -> Convolution | Norm | None:
    """What has to be known to build a convolution or a norm again, without the activation of a norm that is not `whole`; None for
    other modules."""
    if is_plain(module):
        assert isinstance(module, nn.Conv2d)
        same = type(module) is not nn.Conv2d
        return Convolution(
            channels=(module.in_channels, module.out_channels), kernel=_two(module.kernel_size), stride=_two(module.stride),
            padding=(0, 0) if same else _two(module.padding), dilation=_two(module.dilation), groups=module.groups,
            bias=module.bias is not None, same=same,
        )  # fmt: skip
    if is_norm(module):
        assert isinstance(module, nn.BatchNorm2d)
        act = getattr(module, "act", nn.Identity()) if is_whole(module) else nn.Identity()
        return Norm(
            channels=module.num_features, eps=module.eps, momentum=module.momentum, affine=module.weight is not None,
            activation=type(act).__name__, inplace=getattr(act, "inplace", False),
        )  # fmt: skip
    return None


def text_of(module: nn.Module) -> str:
    """What a module computes beside its weights, as text, the same in every process: its description, or else class, settings and code
    of all modules in it."""
    description = describe(module)
    if description is not None:
        return f"{type(description).__name__} {description.model_dump_json()}"
    return "\n".join(line for name, part in module.named_modules() for line in _lines(name, part))


def _lines(name: str, module: nn.Module) -> Iterator[str]:
    yield f"{name}: {type(module).__module__}.{type(module).__qualname__}({module.extra_repr()})"
    for key, value in sorted(vars(module).items()):
        if not key.startswith("_") and key != "training":
            yield f"{key} = {_constant(value)}"
    for kind in type(module).__mro__:
        if not kind.__module__.startswith("torch."):
            functions = sorted((key, each) for key, each in vars(kind).items() if isinstance(each, FunctionType))
            yield from (f"{key}: {code_text(each.__code__)}" for key, each in functions)
    if isinstance(module, torch.jit.ScriptModule):
        yield str(module.code)


def _constant(value: Any) -> str:
    """A setting as text. Arrays and tensors that are no buffers are constants, too."""
    arrays = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor | np.ndarray)]
    return " ".join([told(value), *map(_hashed, arrays)])


def _hashed(array: Tensor | np.ndarray[Any, Any]) -> str:
    found = torch.as_tensor(array).detach().cpu().contiguous()
    content = found.reshape(-1).view(torch.uint8).numpy().tobytes() if found.numel() else b""
    return f"{found.dtype} {tuple(found.shape)} {hashlib.blake2b(content, digest_size=16).hexdigest()}"


def is_whole(module: nn.Module) -> bool:
    """Whether a description can tell all that a convolution or a norm does."""
    return type(getattr(module, "act", nn.Identity())) in ACTIVATIONS.values()


def _two(given: Sequence[Any]) -> tuple[int, int]:
    rows, columns = given
    return int(rows), int(columns)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution and no more: subclasses, and hooks, may change its weights, or what it takes and gives."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros" or _is_hooked(module):
        return False
    same = type(module) is Conv2dSame or _is_of_timm(module, "Conv2dSame")
    return (same and module.dilation == (1, 1)) or (type(module) is nn.Conv2d and not isinstance(module.padding, str))


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises each channel by running statistics, and at most applies an activation after that."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and (type(module) in (nn.BatchNorm2d, BatchNormAct2d) or _is_of_timm(module, "BatchNormAct2d"))
        and module.running_mean is not None
        and isinstance(getattr(module, "drop", None) or nn.Identity(), nn.Identity)
        and not _is_hooked(module)
    )


def _is_of_timm(module: nn.Module, name: str) -> bool:
    """Whether its class is timm's of that name: by name, since timm is not imported for it."""
    return type(module).__name__ == name and type(module).__module__.startswith("timm.")


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def lacking(conv: nn.Conv2d, size: Sequence[int]) -> list[int]:
    """Rows and columns of zeros that TensorFlow's padding adds to a picture of `size` (height, width)."""
    return [
        max(0, (-(-length // stride) - 1) * stride + kernel - length)
        for length, kernel, stride in zip(size, conv.kernel_size, conv.stride, strict=True)
    ]


def padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution that pads as TensorFlow does multiplies with: the odd row and column of zeros at the bottom and the right."""
    rows, columns = lacking(conv, x.shape[2:])
    return functional.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


@final
class Conv2dSame(nn.Conv2d):
    """A convolution that pads as TensorFlow does: (N, C, H, W) to (N, K, ⌈H / stride⌉, ⌈W / stride⌉)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(padded(self, input))


@final
class BatchNormAct2d(nn.BatchNorm2d):
    """Batch normalisation and the activation after it: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, *given: Any, act: nn.Module, **options: Any) -> None:
        super().__init__(*given, **options)
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))  # type: ignore[no-any-return]
