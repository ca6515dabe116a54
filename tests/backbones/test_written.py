"""A backbone that is read again computes the same bits without its code, and nothing is run that computes with no tensors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import save_file
from timm.layers.conv2d_same import Conv2dSame as TimmConv2dSame
from timm.layers.norm_act import BatchNormAct2d as TimmBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from headstart.backbones import written
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.bundled import BUNDLED
from headstart.backbones.catalog import DEFAULT_BACKBONE, load_backbone
from headstart.backbones.from_module import load_module
from headstart.backbones.from_pip import NETWORKS, Described
from headstart.backbones.from_timm import build, load_timm
from headstart.backbones.modules import ACTIVATIONS, Convolution, Norm, describe, is_whole
from headstart.backbones.partition import partition
from headstart.backbones.program import Batch, Here, Submodule, Value, Weight
from headstart.errors import BackboneError, WeightsError
from headstart.features.folded import FUSED, Folded, fold
from tests.backbones.described import described, same_in_training
from tests.backbones.test_families import SMALL
from tests.toys import SPEC, TinyNet, settle_statistics, tiny_backbone


def read_again(backbone: Backbone) -> Backbone:
    """The backbone after a way through JSON."""
    found = written.write(backbone)
    assert found is not None
    text = found.model_dump_json(exclude_defaults=True)
    again = written.Written.model_validate_json(text)
    tensors = backbone.state() | written.computed(backbone)
    return written.read(again, tensors, backbone.input, backbone.origin)


def same_bits(one: Backbone, other: Backbone, batch: int) -> bool:
    x = torch.randn(batch, 3, *one.input.size, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        pairs = zip(one.pooled(x.clone()), other.pooled(x.clone()), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", SMALL)
def test_a_network_of_every_kind_is_read_again(kind: str) -> None:
    side, build = SMALL[kind]
    torch.manual_seed(0)
    network = settle_statistics(build())
    backbone = partition(network, InputSpec(size=(side, side)), Origin(f"timm:{kind}", "", "", "", ""))
    again = read_again(backbone)
    assert same_bits(backbone, again, 1) and same_bits(backbone, again, 3)
    assert again.state().keys() == backbone.state().keys() and again.digest() == backbone.digest()
    assert (again.names, again.shapes, again.axes, again.flops) == (
        backbone.names, backbone.shapes, backbone.axes, backbone.flops,
    )  # fmt: skip
    assert written.write(again) == written.write(backbone), "it can be written down once more"
    assert not again.trains and not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_networks_are_written_down_as_timm_has_them(name: str) -> None:
    kept = Described.model_validate_json((NETWORKS / f"{name}.json").read_bytes())
    assert kept == described(name), "timm's code has changed: python -m tests.backbones.described"
    assert kept.network.trains


def test_what_does_otherwise_in_training_is_seen() -> None:
    network = TinyNet()  # which has dropout
    assert not same_in_training(network, (2, 3, *SPEC.size))
    for block in network.blocks:
        block.drop = nn.Identity()
    assert same_in_training(network, (2, 3, *SPEC.size))


def test_a_fit_of_a_bundled_backbone_starts_without_slow_imports() -> None:
    script = (
        "import sys, headstart.transfer\n"
        "headstart.load_backbone('tf_efficientnet_lite0').train_from(3)\n"
        "slow = {'timm', 'torchvision', 'torch._dynamo', 'torch.utils.flop_counter', 'scipy.stats', 'sklearn'} & {*sys.modules}\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_file_of_weights_for_a_bundled_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "own.safetensors"
    save_file(build(name).state_dict(), file)
    backbone, built = load_backbone(name, weights=file), load_timm(name, file, True, None)
    assert (backbone.origin, backbone.input) == (built.origin, built.input)
    assert same_bits(backbone, built, 1) and backbone.digest() == built.digest()
    assert {type(module).__module__.split(".")[0] for module in backbone.modules()} == {"torch", "headstart"}
    save_file({"conv_stem.weight": torch.zeros(1)}, file)
    with pytest.raises(
        WeightsError, match=r"own\.safetensors does not fit this architecture: \d+ missing, as blocks.*; 1 of another"
    ):
        load_backbone(name, weights=file)


def test_a_bundled_backbone_is_that_of_timm_bit_for_bit_also_in_training() -> None:
    backbone, built = load_backbone(DEFAULT_BACKBONE), load_timm(DEFAULT_BACKBONE, None, True, None)
    assert (backbone.origin, backbone.input, backbone.names) == (built.origin, built.input, built.names)
    assert backbone.classifier is not None and built.classifier is not None
    assert all(torch.equal(one, other) for one, other in zip(backbone.classifier, built.classifier, strict=True))
    assert same_bits(backbone, built, 2) and backbone.digest() == built.digest()
    gradients = []
    for each in (backbone, built):
        each.train_from(3)
        x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        each(x).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in each.stages.named_parameters() if weight.requires_grad})
    one, other = gradients
    assert [*one] == [*other] and one, "optimizers count parameters in this order"
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_backbone_can_be_pickled() -> None:
    backbone = load_backbone("test_resnet", pretrained=False)  # with a pooling that torch makes on the fly
    again = pickle.loads(pickle.dumps(backbone))
    assert same_bits(backbone, again, 1) and written.write(again) == written.write(backbone)


def test_no_module_of_the_network_is_left() -> None:
    kinds = {
        type(module).__module__ for module in read_again(load_backbone("test_efficientnet", pretrained=False)).modules()
    }
    assert not [kind for kind in kinds if not kind.startswith(("torch.", "headstart."))]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "test_coatnet", "cs3darknet_focus_s"])
def test_folded_copies_compute_the_same_bits(name: str) -> None:
    backbone = load_backbone(name, pretrained=False, input=InputSpec(size=(160, 160)))
    settle_statistics(backbone)
    (one,), (other,) = fold(backbone), fold(read_again(backbone))
    folds = [sum(isinstance(module, Folded) for module in each.modules()) for each in (one, other)]
    assert folds[0] == folds[1] > 0
    assert same_bits(one, other, 2)


def test_weights_have_to_fit() -> None:
    backbone = tiny_backbone()
    found = written.write(backbone)
    assert found is not None
    for changes, words in (
        ({"stem.weight": None}, r"stem\.weight is missing"),
        ({"more": torch.zeros(1)}, "more is unexpected"),
        ({"stem.bias": torch.zeros(2, 2)}, r"stem\.bias is \(2, 2\), expected \(8,\)"),
    ):
        tensors = {name: tensor for name, tensor in {**backbone.state(), **changes}.items() if tensor is not None}
        with pytest.raises(BackboneError, match=f"do not fit what is written down of module:TinyNet: {words}"):
            written.read(found, tensors, backbone.input, backbone.origin)


class BatchNorm2d(nn.BatchNorm2d):
    """Called like torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.sin(3 * super().forward(input))


