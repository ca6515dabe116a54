"""From an opened picture to the pixels a backbone sees: decode, the clean view, random views. No torch."""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import Images
from headstart.errors import UnreadableImage

VERSION = 1  # raise it whenever the same file would give other pixels: it enters every cache key
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_ELONGATED = 8  # ratio of sides from which only the part inside the central crop is resized
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_quiet_lock = threading.Lock()
_quiet_depth: list[warnings.catch_warnings[None]] = []
_quiet_users = [0]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's own warnings (odd EXIF, large pictures) in every thread until the last user leaves; and torchvision's, that its
    decoders are deprecated.

    `warnings.catch_warnings` alone is not safe in threads: the filters are one list for the whole process, so
    users are counted, the first saves the filters and the last restores them.
    """
    with _quiet_lock:
        _quiet_users[0] += 1
        if _quiet_users[0] == 1:
            saved = warnings.catch_warnings()
            saved.__enter__()
            _quiet_depth.append(saved)
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users[0] -= 1
            if _quiet_users[0] == 0:
                _quiet_depth.pop().__exit__(None, None, None)


class Spec(Protocol):
    """What a transform needs to know of a backbone's input: the geometry in `InputSpec`."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def crop(self) -> float: ...


def decode(image: Image.Image, shortest: int | None = None) -> Image.Image:
    """The picture as upright 8-bit RGB: EXIF orientation applied, alpha over white, first frame.

    Args:
        image: opened by Pillow, not yet loaded.
        shortest: the shortest side that will be needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8
            scale where its shortest side stays at least this long; other formats are decoded in full. The
            result depends on `shortest`, so training and prediction must pass the same.

    Raises:
        UnreadableImage: with the reason, when any part of the stream cannot be decoded.
    """
    if not all(image.size):
        raise UnreadableImage(f"{image.width} x {image.height} pixels: nothing to see")
    with quiet_pillow():
        try:
            if shortest is not None:
                image.draft(None, (shortest, shortest))  # None: leave the mode alone
            image.load()
            turn = turn_of(image)
            return _flatten(image if turn is None else image.transpose(turn))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types on broken streams; none may pass as a crash
            raise UnreadableImage(reason(error)) from error


def reason(error: BaseException) -> str:
    """Why a picture could not be read, in a few words for a person."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image in a format that Pillow can open"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: refused as a decompression bomb"
    if isinstance(error, FileNotFoundError):
        return "no such file (or a broken link)"
    if isinstance(error, PermissionError):
        return "permission denied"
    text = str(error) or type(error).__name__
    return f"damaged: {text}" if "truncated" not in text else f"truncated: {text}"


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns the pixels upright, by EXIF; None where they are, or nothing is known."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is a note beside the picture: where it is garbage, the pixels still count, as stored
        return None


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Deep greyscale (H, W) to 8 bits: a known range is scaled as such, any other to its extremes."""
    deep = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(deep.min()), float(deep.max())
    if low < 0 or high > 65535 or (high > 255 and values.dtype.kind == "f"):
        deep = (deep - low) * (255.0 / max(high - low, 1e-12))
    elif values.dtype.kind == "f" and high <= 1.0:
        deep = deep * 255.0
    elif high > 255 or values.dtype.itemsize == 2:
        deep = deep / 257.0  # 65535 / 255
    return np.rint(deep).astype(np.uint8)


