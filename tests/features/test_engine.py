"""The engine gives what the weights were trained for: exact preprocessing, a precision that is earned, one answer per picture."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.data.transforms import MaybeToTensor
from torch import Tensor, nn
from torchvision.transforms import Normalize

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.from_module import load_module
from headstart.features import engine as room
from headstart.features.engine import AGREES, BATCH, BATCH_CUDA, COSINE, Engine, as_activation, normalize
from headstart.features.folded import can_fold
from headstart.features.way import PLAIN
from tests.toys import SPEC, needs_bfloat16, stripes, tiny_backbone

CPU = torch.device("cpu")


def pictures(count: int = 6) -> NDArray[np.uint8]:
    return stripes(count)[0]


def test_normalisation_equals_torchvisions_and_timms() -> None:
    for spec in (SPEC, InputSpec(size=(32, 32)), InputSpec(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)):
        own = normalize(pictures(), spec, CPU)
        theirs = torch.stack([Normalize(spec.mean, spec.std)(MaybeToTensor()(picture)) for picture in pictures()])
        assert own.dtype == torch.float32
        assert own.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(own, theirs, rtol=0, atol=2e-6)


def test_pooled_features_equal_the_network_in_float32() -> None:
    backbone = tiny_backbone()
    engine = Engine(backbone, precision="float32", folded=False)
    features = engine.pooled(pictures())
    assert features.shape == (6, sum(backbone.widths))
    with torch.no_grad():
        whole = backbone.original()(normalize(pictures(), SPEC, CPU))
        direct = backbone(normalize(pictures(), SPEC, CPU))
    last = torch.from_numpy(features[:, -backbone.widths[-1] :])
    assert torch.equal(last, direct)
    torch.testing.assert_close(last, whole, rtol=1e-5, atol=1e-6)


def test_activations_at_a_cut_and_what_is_pooled_beside_them_go_together() -> None:
    backbone = tiny_backbone()
    engine = Engine(backbone, precision="float32")
    features = engine.pooled(pictures())
    for cut in range(1, len(backbone.stages)):
        flat, beside = engine.activations(pictures(), cut)
        assert np.array_equal(beside, features[:, : sum(backbone.widths[:cut])])
        with torch.no_grad():
            rest = torch.cat(backbone.pooled(as_activation(backbone, flat.numpy(), cut, CPU), cut), dim=1).numpy()
        np.testing.assert_allclose(rest, features[:, sum(backbone.widths[:cut]) :], rtol=1e-5, atol=1e-6)


def fragile() -> nn.Sequential:
    """A network that takes a large offset off again, which costs bfloat16 all of its digits."""
    offset, norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    with torch.no_grad():
        offset.bias.fill_(1000.0)
    norm.running_mean = torch.full((8,), 1000.0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), offset, norm, nn.Conv2d(8, 8, 1))


def fragile_at_first() -> nn.Sequential:
    """The same in its first stage only, with sound ones behind it."""
    torch.manual_seed(0)
    behind = [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    offset, off = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        offset.bias.fill_(300.0)
        off.weight.copy_(torch.eye(8)[:, :, None, None])
        off.bias.fill_(-300.0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), offset, off), *behind)


def cosine(found: NDArray[np.float32], expected: NDArray[np.float32], width: int) -> float:
    """The least cosine of the last stages' features, per picture."""
    a, b = torch.from_numpy(found[:, -width:]), torch.from_numpy(expected[:, -width:])
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).min())


def with_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(room, "has_fast_bfloat16", lambda device: native)


def settled(backbone: Backbone) -> Engine:
    engine = Engine(backbone, device=CPU, folded=False)
    assert engine.settled is None
    engine.pooled(pictures())
    return engine


def test_bfloat16_is_taken_only_where_it_is_native_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, native=True)
    robust = settled(tiny_backbone())
    assert robust.way is not None and robust.way.agreement is not None
    assert (robust.settled, robust.exact, robust.way.agreement >= AGREES) == ("bfloat16", 0, True)
    broken = settled(load_module(fragile(), SPEC))
    assert (broken.settled, broken.way) == ("float32", PLAIN)
    with_bfloat16(monkeypatch, native=False)
    plain = settled(tiny_backbone())
    assert (plain.settled, plain.way) == ("float32", PLAIN)


def test_features_that_only_a_middle_stage_spoils_do_not_agree() -> None:
    """Heads read every stage: that the last one agrees is not enough."""
    engine = Engine(tiny_backbone(), precision="float32")
    truth = torch.from_numpy(engine.pooled(pictures()))
    assert engine._agreement(truth, truth) == 1
    widths = engine.backbone.widths
    for stage, width in enumerate(widths):
        spoilt = truth.clone()
        first = sum(widths[:stage])
        spoilt[2, first : first + width] += truth[2, first : first + width].abs().max()
        assert engine._agreement(truth, spoilt) < COSINE
    dark = truth.clone()
    dark[:, : widths[0]] = 0.0
    assert engine._agreement(dark, dark) == 1, "nothing but zeros has no direction, and agrees with itself"
    assert engine._agreement(dark, truth) < COSINE


