"""A model on disk answers bit by bit as it did, needs nothing but itself, and is refused where it was touched."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import headstart
from headstart.backbones import bundled, catalog, from_pip, from_timm
from headstart.backbones.backbone import Backbone
from headstart.backbones.catalog import load_backbone
from headstart.backbones.from_module import load_module
from headstart.bundle import load, save
from headstart.card import read_card
from headstart.errors import BackboneError, BundleError, OutputError
from headstart.folder import CARD, WEIGHTS
from headstart.heads import Head
from headstart.model import Model
from tests.conftest import Trained
from tests.toys import SPEC, TinyNet, stripes, tiny_backbone

CLASSES = ("ä/b", "c", "d")


def model_of(backbone: Backbone, taps: tuple[int, ...] = (1, 4), **options: Any) -> Model:
    draw = np.random.default_rng(0)
    width = sum(backbone.widths[tap] for tap in taps)
    weight = draw.standard_normal((width, 3)).astype(np.float32)
    head = Head("ridge", taps, 1e-4, weight, draw.standard_normal(3).astype(np.float32))
    return Model(backbone, head, CLASSES, **{"temperature": 0.7, **options})


@pytest.fixture
def timm_model() -> Model:
    torch.manual_seed(3)
    return model_of(load_backbone("test_resnet", pretrained=False))


@pytest.fixture
def folder(tmp_path: Path, timm_model: Model) -> Path:
    save(timm_model, tmp_path / "run", versions={"torch": "1"})
    return tmp_path / "run"


def pictures(side: int = 160) -> NDArray[np.uint8]:
    return stripes(4, side=side)[0]


def answers(model: Model, side: int = 160) -> NDArray[np.float64]:
    return model.predict(list(pictures(side))).probabilities


def test_a_reloaded_model_gives_the_same_bits(folder: Path, timm_model: Model) -> None:
    again = load(folder)
    assert np.array_equal(again.logits(pictures()), timm_model.logits(pictures()))
    assert np.array_equal(answers(again), answers(timm_model))
    assert (again.classes, again.temperature, again.engine.settled) == (CLASSES, 0.7, "float32")
    assert again.backbone.input == timm_model.backbone.input
    assert again.backbone.origin == timm_model.backbone.origin
    assert (again.head.kind, again.head.taps, again.head.strength) == ("ridge", (1, 4), 1e-4)
    assert headstart.load is load
    save(again, folder.parent / "copy")
    assert (folder / WEIGHTS).read_bytes() == (folder.parent / "copy" / WEIGHTS).read_bytes()
    assert again.mirror
    again.mirror = False
    save(again, folder.parent / "never mirrored")
    card = json.loads((folder.parent / "never mirrored" / CARD).read_text())
    assert card.pop("mirror") is False and not load(folder.parent / "never mirrored").mirror
    older = json.loads((folder / CARD).read_text())
    assert older.pop("mirror") is True
    (folder / CARD).write_text(json.dumps(older))
    assert not load(folder).mirror, "what was made before may have been made with --no-mirror"


def test_a_bundle_is_two_files_and_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    payload = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    assert [*header.pop("__metadata__")] == ["networks"]
    assert all(set(entry) == {"dtype", "shape", "data_offsets"} for name, entry in header.items())
    assert len(payload) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    assert json.loads((folder / CARD).read_text())["format"] == 1


def test_original_weights_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(load_backbone("tf_efficientnet_lite0"), (3,))
    save(model, tmp_path)
    expected = answers(model, 64)

    def gone(*_: object, **__: object) -> None:
        raise AssertionError("the original weights were asked for")

    monkeypatch.setattr(bundled, "locate", lambda entry: None)
    for place in (from_timm, from_pip, catalog):
        if "locate" in vars(place):
            monkeypatch.setattr(place, "locate", lambda entry: None)
    monkeypatch.setattr(bundled, "fetch_bundled", gone)
    monkeypatch.setattr(bundled, "verified", gone)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((AssertionError, headstart.HeadstartError)):
        load_backbone("tf_efficientnet_lite0")
    assert np.array_equal(answers(load(tmp_path), 64), expected)


def test_a_network_of_your_own_answers_without_its_code_and_comes_back_with_it(tmp_path: Path) -> None:
    model = model_of(tiny_backbone(seed=5))
    save(model, tmp_path)
    assert np.array_equal(load(tmp_path).logits(pictures(32)), model.logits(pictures(32)))
    with pytest.raises(BundleError, match=r"stands on a network of your own \(module:TinyNet\).*load\(folder, module="):
        load(tmp_path, trainable=True)
    again = load(tmp_path, module=TinyNet(seed=99))  # whatever its weights
    assert again.backbone.input == SPEC
    assert np.array_equal(again.logits(pictures(32)), model.logits(pictures(32)))
    with pytest.raises(BundleError, match=r"head\.weight in '.*' has shape \(16, 3\), expected \(8, 3\)"):
        load(tmp_path, module=TinyNet(width=4))


def test_a_model_answers_without_the_packages_of_its_network(tmp_path: Path, timm_model: Model) -> None:
    save(timm_model, tmp_path / "run")
    np.save(tmp_path / "pictures.npy", pictures())
    script = (
        "import sys, numpy as np, headstart\n"
        "model = headstart.load(sys.argv[1])\n"
        "np.save(sys.argv[3], model.predict(list(np.load(sys.argv[2]))).probabilities)\n"
        "slow = {'timm', 'torchvision', 'torch._dynamo', 'scipy', 'sklearn'} & {*sys.modules}\n"
        "assert not slow, slow\n"
    )
    given = [str(tmp_path / name) for name in ("run", "pictures.npy", "answers.npy")]
    subprocess.run([sys.executable, "-c", script, *given], check=True)
    assert np.array_equal(np.load(tmp_path / "answers.npy"), answers(timm_model))


def test_without_its_code_a_network_only_answers(folder: Path) -> None:
    again = load(folder)
    with pytest.raises(
        BackboneError, match=r"without the code .*, but not to be trained\. Read .* headstart\.load\(folder, trainable"
    ):
        again.backbone.train_from(0)
    with pytest.raises(BackboneError, match=r"timm:test_resnet was read from a model .* but not to give its network\."):
        again.backbone.original()
    whole = load(folder, trainable=True)
    assert np.array_equal(whole.logits(pictures()), again.logits(pictures()))
    whole.backbone.train_from(0)
    assert whole.backbone.original().state_dict().keys() == whole.backbone.state().keys()


class Clockwork(nn.Module):
    """Reads a value back into Python: nothing that can be written down."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if float(x.sum()) > 1e30 else 2.0)