@dataclass(frozen=True)
class Transform:
    """From a decoded picture to the (H, W, 3) uint8 pixels of a view; mean and std are applied by the engine.

    `size`           (height, width) in pixels.
    `interpolation`  a name in `INTERPOLATIONS`.
    `crop`           the share of the resized picture's side that the central crop keeps (timm's `crop_pct`).
    `scale`, `ratio` area and aspect ratio that a random view's crop is drawn from; `flip` mirrors half of
    them.
    """

    size: tuple[int, int]
    interpolation: str = "bicubic"
    crop: float = 0.875
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if min(self.size) < 1 or not 0 < self.crop <= 1:
            raise ValueError(f"size {self.size} must be positive and crop {self.crop} in (0, 1]")

    @classmethod
    def of(cls, spec: Spec, *, flip: bool = True) -> Transform:
        """The transform that a backbone was evaluated with."""
        height, width = spec.size
        return cls((height, width), spec.interpolation, min(float(spec.crop), 1.0), flip=flip)

    @property
    def fingerprint(self) -> str:
        """Everything that decides the pixels of the views, as text for cache keys."""
        return f"{self._clean} scale {self.scale} ratio {self.ratio} flip {self.flip}"

    @property
    def needed_side(self) -> int:
        """The shortest side that `decode` must leave, in pixels; all views share one decode."""
        return max(self._resized)

    @property
    def _resized(self) -> tuple[int, int]:
        return (math.floor(self.size[0] / self.crop), math.floor(self.size[1] / self.crop))

    @property
    def _clean(self) -> str:
        height, width = self.size
        decoder = f"images-{VERSION} pillow-{PIL.__version__}"
        return f"{decoder} {height}x{width} {self.interpolation} crop {self.crop:.6g}"

    def key(self, view: int, seed: int) -> str:
        """What a cache key needs to tell one view; the clean one does not depend on how views are drawn."""
        return self._clean if view == 0 else f"{self.fingerprint} view {view} seed {seed}"

    def clean(self, image: Image.Image) -> NDArray[np.uint8]:
        """The evaluation view (H, W, 3): shortest side resized to floor(size / crop), then the centre."""
        height, width = self.size
        across, down, left, top = self.placed(image.width, image.height)
        if not self.is_elongated(across, down):
            resized = image.resize((across, down), INTERPOLATIONS[self.interpolation])
            return np.asarray(resized.crop((left, top, left + width, top + height)))
        # Resizing 10 x 10,000 pixels whole would take gigabytes. Pillow's `box` computes the part inside the
        # crop alone, from its true neighbours; only the rounding between its two passes may differ.
        x, y = image.width / across, image.height / down
        right, bottom = min((left + width) * x, image.width), min((top + height) * y, image.height)
        return self._sample(image, (left * x, top * y, right, bottom))

    def placed(self, wide: int, high: int) -> tuple[int, int, int, int]:
        """Width and height to which a picture of `wide` x `high` pixels is resized, then left and top of the centre in that."""
        height, width = self.size
        goal_height, goal_width = self._resized
        if goal_height == goal_width:  # as torchvision: shortest side exact, the other rounded down
            across, down = (goal_width * side // min(wide, high) for side in (wide, high))
        else:  # as timm's ResizeKeepRatio: the smallest size that covers both goals
            ratio = min(wide / goal_width, high / goal_height)
            across, down = (round(side / ratio) for side in (wide, high))
        return across, down, round((across - width) / 2.0), round((down - height) / 2.0)

    def is_elongated(self, across: int, down: int) -> bool:
        """Whether a picture that is resized to this is many times as large as what is seen of it."""
        return across * down > _ELONGATED * math.prod(self._resized)

    def view(self, image: Image.Image, content: str, number: int, seed: int) -> NDArray[np.uint8]:
        """A random resized crop (H, W, 3), perhaps mirrored, fixed by content, view number and seed alone.

        Crop drawn as in Szegedy et al., arXiv 1409.4842 (torchvision's RandomResizedCrop).
        """
        recipe = hashlib.blake2b(f"{content} {number} {seed}".encode(), digest_size=16).digest()
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(recipe, "little"))).random
        box = self._random_box(image.width, image.height, draw(20))
        pixels = self._sample(image, box)
        if self.flip and draw() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels

    def _random_box(self, width: int, height: int, draws: NDArray[np.float64]) -> tuple[float, float, float, float]:
        """Eight tries at a crop that fits; then the largest crop of an allowed aspect, at a drawn place."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for step in range(0, 16, 2):
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * float(draws[step]))
            ratio = math.exp(low + (high - low) * float(draws[step + 1]))
            across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if across <= width and down <= height:
                left = float(draws[16]) * (width - across)
                top = float(draws[17]) * (height - down)
                return (left, top, left + across, top + down)
        across = min(float(width), height * self.ratio[1])
        down = min(float(height), width / self.ratio[0])
        left, top = float(draws[16]) * (width - across), float(draws[17]) * (height - down)
        return (left, top, left + across, top + down)

    def _sample(self, image: Image.Image, box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
        size = (self.size[1], self.size[0])
        return np.asarray(image.resize(size, INTERPOLATIONS[self.interpolation], box=box))


def load_views(
    images: Images, index: int, transforms: Sequence[Transform], views: Sequence[int], seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Several views of one picture for each transform, (len(views), H, W, 3) uint8; view 0 is the clean one. The picture is decoded
    once for all transforms that decode it at the same scale.

    Raises:
        UnreadableImage: with the picture's name and the reason.
    """
    content, open_picture = images.fetch(index)
    decoded = _decoded(open_picture)
    try:
        pictures = [decoded(transform.needed_side) for transform in transforms]
    except UnreadableImage as error:
        name = images.names[index]
        raise UnreadableImage(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    return _stacked(pictures, transforms, content, views, seed)


def views_of(
    open_picture: Callable[[], Image.Image], transforms: Sequence[Transform], more: int = 0
) -> list[NDArray[np.uint8]]:
    """The clean view of one picture, then `more` augmented ones, for each transform, (1 + more, H, W, 3) uint8; decoded once for all
    that decode it at the same scale. The augmented ones are drawn from the decoded pixels, whatever file they come from.

    Raises:
        UnreadableImage: with the reason.
        ValueError: where `more` is negative.
    """
    if more < 0:
        raise ValueError(f"{more} augmented views; expected 0, for the picture as it is, or how many to add")
    decoded = _decoded(open_picture)
    pictures = [decoded(transform.needed_side) for transform in transforms]
    content = hashlib.blake2b(pictures[0].tobytes(), digest_size=32).hexdigest() if more else ""
    return _stacked(pictures, transforms, content, range(1 + more), 0)


def _stacked(
    pictures: Sequence[Image.Image], transforms: Sequence[Transform], content: str, views: Sequence[int], seed: int
) -> list[NDArray[np.uint8]]:
    """The views of one picture, decoded for each of the transforms, (len(views), H, W, 3) each."""
    return [
        np.stack([each.clean(picture) if view == 0 else each.view(picture, content, view, seed) for view in views])
        for each, picture in zip(transforms, pictures, strict=True)
    ]


def _decoded(open_picture: Callable[[], Image.Image]) -> Callable[[int], Image.Image]:
    """The picture by the shortest side that is needed (`decode`), decoded once for all sides that come to the same scale."""
    at_scale: dict[tuple[int, int], Image.Image] = {}

    def decoded(side: int) -> Image.Image:
        with open_picture() as opened:
            opened.draft(None, (side, side))
            scale = opened.size
            if scale not in at_scale:
                at_scale[scale] = decode(opened, side)
        return at_scale[scale]

    return decoded


def load_view(images: Images, index: int, transform: Transform, view: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    """One view of one picture, (H, W, 3) uint8; view 0 is the clean one.

    Raises:
        UnreadableImage: with the picture's name and the reason.
    """
    pixels: NDArray[np.uint8] = load_views(images, index, (transform,), (view,), seed)[0][0]
    return pixels
