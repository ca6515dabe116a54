"""A folded copy computes what the network computes, or is not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.backbones.bundled import BUNDLED
from headstart.backbones.catalog import load_backbone
from headstart.backbones.from_module import load_module
from headstart.features.engine import BATCH, Engine
from headstart.features.folded import Folded, can_fold, fold
from headstart.features.precision import SAME, has_fast_bfloat16, same
from tests.toys import SPEC, Twice, settle_statistics, stripes, tiny_backbone

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_fold(CPU), reason="torch has no oneDNN here")


def count(network: nn.Module) -> int:
    return sum(isinstance(module, Folded) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("mobilenetv2_050", 52), ("resnet10t", 14), ("mnasnet_small", 46), ("tf_mobilenetv3_small_minimal_100", 34)],
)
def test_the_folded_copy_of_a_real_architecture_agrees_in_every_stage(name: str, pairs: int) -> None:
    import timm

    network = settle_statistics(timm.create_model(name, num_classes=0))
    backbone = load_module(network, SPEC)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (copy,) = fold(backbone)
    assert count(copy) == pairs
    assert not count(backbone)
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        for ours, theirs in zip(copy.pooled(x.clone()), backbone.pooled(x.clone()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_the_bundled_backbone_runs_folded_and_agrees() -> None:
    backbone = load_backbone(next(iter(BUNDLED)))
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH, *backbone.input.size, 3), dtype=np.uint8)
    plain, folded = Engine(backbone, precision="float32", folded=False), Engine(backbone, precision="float32")
    expected, found = plain.pooled(pictures), folded.pooled(pictures)
    assert (str(plain.way), str(folded.way)) == ("float32", "float32 folded")
    assert folded.way is not None and folded.way.agreement is not None
    assert folded.way.agreement >= SAME
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_folding_leaves_alone_what_is_training() -> None:
    import timm

    backbone = load_module(settle_statistics(timm.create_model("resnet10t", num_classes=0)), SPEC).eval()
    for module in backbone.stages[0].modules():
        module.training = True
    before = [module.training for module in backbone.modules()]
    assert len(set(before)) == 2
    fold(backbone)  # whether or not a copy computes the same then
    assert [module.training for module in backbone.modules()] == before


def test_a_copy_that_would_compute_something_else_is_not_used() -> None:
    backbone = load_module(settle_statistics(Twice()), SPEC)
    engine, plain = Engine(backbone, precision="float32"), Engine(backbone, precision="float32", folded=False)
    pictures = stripes(6)[0]
    assert np.array_equal(engine.pooled(pictures), plain.pooled(pictures))
    assert str(engine.way) == "float32"


@pytest.mark.parametrize("hooked", [0, 1])
def test_what_a_hook_does_is_not_lost(hooked: int) -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8)) for width in (3, 8, 8)))

    network = net()
    network[-1][hooked].register_forward_hook(lambda module, given, result: 2 * result)
    backbone = load_module(network, SPEC)
    pictures = stripes(4)[0]
    expected = Engine(backbone, precision="float32", folded=False).pooled(pictures)
    engine = Engine(backbone, precision="float32")
    np.testing.assert_allclose(engine.pooled(pictures), expected, rtol=1e-3, atol=1e-4)
    assert str(engine.way) == "float32 folded" and count(fold(backbone)[0]) == 2


def test_features_of_another_length_are_not_the_same() -> None:
    truth = [torch.randn(2, 8), torch.randn(2, 4)]
    assert same(truth, [stage * (1 + 1e-5) for stage in truth])
    assert not same(truth, [truth[0], truth[1] * 1.1])
    assert not same(truth, [truth[0], truth[1] * torch.nan])


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.LeakyReLU(0.2)])
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "bias": False}, {"groups": 4}])
def test_every_kind_of_convolution_and_activation(act: nn.Module, settings: dict[str, Any]) -> None:
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    for conv in (nn.Conv2d(4, 8, 3, padding=1, **settings), Conv2dSame(4, 8, 5, **settings)):
        norm = BatchNormAct2d(8, act_layer=lambda inplace=True: act)
        settle_statistics(norm)
        x = torch.randn(2, 4, 31, 32).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = norm(conv(x))
            means = x.mean((0, 2, 3))
            found = Folded(conv, norm, (31, 32), torch.float32, means)(x.clone())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            if has_fast_bfloat16(CPU):
                rough = Folded(conv, norm, (31, 32), torch.bfloat16, means)(x.clone())
                torch.testing.assert_close(rough.float(), expected, rtol=0.1, atol=0.1)


def test_weights_that_change_are_folded_anew() -> None:
    backbone = tiny_backbone()
    engine, pictures = Engine(backbone, precision="float32"), stripes(6)[0]
    before = engine.pooled(pictures)
    assert str(engine.way) == "float32 folded"
    with torch.no_grad():
        next(iter(backbone.parameters())).mul_(2)
    assert engine.way is None
    assert not np.allclose(engine.pooled(pictures), before)
    assert np.allclose(engine.pooled(pictures), Engine(backbone, precision="float32", folded=False).pooled(pictures))
