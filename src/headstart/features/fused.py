"""Convolutions that train beside frozen normalisation, as one step on a CPU: the same gradients, in less time.

Normalisation with frozen statistics is an affine map per channel. Multiplied into the kernel it needs no pass of its own over the
activations, neither forwards nor backwards, and the activation after it runs while the result is still in the cache; kernel, gain and
offset are learnt as before. oneDNN has a fast gradient for depthwise kernels of up to three columns; wider ones are taken three
columns at a time. And 1×1 convolutions may multiply in bfloat16, which depthwise ones would lose by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbones.backbone import Backbone
from headstart.backbones.modules import is_plain, padded
from headstart.features.folded import FUSED, can_fold, drawn, pairs_of
from headstart.features.precision import same

# Activations whose gradient can be told from what they gave.
_LEARNT = ("Identity", "ReLU", "ReLU6")
_COLUMNS = 3  # of a depthwise kernel, for which oneDNN has a fast gradient


@dataclass(frozen=True)
class _How:
    """What a convolution does beside multiplying, and whether it multiplies in bfloat16."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    attribute: str = "none"
    scalars: tuple[float, ...] = ()
    low: bool = False


class _Convolution(torch.autograd.Function):
    """A convolution, its offset and the activation after it: (N, C, H, W) float32 to (N, K, H, W) float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
        if how.low:
            x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, how.padding, how.stride, how.dilation, how.groups, how.attribute, how.scalars, "",
        ).float()  # fmt: skip
        ctx.save_for_backward(x, weight, None if how.attribute == "none" else y)
        ctx.how = how
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        how: _How = ctx.how
        if how.attribute == "relu":
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        elif how.attribute == "hardtanh":
            grad = torch.ops.aten.hardtanh_backward(grad, y, *how.scalars)
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        offsets = grad.sum((0, 2, 3)) if for_bias else None
        if how.low:
            grad = grad.to(torch.bfloat16)
        entering = _gradients(grad, x, weight, how, [True, False])[0].float() if for_x else None
        kernels = None
        if for_weight:
            wide = _is_depthwise(weight, how.groups) and weight.shape[3] > _COLUMNS and how.dilation == (1, 1)
            kernels = _by_columns(grad, x, weight, how) if wide else _gradients(grad, x, weight, how, [False, True])[1]
            kernels = kernels.float()
        return entering, kernels, offsets, None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
    return _Convolution.apply(x, weight, bias, how)  # type: ignore[no-any-return]


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, how: _How, asked: list[bool]) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, how.stride, how.padding, how.dilation, False, [0, 0], how.groups, [*asked, False]
    )
    return found[0], found[1]


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return groups == weight.shape[0] and weight.shape[1] == 1


def _by_columns(grad: Tensor, x: Tensor, weight: Tensor, how: _How) -> Tensor:
    """The gradient of a depthwise kernel (C, 1, H, W), a few of its columns at a time, each from a picture that is moved so far that
    they are the first."""
    found, few, width = torch.empty_like(weight), weight[..., :_COLUMNS].contiguous(), weight.shape[3]
    wide = (grad.shape[3] - 1) * how.stride[1] + _COLUMNS
    level = _How(how.stride, (how.padding[0], 0), how.dilation, how.groups)
    for first in sorted({*range(0, width - _COLUMNS, _COLUMNS), width - _COLUMNS}):
        left = how.padding[1] - first
        moved = functional.pad(x, (left, wide - x.shape[3] - left))
        found[..., first : first + _COLUMNS] = _gradients(grad, moved, few, level, [False, True])[1]
    return found


@final
class _Step:
    """Stands in for a convolution's forward pass, and where a norm alone follows it, for that one's too."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        self.conv, self.norm, self.low = conv, norm, False
        act = getattr(norm, "act", nn.Identity())
        known = type(act).__name__ in _LEARNT
        self.attribute, scalars = FUSED[type(act).__name__ if known else "Identity"]
        self.scalars, self.then = tuple(scalars), nn.Identity() if known else act

    def convolved(self, input: Tensor) -> Tensor:
        """What the convolution gives, or the norm after it while its statistics are frozen."""
        conv, norm, weight, bias = self.conv, self.norm, self.conv.weight, self.conv.bias
        x, padding = input, conv.padding
        if type(conv) is not nn.Conv2d:  # Conv2dSame
            x, padding = padded(conv, x), (0, 0)
        assert not isinstance(padding, str)
        low = self.low and _is_pointwise(conv)
        if norm is None or norm.training:
            how = _How(conv.stride, padding, conv.dilation, conv.groups, low=low)
            return _convolved(x, weight, bias, how)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else norm.weight * scale
        shift = (norm.running_mean if bias is None else norm.running_mean - bias) * -scale
        shift = shift if norm.bias is None else norm.bias + shift
        how = _How(conv.stride, padding, conv.dilation, conv.groups, self.attribute, self.scalars, low)
        return self.then(_convolved(x, weight * scale[:, None, None, None], shift, how))  # type: ignore[no-any-return]

    def passed(self, input: Tensor) -> Tensor:
        """What the norm gives for what this step gave."""
        assert self.norm is not None
        return type(self.norm).forward(self.norm, input) if self.norm.training else input


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.groups == 1


@contextmanager
def fused(backbone: Backbone, cut: int, low: bool) -> Iterator[None]:
    """Within, the convolutions of `stages[cut:]` that gain from it run as one step with the norms that alone follow them; where `low`,
    those of 1×1 multiply in bfloat16. Nothing changes on a device but the CPU."""
    if not can_fold(next(backbone.parameters()).device):
        yield
        return
    steps = _agreeing(backbone, cut, low)
    try:
        for step in steps:
            step.low = low
        yield
    finally:
        _restore(steps)


def _agreeing(backbone: Backbone, cut: int, low: bool) -> list[_Step]:
    """The steps that stand in for convolutions and norms; for convolutions alone where the backbone would compute something else, as
    where somebody else reads what a convolution gave."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        image = drawn(backbone, 1)
        pairs, truth = pairs_of(backbone, image)
        steps = _patched(backbone, cut, {pair.conv: pair.norm for pair in pairs}, low)
        with torch.inference_mode():
            if same(truth, backbone.pooled(image)):
                return steps
        _restore(steps)
        return _patched(backbone, cut, {}, low)
    finally:
        for module, mode in modes:
            module.training = mode


def _patched(backbone: Backbone, cut: int, norms: dict[str, str], low: bool) -> list[_Step]:
    steps = []
    for place in range(cut, len(backbone.stages)):
        for name, conv in backbone.stages[place].named_modules(prefix=f"stages.{place}"):
            if not isinstance(conv, nn.Conv2d) or not is_plain(conv):
                continue
            wide = _is_depthwise(conv.weight, conv.groups) and conv.kernel_size[1] > _COLUMNS
            if name in norms or wide or (low and _is_pointwise(conv)):
                norm = backbone.get_submodule(norms[name]) if name in norms else None
                assert norm is None or isinstance(norm, nn.BatchNorm2d)
                step = _Step(conv, norm)
                conv.forward = step.convolved  # type: ignore[method-assign]
                if norm is not None:
                    norm.forward = step.passed  # type: ignore[method-assign]
                steps.append(step)
    return steps


def _restore(steps: list[_Step]) -> None:
    for step in steps:
        del step.conv.forward
        if step.norm is not None:
            del step.norm.forward
