"""One training loop: the store gives it what the pictures give, frozen stays frozen, and a resumed training is the same training."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart import train as room
from headstart.backbones.backbone import Backbone
from headstart.backbones.from_module import load_module
from headstart.data.dataset import Dataset
from headstart.errors import StoreError
from headstart.features.activations import cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract
from headstart.features.store import Store
from headstart.heads import Head, fit_head
from headstart.plan import Rung
from headstart.suffix import FromImages, FromStore, Net, Source, fastest, held_out_logits, stage_seconds, training
from headstart.train import Checkpoint, Trained, one_cycle, optimizer_for, train
from tests.toys import SPEC, needs_bfloat16, striped, tiny_backbone

TAPS = (1, 3, 4)  # a stage below the cut, and two above it
SEED = 7
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bench:
    dataset: Dataset
    backbone: Backbone
    engine: Engine
    features: Features
    head: Head
    fit: Indices
    held: Indices

    def net(self, cut: int) -> Net:
        raw = torch.from_numpy(self.features.stages(TAPS, self.fit))
        backbone = copy.deepcopy(self.backbone)
        return Net(backbone, self.head, cut, raw.mean(0), raw.std(0, correction=0))

    def stored(self, cut: int, views: int) -> FromStore:
        cached = cache_activations(
            self.backbone, self.dataset, Store(), cut, views,
            augmented=self.fit, clean=self.held, seed=SEED, engine=self.engine,
        )  # fmt: skip
        return FromStore(self.backbone, cached)

    def pictured(self, cut: int) -> FromImages:
        return FromImages(self.engine, self.dataset, cut, SEED)

    def train(self, net: Net, source: Source, rung: Rung, **options: Any) -> Trained:
        return train(net, source, self.dataset.labels, self.fit, self.held, rung, **{"seed": SEED, **options})


@pytest.fixture
def bench() -> Bench:
    dataset, backbone = striped(90, contrast=30), tiny_backbone()
    engine = Engine(backbone, precision="float32")
    features = extract(backbone, dataset, Store(), engine=engine)
    everyone = np.arange(len(dataset))
    order = np.random.default_rng(0).permutation(everyone)
    fit, held = np.sort(order[:60]), np.sort(order[60:])
    head = fit_head(features.stages(TAPS, fit), dataset.labels[fit], 3, "logistic", TAPS, 1e-4)
    return Bench(dataset, backbone, engine, features, head, fit, held)


def rung(cut: int, **changes: Any) -> Rung:
    return Rung(**{"cut": cut, "epochs": 3, "views": 3, "batch": 16, "lr_body": 3e-3, "lr_head": 3e-3, **changes})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_net_starts_as_the_head_on_the_features(bench: Bench) -> None:
    net = bench.net(2)
    logits = held_out_logits(net, bench.stored(2, 1), bench.held)
    expected = bench.head.logits(bench.features.stages(TAPS, bench.held))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    back = net.linear("logistic", 1e-4)
    np.testing.assert_allclose(back.weight, bench.head.weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back.bias, bench.head.bias, rtol=1e-3, atol=1e-3)
    assert (back.taps, back.kind, back.strength) == (TAPS, "logistic", 1e-4)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_training_from_the_store_equals_training_from_pictures(bench: Bench, cut: int) -> None:
    stored, pictured = bench.net(cut), bench.net(cut)
    a = bench.train(stored, bench.stored(cut, 3), rung(cut))
    b = bench.train(pictured, bench.pictured(cut), rung(cut))
    assert same(a.weights, b.weights)
    assert same(stored.weights(), pictured.weights())
    assert a.curve == b.curve
    start = bench.net(cut).weights()
    assert not same(start, stored.weights())


@pytest.mark.parametrize("statistics", ["frozen", "learnt"])
def test_what_is_frozen_is_bit_identical_after_training(bench: Bench, statistics: str) -> None:
    net = bench.net(2)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    bench.train(net, bench.stored(2, 3), rung(2, statistics=statistics))
    moved = {name for name, value in net.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("stages.2.", "stages.3.", "stages.4.")) for name in moved)
    weights = {
        name for name, parameter in net.backbone.named_parameters() if not name.startswith(("stages.0", "stages.1"))
    }
    assert weights <= moved
    running = {name for name in moved if "running" in name or "num_batches" in name}
    assert bool(running) == (statistics == "learnt")
    assert bench.backbone.digest() == tiny_backbone().digest()  # the one that was copied is as it was


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"trains": "norms"}, lambda stage, name, ndim: stage >= 2 and ndim <= 1),
        ({"trains": "biases"}, lambda stage, name, ndim: stage >= 2 and name.endswith("bias")),
        ({"until": 3}, lambda stage, name, ndim: stage == 2),
        ({"until": 4, "trains": "norms"}, lambda stage, name, ndim: stage in (2, 3) and ndim <= 1),
        ({"until": 4, "statistics": "learnt"}, lambda stage, name, ndim: stage in (2, 3)),
    ],
    ids=["norms", "biases", "surgical", "surgical norms", "surgical with statistics"],
)
def test_a_rung_may_train_some_of_the_weights_and_leaves_the_others_bit_identical(
    bench: Bench, changes: dict[str, Any], trained: Callable[[int, str, int], bool]
) -> None:
    net = bench.net(2)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    bench.train(net, bench.stored(2, 3), rung(2, **changes))
    moved = {name for name, value in net.backbone.state_dict().items() if not torch.equal(value, before[name])}
    running = {name for name in moved if "running" in name or "num_batches" in name}
    expected = {name for name, p in net.backbone.named_parameters() if trained(int(name.split(".")[1]), name, p.ndim)}
    assert expected
    assert moved - running == expected
    assert {int(name.split(".")[1]) for name in running} == ({2, 3} if "statistics" in changes else set())
    net.unfreeze(rung(2))  # what a rung left alone is there for the next one
    assert all(
        p.requires_grad == (not name.startswith(("stages.0", "stages.1")))
        for name, p in net.backbone.named_parameters()
    )


def test_the_optimizer_holds_what_trains_and_nothing_else(bench: Bench) -> None:
    net = bench.net(3)
    net.backbone.train_from(3)
    optimizer = optimizer_for(net, rung(3, lr_body=1e-3, lr_decay=0.5, weight_decay=0.1))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    expected = [*net.backbone.stages[3].parameters(), *net.backbone.stages[4].parameters(), *net.head.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in expected}
    peaks = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    assert {peaks[id(p)] for p in net.backbone.stages[4].parameters()} == {1e-3}
    assert {peaks[id(p)] for p in net.backbone.stages[3].parameters()} == {5e-4}
    assert {peaks[id(p)] for p in net.head.parameters()} == {3e-3}
    decays = {group["weight_decay"] for group in optimizer.param_groups for p in group["params"] if p.ndim <= 1}
    assert decays == {0.0, 0.1}  # the head's bias lies in the head's group
    fixed = next(iter(net.backbone.stages[4].parameters())).requires_grad_(False)  # as some networks keep theirs
    held = [id(p) for group in optimizer_for(net, rung(3)).param_groups for p in group["params"]]
    assert set(held) == {id(p) for p in expected} - {id(fixed)}


class Killed:
    """A source that is interrupted at its n-th batch: in the middle of an epoch, at its first step, or while judging."""

    def __init__(self, source: Source, after: int) -> None:
        self.source, self.left = source, after

    def batch(self, indices: Indices, views: Indices, device: torch.device) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.source.batch(indices, views, device)


@pytest.mark.parametrize("after", [0, 2, 4, 5, 7, 12, 14])
def test_interrupted_anywhere_and_resumed_is_the_same_training(bench: Bench, store: Store, after: int) -> None:
    source, steps = bench.stored(2, 3), rung(2)
    whole = bench.net(2)
    expected = bench.train(whole, source, steps)
    checkpoint = Checkpoint(store.artifact("checkpoint", {"after": after}), every=0.0)
    with pytest.raises(KeyboardInterrupt):
        bench.train(bench.net(2), Killed(source, after), steps, checkpoint=checkpoint)
    torch.manual_seed(after)  # whatever was drawn in between
    told: list[int] = []
    resumed = bench.net(2)
    found = bench.train(resumed, source, steps, checkpoint=checkpoint, advance=lambda n=1, /, **_: told.append(n))
    assert found.curve == expected.curve
    assert same(found.weights, expected.weights)
    assert same(resumed.weights(), whole.weights())
    assert sum(told) == 3
    assert (told[0] == after // 5) == (after >= 5)  # four steps and one look at the held-out make an epoch


def test_the_seed_decides(bench: Bench) -> None:
    source = bench.stored(2, 3)
    runs = [bench.train(bench.net(2), source, rung(2), seed=seed) for seed in (1, 1, 2)]
    assert same(runs[0].weights, runs[1].weights)
    assert not same(runs[0].weights, runs[2].weights)


def test_what_is_held_out_chooses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.9, 0.6, 0.5])

    def judged(net: Net, source: Source, labels: Indices, held: Indices, epoch: int, loss: float, _: str) -> room.Epoch:
        return room.Epoch(epoch, loss, 1.0, next(accuracies, 0.5))

    monkeypatch.setattr(room, "_judged", judged)
    net, source = bench.net(2), bench.stored(2, 3)
    found = bench.train(net, source, rung(2, epochs=4))
    assert found.complete and [row.val_accuracy for row in found.curve] == [0.5, 0.9, 0.6, 0.5]
    assert same(found.weights, net.weights())
    alone = bench.net(2)
    nobody = np.empty(0, np.int64)
    train(alone, source, bench.dataset.labels, bench.fit, nobody, rung(2, epochs=4), seed=SEED)
    assert same(alone.weights(), net.weights())  # the same schedule without anything held out, as a refit runs it


def test_the_curve_is_of_the_weights_after_each_epoch(bench: Bench) -> None:
    net, source = bench.net(2), bench.stored(2, 3)
    found = bench.train(net, source, rung(2, epochs=6))
    logits = held_out_logits(net, source, bench.held)
    right = (logits.argmax(1) == bench.dataset.labels[bench.held]).mean()
    assert found.complete and right == pytest.approx(found.curve[-1].val_accuracy)


def test_without_held_out_pictures_the_last_epoch_counts(bench: Bench) -> None:
    source, nobody = bench.stored(2, 3), np.empty(0, np.int64)
    net = bench.net(2)
    found = train(net, source, bench.dataset.labels, bench.fit, nobody, rung(2, epochs=2), seed=SEED)
    assert len(found.curve) == 2
    assert all(math.isnan(row.val_loss) and math.isnan(row.val_accuracy) for row in found.curve)
    assert same(found.weights, net.weights())


class Clock:
    def __init__(self, ends: int) -> None:
        self.calls, self.ends = 0, ends

    perf_counter = staticmethod(time.perf_counter)  # what is saved when does not hang on this clock

    def monotonic(self) -> float:
        self.calls += 1
        return 0.0 if self.calls <= self.ends else 100.0


def test_past_the_deadline_the_last_whole_epoch_is_given(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bench.stored(2, 3)
    checkpoint = Checkpoint(store.artifact("checkpoint", {}), every=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(room, "time", Clock(0))
        at_once = bench.train(bench.net(2), source, rung(2), deadline=50.0)
        patch.setattr(room, "time", Clock(6))  # four steps an epoch: in the middle of the second
        cut_short = bench.train(bench.net(2), source, rung(2), deadline=50.0, checkpoint=checkpoint)
    assert (at_once.complete, at_once.curve) == (False, ())
    assert same(at_once.weights, bench.net(2).weights())
    assert (cut_short.complete, len(cut_short.curve)) == (False, 1)
    expected = bench.train(bench.net(2), source, rung(2))
    assert cut_short.curve == expected.curve[:1]
    later = bench.train(bench.net(2), source, rung(2), checkpoint=checkpoint)
    assert same(later.weights, expected.weights)


def test_short_epochs_are_saved_together(bench: Bench, store: Store) -> None:
    rare, often = (Checkpoint(store.artifact("checkpoint", {"every": every}), every) for every in (1e9, 0.0))
    for checkpoint in (rare, often):
        bench.train(bench.net(2), bench.stored(2, 1), rung(2, views=1, epochs=2), checkpoint=checkpoint)
    net = bench.net(2)
    net.unfreeze(rung(2))
    optimizer = optimizer_for(net, rung(2))
    assert not rare.load(net, optimizer) and len(often.load(net, optimizer)) == 2


def test_a_training_that_ends_leaves_no_checkpoint_once_dropped(bench: Bench, store: Store) -> None:
    checkpoint = Checkpoint(store.artifact("checkpoint", {}), every=0.0)
    net = bench.net(3)
    bench.train(net, bench.stored(3, 1), rung(3, views=1, epochs=1), checkpoint=checkpoint)
    net.unfreeze(rung(3))
    optimizer = optimizer_for(net, rung(3))
    assert checkpoint.load(net, optimizer)
    checkpoint.drop()
    assert not checkpoint.load(net, optimizer)


def test_one_cycle_rises_to_one_and_falls_to_nothing() -> None:
    factors = [one_cycle(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(0.04)
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) == 60
    assert factors[:61] == sorted(factors[:61])
    assert factors[60:] == sorted(factors[60:], reverse=True)
    assert factors[-1] < 1e-3
    assert all(0 <= one_cycle(step, 1) <= 1 for step in range(2))


def test_a_view_that_was_never_cached_is_an_error(bench: Bench) -> None:
    source = bench.stored(2, 2)
    with pytest.raises(StoreError, match="does not hold"):
        source.batch(bench.held, np.ones(len(bench.held), np.int64), torch.device("cpu"))


class Mixed(nn.Sequential):
    """1×1 convolutions between others."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 8, 1)
        )


