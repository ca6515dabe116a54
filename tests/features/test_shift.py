"""The shift is nothing where the statistics are the source's own, grows with the distance, and moves nothing that it looks at."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.catalog import load_backbone
from headstart.backbones.weights import classifier_of
from headstart.data.load import load_dataset
from headstart.features.engine import normalize
from headstart.features.extract import extract
from headstart.features.shift import PICTURES, answers_entropy, shift, statistics_shift
from headstart.features.store import Store
from tests.toys import folder, stripes

SIDE = 32


def pictures(seed: int = 0, brightness: float = 1.0) -> NDArray[np.uint8]:
    drawn = stripes(24, side=SIDE, seed=seed)[0]
    return (drawn * brightness).astype(np.uint8)


class Net(nn.Module):
    """Four convolutions, each with a norm, or with none."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        widths = (3, 6, 6, 8, 8)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, momentum=None) if norms else nn.Identity() for width in widths[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        return x.mean((2, 3))


def made(norms: bool) -> Backbone:
    """Running statistics, where there are any, are those of `pictures()`."""
    torch.manual_seed(0)
    net, spec = Net(norms), InputSpec((SIDE, SIDE))
    with torch.no_grad():
        net.train()(normalize(pictures(), spec, torch.device("cpu")))
    return load_backbone(net.eval(), input=spec)


@pytest.fixture
def settled() -> Backbone:
    return made(norms=True)


def test_there_is_none_where_the_statistics_are_the_sources_own(settled: Backbone) -> None:
    own = [each for each in statistics_shift(settled, pictures()) if each is not None]
    assert len(own) >= 3 and max(own) < 5e-3
    darker = [
        [each for each in statistics_shift(settled, pictures(brightness=b)) if each is not None] for b in (0.7, 0.2)
    ]
    assert np.mean(own) < np.mean(darker[0]) < np.mean(darker[1]) < 1


def test_a_batch_may_hold_a_single_value_of_a_channel() -> None:
    class Pooled(Net):
        def __init__(self) -> None:
            super().__init__(norms=False)
            self.last = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(super().forward(x))

    torch.manual_seed(0)
    net, spec = Pooled().eval(), InputSpec((SIDE, SIDE))
    some = pictures()[:17]  # sixteen and one
    with torch.no_grad():
        values = Net.forward(net, normalize(some, spec, torch.device("cpu")))
    net.last.running_mean, net.last.running_var = values.mean(0), values.var(0, correction=0)
    found = [each for each in statistics_shift(load_backbone(net, input=spec), some) if each is not None]
    assert found == [pytest.approx(0, abs=1e-6)]


def test_nothing_is_moved_and_no_hook_stays(settled: Backbone) -> None:
    before = copy.deepcopy(settled.state())
    statistics_shift(settled, pictures(seed=3))
    assert all(torch.equal(before[name], tensor) for name, tensor in settled.state().items())
    assert not any(module._forward_pre_hooks for module in settled.modules())


def test_it_is_measured_once_and_does_not_depend_on_order(settled: Backbone, store: Store) -> None:
    drawn, labels = stripes(120, classes=3, side=SIDE)
    dataset = load_dataset((drawn, labels))
    features = extract(settled, dataset, store)
    first = shift(settled, dataset, features, store)
    assert first.distance is not None and first.entropy is None and first.classes == 0
    assert first.pictures == PICTURES < len(dataset.indices("train"))
    back = load_dataset((drawn[::-1].copy(), labels[::-1].copy()))
    other = shift(
        settled, back, extract(settled, back, Store(store.root.parent / "other")), Store(store.root.parent / "other")
    )
    assert other.stages == first.stages

    def fails(*_: object) -> Tensor:
        raise AssertionError("a picture was run again")

    settled.run = fails  # type: ignore[method-assign, assignment]
    assert shift(settled, dataset, features, store) == first


