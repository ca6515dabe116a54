"""A Model on disk: `model.safetensors` and `model.json`, no pickle, validated on load.

The networks are written into the metadata of the weights, where that can be done, so that the model answers without the packages that
their code came from (`backbones.written`); importing those takes longer than a hundred answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import RootModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from headstart import runtime
from headstart.backbones import written
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.catalog import load_backbone
from headstart.card import Card, Network, read_card
from headstart.errors import BackboneError, BundleError
from headstart.features.engine import Engine
from headstart.features.precision import Precision, has_fast_bfloat16
from headstart.folder import CARD, WEIGHTS, write_atomically
from headstart.heads import Head
from headstart.model import Model
from headstart.unknown import Unknown

_NETWORKS = "networks"  # in the metadata of the weights


class _Networks(RootModel[tuple[written.Written | None, ...]]):
    """Each network written down, where that can be done."""


def save(model: Model, folder: str | Path, *, versions: dict[str, str] | None = None) -> Card:
    """Write the bundle into `folder`, the weights first and the card, which vouches for them, last.

    Raises:
        OutputError: where the folder cannot be written.
    """
    folder = Path(folder)
    tensors = {
        f"{_prefix(place)}{name}": value.detach().cpu().contiguous()
        for place, engine in enumerate(model.engines)
        for name, value in engine.backbone.state().items()
    }
    tensors["head.weight"] = torch.from_numpy(np.ascontiguousarray(model.head.weight))
    tensors["head.bias"] = torch.from_numpy(np.ascontiguousarray(model.head.bias))
    known = model.unknown
    if known is not None:
        tensors |= {f"unknown.{name}": torch.from_numpy(array) for name, array in known.arrays.items()}
    networks = [written.write(engine.backbone) for engine in model.engines]
    for place, (engine, network) in enumerate(zip(model.engines, networks, strict=True)):
        more = written.computed(engine.backbone) if network is not None else {}
        tensors |= {f"computed{place}.{name}": value.detach().cpu().contiguous() for name, value in more.items()}
    # One entry: safetensors keeps several in no order, and the same model should be the same file.
    metadata = {_NETWORKS: _Networks(tuple(networks)).model_dump_json(exclude_defaults=True)}
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    payload = save_tensors({name: value.clone() for name, value in tensors.items()}, metadata)
    card = Card.of_model(model, hashlib.sha256(payload).hexdigest(), versions or {})
    write_atomically(folder / WEIGHTS, payload)
    write_atomically(folder / CARD, card.model_dump_json(indent=1).encode())
    return card


def load(folder: str | Path, *, module: nn.Module | None = None, trainable: bool = False) -> Model:
    """Read a bundle; needs neither the original weights nor the data. It runs at the precision that it was measured at, or in float32
    where this machine lacks that.

    trainable: build the networks with the code of their packages, in place of what is written in the bundle, which answers the same
        and is there sooner, but cannot be trained any further.
    module: a person's own network with any weights, to be built with; only where such a network could not be written down, or shall
        be trained, is it needed.

    Raises:
        BundleError: where a part is missing, damaged, of another format, or does not fit its own card.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        payload = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise BundleError(
            f"'{folder}' has no readable {WEIGHTS}: {error.strerror}. Give the run folder that 'headstart fit' wrote."
        ) from error
    found = hashlib.sha256(payload).hexdigest()
    if found != card.sha256:
        raise BundleError(
            f"'{folder / WEIGHTS}' is damaged or was exchanged: its sha256 is {found[:12]}…, {CARD} expects {card.sha256[:12]}…. "
            "Copy the run folder again, or fit again."
        )
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise BundleError(f"'{folder / WEIGHTS}' is no safetensors file: {error}.") from error
    networks = (card, *card.beside)
    own = [_under(_prefix(place), tensors) for place in range(len(networks))]
    described = [None] * len(networks) if trainable or module is not None else _networks(payload, len(networks))
    backbones, built = [], []
    for place, (network, its) in enumerate(zip(networks, own, strict=True)):
        computed = _under(f"computed{place}.", tensors)
        backbone, lacks = _backbone(network, described[place], its | computed, folder, None if place else module)
        backbones.append(backbone)
        if lacks:
            built.append((backbone, network, its))
    widths = [width for backbone in backbones for width in backbone.widths]
    head = _head(card, tensors, widths, folder)
    for backbone, network, its in built:
        try:
            backbone.load_state(its)
        except BackboneError as error:
            raise BundleError(f"The weights in '{folder}' do not fit {network.backbone.name}: {error}") from error
    return Model(
        backbones[0],
        head,
        card.classes,
        temperature=card.temperature,
        precision=_precision(card),
        exact=card.exact_stages,
        beside=[
            Engine(backbone, precision=_precision(network), exact=network.exact_stages)
            for backbone, network in zip(backbones[1:], card.beside, strict=True)
        ],
        unknown=_unknown(card, tensors, widths, folder),
        mirror=card.mirror,
    )


def _precision(network: Network) -> Precision:
    """What a network runs at here. Without bfloat16 in hardware torch imitates it, an order of magnitude slower than float32."""
    return network.precision if has_fast_bfloat16(runtime.device()) else "float32"


def _prefix(place: int) -> str:
    """What the names of a backbone's weights begin with; no prefix begins another."""
    return f"beside{place}." if place else "backbone."


