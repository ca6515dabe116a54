"""JPEG files decoded where the network runs give the views that Pillow gives, near enough; all others are Pillow's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import Transform, load_view
from headstart.data.load import load_dataset
from headstart.data.sources import FileImages
from headstart.errors import UnreadableImage
from headstart.features import on_device, settle
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.on_device import load_there
from headstart.features.store import Store
from tests.toys import stripes, tiny_backbone

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding")
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
    assert (found.shape, found.dtype, given) == ((7, 32, 32, 3), torch.uint8, [3])
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


def decoder(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, dataset: Dataset, store: Store) -> str:
    monkeypatch.setattr(settle, "DECODERS", ("cpu",))
    engine = Engine(backbone, precision="float32", folded=False, device=CPU)
    return settle.settle(engine, dataset, store)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes its time."""
    real = settle.load_view

    def waiting(*given: Any, **more: Any) -> Any:
        time.sleep(0.01)
        return real(*given, **more)

    monkeypatch.setattr(settle, "load_view", waiting)


def test_a_device_decodes_where_that_is_faster_and_agrees(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(settle, "AGREES", 0.99)  # small pictures of stripes show every rounding
    backbone, store = tiny_backbone(), Store(tmp_path / "store")
    assert decoder(monkeypatch, backbone, files, store) == "float32, decoded there"
    asked: list[int] = []
    monkeypatch.setattr(
        on_device, "load_there", lambda images, rows, *more: asked.extend(rows) or load_there(images, rows, *more)
    )
    engine = Engine(backbone, precision="float32", folded=False, device=CPU)
    features = extract(backbone, files, store, engine=engine)
    assert sorted(asked) == list(range(len(files))), "every picture once: what was settled on is remembered"
    plain = Engine(backbone, precision="float32", folded=False, device=CPU)
    monkeypatch.setattr(settle, "DECODERS", ())
    other = extract(backbone, files, Store(tmp_path / "other"), engine=plain)
    taps = (len(backbone.stages) - 1,)
    a, b = features.stages(taps), other.stages(taps)
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.99


def test_pillow_decodes_where_the_device_is_slower_or_sees_something_else(
    files: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upside_down(*given: Any) -> Any:
        return load_there(*given).flip(1, 3)

    def late(*given: Any) -> Any:
        time.sleep(0.5)
        return load_there(*given)

    monkeypatch.setattr(on_device, "load_there", late)
    assert decoder(monkeypatch, tiny_backbone(), files, Store(tmp_path / "late")) == "float32"
    slow(monkeypatch)
    monkeypatch.setattr(on_device, "load_there", upside_down)
    assert decoder(monkeypatch, tiny_backbone(), files, Store(tmp_path / "wrong")) == "float32"
