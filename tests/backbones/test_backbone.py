"""The Backbone itself: running, pooling, freezing, saving, digests."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.errors import BackboneError, WeightsError
from tests.backbones.networks import ConvNet, Tokens, cut, images


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return cut(ConvNet())


def test_a_new_backbone_is_frozen(backbone: Backbone) -> None:
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert backbone.trainable() == [[], [], [], [], []]


def test_pooled_is_every_stage_before_the_next_one_works_in_place(backbone: Backbone) -> None:
    x = images(3)
    pooled = backbone.pooled(x.clone())
    activation: Tensor = x.clone()
    for index, stage in enumerate(backbone.stages):
        activation = stage(activation.clone())
        expected = activation.mean((2, 3)) if activation.ndim == 4 else activation
        assert torch.equal(pooled[index], expected)
        assert pooled[index].dtype == torch.float32
    assert torch.equal(pooled[-1], backbone(x))


def test_running_in_two_parts_equals_running_at_once(backbone: Backbone) -> None:
    x = images(2)
    whole = backbone(x.clone())
    for cut_at in range(len(backbone.stages) + 1):
        first, early = backbone.run_and_pool(x.clone(), 0, cut_at)
        late = backbone.pooled(first, cut_at)
        assert len(early) + len(late) == len(backbone.stages)
        assert torch.equal((early + late)[-1], whole)


def test_the_wrong_image_size_is_refused(backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"expected \(\(3, 32, 32\),\) at cut 0"):
        backbone(images(1, (40, 40)))


def test_rows_of_another_cut_are_refused(backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="do not fit cut 1"):
        backbone.unflatten(1, torch.zeros(2, 7))


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
def test_training_at_every_cut_moves_only_what_is_above_it(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    whole = cut(kind())
    for cut_at in range(len(whole.stages)):
        backbone = copy.deepcopy(whole)
        backbone.train_from(cut_at)
        frozen = [{n: t.clone() for n, t in s.state_dict().items()} for s in backbone.stages[:cut_at]]
        buffers = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
        groups = backbone.trainable()
        assert not any(groups[:cut_at]) and all(groups[cut_at:])
        optimizer = torch.optim.SGD([p for group in groups for p in group], lr=0.1)
        nn.Sequential(backbone).train()  # what a training loop does to its whole model
        for seed in range(2):
            optimizer.zero_grad()
            backbone(images(4, seed=seed)).square().sum().backward()
            optimizer.step()
        for before, stage in zip(frozen, backbone.stages, strict=False):
            assert all(torch.equal(before[name], tensor) for name, tensor in stage.state_dict().items())
        assert all(torch.equal(buffers[name], tensor) for name, tensor in backbone.named_buffers())
        last = zip(whole.stages[-1].parameters(), backbone.stages[-1].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in last)


def test_train_keeps_dropout_off_below_the_cut_and_on_above(backbone: Backbone) -> None:
    backbone.train_from(3)
    for _ in range(2):
        backbone.train()
        drops = {n: m.training for n, m in backbone.named_modules() if isinstance(m, nn.Dropout)}
        norms = [m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [drops[f"stages.{i + 1}.net.blocks.{i}.drop"] for i in range(4)] == [False, False, True, True]
        assert not any(norms)
        backbone.eval()
        assert not any(module.training for module in backbone.modules())


def test_parameters_that_the_network_fixed_stay_fixed() -> None:
    network = Tokens()
    network.table.requires_grad_(False)
    backbone = cut(network)
    backbone.train_from(0)
    names = {n.partition("net.")[2] for n, p in backbone.named_parameters() if p.requires_grad}
    assert "table" not in names and "token" in names


def test_state_round_trips_through_the_original(backbone: Backbone) -> None:
    other = ConvNet().eval()
    other.load_state_dict(backbone.state(), strict=True)
    x = images()
    assert torch.equal(other(x), backbone(x))
    torch.manual_seed(7)
    fresh = ConvNet().eval()
    backbone.load_state(fresh.state_dict())
    assert torch.equal(fresh(x), backbone(x))
    assert torch.equal(backbone.original()(x), backbone(x))


def test_weights_that_do_not_fit_are_named(backbone: Backbone) -> None:
    state = {name: tensor.clone() for name, tensor in backbone.state().items()}
    del state["scale"]
    state["extra"] = torch.zeros(1)
    state["stem.bias"] = torch.zeros(9)
    before = backbone.digest()
    with pytest.raises(
        WeightsError,
        match=r"missing 1 \(scale\); unexpected 1 \(extra\); wrong shape 1 \(stem.bias is \(9,\)",
    ):
        backbone.load_state(state)
    assert backbone.digest() == before


def test_the_digest_speaks_of_the_weights_up_to_a_cut(backbone: Backbone) -> None:
    twin = copy.deepcopy(backbone)
    assert twin.digest() == backbone.digest()
    with torch.no_grad():
        twin.state()["blocks.3.conv.weight"][0, 0, 0, 0] += 1e-3
    assert [twin.digest(k) == backbone.digest(k) for k in range(6)] == [True, True, True, True, True, False]
    with torch.no_grad():
        twin.state()["stem_norm.running_var"] += 1e-3
    assert twin.digest(1) != backbone.digest(1)


class Curved(nn.Module):
    """A convolution and what is done to its result; `opaque`: where that cannot be followed."""

    def __init__(self, act: Callable[[Tensor], Tensor], stride: int, opaque: bool, power: float) -> None:
        super().__init__()
        self.conv, self.act, self.opaque, self.power = nn.Conv2d(3, 8, 3, stride, 1), act, opaque, power

    def forward(self, x: Tensor) -> Tensor:
        if self.opaque and float(x.sum()) == 0.5:
            return x
        return self.act(self.conv(x)) * self.power


def curved(
    act: Callable[[Tensor], Tensor] = torch.relu,
    eps: float = 1e-5,
    stride: int = 1,
    opaque: bool = False,
    power: float = 1.0,
) -> Backbone:
    torch.manual_seed(0)
    more = [nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8, eps), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]
    return cut(nn.Sequential(Curved(act, stride, opaque, power), *more))


def test_the_digest_speaks_of_what_is_computed_too() -> None:
    plain, closed = curved(), curved(opaque=True)
    assert plain.digest() == curved().digest() and closed.digest() == curved(opaque=True).digest() != plain.digest()
    others = [
        curved(torch.tanh), curved(stride=2), curved(eps=1.0), curved(power=2.0),
        curved(torch.tanh, opaque=True), curved(power=2.0, opaque=True), curved(functional.gelu),
        curved(partial(functional.gelu, approximate="tanh")),
    ]  # fmt: skip
    assert all(torch.equal(one, plain.state()[name]) for other in others for name, one in other.state().items())
    assert len({each.digest() for each in (plain, closed, *others)}) == 2 + len(others)
    assert curved(eps=1.0).digest(1) == plain.digest(1), "what comes after a cut does not count"


def test_the_digest_speaks_of_buffers_that_no_checkpoint_has() -> None:
    digests = set()
    for shift in (0.1, 0.2):
        torch.manual_seed(0)
        network = ConvNet()
        network.register_buffer("shift", torch.full((1, 3, 1, 1), shift), persistent=False)
        digests.add(cut(network).digest())
    assert len(digests) == 2


def test_the_digest_is_the_same_in_every_process() -> None:
    script = "from tests.backbones.test_backbone import curved; print(curved().digest(), curved(opaque=True).digest())"
    expected = f"{curved().digest()} {curved(opaque=True).digest()}\n"
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert found.stdout.decode() == expected


def test_inference_mode_channels_last_and_half_precision(backbone: Backbone) -> None:
    x = images(3)
    plain = backbone(x)
    with torch.inference_mode():
        assert torch.equal(backbone(x), plain)
        assert torch.allclose(backbone(x.contiguous(memory_format=torch.channels_last)), plain, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halved = backbone.pooled(x)
    assert all(pooled.dtype == torch.float32 for pooled in halved)
    assert torch.allclose(halved[-1], plain, rtol=0.05, atol=0.05)
    turned = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    assert torch.allclose(turned(x), plain, atol=1e-5)


def test_flops_are_those_of_the_layers(backbone: Backbone) -> None:
    assert backbone.flops[0] == 2 * 3 * 8 * 9 * 16 * 16
    assert backbone.flops[1] == 2 * 8 * 8 * 9 * 16 * 16
    assert backbone.flops[2] == 2 * 8 * 8 * 9 * 8 * 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 224}, r"InputSpec\(size=224\): expected \(height, width\) in whole pixels, such as \(224, 224\)"),
        ({"size": (3, 224, 224)}, r"InputSpec\(size=\(3, 224, 224\)\): expected \(height, width\)"),
        ({"mean": 0.5}, r"InputSpec\(mean=0.5\): expected one number per channel"),
        ({"std": (0.5, 0.5, 0.0)}, r"InputSpec\(std=\(0.5, 0.5, 0.0\)\): expected one number per channel, .* above 0"),
        ({"size": (224.5, 224)}, r"expected \(height, width\) in whole pixels"),
        ({"mean": ("0", "0", "0")}, "expected one number per channel"),
        ({"std": (0.5,)}, r"InputSpec\(std=\(0.5,\)\): expected one number per channel"),
    ],
)
def test_an_input_of_another_shape_is_refused_where_it_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=said):
        InputSpec(**given)
