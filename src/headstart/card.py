"""The card of a bundle, `model.json`: everything about a model but its numbers, checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from headstart.backbones import modules
from headstart.data.images import INTERPOLATIONS
from headstart.errors import BundleError
from headstart.features.engine import Engine
from headstart.folder import CARD
from headstart.heads import Kind
from headstart.model import Model
from headstart.unknown import Unknown

FORMAT = 1
_Side = Annotated[int, Field(gt=0, le=10_000)]
_AboveZero = Annotated[float, Field(gt=0)]


class _Record(modules.Record):
    """Its numbers are finite: pydantic alone lets NaN pass as a mean, and infinity as being above zero."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Input(_Record):
    size: tuple[_Side, _Side]
    mean: tuple[float, float, float]
    std: tuple[_AboveZero, _AboveZero, _AboveZero]
    interpolation: str
    crop: float = Field(ge=0.05, le=2.0)  # timm has up to 1.15; near 0, a picture would be made larger than memory

    @field_validator("interpolation")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in INTERPOLATIONS:
            raise ValueError(f"{name!r} is not one of {', '.join(INTERPOLATIONS)}")
        return name


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


class Network(_Record):
    """A backbone: where it comes from, what it expects, how it runs."""

    backbone: _Origin
    stages: tuple[str, ...]
    input: _Input
    precision: Literal["float32", "bfloat16"]
    exact_stages: int = Field(default=0, ge=0)

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


class Card(Network):
    """`model.json`: everything about a model but its numbers; `sha256` is that of `model.safetensors`. Networks `beside` the
    backbone answer together with it: the head counts their stages on from its own. `mirror`: whether augmented views may be
    mirrored; a card that does not say so has crops alone."""

    format: Literal[1] = 1
    task: Literal["classification"] = "classification"
    classes: tuple[str, ...] = Field(min_length=2)
    head: _Head
    temperature: float = Field(gt=0)
    beside: tuple[Network, ...] = ()
    unknown: _Unknown | None = None
    mirror: bool = False
    sha256: str
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("classes")
    @classmethod
    def _are_different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("two classes have one name")
        return names

    @classmethod
    def of_model(cls, model: Model, sha256: str, versions: dict[str, str]) -> Card:
        """The card for a model whose weights have that digest."""
        known = model.unknown
        return cls(
            **Network.of(model.engine),
            classes=model.classes,
            head=_Head(kind=model.head.kind, taps=model.head.taps, strength=model.head.strength),
            temperature=model.temperature,
            beside=tuple(Network(**Network.of(engine)) for engine in model.engines[1:]),
            unknown=None if known is None else _Unknown.of(known),
            mirror=model.mirror,
            sha256=sha256,
            versions=versions,
        )


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
            f"'{folder}' holds no model ({CARD}: {error.strerror}). Give the run folder that 'headstart fit' wrote."
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
