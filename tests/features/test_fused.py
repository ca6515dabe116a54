"""Convolutions that train as one step with their norms learn what they would learn apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbones.backbone import Backbone
from headstart.backbones.bundled import BUNDLED
from headstart.backbones.catalog import load_backbone
from headstart.backbones.from_module import load_module
from headstart.features import fused as module
from headstart.features.folded import can_fold
from headstart.features.fused import fused
from tests.toys import SPEC, Twice, needs_bfloat16, settle_statistics, tiny_backbone

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_fold(CPU), reason="torch has no oneDNN here")


class Chain(nn.Module):
    """Stages of one layer each."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))  # type: ignore[no-any-return]


def real(name: str) -> Backbone:
    import timm

    return load_module(settle_statistics(timm.create_model(name, num_classes=0)), SPEC)


def learnt(
    backbone: Backbone, cut: int, x: Tensor, within: Callable[[], Any] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The pooled outputs of all stages from the cut on, and the gradients that a loss on them gives, the input's among them."""
    entering = x.clone().requires_grad_()
    backbone.zero_grad()
    backbone.train_from(cut)
    if within is None:
        pooled = torch.cat(backbone.pooled(entering * 1.0, cut), dim=1)
    else:
        with within():
            pooled = torch.cat(backbone.pooled(entering * 1.0, cut), dim=1)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    (pooled * weights).sum().backward()  # type: ignore[no-untyped-call]
    grads = {name: value.grad for name, value in backbone.named_parameters() if value.grad is not None}
    assert entering.grad is not None
    return pooled.detach(), {name: grad.clone() for name, grad in grads.items()} | {"entering": entering.grad}


def entering(backbone: Backbone, cut: int, count: int = 3) -> Tensor:
    """What enters the cut, channels last."""
    torch.manual_seed(3)
    x = torch.randn(count, 3, *backbone.input.size).contiguous(memory_format=torch.channels_last)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone.eval()
    with torch.no_grad():
        given = backbone.run(x, 0, cut)
    assert isinstance(given, Tensor)
    return given


def same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], rtol: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=rtol, atol=rtol * float(theirs[0].abs().max()))
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert float((ours[1][name] - grad).norm()) <= rtol * float(grad.norm()) + 1e-6, name


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet10t", "mnasnet_small", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.parametrize("above", [0, 2])
def test_gradients_of_real_architectures_are_those_of_plain_training(name: str, above: int) -> None:
    backbone = real(name)
    x = entering(backbone, above)
    ours, theirs = learnt(backbone, above, x, lambda: fused(backbone, above, low=False)), learnt(backbone, above, x)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-3 * float(theirs[0].abs().max()))
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():  # rounding takes some activations to the other side of their bend
        assert float(functional.cosine_similarity(ours[1][name].flatten(), grad.flatten(), 0)) > 0.99, name


ACTS = [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU]
KINDS = [(kind, act) for kind in ("plain", "same", "depthwise", "depthwise same") for act in ACTS]


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "act"), [*KINDS, ("no norm", nn.Identity)])
def test_every_kind_of_convolution_has_its_gradients(act: type[nn.Module], kernel: int, stride: int, kind: str) -> None:
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    torch.manual_seed(0)
    groups = 8 if "depthwise" in kind or kind == "no norm" else 1
    made: type[nn.Conv2d] = Conv2dSame if "same" in kind else nn.Conv2d
    padding = 0 if "same" in kind else kernel // 2
    conv = made(8, 8, kernel, stride, padding, groups=groups, bias=kind in ("plain", "no norm"))
    norm = nn.Identity() if kind == "no norm" else BatchNormAct2d(8, act_layer=lambda inplace=True: act())
    backbone = load_module(settle_statistics(Chain(nn.Sequential(conv, norm), nn.Conv2d(8, 4, 1))), SPEC)
    cut = 1
    x = entering(backbone, cut)
    same(learnt(backbone, cut, x, lambda: fused(backbone, cut, low=False)), learnt(backbone, cut, x), 1e-3)


def test_only_stages_that_train_are_touched_and_all_is_put_back() -> None:
    backbone = real("mobilenetv2_050")
    entering(backbone, 0)
    backbone.train_from(3)
    modes = {name: part.training for name, part in backbone.named_modules()}
    with fused(backbone, 3, low=False):
        patched = {name.split(".")[1] for name, part in backbone.named_modules() if "forward" in vars(part)}
        assert modes == {name: part.training for name, part in backbone.named_modules()}
    assert patched == {str(place) for place in range(3, len(backbone.stages))}
    assert not [name for name, part in backbone.named_modules() if "forward" in vars(part)]


def test_statistics_that_are_learnt_are_learnt_within() -> None:
    plain, ours = tiny_backbone(), tiny_backbone()
    x = entering(plain, 1)
    entering(ours, 1)
    for backbone in (plain, ours):
        backbone.train_from(1)
        for stage in backbone.stages[1:]:
            for part in stage.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.train()
    with torch.no_grad():
        torch.manual_seed(0)  # they drop out
        expected = torch.cat(plain.pooled(x.clone(), 1), 1)
        with fused(ours, 1, low=False):
            for stage in ours.stages[1:]:
                for part in stage.modules():
                    assert not isinstance(part, nn.BatchNorm2d) or part.training
            torch.manual_seed(0)
            found = torch.cat(ours.pooled(x.clone(), 1), 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for (name, value), other in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_read_by_others_too_stays_apart() -> None:
    backbone = load_module(settle_statistics(Twice()), SPEC)
    x = entering(backbone, 0)
    same(learnt(backbone, 0, x, lambda: fused(backbone, 0, low=False)), learnt(backbone, 0, x), 1e-4)


@needs_bfloat16
def test_low_rounds_1x1_convolutions_alone() -> None:
    backbone = load_backbone(next(iter(BUNDLED)))
    cut = 6
    x = entering(backbone, cut, 2)
    seen: list[tuple[bool, tuple[int, ...]]] = []
    real_one = module._Convolution.apply

    class Watched:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
            seen.append((how.low, tuple(weight.shape[2:])))
            return real_one(x, weight, bias, how)  # type: ignore[no-any-return, no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_Convolution", Watched)
        found, _ = learnt(backbone, cut, x, lambda: fused(backbone, cut, low=True))
    own = seen[len(seen) // 2 :]  # the first half is the comparison, in float32
    assert {low for low, _ in seen[: len(seen) // 2]} == {False}
    assert {kernel for low, kernel in own if low} == {(1, 1)}
    assert (1, 1) not in {kernel for low, kernel in own if not low}
    expected, _ = learnt(backbone, cut, x)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * float(expected.abs().max()))