class Borrower(nn.Module):
    """Uses the weight of a module that runs later, and is not its own."""

    def __init__(self, lender: nn.Conv2d) -> None:
        super().__init__()
        self.lender = [lender]

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.lender[0].weight, padding=1)


def chain(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for width in (3, 8, 8, 8)]
    for part in parts:
        settle_statistics(part)
    return nn.Sequential(*parts[:2], *middle, *parts[2:])


def hooked() -> nn.Sequential:
    network = chain()
    network[1][0].register_forward_hook(lambda module, given, result: 2 * result)
    return network


def borrowing() -> nn.Sequential:
    network = chain()
    return nn.Sequential(network[0], Borrower(network[2][0]), *network[1:])


def tied() -> nn.Sequential:
    network = chain()
    network[2][0].weight = network[1][0].weight
    return network


def unbiased() -> nn.Sequential:
    norm = nn.BatchNorm2d(8)
    norm.bias = None  # type: ignore[assignment]
    return chain(norm)


ODD: dict[str, Callable[[], nn.Sequential]] = {
    "a norm with another forward pass": lambda: chain(BatchNorm2d(8)),
    "a hook": hooked,
    "a parametrised weight": lambda: chain(spectral_norm(nn.Conv2d(8, 8, 3))),
    "a norm without a bias": unbiased,
    "a borrowed weight": borrowing,
    "a tied weight": tied,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_read_bit_for_bit_or_not_written(kind: str) -> None:
    backbone = load_module(ODD[kind](), InputSpec(size=(16, 16)))
    found = written.write(backbone)
    assert (found is None) == (kind in {"a norm without a bias", "a tied weight"})
    assert found is None or same_bits(backbone, read_again(backbone), 2)


@pytest.mark.parametrize(
    "name",
    ["torch.load", "torch.hub.load", "torch.save", "torch.from_file", "torch.serialization.load", "torch.ops", "builtins.eval",
     "torch.nn.functional.importlib.import_module", "torch.nn.functional.warnings.warn", "torch.no_such", "", "torch",
     "torch.classes.a.b", "torch.Tensor.__reduce_ex__", "torch.Tensor.__setstate__"],
)  # fmt: skip
def test_only_what_computes_with_tensors_is_called(name: str) -> None:
    backbone = tiny_backbone()
    found = written.write(backbone)
    assert found is not None
    data = found.model_dump()
    step = next(step for stage in data["stages"] for step in stage["steps"] if step["function"])
    step["function"] = name
    with pytest.raises(BackboneError, match=f"this torch has no function '{name}' that computes with tensors"):
        written.read(written.Written.model_validate(data), backbone.state(), backbone.input, backbone.origin)


@pytest.mark.parametrize("odd", [{"object": 1}, {"torch": "load"}, {"torch": "nn"}, {"slice": 3}, {"batch": [1]}, {}])
def test_what_stands_for_nothing_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match=r"stands for nothing that is known|this torch has no constant"):
        written._template(odd)