@needs_bfloat16
def test_mixed_precision_rounds_1x1_convolutions_that_train_and_nothing_else() -> None:
    torch.manual_seed(0)
    backbone = load_module(Mixed(), SPEC)
    last, width = len(backbone.stages) - 1, backbone.widths[-1]
    head = Head("logistic", (last,), 0.0, np.ones((width, 3), np.float32), np.zeros(3, np.float32))
    net = Net(backbone, head, 1, torch.zeros(width), torch.ones(width))
    backbone.train_from(1)
    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    inputs = [torch.randn(2, conv.in_channels, 8, 8, requires_grad=True) for conv in convs]

    def rounded() -> list[bool]:
        """Whether what each convolution gives, always in float32, has no more digits than bfloat16."""
        outputs = [conv(x) for conv, x in zip(convs, inputs, strict=True)]
        assert {output.dtype for output in outputs} == {torch.float32}
        return [torch.equal(output, output.bfloat16().float()) for output in outputs]

    assert rounded() == [False] * 4
    with training(net, "mixed") as rest:
        assert (rest, rounded()) == ("float32", [False, True, False, True])
        convs[1](inputs[1]).sum().backward()
        assert convs[1].weight.grad is not None and convs[1].weight.grad.dtype == torch.float32
    assert rounded() == [False] * 4
    for how in ("float32", "bfloat16"):
        with training(net, how) as rest:
            assert (rest, rounded()) == (how, [False] * 4)


def test_the_fastest_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, device, expected in ((True, "cpu", "mixed"), (True, "cuda", "bfloat16"), (False, "cpu", "float32")):
        monkeypatch.setattr("headstart.suffix.has_fast_bfloat16", lambda device, native=native: native)
        assert fastest(torch.device(device)) == expected


def test_the_pace_of_training_is_told_per_stage_and_leaves_no_trace() -> None:
    backbone = tiny_backbone()
    before = backbone.digest()
    found = stage_seconds(backbone, torch.device("cpu"), 4)
    assert len(found) == len(backbone.stages)
    assert min(found) > 0
    assert backbone.digest() == before
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())