@needs_bfloat16
@pytest.mark.parametrize("folded", [False, True])
def test_early_stages_run_in_float32_where_rounding_them_does_the_harm(
    monkeypatch: pytest.MonkeyPatch, folded: bool
) -> None:
    with_bfloat16(monkeypatch, native=True)
    plain = Engine(load_module(fragile_at_first(), SPEC), precision="float32", folded=False)
    engine = Engine(plain.backbone, device=CPU, folded=folded and can_fold(CPU))
    names, expected = plain.backbone.names, plain.pooled(pictures())
    found = engine.pooled(pictures())
    assert engine.way is not None and engine.way.agreement is not None
    assert (engine.settled, engine.way.agreement >= AGREES) == ("bfloat16", True)
    assert 0 < engine.exact <= len(names) // 2
    exact = sum(plain.backbone.widths[: engine.exact])
    np.testing.assert_allclose(found[:, :exact], expected[:, :exact], rtol=1e-4, atol=1e-4)
    assert not np.allclose(found[:, exact:], expected[:, exact:], rtol=1e-6, atol=0), "the rest runs in bfloat16"
    # A stored activation has one dtype, wherever the cut is.
    for cut in range(1, len(names)):
        assert engine.activations(pictures(), cut)[0].dtype == torch.bfloat16
    rough = Engine(plain.backbone, precision="bfloat16", folded=False)
    cosines = [cosine(e.pooled(pictures()), expected, plain.backbone.widths[-1]) for e in (rough, engine)]
    assert cosines[0] < COSINE < AGREES <= cosines[1]
    again = engine.alike(plain.backbone)
    again.settle(pictures())
    assert (again.settled, again.exact) == (engine.settled, engine.exact)


def test_a_precision_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, native=True)
    exact = Engine(tiny_backbone(), precision="float32")
    rough = Engine(load_module(fragile(), SPEC), precision="bfloat16", folded=False)
    for engine, precision in ((exact, "float32"), (rough, "bfloat16")):
        assert engine.way is None
        engine.settle(pictures())
        assert engine.settled == precision
    assert rough.way is not None and rough.way.agreement is not None, "it is told what that costs"
    assert rough.way.agreement < COSINE


def test_bfloat16_activations_survive_the_way_through_the_store() -> None:
    backbone = tiny_backbone()
    flat, _ = Engine(backbone, precision="bfloat16").activations(pictures(), 2)
    back = as_activation(backbone, flat.view(torch.uint16).numpy(), 2, CPU)
    assert isinstance(back, Tensor)
    assert back.dtype == torch.float32
    assert torch.equal(back.flatten(1), flat.float())


def test_the_engine_leaves_no_trace_in_the_backbone() -> None:
    backbone = tiny_backbone()
    before = backbone.digest()
    engine = Engine(backbone, precision="float32")
    engine.pooled(pictures())
    engine.activations(pictures(), 2)
    engine.stage_seconds(2)
    assert backbone.digest() == before
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_seconds_are_told_per_stage() -> None:
    forward = Engine(tiny_backbone(), precision="float32").stage_seconds(4)
    assert len(forward) == 5
    assert min(forward) > 0 and max(forward) < 10


def test_a_gpu_runs_larger_batches() -> None:
    engine = Engine(tiny_backbone())
    assert engine.batch == BATCH
    engine.device = torch.device("cuda")
    assert engine.batch == BATCH_CUDA > BATCH


class Keeping(nn.Module):
    """A residual block that keeps its input on itself until it needs it."""

    def __init__(self, width: int, buffer: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        if buffer:
            self.register_buffer("input", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        time.sleep(0.002)  # so that another thread gets here before it is read
        return (self.conv(x) + self.input).relu()


def keeping(buffer: bool = False) -> Backbone:
    torch.manual_seed(0)
    return load_module(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *(Keeping(8, buffer) for _ in range(3))), SPEC)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_network_that_keeps_pictures_on_itself_runs_one_at_a_time(buffer: bool) -> None:
    engine, batches = Engine(keeping(buffer)), np.split(pictures(24), 12)
    assert engine.backbone.alone and copy.deepcopy(engine).backbone.alone
    expected = [engine.pooled(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.pooled, batches))
    np.testing.assert_array_equal(found, expected)
    assert engine.backbone.digest() == keeping(buffer).digest()


def test_tables_that_a_network_keeps_hinder_no_thread() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.size, self.table = x.shape, torch.arange(x.shape[-1], dtype=torch.float32, device=x.device)
            return x + self.table

    assert not load_module(
        nn.Sequential(nn.Conv2d(3, 8, 3), Table(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), SPEC
    ).alone
    assert not tiny_backbone().alone
