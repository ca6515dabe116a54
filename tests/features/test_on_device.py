"""JPEG files decoded where the network runs give the views that Pillow gives, near enough; all others are Pillow's own.

The CPU stands in for a GPU: torchvision decodes on either through the same function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import Transform, load_view
from headstart.data.load import load_dataset
from headstart.data.sources import FileImages
from headstart.errors import UnreadableImage
from headstart.features import on_device, settle
from headstart.features.engine import SAMPLE, Engine, normalize
from headstart.features.extract import Features, extract, extract_all
from headstart.features.on_device import load_there
from headstart.features.precision import agreement
from headstart.features.store import Store
from headstart.features.way import Way
from tests.toys import SPEC, stripes, tiny_backbone

CPU = torch.device("cpu")
TRANSFORM = Transform((32, 32), "bilinear", 0.875)


@pytest.fixture
def photos(tmp_path: Path) -> FileImages:
    """One picture in all the ways that matter: plain, grey, oblong, turned by EXIF, CMYK, no JPEG at all, very long."""
    picture = Image.fromarray(stripes(1, side=60)[0][0])
    turned = Image.Exif()
    turned[0x0112] = 6
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (picture, {"quality": 95}),
        "grey.jpg": (picture.convert("L"), {"quality": 95}),
        "oblong.jpg": (picture.crop((0, 0, 60, 41)), {"quality": 95}),
        "turned.jpg": (picture, {"quality": 95, "exif": turned}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "other.png": (picture, {}),
        "long.jpg": (picture.resize((4000, 8)), {}),
    }
    for name, (image, options) in ways.items():
        image.save(tmp_path / name, **options)
    return FileImages(tuple(tmp_path / name for name in ways), tuple(ways))


def test_views_are_those_of_pillow(photos: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    real = on_device.decode_jpeg
    monkeypatch.setattr(on_device, "decode_jpeg", lambda files, **more: given.append(len(files)) or real(files, **more))
    found = load_there(photos, range(len(photos)), TRANSFORM, CPU)
    assert (found.shape, found.dtype, found.is_contiguous(), given) == ((7, 32, 32, 3), torch.uint8, True, [3])
    assert torch.equal(normalize(found, SPEC, CPU), normalize(found.numpy(), SPEC, CPU))
    for place, name in enumerate(photos.names):
        own = load_view(photos, place, TRANSFORM).astype(float)
        difference = np.abs(found[place].numpy().astype(float) - own)
        if name in ("plain.jpg", "grey.jpg", "oblong.jpg"):
            assert difference.mean() < 1.5 and difference.max() < 16, name
        else:
            assert difference.max() == 0, f"{name} is read by Pillow"


def test_what_torchvision_cannot_resize_is_left_to_pillow(photos: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "decode_jpeg", lambda *_, **__: pytest.fail("not asked for"))
    transform = Transform((32, 32), "lanczos", 0.875)
    found = load_there(photos, [0, 1], transform, CPU)
    assert np.array_equal(found[1].numpy(), load_view(photos, 1, transform))


def test_a_damaged_file_is_named_and_spoils_no_other(photos: FileImages) -> None:
    whole = photos.paths[0].read_bytes()
    photos.paths[1].write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UnreadableImage, match=r"grey\.jpg"):
        load_there(photos, [0, 1, 2], TRANSFORM, CPU)
    found = load_there(photos, [0, 2], TRANSFORM, CPU)
    assert found.shape == (2, 32, 32, 3)


@pytest.fixture
def files(tmp_path: Path) -> Dataset:
    pictures, labels = stripes(30, side=48)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = tmp_path / "photos" / f"turn{label}" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=95)
    return load_dataset(tmp_path / "photos")


class Timed:
    """A clock that only decoding moves on: a second for each picture of Pillow's, and `there` for each of the device's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: float) -> None:
        self.passed: list[float] = []
        self.asked: list[int] = []
        self.change: Callable[[torch.Tensor], torch.Tensor] = lambda views: (
            views & 0xFE
        )  # hardly, so that it is told apart

        def here(*given: Any) -> Any:
            self.passed.append(1.0)
            return load_view(*given)

        def on_the_device(images: Any, indices: Any, *given: Any) -> Any:
            self.passed.append(there * len(indices))
            self.asked.extend(indices)
            return self.change(load_there(images, indices, *given))

        monkeypatch.setattr(settle, "DECODERS", ("cpu",))
        monkeypatch.setattr(settle, "time", self)
        monkeypatch.setattr(settle, "load_view", here)
        monkeypatch.setattr(on_device, "load_there", on_the_device)

    def perf_counter(self) -> float:
        return sum(self.passed)


def engine_of(backbone: Backbone) -> Engine:
    return Engine(backbone, precision="float32", folded=False, device=CPU)