def _networks(payload: bytes, count: int) -> Sequence[written.Written | None]:
    """What is written down of each network in the header of a safetensors file; None where that is nothing, or is not understood."""
    header: dict[str, Any] = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    try:
        found = _Networks.model_validate_json((header.get("__metadata__") or {}).get(_NETWORKS, "[]")).root
    except ValidationError:
        found = ()
    return found if len(found) == count else [None] * count


def _under(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _backbone(
    card: Network, found: written.Written | None, tensors: Mapping[str, torch.Tensor], folder: Path,
    module: nn.Module | None,
) -> tuple[Backbone, bool]:  # fmt: skip
    """The backbone as it is written down; where it is not, or that cannot be read here, built by its network's code. Whether it lacks
    its weights, as what was built does."""
    why = ""
    if found is not None:
        spec, origin = InputSpec(**card.input.model_dump()), Origin(**card.backbone.model_dump())
        try:
            backbone = written.read(found, tensors, spec, origin)
            if tuple(backbone.names) == card.stages:
                return backbone, False
        except BackboneError as error:
            why = f" (What is written down of it cannot be read here: {error})"
    return _rebuild(card, folder, module, why), True


def _rebuild(card: Network, folder: Path, module: nn.Module | None, why: str) -> Backbone:
    spec = InputSpec(**card.input.model_dump())
    kind = card.backbone.name.split(":", 1)[0]
    if kind == "module" and module is None:
        raise BundleError(
            f"The model in '{folder}' stands on a network of your own ({card.backbone.name}), whose code is not in the bundle. "
            f"Give it: headstart.load(folder, module=YourNetwork()){why}"
        )
    try:
        own = card.backbone.name if module is None else module
        backbone = load_backbone(own, pretrained=False, input=spec)
    except BackboneError as error:
        raise BundleError(f"The backbone of '{folder}' cannot be rebuilt: {error}{why}") from error
    if tuple(backbone.names) != card.stages:
        raise BundleError(
            f"{card.backbone.name} has stages {', '.join(backbone.names)} here; the model in '{folder}' was cut into "
            f"{', '.join(card.stages)}. Use the package versions that {CARD} names under 'versions'."
        )
    backbone.origin = Origin(**card.backbone.model_dump())
    return backbone


def _head(card: Card, tensors: dict[str, torch.Tensor], widths: Sequence[int], folder: Path) -> Head:
    if max(card.head.taps) >= len(widths) or min(card.head.taps) < 0:
        raise BundleError(f"The head in '{folder}' reads stages {card.head.taps}; the backbone has {len(widths)}.")
    shape = (sum(widths[tap] for tap in card.head.taps), len(card.classes))
    weight, bias = _shaped(tensors, "head.weight", shape, folder), _shaped(tensors, "head.bias", shape[1:], folder)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BundleError(
            f"The head in '{folder}' has numbers that are not finite. Copy the run folder again, or fit again."
        )
    return Head(card.head.kind, card.head.taps, card.head.strength, weight, bias)


def _shaped(
    tensors: dict[str, torch.Tensor], name: str, expected: tuple[int, ...], folder: Path
) -> NDArray[np.float32]:
    got = tuple(tensors[name].shape) if name in tensors else None
    if got != expected:
        raise BundleError(f"{name} in '{folder}' has shape {got}, expected {expected}.")
    if tensors[name].dtype != torch.float32:
        kind = str(tensors[name].dtype).removeprefix("torch.")
        raise BundleError(f"{name} in '{folder}' has dtype {kind}, expected float32.")
    found: NDArray[np.float32] = tensors[name].numpy()
    return found


def _unknown(card: Card, tensors: dict[str, torch.Tensor], widths: Sequence[int], folder: Path) -> Unknown | None:
    """What tells unknown pictures; None in a bundle without it."""
    if card.unknown is None:
        return None
    known = card.unknown
    if any(not 0 <= tap < len(widths) for tap in known.stages):
        raise BundleError(
            f"What tells unknown pictures in '{folder}' reads stages {known.stages}; the backbones have {len(widths)}."
        )
    classes = len(card.classes)
    shapes: dict[str, tuple[int, ...]] = {
        "scales": (len(known.stages) + 4, 2), "held": (known.pictures,), "answers.mean": (classes,),
        "answers.centres": (known.classes, classes), "answers.within": (classes, classes), "answers.together": (classes, classes),
    }  # fmt: skip
    for tap in known.stages:
        kept, axes = (known.folds, widths[tap]), min(known.axes, widths[tap])
        shapes |= {
            f"{tap}.mean": kept,
            f"{tap}.scale": kept,
            f"{tap}.axes": (*kept, axes),
            f"{tap}.weights": (known.folds, axes + 1),
        }
    arrays = {name: _shaped(tensors, f"unknown.{name}", shape, folder) for name, shape in shapes.items()}
    found = Unknown.of(known.stages, known.lost, arrays)
    # With too few pictures for so small a share there is no threshold at all.
    if (known.pictures + 1) * known.lost < 1 or not math.isclose(found.threshold, known.threshold, rel_tol=1e-6):
        raise BundleError(
            f"In '{folder}' {CARD} has {known.threshold} as the threshold for unknown pictures, which does not follow from "
            f"{WEIGHTS} where {known.lost} may be lost. Copy the run folder again, or fit again."
        )
    return found
