"""The table of backbone sources, what is on this machine, and `load_backbone`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import runtime
from headstart.backbones.bundled import BUNDLED, fetch_bundled, locate
from headstart.errors import UnknownBackbone

if TYPE_CHECKING:
    from torch import nn

    from headstart.backbones.backbone import Backbone, InputSpec

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
SIDES = (32, 2048)  # pixels that may be asked for


@dataclass(frozen=True)
class Entry:
    """One line of `headstart backbones`. `input` is the side of the image in pixels, `how_to_get` what to type; `parameters`, of a
    network that is known by its file alone, a quarter of the bytes of that."""

    name: str
    parameters: int
    input: int
    licence: str
    source: str
    on_this_machine: bool
    how_to_get: str


# Backbones worth naming: parameters without the classifier, input side, licence, and timm's tag of the pretraining that the bare name
# stands for. Any other timm or torchvision name works as well. All are pinned, so that listing them builds nothing; a test compares
# them with the networks and with timm.
_KNOWN: dict[str, tuple[int, int, str, str]] = {
    "tf_efficientnet_lite0": (3_371_008, 224, "Apache-2.0", "in1k"),
    "tf_efficientnet_lite1": (4_135_680, 240, "Apache-2.0", "in1k"),
    "tf_efficientnet_lite2": (4_811_072, 260, "Apache-2.0", "in1k"),
    "mobilenetv2_100": (2_223_872, 224, "BSD-3-Clause", "in1k"),
    "mobilenetv3_large_100": (4_202_032, 224, "Apache-2.0", "ra_in1k"),
    "efficientnet_b0": (4_007_548, 224, "Apache-2.0", "ra_in1k"),
    "resnet50": (23_508_032, 224, "Apache-2.0", "a1_in1k"),
    "convnext_tiny": (27_820_128, 224, "Apache-2.0", "in12k_ft_in1k"),
    "vit_small_patch14_dinov2": (22_056_192, 518, "Apache-2.0", "lvd142m"),
    "torchvision:resnet18": (11_176_512, 224, "BSD-3-Clause", ""),
}


def load_backbone(
    name_or_module: str | nn.Module, *, weights: Path | None = None, pretrained: bool = True,
    input: InputSpec | None = None,
) -> Backbone:  # fmt: skip
    """A backbone by name, or made of a network of your own; frozen throughout, in eval mode, on the CPU.

    name_or_module: "tf_efficientnet_lite0", "timm:resnet50.a1_in1k", "torchvision:resnet18", or an `nn.Module` that turns images
        into features (see `from_module.load_module` for what is assumed of it). "NAME@288" sees pictures of 288 pixels a side in
        place of what its weights were trained with.
    weights: a .safetensors file (or .pth, read without running code) instead of the published weights; a
        classifier
        in it is left out, everything else must fit exactly.
    pretrained: False draws weights at random and touches no network.
    input: overrides the preprocessing that comes with the checkpoint.

    Raises:
        UnknownBackbone: no such name or side, or its weights are not here and cannot be fetched.
        WeightsError: a file has the wrong digest, names or shapes.
        PartitionError: the network cannot be cut into stages that equal it, or takes no pictures of that side.
    """
    if not isinstance(name_or_module, str):
        from headstart.backbones.from_module import load_module

        return load_module(name_or_module, input)
    source, name = _split(name_or_module)
    name, side = at_side(name)
    backbone = _SOURCES[source].load(name, None if weights is None else Path(weights), pretrained, input, side)
    if side is not None:
        backbone.origin = replace(backbone.origin, name=f"{backbone.origin.name}@{side}")
    return backbone


def at_side(name: str) -> tuple[str, int | None]:
    """A name without the side of its pictures, "NAME@288", and that side in pixels, where there is one.

    Raises:
        UnknownBackbone: what stands behind the @ is no side.
    """
    short, at, side = name.partition("@")
    if not at:
        return name, None
    if not side.isdecimal() or not SIDES[0] <= int(side) <= SIDES[1]:
        raise UnknownBackbone(
            f"'{side}' in '{name}' is no side of a picture: give {SIDES[0]} to {SIDES[1]} pixels, such as {short}@288."
        )
    return short, int(side)


def check_name(name: str) -> None:
    """That some source knows a backbone of this name, or it is "auto"; a listed one is looked up, any other asks the library.

    Raises:
        UnknownBackbone: none does, or the side of its pictures is none.
    """
    full, _ = at_side(name)
    source, rest = _split(full)
    if full == "auto" or not {full, rest}.isdisjoint(entry.name for entry in catalog()):
        return
    with runtime.importing():
        if rest.partition(".")[0] not in _SOURCES[source].names():
            raise unknown(full)


def first_and_others(name: str) -> tuple[str, tuple[str, ...]]:
    """The backbone to begin with, and those to try beside it: none where a name is given, and for "auto" those on this machine,
    by their parameters."""
    if name != "auto":
        return name, ()
    here = sorted((entry.parameters, entry.name) for entry in catalog() if entry.on_this_machine)
    return DEFAULT_BACKBONE, tuple(other for _, other in here if other != DEFAULT_BACKBONE)


def fetch(name: str) -> Path:
    """Bring a backbone's weights to this machine (`headstart backbones get NAME`); returns the file.

    Raises:
        UnknownBackbone: no such name, or it cannot be downloaded. WeightsError: the download is not what it
        should be.
    """
    source, rest = _split(name)
    return _SOURCES[source].fetch(at_side(rest)[0])


def catalog() -> list[Entry]:
    """The known backbones and every other timm checkpoint in this machine's hub cache; builds nothing, asks
    no network."""
    entries, cached = [_known(name, *facts) for name, facts in _KNOWN.items()], _hub_cached()
    listed = {name: f"{name}.{facts[-1]}" for name, facts in _KNOWN.items()}
    for name in sorted(cached.keys() - listed.keys() - set(listed.values())):
        entries.append(Entry(name, cached[name] // 4, 0, "see its page", "Hugging Face hub", True, "is here"))
    return entries


def unknown(name: str, reason: str = "") -> UnknownBackbone:
    """The error for a name that cannot be had: what is here, what is spelled like it, what to type."""
    source, rest = _split(name)
    here = ", ".join(entry.name for entry in catalog() if entry.on_this_machine) or "none"
    if reason:
        return UnknownBackbone(
            f"backbone '{name}': {reason}. On this machine: {here}. Use one of these, give a file with "
            f"--weights FILE, or, connected to the internet, type: headstart backbones get {name.removeprefix('timm:')}"
        )
    near = difflib.get_close_matches(rest, _SOURCES[source].names(), n=4, cutoff=0.5)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    return UnknownBackbone(
        f"there is no backbone '{name}'.{meant} On this machine: {here}. To see what can be used, type: "
        "headstart backbones"
    )


def _known(name: str, parameters: int, side: int, licence: str, tag: str) -> Entry:
    bundled, get = BUNDLED.get(name), f"headstart backbones get {name}"
    if bundled:
        source, here = bundled.source, locate(bundled) is not None
        if bundled.dependency:
            get = "comes with the installation"
    elif name.startswith("torchvision:"):
        source, here = "torchvision", bool(list(_torch_hub().glob(f"{name.partition(':')[2]}-*.pth")))
    else:
        source = "Hugging Face hub"
        here = not {name, f"{name}.{tag}"}.isdisjoint(_hub_cached())  # other pretrainings of it go by their own names
    return Entry(name, parameters, side, licence, source, here, "is here" if here else get)


def _hub_cached() -> dict[str, int]:
    """timm checkpoints in the Hugging Face cache by name, with the bytes of their weights; found by names of folders and files alone
    (the client loads slowly). What other libraries keep of timm's there has other file names."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    found = (
        path
        for file in ("pytorch_model.bin", "model.safetensors")
        for path in folder.glob(f"models--timm--*/snapshots/*/{file}")
    )
    return {
        path.parents[2].name.removeprefix("models--timm--"): path.stat().st_size for path in found if path.is_file()
    }


