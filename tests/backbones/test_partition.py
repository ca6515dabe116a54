"""Cutting: what stages must equal, what they own, and what is refused."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import densenet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.check import check_backbone
from headstart.backbones.from_module import load_module
from headstart.errors import BackboneError, PartitionError
from tests.backbones.networks import Attention, ConvNet, Residual, Tokens, TwoStreams, cut, images


@pytest.mark.parametrize("kind", [ConvNet, Tokens, TwoStreams])
def test_small_networks_keep_the_whole_contract(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind()
    reference = copy.deepcopy(network)
    backbone = cut(network)
    assert len(backbone.stages) >= 4
    check_backbone(backbone, reference)


def test_networks_are_cut_in_several_threads() -> None:
    called, threads = nn.Module.__call__, 3
    begun = threading.Barrier(threads)

    def work(_: int) -> Backbone:
        begun.wait(60)
        return [cut(ConvNet()) for _ in range(4)][-1]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(work, range(threads)))
    assert nn.Module.__call__ is called
    assert all(backbone.names == cut(ConvNet()).names for backbone in found)


def test_stages_follow_the_modules() -> None:
    backbone = cut(ConvNet())
    assert backbone.names == ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert backbone.widths == (8, 8, 8, 8, 8)
    assert backbone.shapes[0] == ((8, 16, 16),)
    assert backbone.shapes[-1] == ((8,),)


def test_a_shared_table_is_owned_once_and_used_by_all() -> None:
    backbone = cut(Tokens())
    owners = [name for stage in backbone.stages for name, _ in stage.named_parameters() if name == "net.table"]
    assert len(owners) == 1
    x = images()
    before = backbone(x)
    with torch.no_grad():
        backbone.state()["table"].add_(1.0)
    assert not torch.equal(before, backbone(x))


def test_a_copy_shares_nothing_with_its_model() -> None:
    backbone = cut(Tokens())
    twin, x = copy.deepcopy(backbone), images()
    before = backbone(x)
    with torch.no_grad():
        for tensor in twin.state().values():
            tensor.zero_()
    assert torch.equal(backbone(x), before)
    assert not torch.equal(twin(x), before)


def test_a_cut_may_carry_several_tensors() -> None:
    backbone = cut(TwoStreams())
    assert max(len(shapes) for shapes in backbone.shapes) == 2
    assert 24 in backbone.widths
    activation = backbone.run(images(3), 0, 2)
    assert isinstance(activation, tuple)
    again = backbone.unflatten(2, backbone.flatten(activation))
    assert all(torch.equal(a, b) for a, b in zip(activation, again, strict=True))


def test_unused_weights_and_the_order_of_names_are_kept() -> None:
    network = ConvNet()
    names = list(network.state_dict())
    state = cut(network).state()
    assert sorted(state) == sorted(names)
    assert "unused.weight" in state and "shift" in state


def test_maps_and_tokens_are_pooled_along_the_right_axes() -> None:
    class Last(nn.Module):  # (N, 5, 5, 7): channels last, as Swin has them
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 7, 6, 6)
            self.one, self.two, self.three = (nn.Linear(7, 7) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).permute(0, 2, 3, 1)
            return self.three(self.two(self.one(x)))

    backbone = cut(Last())
    assert set(backbone.widths) == {7}
    x = images()
    last = backbone.run(x, 0, len(backbone.stages))
    assert isinstance(last, Tensor) and last.shape == (2, 5, 5, 7)
    assert torch.allclose(backbone(x), last.mean((1, 2)), atol=1e-6)


def test_axes_are_told_by_what_reads_them_where_lengths_mislead() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=56, embed_dim=14, depths=(1, 1, 2), num_heads=(1, 2, 2)
    )
    rows = cut(swin, (56, 56))
    assert rows.shapes[0] == ((14, 14, 14),) and rows.axes[:5] == ((2,),) * 5
    dense = cut(densenet.DenseNet(8, (4, 4, 4), num_classes=0), (128, 64))
    assert any(8 in shape[1:] for shapes in dense.shapes for shape in shapes), "as long as a layer is wide"
    assert {axis for axes in dense.axes for axis in axes} == {0}


def test_batch_size_in_the_code_follows_the_batch() -> None:
    class Folds(nn.Module):  # folds the batch into the patches at its top level, where no module hides it
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            x = self.stem(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = block(x.reshape(batch * 16, 4, 8)).view(batch, 64, 8)
            return x.mean(1)

    network = Folds()
    backbone = cut(network)
    for batch in (1, 2, 5):
        assert torch.equal(backbone(images(batch)), network(images(batch)))


def test_a_module_that_reads_values_is_never_divided() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if x.mean().item() > 0 else self.two(x)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Reads(), nn.Conv2d(8, 8, 3), Reads(), nn.Conv2d(8, 4, 3))
    backbone = cut(network)
    for seed in range(6):
        x = images(seed=seed) + (seed - 3) / 3
        assert torch.equal(backbone.run(x.clone(), 0, len(backbone.stages)), network(x))


def test_a_module_called_twice_has_one_owner() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.block, self.other = Residual(8, drop=0.5), Residual(8)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.block(self.stem(x)))
            x = self.drop(self.other(x))
            return self.drop(self.block(x)).mean((2, 3))

    backbone = cut(Twice())
    assert len(backbone.stages) >= 3
    check_backbone(backbone)


def test_what_a_module_is_given_but_ignores_need_not_cross_a_cut() -> None:
    class Pair(nn.Module):  # takes two tensors, some blocks look at the first alone
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.conv, self.both = nn.Conv2d(8, 8, 3, 1, 1), both

        def forward(self, pair: list[Tensor]) -> list[Tensor]:
            y = self.conv(pair[0])
            return [y + pair[1], pair[1]] if self.both else [y, y]

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.ModuleList(Pair(both) for both in (False, True, True, False, True, False))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            pair = [x, x]
            for block in self.blocks:
                pair = block(pair)
            return pair[0].mean((2, 3))

    backbone = cut(Pairs())
    assert {len(shapes) for shapes in backbone.shapes} == {1}
    check_backbone(backbone)


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 8, 8)
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            return self.c(F.gelu(self.b(F.gelu(self.a(x)))))

    backbone = cut(Tied())
    check_backbone(backbone)
    state = backbone.state()
    assert state["a.weight"].data_ptr() == state["c.weight"].data_ptr()


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["plain", "residual", "stride", "nested"]), min_size=3, max_size=7),
    seed=st.integers(0, 99),
)
def test_any_stack_of_blocks_is_cut_exactly(kinds: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    make = {
        "plain": lambda: nn.Conv2d(6, 6, 3, 1, 1),
        "residual": lambda: Residual(6),
        "stride": lambda: Residual(6, 2),
        "nested": lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True), Residual(6)),
    }
    network = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), *(make[kind]() for kind in kinds)).eval()
    reference, backbone = copy.deepcopy(network), cut(network, (64, 64))
    x = images(2, (64, 64), seed)
    whole = reference(x.clone())
    assert torch.equal(backbone.run(x.clone(), 0, len(backbone.stages)), whole)
    middle = len(backbone.stages) // 2
    first = backbone.run(x.clone(), 0, middle)
    stored = backbone.unflatten(middle, backbone.flatten(first))
    assert torch.equal(backbone.run(stored, middle, len(backbone.stages)), whole)


def test_too_few_cuts_are_refused() -> None:
    class Dense(nn.Module):  # every layer reads all layers before it, to the end
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, 1, 1) for i in range(8))
            self.last = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            found = [x]
            for layer in self.layers:
                found.append(layer(torch.cat(found, 1)))
            return torch.stack([f(y) for f, y in zip(self.last, found[1:], strict=True)]).sum(0)

    network = Dense()
    try:
        backbone = cut(network)
    except PartitionError as error:
        assert "expected at least 3" in str(error) and "headstart backbones" in str(error)
    else:  # a cut near either end may exist; then it must be true
        check_backbone(backbone)


def test_one_layer_is_refused() -> None:
    with pytest.raises(PartitionError, match="1 stages, expected at least 3"):
        cut(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def test_randomness_at_run_time_is_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape[1:])

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Noisy(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(PartitionError, match="do not equal the original network"):
        cut(network)


def test_a_network_that_returns_several_tensors_is_refused() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x), "b": self.b(self.a(x))}

    with pytest.raises(
        PartitionError, match=r"^module:\w+ must return one tensor .* Give a module whose forward returns"
    ):
        cut(Pyramid())


def test_a_wrong_input_size_is_named() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5), nn.Linear(5, 5), nn.Linear(5, 5)
    )
    with pytest.raises(PartitionError, match=r"cannot run on images of shape \(3, 64, 64\)"):
        cut(network, (64, 64))
    assert cut(network).widths[-1] == 5


def test_attention_blocks_are_kept_whole() -> None:
    backbone = cut(Tokens())
    held = [module for stage in backbone.stages for module in stage.modules() if isinstance(module, Attention)]
    assert len(held) == 5


def chain(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), *middle, *(nn.Conv2d(8, 8, 3) for _ in range(3)))


class Counting(nn.Module):
    """Counts its calls in a buffer; `anew`: which it replaces."""

    def __init__(self, anew: bool, persistent: bool) -> None:
        super().__init__()
        self.anew = anew
        self.register_buffer("seen", torch.zeros(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.anew:
            self.seen = self.seen + 1
        else:
            self.seen += 1
        return x


@pytest.mark.parametrize(("anew", "persistent"), [(False, True), (False, False), (True, True)])
def test_a_network_that_changes_as_it_answers_is_refused(anew: bool, persistent: bool) -> None:
    with pytest.raises(PartitionError, match=r"module:test changes 1\.seen.* when it answers.*as an observer"):
        cut(chain(Counting(anew, persistent)))


def test_a_network_that_mixes_pictures_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"depends on those beside it.*track_running_stats=True"):
        cut(chain(nn.BatchNorm2d(8, track_running_stats=False)))


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = chain().to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_refused(dtype: torch.dtype) -> None:
    for network in (chain().to(dtype), Cast(dtype)):
        with pytest.raises(
            PartitionError, match=rf"weights in {dtype} \(.*weight\), expected torch.float32.*network.float"
        ):
            cut(network)


def test_no_cut_is_where_another_precision_crosses() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt().float()

    torch.manual_seed(0)
    convolutions = [nn.Conv2d(8, 8, 3) for _ in range(4)]
    backbone = cut(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Double(), Single(), *convolutions))
    x, seen = images(), []
    for stage in backbone.stages:
        x = stage(x)
        seen.append(x.dtype)
    assert set(seen) == {torch.float32}


def test_state_that_is_no_tensor_is_refused() -> None:
    class Extra(nn.Conv2d):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    with pytest.raises(PartitionError, match=r"keeps 1\._extra_state in its state, a dict, expected tensors alone"):
        cut(chain(Extra(8, 8, 3)))


def test_what_cannot_be_copied_is_refused_in_words() -> None:
    network = chain()
    prune.l1_unstructured(network[1], "weight", 0.3)  # type: ignore[no-untyped-call]
    with pytest.raises(
        BackboneError, match=r"Sequential cannot be copied: Only Tensors .*prune\.remove\(module, 'weight'\)"
    ):
        load_module(network, InputSpec(size=(32, 32)))
    prune.remove(network[1], "weight")  # type: ignore[no-untyped-call]
    load_module(network, InputSpec(size=(32, 32)))


def test_a_compiled_network_is_taken_out_of_its_wrapping() -> None:
    network, spec = chain(), InputSpec(size=(32, 32))
    one, other = load_module(network, spec), load_module(torch.compile(network), spec)
    assert (one.digest(), one.origin) == (other.digest(), other.origin)