def test_without_running_statistics_the_classifier_alone_tells(store: Store) -> None:
    backbone = made(norms=False)
    backbone.classifier = torch.randn(5, 8), torch.zeros(5)
    drawn, labels = stripes(30, classes=3, side=SIDE)
    dataset = load_dataset((drawn, labels))
    found = shift(backbone, dataset, extract(backbone, dataset, store), store)
    assert found.distance is None and set(found.stages) == {None}
    assert found.entropy is not None and 0 < found.entropy <= 1 and found.classes == 5


def test_entropy_is_a_share_of_the_largest() -> None:
    rows = np.eye(4, dtype=np.float32)
    assert answers_entropy((torch.zeros(4, 4), torch.zeros(4)), rows) == pytest.approx(1.0)
    assert answers_entropy((200.0 * torch.eye(4), torch.zeros(4)), rows) == pytest.approx(0.0, abs=1e-9)
    assert answers_entropy((torch.zeros(3, 4), torch.tensor([0.0, 0.0, -1e4])), rows) == pytest.approx(
        np.log(2) / np.log(3)
    )


def test_the_bundled_classifier_comes_along_and_answers_as_timm_does() -> None:
    import timm

    from headstart.backbones.bundled import BUNDLED, locate, to_timm
    from headstart.backbones.weights import read_weights

    name = "tf_efficientnet_lite0"
    backbone, file = load_backbone(name), locate(BUNDLED[name])
    assert backbone.classifier is not None and file is not None
    whole = timm.create_model(name).eval()
    whole.load_state_dict(to_timm(BUNDLED[name], read_weights(file), whole.state_dict()), strict=False)
    x = torch.randn(2, 3, 224, 224)
    weight, bias = backbone.classifier
    with torch.inference_mode():
        assert torch.allclose(backbone(x) @ weight.T + bias, whole(x), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}, True),
        ({"fc.weight": torch.zeros(3, 8)}, False),
        ({"fc.weight": torch.zeros(3, 9), "fc.bias": torch.zeros(3)}, False),
        ({"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(4)}, False),
        ({"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3), "fc2.bias": torch.zeros(3)}, False),
        ({}, False),
    ],
)
def test_only_a_linear_classifier_of_this_width_is_taken(given: dict[str, Tensor], found: bool) -> None:
    assert (classifier_of({**given, "stem": torch.zeros(1)}, frozenset(given), 8) is not None) == found


def test_a_picture_that_went_away_ends_no_run(settled: Backbone, store: Store, tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", 40)
    dataset = load_dataset(root)
    features = extract(settled, dataset, store)
    gone = sorted(dataset.indices("train").tolist(), key=lambda i: dataset.digests[i])[0]
    (root / dataset.names[gone]).unlink()
    found = shift(settled, dataset, features, store)
    assert found.distance is not None
    for path in root.rglob("*.png"):
        path.unlink()
    assert shift(settled, dataset, features, Store(tmp_path / "empty")).distance is None


@pytest.mark.parametrize("form", ["no variance", "channels last", "by name"])
def test_what_only_looks_like_a_batch_norm_is_passed_over(form: str) -> None:
    class Odd(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(width))
            if form != "no variance":
                self.register_buffer("running_var", torch.ones(width))

        def forward(self, input: Tensor) -> Tensor:
            return input * 2.0

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise((3, 6, 6, 8, 8)))
            self.odd = Odd(6)

        def forward(self, x: Tensor) -> Tensor:
            for place, convolution in enumerate(self.convolutions):
                x = convolution(x)
                if place == 0:
                    if form == "channels last":
                        x = self.odd(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                    else:
                        x = self.odd(input=x) if form == "by name" else self.odd(x)
            return x.mean((2, 3))

    backbone = load_backbone(Holder().eval(), input=InputSpec((SIDE, SIDE)))
    assert set(statistics_shift(backbone, pictures())) == {None}


def test_a_classifier_that_required_a_gradient_can_be_copied_and_asked() -> None:
    given = {"fc.weight": nn.Parameter(torch.randn(3, 8, dtype=torch.half)), "fc.bias": nn.Parameter(torch.zeros(3))}
    found = classifier_of(given, frozenset(given), 8)
    assert found is not None
    assert 0 < answers_entropy(copy.deepcopy(found), np.ones((2, 8), np.float32)) <= 1
