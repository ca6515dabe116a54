"""torchvision's classification networks, with torchvision's weights and transforms."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.catalog import unknown
from headstart.backbones.from_module import last_weighted, replace_module
from headstart.backbones.partition import partition
from headstart.backbones.weights import classifier_of, from_file, load_strictly


def load_torchvision(
    name: str, weights: Path | None, pretrained: bool, input: InputSpec | None, side: int | None = None
) -> Backbone:
    """A torchvision classification network, without its classifier (the last layer with weights), cut into
    stages.

    Arguments and errors are those of `load_timm`.
    """
    enum = _weights_enum(name)
    best = enum.DEFAULT
    spec = input or (replace(input_spec(best), size=(side, side)) if side else input_spec(best))
    network = models.get_model(name, weights=None, **_options(name))
    path = last_weighted(network.eval(), spec.size)
    whole = frozenset(network.state_dict())
    file = weights or (fetch_torchvision(name) if pretrained else None)
    replace_module(network, path, nn.Identity())
    if file is None:
        return partition(network, spec, Origin(f"torchvision:{name}", "random weights", "none", "", ""))
    spare = whole - frozenset(network.state_dict())
    loaded, origin = from_file(f"torchvision:{name}", file)
    auxiliary = frozenset(n for n in loaded if n.partition(".")[0] in ("aux1", "aux2", "AuxLogits"))
    load_strictly(network, loaded, str(file), spare | auxiliary)
    if weights is None:
        origin = replace(origin, source=f"torchvision {best}", licence="BSD-3-Clause", url=str(best.url))
    backbone = partition(network, spec, origin)
    backbone.classifier = classifier_of(loaded, spare, backbone.widths[-1])
    return backbone


def input_spec(weights: Any) -> InputSpec:
    """The preprocessing that belongs to a torchvision weights entry."""
    preset = weights.transforms()
    crop, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    mean, std = (tuple(float(part) for part in values) for values in (preset.mean, preset.std))
    bicubic = preset.interpolation is InterpolationMode.BICUBIC
    return InputSpec((crop, crop), mean, std, "bicubic" if bicubic else "bilinear", crop / resize)  # type: ignore[arg-type]


def torchvision_file(name: str) -> Path:
    """Where torch's hub cache keeps (or would keep) the default weights of a torchvision network."""
    return Path(torch.hub.get_dir()) / "checkpoints" / str(_weights_enum(name).DEFAULT.url).rpartition("/")[2]


def fetch_torchvision(name: str) -> Path:
    """Download the default weights into torch's hub cache, unless they are there; returns the file.

    Raises:
        UnknownBackbone: they are not here and cannot be downloaded.
    """

    file = torchvision_file(name)
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    url = str(_weights_enum(name).DEFAULT.url)
    try:
        with _timeout(10):
            prefix = file.stem.rpartition("-")[2]  # torchvision names its files by the first digits of their sha256
            torch.hub.download_url_to_file(url, str(file), hash_prefix=prefix, progress=False)
    except OSError as error:
        raise unknown(f"torchvision:{name}", reason=f"{url} cannot be downloaded ({error})") from error
    return file


def _weights_enum(name: str) -> Any:

    if name not in models.list_models(module=models):
        raise unknown(f"torchvision:{name}")
    return models.get_model_weights(name)


def _options(name: str) -> dict[str, Any]:
    # Networks with auxiliary training heads drop them, and their initialisation is slow.
    if name == "googlenet":
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    if name == "inception_v3":
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    return {}


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