def settled(dataset: Dataset, store: Store) -> str:
    return str(settle.settle(engine_of(tiny_backbone()), dataset, store))


def extracted(dataset: Dataset, store: Store, **more: int) -> Features:
    backbone = tiny_backbone()
    return extract(backbone, dataset, store, engine=engine_of(backbone), **more)


def test_the_device_decodes_where_that_is_faster_and_agrees(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, store = extracted(files, Store(tmp_path / "plain")), Store(tmp_path / "store")
    timed = Timed(monkeypatch, there=0.1)
    assert settled(files, store) == "float32, decoded there"
    assert len(timed.asked) == 2 * len(files), "two rounds"
    timed.asked.clear()
    found = extracted(files, store)
    assert sorted(timed.asked) == list(range(len(files))), "every picture once: what was settled on is remembered"
    a, b = ([torch.from_numpy(one) for one in each.apart(range(5))] for each in (found, plain))
    assert settle.AGREES <= agreement(b, a) < 1
    extracted(files, store)
    extracted(files, store, view=1)
    assert len(timed.asked) == len(files), "nothing is run again, and Pillow decodes augmented views"


def test_nothing_else_runs_while_decoders_are_timed(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, at = Timed(monkeypatch, there=0.1), []
    settle.settle(engine_of(tiny_backbone()), files, Store(tmp_path), lambda: at.append(timed.perf_counter()))
    assert at == [SAMPLE]


def test_pillow_decodes_where_the_device_is_slower(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, there=2.0)
    assert settled(files, Store(tmp_path)) == "float32"
    timed.asked.clear()
    extracted(files, Store(tmp_path))
    assert timed.asked == [], "remembered as well"


def test_pillow_decodes_where_any_picture_looks_different(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, there=0.1)
    timed.change = lambda views: torch.cat([views[:-1], views[-1:].flip(1, 3)])
    assert settled(files, Store(tmp_path)) == "float32"


def test_other_devices_are_not_tried(files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle.DECODERS == ("cuda",)
    timed = Timed(monkeypatch, there=0.1)
    monkeypatch.setattr(settle, "DECODERS", ("cuda",))
    assert (settled(files, Store(tmp_path)), timed.asked) == ("float32", [])


def test_pillow_decodes_where_torchvision_no_longer_does(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Timed(monkeypatch, there=0.1)
    store = Store(tmp_path / "store")
    assert settled(files, store) == "float32, decoded there"
    monkeypatch.delitem(sys.modules, on_device.__name__)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert settled(files, Store(tmp_path / "new")) == "float32"
    later, plain = extracted(files, store), extracted(files, Store(tmp_path / "plain"))
    assert np.array_equal(later.stages((0, 4)), plain.stages((0, 4)))


def test_a_way_that_was_stored_before_devices_decoded_still_holds(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asdict(Way("float32", folded=True))
    del before["decodes"]
    Timed(monkeypatch, there=0.1)
    monkeypatch.setattr(settle, "asdict", lambda way: before)
    settled(files, Store(tmp_path))
    assert settled(files, Store(tmp_path)) == "float32 folded"


def test_what_is_decoded_there_is_in_the_text_but_not_at_a_cut() -> None:
    way = Way("bfloat16", 2, runner="compile", decodes=True)
    assert str(way) == "bfloat16 after 2 compile, decoded there"
    assert way.before_compiling == replace(way, decodes=False).before_compiling == "bfloat16 after 2"


def test_backbones_share_pictures_with_those_that_have_them_decoded_alike(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillows = extracted(files, Store(tmp_path / "pillow"))
    timed = Timed(monkeypatch, there=0.1)
    alone = extracted(files, Store(tmp_path / "alone"))
    engines = [engine_of(tiny_backbone(seed)) for seed in (0, 1, 0)]
    for engine, decodes in zip(engines, (True, True, False), strict=True):
        engine.adopt(Way("float32", decodes=decodes))
    timed.asked.clear()
    first, _, last = extract_all(engines, files, Store(tmp_path / "together"))
    assert sorted(timed.asked) == list(range(len(files))), "once for both that have one transform"
    assert np.array_equal(first.stages((4,)), alone.stages((4,)))
    assert np.array_equal(last.stages((4,)), pillows.stages((4,)))


def test_a_compiler_takes_pictures_that_were_decoded_there(files: Dataset) -> None:
    engine = Engine(tiny_backbone(), precision="float32", runner="openvino", device=CPU)
    engine.adopt(Way("float32", runner="openvino", decodes=True))
    views = load_there(files.images, [0, 1, 2], TRANSFORM, CPU)
    np.testing.assert_allclose(
        engine.pooled(views), engine_of(engine.backbone).pooled(views.numpy()), rtol=1e-3, atol=1e-4
    )
