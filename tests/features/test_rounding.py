"""Rounded weights give the same on average, and depend on nothing but the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from headstart.backbones.bundled import BUNDLED
from headstart.backbones.catalog import load_backbone
from headstart.features.engine import AGREES, Engine
from headstart.features.folded import can_fold
from headstart.features.precision import has_fast_bfloat16
from headstart.features.rounding import leaves, lost, rounded

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_kernel_keeps_its_sum_and_every_weight_about(size: int) -> None:
    torch.manual_seed(0)
    kernels = torch.randn(32, 4, size, size)
    kernels[0, 0] = 0.0
    found = rounded(kernels, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    step = kernels.abs().amax((2, 3), keepdim=True) / 2**7
    assert bool(((found.float() - kernels).abs() <= size**2 * step).all())
    naive = kernels.to(torch.bfloat16)
    errors = [float((kernels - each.float()).sum((2, 3)).abs().mean()) for each in (found, naive)]
    assert errors[0] <= errors[1] / (4 if size > 1 else 1)
    assert torch.equal(rounded(kernels, torch.float32), kernels)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_what_leaves_a_rounded_convolution_has_the_mean_that_it_had(groups: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 8, 16, 16) * torch.arange(1.0, 9.0)[:, None, None]
    kernels = torch.randn(16, 8 // groups, 1, 1)
    weight = rounded(kernels, torch.bfloat16)
    exact = conv2d(x, kernels, groups=groups).mean((0, 2, 3))
    found = conv2d(x, weight.float(), groups=groups).mean((0, 2, 3))
    taken = lost(kernels, weight, groups, x.double().mean((0, 2, 3)))
    torch.testing.assert_close(found + taken, exact, rtol=0, atol=1e-2 * float((found - exact).abs().max()))
    assert not torch.allclose(found, exact, rtol=0, atol=float(taken.abs().median()) / 2)
    assert not lost(kernels, kernels, groups, x.double().mean((0, 2, 3))).any()


def test_drawn_pictures_are_always_the_same() -> None:
    found = leaves(3, 40, 64)
    assert found.shape == (3, 40, 64, 3) and found.dtype == np.uint8
    assert np.array_equal(found, leaves(3, 40, 64))
    assert np.array_equal(found[:2], leaves(2, 40, 64))
    assert len(np.unique(found.reshape(3, -1), axis=0)) == 3
    assert found.std((1, 2)).min() > 5, "no picture is all of one colour"


@pytest.mark.skipif(not (can_fold(CPU) and has_fast_bfloat16(CPU)), reason="no bfloat16 in this processor")
def test_a_real_network_agrees_in_every_stage_after_its_first_two() -> None:
    backbone = load_backbone(next(iter(BUNDLED)))
    # Soft colours with noise: nothing like the drawn pictures.
    noise = np.random.default_rng(1).normal(0, 20, (6, *backbone.input.size, 3))
    ramp = np.linspace(60, 190, backbone.input.size[1])[:, None] + np.arange(-40, 80, 20)[:, None, None, None]
    pictures = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    engine = Engine(backbone)
    engine.settle(pictures)
    assert engine.way is not None and engine.way.agreement is not None
    assert (engine.way.precision, engine.way.folded, engine.way.agreement >= AGREES) == ("bfloat16", True, True)
    again = Engine(backbone, precision="bfloat16", exact=engine.exact)
    assert np.array_equal(again.pooled(pictures), engine.pooled(pictures)), (
        "what a saved model runs is what was measured"
    )
