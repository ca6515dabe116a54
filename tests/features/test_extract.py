"""Features are computed once per content, whatever the files are called and in whatever order they come."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.from_module import load_module
from headstart.data.dataset import Dataset
from headstart.data.images import decode, load_view
from headstart.data.load import load_dataset
from headstart.errors import BackboneError, DamagedStore, StoreError, UnreadableImage
from headstart.features.activations import Cached, activation_bytes, cache_activations
from headstart.features.engine import BATCH, Engine, normalize
from headstart.features.extract import Features, columns, extract, extract_all, together, with_views
from headstart.features.settle import settle, transform_of
from headstart.features.store import Store
from headstart.features.table import Table
from headstart.features.way import PLAIN
from headstart.features.writer import Writer
from tests.toys import SPEC, TinyNet, folder, striped, stripes, tiny_backbone

Passes = Callable[[], int]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """How many pictures an engine has run since the last call."""
    ran: list[int] = []
    pooled, activations = Engine.pooled, Engine.activations_at

    def counted(engine: Engine, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        ran.append(len(pictures))
        return pooled(engine, pictures)

    def counted_at(engine: Engine, pictures: NDArray[np.uint8], cuts: Sequence[int]) -> object:
        ran.append(len(pictures))
        return activations(engine, pictures, cuts)

    monkeypatch.setattr(Engine, "pooled", counted)
    monkeypatch.setattr(Engine, "activations_at", counted_at)

    def since() -> int:
        total = sum(ran)
        ran.clear()
        return total

    return since


def features(dataset: Dataset, backbone: Backbone, *, folded: bool = True, **options: int) -> Features:
    engine = Engine(backbone, precision="float32", folded=folded)
    return extract(backbone, dataset, Store(), engine=engine, **options)


def every_stage(found: Features) -> NDArray[np.float32]:
    return found.stages(range(len(found.widths)))


def test_features_equal_the_backbone_on_the_clean_view() -> None:
    dataset, backbone = striped(30), tiny_backbone()
    found = features(dataset, backbone, folded=False)
    views = np.stack([load_view(dataset.images, i, transform_of(backbone)) for i in range(len(dataset))])
    with torch.no_grad():
        stages = backbone.pooled(normalize(views, SPEC, torch.device("cpu")))
    np.testing.assert_allclose(every_stage(found), torch.cat(stages, dim=1).numpy(), rtol=1e-5, atol=1e-6)
    # Batches are made up in the order of the contents; in one made up alike, the last stage is the same to the last bit.
    together = np.array(sorted(range(30), key=lambda i: dataset.digests[i])[:BATCH])
    with torch.no_grad():
        first = backbone(normalize(views[together], SPEC, torch.device("cpu"))).numpy()
    assert np.array_equal(found.stages((4,), together), first)


def test_stages_are_read_side_by_side() -> None:
    found = features(striped(30), tiny_backbone())
    assert columns((2, 3, 1), (2, 0)).tolist() == [5, 0, 1]
    some = np.array([3, 1])
    both = found.stages((1, 3), some)
    assert np.array_equal(both, np.concatenate([found.stages((1,)), found.stages((3,))], axis=1)[some])


def test_a_second_extraction_runs_nothing(passes: Passes) -> None:
    dataset, backbone = striped(30), tiny_backbone()
    first = features(dataset, backbone)
    assert passes() == 30
    second = features(dataset, tiny_backbone())
    assert passes() == 0
    assert np.array_equal(every_stage(first), every_stage(second))


def test_several_backbones_share_a_decoded_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(folder(tmp_path / "photos", 30))
    wide = replace(SPEC, size=(40, 40))
    nets = [tiny_backbone(), load_module(TinyNet(3), wide), load_module(TinyNet(4), SPEC)]
    engines = [Engine(net, precision="float32") for net in nets]
    alone = [
        extract(net, dataset, Store(tmp_path / "alone"), engine=engine)
        for net, engine in zip(nets, engines, strict=True)
    ]
    for engine in engines:
        settle(engine, dataset, Store())
    decoded: list[int] = []
    monkeypatch.setattr("headstart.data.images.decode", lambda *given: decoded.append(1) or decode(*given))
    asked, ready = np.arange(20), Store(tmp_path / "ready")
    found = extract_all(engines, dataset, Store(), only=asked)
    assert len(decoded) == 20
    for one, other in zip(found, alone, strict=True):
        pictures = [one.stages(range(5), asked), other.stages(range(5), asked)]
        np.testing.assert_allclose(*pictures, rtol=1e-4, atol=1e-5)
    # One that lacks other pictures than the rest is run by itself; what is there is not run again.
    for engine, indices in zip(engines, (asked, asked[:5], asked), strict=True):
        extract(engine.backbone, dataset, ready, engine=engine, only=indices)
    decoded.clear()
    again = extract_all(engines, dataset, ready, only=asked)
    assert len(decoded) == 15
    for one, other in zip(again, found, strict=True):
        np.testing.assert_allclose(one.stages((4,), asked), other.stages((4,), asked), rtol=1e-4, atol=1e-5)
    decoded.clear()
    both = with_views(together(found), engines, dataset, Store(), 2, only=asked)
    assert len(decoded) == 20
    for place, net in enumerate(nets):
        for view in (1, 2):
            single = extract(net, dataset, Store(tmp_path / "views"), engine=engines[place], only=asked, view=view)
            ours = both.of(place).views[view - 1]
            np.testing.assert_allclose(ours.stages((4,), asked), single.stages((4,), asked), rtol=1e-4, atol=1e-5)


def test_rows_that_a_power_cut_left_as_zeros_are_not_used() -> None:
    dataset, backbone = striped(30), tiny_backbone()
    table = features(dataset, backbone).table
    for place in (0, 29):
        with (table.folder / "rows.bin").open("r+b") as file:
            file.seek(place * table.row_bytes)
            whole = file.read(table.row_bytes)
            file.seek(place * table.row_bytes)
            file.write(bytes(table.row_bytes))
        with pytest.raises(DamagedStore, match=r"does not match its checksums.*'headstart cache clear'"):
            features(dataset, backbone)
        with (table.folder / "rows.bin").open("r+b") as file:
            file.seek(place * table.row_bytes)
            file.write(whole)
    features(dataset, backbone)


def test_order_and_names_of_files_change_nothing(tmp_path: Path, passes: Passes) -> None:
    root = folder(tmp_path / "a", 30)
    found = features(load_dataset(root), tiny_backbone())
    passes()
    for number, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        target = tmp_path / "b" / path.parent.name / f"{number} renamed.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    moved = load_dataset(tmp_path / "b")
    again = features(moved, tiny_backbone())
    assert passes() == 0
    back = [moved.digests.index(content) for content in load_dataset(root).digests]
    assert back != sorted(back)
    assert np.array_equal(every_stage(found), every_stage(again)[back])


def test_the_order_of_pictures_does_not_even_decide_who_shares_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a picture's last bits depend on the size of its batch, so batches are made up by content."""
    dataset, backbone = striped(20), tiny_backbone()
    engine = Engine(backbone, precision="float32")
    seen: list[bytes] = []
    whole = Engine.pooled

    def watched(self: Engine, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(pictures.tobytes())
        return whole(self, pictures)

    monkeypatch.setattr(Engine, "pooled", watched)
    forwards = extract(backbone, dataset, Store(tmp_path / "a"), engine=engine)
    first = sorted(seen)
    seen.clear()
    backwards = extract(backbone, dataset.select(range(19, -1, -1)), Store(tmp_path / "b"), engine=engine)
    assert sorted(seen) == first
    assert np.array_equal(every_stage(forwards), every_stage(backwards)[::-1])


def test_one_changed_pixel_recomputes_one_row(tmp_path: Path, passes: Passes) -> None:
    root = folder(tmp_path, 30)
    before = load_dataset(root)
    old = features(before, tiny_backbone())
    passes()
    path = root / before.names[7]
    picture = np.asarray(Image.open(path)).copy()
    picture[3, 3] ^= 255
    Image.fromarray(picture).save(path)
    after = load_dataset(root)
    new = features(after, tiny_backbone())
    assert passes() == 1
    changed = [i for i in range(30) if not np.array_equal(every_stage(old)[i], every_stage(new)[i])]
    assert [after.names[i] for i in changed] == [before.names[7]]


def test_whatever_decides_the_numbers_is_part_of_the_key(passes: Passes) -> None:
    dataset = striped(20)
    backbone = tiny_backbone()
    features(dataset, backbone)
    assert passes() == 20
    for other in (
        tiny_backbone(seed=1),
        load_module(TinyNet(), replace(SPEC, crop=0.9)),
        load_module(TinyNet(), replace(SPEC, interpolation="bicubic")),
        load_module(TinyNet(), replace(SPEC, mean=(0.5, 0.5, 0.5))),
        load_module(TinyNet(), replace(SPEC, std=(0.5, 0.5, 0.5))),
    ):
        features(dataset, other)
        assert passes() == 20
    moved = tiny_backbone()
    with torch.no_grad():
        next(module for module in moved.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_mean += 0.01
    features(dataset, moved)
    assert passes() == 20
    features(dataset, backbone, view=1)
    assert passes() == 20
    features(dataset, backbone, view=1, seed=1)
    assert passes() == 20
    unmirrored = replace(dataset, mirror=False)
    features(unmirrored, backbone, view=1)
    assert passes() == 20
    features(unmirrored, backbone, seed=1)  # the clean view knows no seed, and no mirror
    assert passes() == 0


def test_features_that_are_no_numbers_are_refused_by_name() -> None:
    net = TinyNet()
    with torch.no_grad():
        net.stem.weight[0] = float("nan")
    dataset, store = striped(20), Store()
    broken = load_module(net, SPEC)
    with pytest.raises(
        BackboneError, match=r"TinyNet gives features of images\[\d+\] that are infinite or not a number"
    ):
        extract(broken, dataset, store, engine=Engine(broken, precision="float32"))
    seen = extract(broken, dataset, store, engine=Engine(broken, precision="float32"), only=np.empty(0, np.int64))
    assert (seen.rows < 0).all(), "nothing of it is kept"


def test_equal_pictures_are_run_once(passes: Passes) -> None:
    pictures, labels = stripes(20)
    dataset = load_dataset((pictures, labels))
    twice = dataset.select([*range(20), 3, 3, 5])
    found = features(twice, tiny_backbone())
    assert passes() == 20
    assert np.array_equal(every_stage(found)[20:], every_stage(found)[[3, 3, 5]])


def test_an_interrupted_extraction_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, passes: Passes) -> None:
    dataset, backbone = striped(100), tiny_backbone()
    whole = Writer.append
    calls: list[int] = []

    def interrupted(self: Writer, table: Table, digests: Sequence[str], rows: NDArray[np.float32]) -> None:
        calls.append(len(digests))
        if len(calls) > 3:
            raise KeyboardInterrupt
        whole(self, table, digests, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            features(dataset, backbone)
    passes()
    resumed = features(dataset, backbone)
    assert passes() == 100 - sum(calls[:3])
    assert 0 < sum(calls[:3]) < 100
    plain = extract(
        backbone, dataset, Store(Path(resumed.table.folder) / "other"), engine=Engine(backbone, precision="float32")
    )
    np.testing.assert_allclose(every_stage(resumed), every_stage(plain), rtol=1e-5, atol=1e-6)


def test_a_picture_that_breaks_later_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, 30)
    dataset = load_dataset(root)
    (root / dataset.names[4]).write_bytes(b"no picture any more")
    with pytest.raises(UnreadableImage, match=dataset.names[4]):
        features(dataset, tiny_backbone())


def test_a_picture_that_changes_later_is_not_kept_for_what_it_was(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", 12)
    dataset = load_dataset(root)
    path = root / dataset.names[5]
    kept = path.read_bytes()
    shutil.copy(root / dataset.names[0], path)
    with pytest.raises(UnreadableImage, match=r"\.png: it has changed since the data were read"):
        extract(tiny_backbone(), dataset, Store(tmp_path / "store"))
    path.write_bytes(kept)
    found = [extract(tiny_backbone(), dataset, Store(tmp_path / name)).stages((4,)) for name in ("store", "other")]
    assert np.array_equal(*found)
    pictures, labels = stripes(12)
    dataset = load_dataset((pictures, labels))
    pictures[5] = 0
    with pytest.raises(UnreadableImage, match=r"images\[5\]: it has changed since the data were read"):
        extract(tiny_backbone(), dataset, Store(tmp_path / "store"))


@pytest.mark.parametrize("mirror", [True, False])
def test_activations_are_cached_per_view_and_read_back_as_they_were(passes: Passes, mirror: bool) -> None:
    dataset, backbone = replace(striped(30), mirror=mirror), tiny_backbone()
    engine = Engine(backbone, precision="float32")
    everyone, held = np.arange(20), np.arange(20, 30)

    def cached() -> object:
        return cache_activations(
            backbone, dataset, Store(), 2, 3, augmented=everyone, clean=held, seed=5, engine=engine
        )

    found = cache_activations(backbone, dataset, Store(), 2, 3, augmented=everyone, clean=held, seed=5, engine=engine)
    assert passes() == 20 * 3 + 10
    cached()
    assert passes() == 0
    assert found.views == 3
    assert found.activations[0].row_bytes == activation_bytes(backbone, 2, "float32")
    asked, views = np.array([4, 4, 19, 25]), np.array([0, 2, 1, 0])
    flat, beside = found.read(asked, views)
    transform = transform_of(backbone, mirror)
    for place, (index, view) in enumerate(zip(asked, views, strict=True)):
        picture = load_view(dataset.images, int(index), transform, view=int(view), seed=5)
        alone, pooled = engine.activations(picture[None], 2)
        np.testing.assert_allclose(flat[place], alone[0].numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(beside[place], pooled[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(StoreError, match="a row was asked for that the table does not hold"):
        found.read(np.array([25]), np.array([1]))


@pytest.mark.parametrize("rounded", [True, False])
def test_one_pass_keeps_what_enters_deeper_cuts(passes: Passes, rounded: bool) -> None:
    """Bit for bit what a pass of its own gives, though stages work in place."""
    net = TinyNet()
    for block in net.blocks:
        block.conv = nn.Sequential(nn.ReLU(inplace=True), block.conv)
    dataset, backbone, everyone, held = striped(30), load_module(net, SPEC), np.arange(20), np.arange(20, 30)

    def cached(store: Store, cut: int, rounded: bool, **more: Any) -> Cached:
        engine = Engine(backbone, precision="float32")
        return cache_activations(
            backbone, dataset, store, cut, 3, augmented=everyone, clean=held, engine=engine, rounded=rounded, **more
        )

    cached(Store(), 3, not rounded, also=[(2, rounded), (1, not rounded)])
    assert passes() == 20 * 3 + 10
    together = [cached(Store(), cut, how) for cut, how in ((3, not rounded), (2, rounded), (1, not rounded))]
    assert passes() == 0
    elsewhere = Store(Store().root.parent / "elsewhere")
    pictures, views = np.array([*everyone, *everyone, *held]), np.repeat([0, 2, 0], [20, 20, 10])
    for one in together:
        alone = cached(elsewhere, one.cut, one.activations[0].dtype == np.uint16)
        assert passes() == 20 * 3 + 10
        for mine, its in zip(one.read(pictures, views), alone.read(pictures, views), strict=True):
            assert np.array_equal(mine, its)


def test_activations_of_frozen_stages_serve_whatever_stands_above_them(passes: Passes) -> None:
    dataset, backbone, other = striped(20), tiny_backbone(), tiny_backbone()
    with torch.no_grad():
        next(other.stages[4].parameters()).add_(1.0)
    everyone, nobody = np.arange(20), np.empty(0, np.int64)
    for net, expected in ((backbone, 40), (other, 0)):
        engine = Engine(net, precision="float32")
        cache_activations(net, dataset, Store(), 3, 2, augmented=everyone, clean=nobody, engine=engine)
        assert passes() == expected


def by_data(backbone: Backbone) -> None:
    for parameter in backbone.parameters():
        parameter.data.mul_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))


def by_assignment(backbone: Backbone) -> None:
    for parameter in backbone.parameters():
        parameter.data = parameter.data * torch.linspace(0.5, 2, parameter.numel()).view_as(parameter)


def by_a_fused_optimizer(backbone: Backbone) -> None:
    backbone.train_from(0)
    optimizer = torch.optim.AdamW([p for group in backbone.trainable() for p in group], lr=0.01, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(torch.ones(2, 3, *SPEC.size)).square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    backbone.train_from(len(backbone.stages))


@pytest.mark.parametrize("change", [by_data, by_assignment, by_a_fused_optimizer])
def test_weights_that_change_without_a_trace_are_noticed(change: Callable[[Backbone], None], tmp_path: Path) -> None:
    dataset, store, engine = striped(40), Store(tmp_path), Engine(tiny_backbone())
    before = extract(engine.backbone, dataset, store, engine=engine)
    change(engine.backbone)
    after = extract(engine.backbone, dataset, store, engine=engine)
    fresh = extract(engine.backbone, dataset, Store(tmp_path / "fresh"))
    taps = range(len(engine.backbone.stages))
    np.testing.assert_array_equal(after.stages(taps), fresh.stages(taps))
    assert not np.allclose(after.stages(taps), before.stages(taps), rtol=0.01)
    assert after.table.folder != before.table.folder


@pytest.mark.parametrize("change", [by_assignment, by_a_fused_optimizer])
def test_what_an_engine_answers_follows_the_weights(change: Callable[[Backbone], None]) -> None:
    engine, pictures = Engine(tiny_backbone()), stripes(4)[0]
    engine.pooled(pictures)
    change(engine.backbone)
    np.testing.assert_array_equal(engine.pooled(pictures), Engine(engine.backbone).pooled(pictures))


def test_a_way_that_was_adopted_is_kept(tmp_path: Path) -> None:
    engine, dataset = Engine(tiny_backbone()), striped(40)
    engine.adopt(PLAIN)
    extract(engine.backbone, dataset, Store(tmp_path), engine=engine)
    assert engine.way == PLAIN
