"""Dataset: pictures, labels, and the side of every split. Nothing after `data/` knows what a pixel is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from headstart.data.audit import Audit

SPLITS = ("train", "val", "test")


class Images(Protocol):
    """A source of raw pictures: the contract that readers fulfil. Index `i` runs over `range(len(self))`."""

    @property
    def names(self) -> Sequence[str]:
        """What a person would call each picture: a path inside the data set, or `train[12]` for arrays."""
        ...

    def __len__(self) -> int: ...

    def content(self, index: int) -> str:
        """Hex digest (BLAKE2b, 32 bytes) of the raw content: file bytes, or array shape, dtype and bytes."""
        ...

    def open(self, index: int) -> Image:
        """The picture, opened by Pillow and not yet decoded (so that `images.decode` may reduce the scale).

        Raises:
            UnreadableImage: with the name and the reason.
        """
        ...

    def fetch(self, index: int) -> tuple[str, Callable[[], Image]]:
        """`content` and a function that does `open`, both from one reading of the raw content.

        Raises:
            UnreadableImage: with the name and the reason, where nothing can be read at all.
        """
        ...

    def select(self, indices: Sequence[int]) -> Images:
        """The same source, restricted to `indices` in their order."""
        ...


@dataclass(frozen=True, eq=False)
class Particulars:
    """What is known of N pictures beside what they show.

    `sizes` (N, 2) int64 width and height in pixels, upright. `formats` N names of file format and channel mode. `groups` N names of
    groups that a person gave; "" where a picture has none.
    """

    sizes: NDArray[np.int64]
    formats: tuple[str, ...]
    groups: tuple[str, ...]

    def select(self, chosen: NDArray[np.int64]) -> Particulars:
        """The particulars of the pictures `chosen` (M,)."""
        return Particulars(
            self.sizes[chosen], tuple(self.formats[i] for i in chosen), tuple(self.groups[i] for i in chosen)
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled pictures, audited, de-duplicated and split.

    `labels`  (N,) int64, index into `classes`.
    `split`   (N,) str, one of `SPLITS` or "" where not yet assigned.
    `fold`    (N,) int64, cross-validation fold of the training pool (split "train"); -1 elsewhere.
    `groups`  (N,) int64; pictures that share a group (given, or near-duplicates) never straddle.
    `digests` N hex digests of the raw contents.
    `given`   the splits that the person laid out; they are respected. With "train" and "val" but no "test",
              `split` calls the pictures of "val" "test": they stay sealed, and folds of "train" take val's
              place. Where "val" lacks a class of "train", its pictures are left out, and folds take its place, too.
    `mirror`  whether a picture still shows its class in the mirror: augmented views may then be mirrored.
    """

    images: Images
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    fold: NDArray[np.int64]
    groups: NDArray[np.int64]
    digests: tuple[str, ...]
    source: str
    given: frozenset[str] = frozenset()
    audit: Audit | None = field(default=None, repr=False)
    particulars: Particulars | None = field(default=None, repr=False)
    mirror: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        return self.images.names

    @property
    def digest(self) -> str:
        """Digest of contents, labels, classes, splits and folds, whatever the names of the files."""
        lines = sorted(
            f"{content} {self.classes[label]} {split} {fold}"
            for content, label, split, fold in zip(self.digests, self.labels, self.split, self.fold, strict=True)
        )
        return hashlib.blake2b("\n".join([*self.classes, *lines]).encode(), digest_size=32).hexdigest()

    def indices(self, split: str) -> NDArray[np.int64]:
        """Indices (M,) of the pictures on one side, in the order of their contents: names and order of files change nothing."""
        found = np.flatnonzero(self.split == split).tolist()
        return np.array(sorted(found, key=lambda i: self.digests[i]), dtype=np.int64)

    def counts(self, split: str | None = None) -> NDArray[np.int64]:
        """Images per class (K,), of one side or of all."""
        chosen = self.labels if split is None else self.labels[self.split == split]
        return np.bincount(chosen, minlength=len(self.classes)).astype(np.int64)

    def select(self, indices: Iterable[int]) -> Dataset:
        """The data set restricted to `indices` (classes stay as they are)."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        return replace(
            self,
            images=self.images.select([int(i) for i in chosen]),
            labels=self.labels[chosen],
            split=self.split[chosen],
            fold=self.fold[chosen],
            groups=self.groups[chosen],
            digests=tuple(self.digests[i] for i in chosen),
            particulars=None if self.particulars is None else self.particulars.select(chosen),
        )
