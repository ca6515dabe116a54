"""Model: one backbone or two, a linear head on some of their stages, and what is needed to read its answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, SupportsIndex, final, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.images import Transform, quiet_pillow, reason, views_of
from headstart.data.sources import ArrayImages, FileImages, open_bytes
from headstart.errors import UnreadableImage
from headstart.features.engine import Engine
from headstart.features.extract import columns
from headstart.features.precision import Precision
from headstart.features.settle import transform_of
from headstart.heads import Head
from headstart.tasks.classification import softmax
from headstart.unknown import Unknown

Picture = str | os.PathLike[str] | os.PathLike[bytes] | Image.Image | NDArray[Any] | torch.Tensor
_one_at_a_time = threading.Lock()  # one picture may be given twice, and has one place in its file


@dataclass(frozen=True)
class Prediction:
    """One answer: the label and the runner-up with calibrated probabilities, or the reason why there is none.

    `typicality`: the share of known pictures that are at least as strange. Where it is too small the picture is `unknown`: it
    seems to show none of the classes, and the label is only the least unlikely of them.
    """

    path: str
    label: str = ""
    probability: float = float("nan")
    second: str = ""
    second_probability: float = float("nan")
    error: str = ""
    unknown: bool = False
    typicality: float = float("nan")


@dataclass(frozen=True, eq=False)
class Predictions(Sequence[Prediction]):
    """Answers in the order of the pictures; `probabilities` (N, K) float64, NaN where a picture could not be read."""

    rows: tuple[Prediction, ...]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    @property
    def labels(self) -> list[str]:
        """The most probable class of every picture; "" where a picture could not be read."""
        return [row.label for row in self.rows]


@final
class Model:
    """A trained classifier. Engines `beside` run other backbones, whose stages the head counts on from those of `backbone`.

    `temperature` divides the logits before the softmax (Guo et al. 2017); `precision` and `exact` are
    the engine's, so that a model answers in use as it did when it was measured. Without `unknown` no picture is ever unknown.
    `mirror`: whether augmented views of a picture, where they are asked for, may be mirrored.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        classes: tuple[str, ...],
        *,
        temperature: float = 1.0,
        precision: Precision = "float32",
        exact: int = 0,
        beside: Sequence[Engine] = (),
        unknown: Unknown | None = None,
        mirror: bool = True,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.classes = classes
        self.temperature = temperature
        self.engine = Engine(backbone, precision=precision, exact=exact)
        self.engines = (self.engine, *beside)
        self.unknown = unknown
        self.mirror = mirror

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """How a picture is made ready for each backbone."""
        return tuple(transform_of(engine.backbone, self.mirror) for engine in self.engines)

    @property
    def widths(self) -> tuple[int, ...]:
        """Pooled width per stage, of all backbones in turn."""
        return tuple(width for engine in self.engines for width in engine.backbone.widths)

    def logits(self, *pictures: NDArray[np.uint8], views: int = 0) -> NDArray[np.float32]:
        """Pictures (N, H, W, 3) uint8, transformed for each backbone in turn, to logits (N, K) float32, not yet divided by the
        temperature. With `views`, each is followed by so many augmented views of it, N(1 + views) rows in all: the mean of each group.
        """
        return _averaged(self._headed(self._pooled(pictures)), views)

    def _pooled(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pooled outputs of every stage of every backbone, a batch at a time."""
        parts, size = [], self.engine.batch
        for start in range(0, max(1, len(pictures[0])), size):
            rows = [each[start : start + size] for each in pictures]
            parts.append(
                np.concatenate([engine.pooled(x) for engine, x in zip(self.engines, rows, strict=True)], axis=1)
            )
        return np.concatenate(parts)

    def _headed(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.head.logits(pooled[:, columns(self.widths, self.head.taps)])

    def _typicality(self, pooled: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Unknown.typicality`; NaN where nothing is known of it."""
        if self.unknown is None:
            return np.full(len(logits), np.nan)
        stages = [pooled[:, columns(self.widths, (tap,))] for tap in self.unknown.taps]
        return self.unknown.typicality(stages, logits.astype(np.float64) / self.temperature)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K) of logits (N, K)."""
        return softmax(logits.astype(np.float64) / self.temperature)

    def predict(
        self, pictures: Iterable[Picture], *, views: int = 0, progress: runtime.Progress = runtime.silent
    ) -> Predictions:
        """Answers for files, Pillow pictures or arrays (H, W) or (H, W, C), in their order; unreadable ones become errors. A tensor is
        taken as an array.

        Args:
            pictures: what to answer.
            views: how many augmented views of each picture (crops, mirrored or not by chance) are averaged with it, by logits; what
                is unknown is told by the picture itself. Takes 1 + `views` times as long.
            progress: a bar, or `runtime.silent`.

        Raises:
            TypeError: where one picture is given in place of several, or nothing that is given can be one.
            ValueError: where `views` is negative.
        """
        _refuse_one(pictures)
        rows, blocks = [], []
        listed = list(pictures)
        if listed and (wrong := _unlike(listed[0])) and all(map(_unlike, listed)):
            raise TypeError(f"Nothing given can be a picture. The first is {wrong}.")
        with progress("Predicting", len(listed)) as advance:
            for chunk, probabilities in self.stream(listed, views=views):
                rows += chunk
                blocks.append(probabilities)
                advance(len(chunk))
        empty = np.empty((0, len(self.classes)))
        return Predictions(tuple(rows), np.concatenate([empty, *blocks]), self.classes)

    def stream(
        self, pictures: Iterable[Picture], *, views: int = 0
    ) -> Iterator[tuple[list[Prediction], NDArray[np.float64]]]:
        """As `predict`, a few batches at a time, so that millions of pictures need no more memory than these."""
        source, step = enumerate(pictures), self.engine.batch

        def chunks() -> Iterator[list[tuple[int, Picture]]]:
            # One batch each at first, so that the first answers come at once; more only where many have come before, so that
            # no worker is left with much to do at the end of a short list.
            grown = (repeat(batches, 4 * runtime.cpu_count()) for batches in (1, 2, 4))
            for batches in chain(*grown, repeat(8)):
                if not (chunk := list(islice(source, batches * step))):
                    return
                yield chunk

        def answered(chunk: list[tuple[int, Picture]]) -> tuple[list[Prediction], NDArray[np.float64]]:
            named: list[tuple[str, UnreadableImage | None]] = []
            pooled: list[NDArray[np.float32]] = []
            for start in range(0, len(chunk), step):
                loaded = [self._loaded(place, item, views) for place, item in chunk[start : start + step]]
                named += [(name, found if isinstance(found, UnreadableImage) else None) for name, found in loaded]
                read = [found for _, found in loaded if not isinstance(found, UnreadableImage)]
                if read:
                    pooled.append(self._pooled([np.concatenate(each) for each in zip(*read, strict=True)]))
            return self._answers(named, pooled, views)

        return runtime.parallel(answered, chunks())

    def _loaded(
        self, place: int, picture: Picture, views: int
    ) -> tuple[str, list[NDArray[np.uint8]] | UnreadableImage]:
        name = os.fsdecode(picture) if isinstance(picture, str | os.PathLike) else f"[{place}]"
        try:
            return name, views_of(partial(_opened, picture), self.transforms, views)
        except UnreadableImage as error:
            return name, UnreadableImage(str(error).removeprefix(f"{name}: "))  # the row names it already

    def _answers(
        self, named: Sequence[tuple[str, UnreadableImage | None]], pooled: Sequence[NDArray[np.float32]], views: int
    ) -> tuple[list[Prediction], NDArray[np.float64]]:
        """Answers to pictures by name, or why one could not be read; `pooled` are the features of those that could, each followed by
        those of its `views`."""
        found = [i for i, (_, error) in enumerate(named) if error is None]
        probabilities, typicality = np.full((len(named), len(self.classes)), np.nan), np.full(len(named), np.nan)
        if found:
            features = np.concatenate(pooled)
            logits = self._headed(features)
            probabilities[found] = self.probabilities(_averaged(logits, views))
            typicality[found] = self._typicality(features[:: 1 + views], logits[:: 1 + views])
        lost = 0.0 if self.unknown is None else self.unknown.lost
        rows = []
        for (name, error), row, typical in zip(named, probabilities, typicality, strict=True):
            if error is not None:
                rows.append(Prediction(name, error=str(error)))
                continue
            first, second = np.argsort(-row, kind="stable")[:2]
            top, next_ = (self.classes[first], float(row[first])), (self.classes[second], float(row[second]))
            rows.append(Prediction(name, *top, *next_, unknown=bool(typical <= lost), typicality=float(typical)))
        return rows, probabilities


def _averaged(logits: NDArray[np.float32], views: int) -> NDArray[np.float32]:
    """The mean over each picture and its views, which follow it: (N(1 + views), K) to (N, K)."""
    return logits.reshape(-1, 1 + views, logits.shape[1]).mean(1) if views else logits


def _opened(picture: Picture) -> Image.Image:
    """Opened by Pillow, not yet decoded.

    Raises:
        UnreadableImage: with the reason.
    """
    if isinstance(picture, Image.Image):
        return _taken(picture)
    if isinstance(picture, str | os.PathLike):
        path = os.fsdecode(picture)
        return FileImages((Path(path),), (path,)).open(0)
    if wrong := _unlike(picture):
        raise UnreadableImage(wrong)
    pixels = picture.numpy(force=True) if isinstance(picture, torch.Tensor) else picture
    if not pixels.size:
        raise UnreadableImage(f"an array of shape {pixels.shape}: nothing to see")
    return ArrayImages(pixels[None], ("array",), (0,)).open(0)


def _refuse_one(pictures: object) -> None:
    """Stop where a single picture is given, or what only looks like a list of them.

    Raises:
        TypeError: with what to give instead.
    """
    advice = "Arrays of many are (N, H, W) or (N, H, W, C)."
    if isinstance(pictures, bytes | bytearray | memoryview | Mapping):
        raise TypeError(f"Got a {type(pictures).__name__}, expected several pictures: predict([picture]). {advice}")
    one = isinstance(pictures, str | os.PathLike | Image.Image)
    if isinstance(pictures, torch.Tensor):
        one, advice = pictures.ndim < 4, "Tensors of many are (N, H, W, C)."
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind in "buif":
        one = pictures.ndim == 2 or (pictures.ndim == 3 and pictures.shape[2] in (1, 3, 4))
    if one:
        raise TypeError(f"Got one picture, expected several: predict([picture]). {advice}")


def _unlike(picture: object) -> str:
    """Why a thing cannot be a picture, by its type and shape alone; "" where it can."""
    if isinstance(picture, str | os.PathLike | Image.Image):
        return ""
    if not isinstance(picture, np.ndarray | torch.Tensor):
        return f"a {type(picture).__name__}; expected a path, a Pillow picture or an array"
    shape, dtype = tuple(picture.shape), str(picture.dtype).removeprefix("torch.")
    if dtype == "uint8" and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        return ""
    kind = "a tensor" if isinstance(picture, torch.Tensor) else "an array"
    return f"{kind} of shape {shape} and dtype {dtype}; expected (H, W) or (H, W, 1, 3 or 4) of uint8"


def _taken(picture: Image.Image) -> Image.Image:
    """A copy of the caller's. What is not decoded yet is opened again from its own bytes: decoded at the scale that a file would be,
    and the caller's own stays as it is. A frame that was sought is no longer what these bytes begin with.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        with quiet_pillow(), _one_at_a_time:
            if not (isinstance(picture, ImageFile.ImageFile) and picture.tile and picture.fp and picture.tell() == 0):
                return picture.copy()
            place = picture.fp.tell()
            try:
                picture.fp.seek(0)
                content = picture.fp.read()
            finally:
                picture.fp.seek(place)
    except MemoryError:
        raise
    except Exception as error:  # it was closed, or Pillow's decoders met a broken stream
        raise UnreadableImage(reason(error)) from error
    return open_bytes(content)