_LEAVES = some.one_of(
    some.none(), some.booleans(), some.integers(-9, 9), some.floats(allow_nan=False), some.text(max_size=3),
    some.builds(Value, some.integers(0, 9)), some.builds(Weight, some.text(max_size=3)),
    some.builds(Batch, some.integers(-3, 3), some.integers(-3, 3)), some.just(Here()), some.just(...),
    some.sampled_from([torch.float32, torch.bfloat16, torch.channels_last, torch.strided]),
    some.builds(slice, some.none() | some.integers(0, 3), some.integers(0, 3), some.none()),
)  # fmt: skip


@given(
    some.recursive(
        _LEAVES,
        lambda inner: (
            some.lists(inner, max_size=3)
            | some.lists(inner, max_size=3).map(tuple)
            | some.dictionaries(some.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_templates_come_back_as_they_were(template: Any) -> None:
    again = written._template(json.loads(json.dumps(written._data(template), allow_nan=False)))
    assert again == template and repr(again) == repr(template)


def test_what_has_no_name_is_not_written() -> None:
    assert written.write(tiny_backbone()) is not None
    for nameless in (object(), OrderedDict, 1j):
        with pytest.raises(written._NoName):
            written._data((nameless,))


@pytest.mark.parametrize("size", [(9, 9), (8, 11), (7, 7)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (2, 2), (1, 2)])
def test_a_convolution_that_pads_as_tensorflow_does(size: tuple[int, int], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    original = TimmConv2dSame(4, 6, kernel, stride, groups=2)
    description = describe(original)
    assert isinstance(description, Convolution) and description.same
    built = description.build()
    built.load_state_dict(original.state_dict(), assign=True)
    x = torch.randn(2, 4, *size)
    assert torch.equal(built(x), original(x))
    assert describe(built) == description


@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_with_an_activation(act: type[nn.Module], affine: bool) -> None:
    original = TimmBatchNormAct2d(4, eps=0.01, affine=affine, act_layer=act).eval()
    settle_statistics(original) if affine else None
    description = describe(original)
    assert isinstance(description, Norm) and description.activation == act.__name__
    built = description.build().eval()
    built.load_state_dict(original.state_dict(), assign=True)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(built(x), original(x))
    assert describe(built) == description
    assert is_whole(original) and is_whole(built)


def test_an_activation_that_is_not_known_is_told_apart() -> None:
    norm = TimmBatchNormAct2d(2, act_layer=nn.GELU)
    description = describe(norm)
    assert isinstance(description, Norm) and description.activation == "Identity" and not is_whole(norm)


def test_what_folding_runs_with_a_convolution_is_described_with_its_norm() -> None:
    assert {*ACTIVATIONS} == {*FUSED}


def test_others_are_not_described() -> None:
    for module in (
        nn.Linear(2, 2),
        nn.Conv2d(2, 2, 1, padding_mode="circular"),
        nn.BatchNorm2d(2, track_running_stats=False),
    ):
        assert describe(module) is None


def test_a_shared_table_is_borrowed_from_the_stage_that_holds_it() -> None:
    side, build = SMALL["beit"]
    backbone = partition(build(), InputSpec(size=(side, side)), Origin("timm:beit", "", "", "", ""))
    found = written.write(backbone)
    assert found is not None
    readers = [
        place
        for place, stage in enumerate(found.stages)
        if any("relative_position_bias_table" in str(step.args) for step in stage.steps)
    ]
    holders = [
        place
        for place, stage in enumerate(found.stages)
        if any("relative_position_bias_table" in n for n in stage.holds)
    ]
    assert (
        len(holders) == 1
        and len(readers) > 1
        and not any(isinstance(step.module, Submodule) for step in found.stages[0].steps)
    )
    assert same_bits(backbone, read_again(backbone), 2)
