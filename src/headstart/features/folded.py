"""A frozen network made ready for inference on a CPU: normalisation folded into the convolutions, activations run with them.

In evaluation mode BatchNorm is an affine map per channel, which the convolution before it can take over (Jacob et al. 2018,
arXiv 1712.05877, section 3.2); oneDNN applies the activation while the result is still in the cache. The results equal the
original ones up to rounding, which is made to do little harm (`rounding`). Nothing is compiled, so that a short job pays nothing
for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from headstart.backbones.backbone import Backbone
from headstart.backbones.modules import is_norm, is_plain, lacking
from headstart.features.precision import same
from headstart.features.rounding import leaves, lost, rounded

# What oneDNN can do to the result of a convolution at no cost, by the class of the module that would do it.
FUSED: dict[str, tuple[str, list[float]]] = {
    "Identity": ("none", []), "ReLU": ("relu", []), "ReLU6": ("hardtanh", [0.0, 6.0]), "SiLU": ("swish", []),
    "Hardswish": ("hardswish", []),
}  # fmt: skip
_DRAWN = 2  # pictures that tell the channels' means: eight tell them no better


@dataclass(frozen=True)
class _Pair:
    """Names of a convolution and of the norm that alone follows it; (height, width) and channels' means (C,) of what enters it."""

    conv: str
    norm: str
    size: tuple[int, int]
    means: Tensor


def can_fold(device: torch.device) -> bool:
    """Whether torch has oneDNN's fused convolutions here."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def fold(backbone: Backbone, *dtypes: torch.dtype) -> tuple[Backbone, ...]:
    """A copy for inference in float32, and one in each of `dtypes`; none at all where no normalisation follows a convolution within
    a stage, or where the copy in float32 computes something else.

    Which pairs belong together is seen in one forward pass: the norm's input is the very tensor that the convolution gave. Whether
    somebody else read that tensor, too, is not seen: that is why the copy is compared.
    """
    images = drawn(backbone, _DRAWN if dtypes else 1)
    pairs, truth = pairs_of(backbone, images)
    copies: list[Backbone] = []
    # What has no parts is replaced in the copy, or as good there as here; but what is training must not be taken out of that.
    shared = {id(module): module for module in backbone.modules() if not any(module.children()) and not module.training}
    for dtype in (torch.float32, *dtypes) if pairs else ():
        made = copy.deepcopy(backbone, dict(shared)).eval()
        for pair in pairs:
            conv, norm = made.get_submodule(pair.conv), made.get_submodule(pair.norm)
            _replace(made, pair.conv, Folded(conv, norm, pair.size, dtype, pair.means))
            _replace(made, pair.norm, nn.Identity())
        if not copies:
            with torch.inference_mode():
                if not same([stage[:1] for stage in truth], made.pooled(images[:1])):
                    return ()
        copies.append(made)
    return tuple(copies)


@final
class Folded(nn.Module):
    """A convolution with the norm after it folded in: (N, C, *size) to (N, K, H, W), in `dtype`.

    `means` (C,) are those of the channels that enter, about: with them weights are rounded so that those that leave keep theirs.
    """

    def __init__(
        self, conv: nn.Module, norm: nn.Module, size: tuple[int, int], dtype: torch.dtype, means: Tensor
    ) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.dtype, self.stride, self.dilation, self.groups = dtype, conv.stride, conv.dilation, conv.groups
        leading, self.padding = _padding(conv, size)
        # Where one pixel more is padded at the end than at the start, a row and column of zeros before the kernel make the padding
        # even, which spares a padded copy of the input.
        kernel = functional.pad(weight.detach(), (leading[1], 0, leading[0], 0))
        # The bias is in float32 also beside bfloat16 weights: its rounding would move every pixel.
        self.bias: Tensor = bias.detach().float()
        if dtype != kernel.dtype:
            exact, kernel = kernel, rounded(kernel, dtype)
            self.bias = self.bias + lost(exact, kernel, conv.groups, means)
        self.weight = kernel.to(memory_format=torch.channels_last)
        act = getattr(norm, "act", nn.Identity())
        self.attribute, self.scalars = FUSED.get(type(act).__name__, FUSED["Identity"])
        self.then = nn.Identity() if type(act).__name__ in FUSED else act

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._convolution_pointwise(
            x.to(self.dtype), self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
            self.attribute, self.scalars, "",
        )  # fmt: skip
        return self.then(y)  # type: ignore[no-any-return]


def _padding(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Zeros to put before the kernel, and what to pad on both sides, each for (height, width)."""
    if type(conv) is nn.Conv2d:
        assert not isinstance(conv.padding, str)
        return [0, 0], list(conv.padding)
    leading, both = [], []  # Conv2dSame: as TensorFlow, the odd pixel goes to the right and the bottom
    for total in lacking(conv, size):
        leading.append(total % 2)
        both.append(total // 2 + total % 2)
    return leading, both


def pairs_of(backbone: Backbone, images: Tensor) -> tuple[list[_Pair], tuple[Tensor, ...]]:
    """Convolutions and the norms that alone follow them in the same stage, and the pooled output of every stage."""
    found: list[_Pair] = []
    calls: dict[str, int] = {}
    last: list[Any] = ["", None, None]  # the convolution that ran last, its output and input

    def watch(name: str, convolves: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if convolves:
                last[:] = [name, output, inputs[0]]
            elif inputs and inputs[0] is last[1] and name.split(".")[:2] == last[0].split(".")[:2]:
                found.append(_Pair(last[0], name, tuple(last[2].shape[2:]), last[2].mean((0, 2, 3))))

        return hook

    handles = [
        module.register_forward_hook(watch(name, is_plain(module)))
        for name, module in backbone.named_modules()
        if is_plain(module) or is_norm(module)
    ]
    try:
        with torch.inference_mode():
            pooled = backbone.pooled(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if calls[pair.conv] == calls[pair.norm] == 1], pooled


def drawn(backbone: Backbone, count: int) -> Tensor:
    """Drawn pictures as the backbone takes them: (N, 3, H, W) float32."""
    spec = backbone.input
    pixels = (leaves(count, *spec.size) / 255 - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(pixels).float().permute(0, 3, 1, 2).to(next(backbone.parameters()).device)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
