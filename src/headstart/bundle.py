"""A Model on disk: `model.safetensors` and `model.json`, no pickle, validated on load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from headstart import runtime
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.catalog import load_backbone
from headstart.errors import BackboneError, BundleError
from headstart.features.engine import Engine
from headstart.features.precision import Precision, has_fast_bfloat16
from headstart.folder import CARD, WEIGHTS, write_atomically
from headstart.heads import Head, Kind
from headstart.model import Model
from headstart.unknown import Unknown

FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Input(_Record):
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop: float


class _Origin(_Record):
    name: str
    source: str
    licence: str
    url: str
    digest: str


class _Head(_Record):
    kind: Kind
    taps: tuple[int, ...] = Field(min_length=1)
    strength: float


class _Unknown(_Record):
    """The stages that are looked at, with how many Gaussians each and how many axes at most; of how many classes there were answers.

    `lost` is the share of known pictures that may be lost, `threshold` the strangeness above which a picture is one of these, as
    `pictures` held-out ones have it.
    """

    stages: tuple[int, ...]
    folds: int = Field(ge=0)
    axes: int = Field(ge=0)
    classes: int = Field(ge=1)
    lost: float = Field(gt=0, lt=1)
    threshold: float
    pictures: int = Field(ge=1)

    @classmethod
    def of(cls, known: Unknown) -> _Unknown:
        """The record of what a model knows."""
        folds = max((len(cloud.mean) for cloud in known.clouds), default=0)
        axes = max((cloud.axes.shape[2] for cloud in known.clouds), default=0)
        return cls(
            stages=known.taps,
            folds=folds,
            axes=axes,
            classes=len(known.answers.centres),
            lost=known.lost,
            threshold=known.threshold,
            pictures=len(known.held),
        )


class _Network(_Record):
    """A backbone: where it comes from, what it expects, how it runs."""

    backbone: _Origin
    stages: tuple[str, ...]
    input: _Input
    precision: Literal["float32", "bfloat16"]
    exact_stages: int = 0

    @staticmethod
    def of(engine: Engine) -> dict[str, Any]:
        """The fields for an engine's backbone."""
        spec, origin = engine.backbone.input, engine.backbone.origin
        return {
            "backbone": _Origin(**{name: getattr(origin, name) for name in _Origin.model_fields}),
            "stages": tuple(engine.backbone.names),
            "input": _Input(**{name: getattr(spec, name) for name in _Input.model_fields}),
            "precision": engine.settled or "float32",
            "exact_stages": engine.exact,
        }


class Card(_Network):
    """`model.json`: everything about a model but its numbers; `sha256` is that of `model.safetensors`. Networks `beside` the
    backbone answer together with it: the head counts their stages on from its own. `mirror`: whether augmented views may be
    mirrored; a card that does not say so has crops alone."""

    format: Literal[1] = 1
    task: Literal["classification"] = "classification"
    classes: tuple[str, ...] = Field(min_length=2)
    head: _Head
    temperature: float = Field(gt=0)
    beside: tuple[_Network, ...] = ()
    unknown: _Unknown | None = None
    mirror: bool = False
    sha256: str
    versions: dict[str, str] = {}


def save(model: Model, folder: Path, *, versions: dict[str, str] | None = None) -> Card:
    """Write the bundle into `folder`, the weights first and the card, which vouches for them, last.

    Raises:
        OutputError: where the folder cannot be written.
    """
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
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    payload = save_tensors({name: value.clone() for name, value in tensors.items()})
    card = Card(
        **_Network.of(model.engine),
        classes=model.classes,
        head=_Head(kind=model.head.kind, taps=model.head.taps, strength=model.head.strength),
        temperature=model.temperature,
        beside=tuple(_Network(**_Network.of(engine)) for engine in model.engines[1:]),
        unknown=None if known is None else _Unknown.of(known),
        mirror=model.mirror,
        sha256=hashlib.sha256(payload).hexdigest(),
        versions=versions or {},
    )
    write_atomically(folder / WEIGHTS, payload)
    write_atomically(folder / CARD, card.model_dump_json(indent=1).encode())
    return card


def load(folder: str | Path, *, module: nn.Module | None = None) -> Model:
    """Read a bundle; needs neither the original weights nor the data. It runs at the precision that it was measured at, or in float32
    where this machine lacks that.

    A model on a person's own network needs `module`, that network with any weights: its code is not in the bundle.

    Raises:
        BundleError: where a part is missing, damaged, of another format, or does not fit its own card.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        payload = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise BundleError(
            f"'{folder}' has no readable {WEIGHTS}: {error.strerror}. Give the folder that 'headstart fit' wrote."
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
    backbones = [_rebuild(network, folder, None if place else module) for place, network in enumerate(networks)]
    widths = [width for backbone in backbones for width in backbone.widths]
    head = _head(card, tensors, widths, folder)
    for place, backbone in enumerate(backbones):
        start = _prefix(place)
        try:
            backbone.load_state({n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)})
        except BackboneError as error:
            name = networks[place].backbone.name
            raise BundleError(f"The weights in '{folder}' do not fit {name}: {error}") from error
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


def _precision(network: _Network) -> Precision:
    """What a network runs at here. Without bfloat16 in hardware torch imitates it, an order of magnitude slower than float32."""
    return network.precision if has_fast_bfloat16(runtime.device()) else "float32"


def _prefix(place: int) -> str:
    """What the names of a backbone's weights begin with; no prefix begins another."""
    return f"beside{place}." if place else "backbone."


def read_card(folder: Path) -> Card:
    """The card of a bundle, checked.

    Raises:
        BundleError: where it is missing, malformed or of another format version.
    """
    path = folder / CARD
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(
            f"'{folder}' holds no model ({CARD}: {error.strerror}). Give the folder that 'headstart fit --out' wrote."
        ) from error
    except ValueError as error:
        raise BundleError(f"'{path}' is no valid JSON: {error}.") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise BundleError(
            f"'{path}' has format {version!r}; this Headstart reads format {FORMAT}. Use the version that wrote it, or fit again."
        )
    try:
        return Card.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"'{path}' is malformed at {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _rebuild(card: _Network, folder: Path, module: nn.Module | None) -> Backbone:
    spec = InputSpec(**card.input.model_dump())
    kind = card.backbone.name.split(":", 1)[0]
    if kind == "module" and module is None:
        raise BundleError(
            f"The model in '{folder}' stands on a network of your own ({card.backbone.name}), whose code is not in the bundle. "
            "Give it: headstart.load(folder, module=YourNetwork())"
        )
    try:
        own = card.backbone.name if module is None else module
        backbone = load_backbone(own, pretrained=False, input=spec)
    except BackboneError as error:
        raise BundleError(f"The backbone of '{folder}' cannot be rebuilt: {error}") from error
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
    return Head(card.head.kind, card.head.taps, card.head.strength, weight, bias)


def _shaped(
    tensors: dict[str, torch.Tensor], name: str, expected: tuple[int, ...], folder: Path
) -> NDArray[np.float32]:
    got = tuple(tensors[name].shape) if name in tensors else None
    if got != expected:
        raise BundleError(f"{name} in '{folder}' has shape {got}, expected {expected}.")
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
    return Unknown.of(known.stages, known.lost, arrays)