def _torch_hub() -> Path:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _split(name: str) -> tuple[str, str]:
    source, colon, rest = name.partition(":")
    if not colon:
        return "timm", name
    if source not in _SOURCES:
        raise UnknownBackbone(
            f"there is no source '{source}' in '{name}', expected one of: {', '.join(_SOURCES)}. "
            f"Type for instance: timm:{rest or DEFAULT_BACKBONE}"
        )
    return source, rest


@dataclass(frozen=True)
class _Source:
    """A family of names: how to load one, fetch its weights, and list them all."""

    load: Callable[[str, Path | None, bool, InputSpec | None, int | None], Backbone]
    fetch: Callable[[str], Path]
    names: Callable[[], list[str]]


def _load_timm(
    name: str, weights: Path | None, pretrained: bool, input: InputSpec | None, side: int | None
) -> Backbone:
    with runtime.importing():
        if pretrained and input is None and side is None:
            from headstart.backbones.from_pip import load_pip

            found = load_pip(name, weights)
            if found is not None:
                return found
        from headstart.backbones.from_timm import load_timm

        return load_timm(name, weights, pretrained, input, side)


def _fetch_timm(name: str) -> Path:
    if name in BUNDLED:
        return fetch_bundled(BUNDLED[name])
    from headstart.backbones.from_timm import fetch_timm

    return fetch_timm(name)


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _load_torchvision(
    name: str, weights: Path | None, pretrained: bool, input: InputSpec | None, side: int | None
) -> Backbone:
    from headstart.backbones.from_torchvision import load_torchvision

    return load_torchvision(name, weights, pretrained, input, side)


def _fetch_torchvision(name: str) -> Path:
    from headstart.backbones.from_torchvision import fetch_torchvision

    return fetch_torchvision(name)


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


# The table that names extend: one line and one file per source.
_SOURCES: dict[str, _Source] = {
    "timm": _Source(_load_timm, _fetch_timm, _timm_names),
    "torchvision": _Source(_load_torchvision, _fetch_torchvision, _torchvision_names),
}