def test_what_cannot_be_written_down_is_built(tmp_path: Path) -> None:
    network = TinyNet(seed=5)
    network.blocks[1] = nn.Sequential(network.blocks[1], Clockwork())
    model = model_of(load_module(network, SPEC))
    save(model, tmp_path)
    header = (tmp_path / WEIGHTS).read_bytes()
    assert b'"networks":"[null]"' in header
    with pytest.raises(BundleError, match="stands on a network of your own"):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, module=network).logits(pictures(32)), model.logits(pictures(32)))


def test_a_function_that_torch_does_not_have_means_that_the_network_is_built(folder: Path, timm_model: Model) -> None:
    payload = (folder / WEIGHTS).read_bytes()
    for other in (
        b"torch.no_such_names",
        b"torch.serialization",
    ):  # as long as what they replace, so that nothing is moved
        assert len(other) == len(b"torch.nn.functional")
        vouched(folder, payload.replace(b"torch.nn.functional", other))
        with pytest.raises(
            BundleError, match=rf"no_such_network.*cannot be read here: this torch has no function '{other.decode()}"
        ):
            renamed(folder, "no_such_network")
            load(folder)
        renamed(folder, "timm:test_resnet")
        again = load(folder)
        assert again.backbone.trains
        assert np.array_equal(again.logits(pictures()), timm_model.logits(pictures()))


def test_tampered_weights_are_refused(folder: Path) -> None:
    payload = bytearray((folder / WEIGHTS).read_bytes())
    payload[-5] ^= 1
    (folder / WEIGHTS).write_bytes(payload)
    with pytest.raises(
        BundleError, match=r"is damaged or was exchanged: its sha256 is \w{12}…, model\.json expects \w{12}"
    ):
        load(folder)
    (folder / WEIGHTS).write_bytes(payload[:1000])
    with pytest.raises(BundleError, match="is damaged or was exchanged"):
        load(folder)


def vouched(folder: Path, payload: bytes) -> None:
    """Exchange the weights and have the card vouch for them."""
    (folder / WEIGHTS).write_bytes(payload)
    edit(folder, sha256=hashlib.sha256(payload).hexdigest())


def edit(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


def exchange(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / WEIGHTS), **changes}
    with safe_open(folder / WEIGHTS, "pt") as whole:
        networks = whole.metadata()
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "other", networks)
    vouched(folder, (folder / "other").read_bytes())


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for changes, message in (
        ({"head.weight": torch.zeros(5, 3)}, r"head\.weight in '.*' has shape \(5, 3\), expected \(128, 3\)"),
        ({"head.weight": None}, r"head\.weight in '.*' has shape None, expected \(128, 3\)"),
        ({"head.bias": torch.zeros(4)}, r"head\.bias in '.*' has shape \(4,\), expected \(3,\)"),
        ({"backbone.conv1.0.weight": None}, r"The weights in '.*' do not fit timm:test_resnet: .*missing"),
        (
            {"backbone.more": torch.zeros(1)},
            r"The weights in '.*' do not fit timm:test_resnet: .*unexpected 1 \(more\)",
        ),
    ):
        vouched(folder, whole)
        exchange(folder, **changes)
        with pytest.raises(BundleError, match=message):
            load(folder)


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    vouched(folder, b"\x80\x04pickle")
    with pytest.raises(BundleError, match=r"is no safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"has format 2; this Headstart reads format 1\. Use the version that wrote it, or fit again"),
        ({"format": None}, r"has format None; this Headstart reads format 1"),
        ({"classes": ["one"]}, r"is malformed at classes"),
        ({"temperature": float("inf")}, r"is malformed at temperature: Input should be a finite number"),
        ({"temperature": 0}, r"is malformed at temperature: Input should be greater than 0"),
        ({"precision": "float8"}, r"is malformed at precision"),
        ({"surprise": 1}, r"is malformed at surprise: Extra inputs are not permitted"),
        ({"classes": ["a", "b"]}, r"head\.weight in '.*' has shape \(128, 3\), expected \(128, 2\)"),
        ({"head": {"kind": "ridge", "taps": [9], "strength": 0}}, r"reads stages \(9,\); the backbone has 5"),
        ({"stages": ["x"]}, r"has stages .* here; the model in '.*' was cut into x\. Use the package versions"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load(folder)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [NAN] * 3}, r"input\.mean\.0: Input should be a finite number"),
        ({"std": [0.2, INFINITY, 0.2]}, r"input\.std\.1: Input should be a finite number"),
        ({"crop": 5}, r"input\.crop: Input should be less than or equal to 2"),
        ({"crop": 0.001}, r"input\.crop: Input should be greater than or equal to 0\.05"),
        ({"crop": NAN}, r"input\.crop: Input should be a finite number"),
    ],
)
def test_an_input_that_means_nothing_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, input={**json.loads((folder / CARD).read_text())["input"], **changes})
    with pytest.raises(BundleError, match=f"is malformed at {message}"):
        load(folder)


def test_a_crop_of_more_than_the_picture_is_read_as_timm_has_it(folder: Path, timm_model: Model) -> None:
    timm_model.backbone.input = replace(timm_model.backbone.input, crop=1.15)
    save(timm_model, folder)
    assert np.array_equal(answers(load(folder)), answers(timm_model))


def test_a_head_of_other_numbers_is_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    tensors = load_file(folder / WEIGHTS)
    for name, value, message in (
        ("weight", tensors["head.weight"].half(), r"head\.weight in '.*' has dtype float16, expected float32"),
        ("bias", tensors["head.bias"].int(), r"head\.bias in '.*' has dtype int32, expected float32"),
        ("bias", tensors["head.bias"] * NAN, r"The head in '.*' has numbers that are not finite"),
    ):
        vouched(folder, whole)
        exchange(folder, **{f"head.{name}": value})
        with pytest.raises(BundleError, match=message):
            load(folder)


@pytest.mark.parametrize("changes", [{"threshold": -5.0}, {"lost": 0.5}, {"lost": 0.001}])
def test_a_threshold_that_does_not_follow_is_refused(trained: Trained, tmp_path: Path, changes: dict[str, Any]) -> None:
    save(load(trained.run), tmp_path / "run")
    card = json.loads((tmp_path / "run" / CARD).read_text())
    edit(tmp_path / "run", unknown={**card["unknown"], **changes})
    with pytest.raises(BundleError, match="as the threshold for unknown pictures, which does not follow from"):
        load(tmp_path / "run")


def renamed(folder: Path, name: str) -> None:
    """Say that the backbone is another."""
    edit(folder, backbone={**json.loads((folder / CARD).read_text())["backbone"], "name": name})


def test_an_unknown_backbone_is_said(folder: Path) -> None:
    renamed(folder, "no_such_network")
    with pytest.raises(
        BundleError, match=r"The backbone of '.*' cannot be rebuilt: there is no backbone 'timm:no_such_network'"
    ):
        load(folder, trainable=True)


def test_missing_and_malformed_files_are_said(folder: Path) -> None:
    with pytest.raises(
        BundleError, match=r"holds no model \(model\.json: No such file or directory\)\. Give the run folder"
    ):
        load(folder.parent / "nowhere")
    (folder / WEIGHTS).rename(folder / "elsewhere")
    with pytest.raises(BundleError, match=r"has no readable model\.safetensors: No such file"):
        load(folder)
    for text in ("{", "\x00"):
        (folder / CARD).write_text(text)
        with pytest.raises(BundleError, match=r"is no valid JSON"):
            read_card(folder)
    (folder / CARD).write_text("[]")
    with pytest.raises(BundleError, match="has format None"):
        read_card(folder)


def test_an_interrupted_save_leaves_the_old_bundle(
    folder: Path, timm_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OutputError, match=r"Cannot write '.*model\.safetensors': No space left on device\. Give another"
    ):
        save(timm_model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_precision_travels_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny_backbone(), precision="bfloat16", exact=2)
    save(model, tmp_path)
    monkeypatch.setattr("headstart.bundle.has_fast_bfloat16", lambda device: False)
    elsewhere = load(tmp_path, module=TinyNet())
    assert elsewhere.engine.settled == "float32", "a machine without bfloat16 would take many times as long"
    near = np.abs(elsewhere.logits(pictures(32)) - model.logits(pictures(32)))
    assert 0 < near.max() < 0.1 * np.abs(model.logits(pictures(32))).max()
    monkeypatch.setattr("headstart.bundle.has_fast_bfloat16", lambda device: True)
    again = load(tmp_path, module=TinyNet())
    assert (again.engine.settled, again.engine.exact) == ("bfloat16", 2)
    assert np.array_equal(again.logits(pictures(32)), model.logits(pictures(32)))


def test_what_tells_unknown_pictures_travels_with_the_model(trained: Trained, tmp_path: Path) -> None:
    model = load(trained.run)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert model.unknown is not None and again.unknown is not None
    assert again.unknown.threshold == model.unknown.threshold and again.unknown.taps == model.unknown.taps
    for name, array in model.unknown.arrays.items():
        assert np.array_equal(again.unknown.arrays[name], array)
    model.unknown = None
    save(model, tmp_path / "without")
    assert load(tmp_path / "without").unknown is None


@pytest.mark.parametrize("part", ["held", "scales", "answers.centres", "3.axes", "3.weights"])
def test_what_tells_unknown_pictures_has_to_fit_its_card(trained: Trained, tmp_path: Path, part: str) -> None:
    model = load(trained.run)
    save(model, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / WEIGHTS)
    tensors[f"unknown.{part}"] = tensors[f"unknown.{part}"][..., :-1].contiguous()
    save_file(tensors, tmp_path / "run" / WEIGHTS)
    card = json.loads((tmp_path / "run" / CARD).read_text())
    card["sha256"] = hashlib.sha256((tmp_path / "run" / WEIGHTS).read_bytes()).hexdigest()
    (tmp_path / "run" / CARD).write_text(json.dumps(card))
    with pytest.raises(BundleError, match=f"unknown.{part} in .* has shape"):
        load(tmp_path / "run")


def test_a_bundled_backbone_is_read_so_that_it_can_be_trained_further(tmp_path: Path) -> None:
    save(model_of(load_backbone("tf_efficientnet_lite0"), (3,)), tmp_path)
    again = load(tmp_path)
    again.backbone.train_from(2)
    assert any(parameter.requires_grad for parameter in again.backbone.parameters())
