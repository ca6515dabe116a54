"""Pictures that show the same: hashes propose pairs, thumbnails confirm them in grey and in colour, chains are kept short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# Measured: re-encoded (JPEG quality 30), rescaled, squashed, brightened or contrasted copies keep a
# correlation above 0.98 and a distance of at most 4; unrelated photographs, textures and scenes stay below
# 0.95. Handwritten digits of one kind reach 0.98, hence the stricter mark for small pictures.
HASH_DISTANCE = 8  # bits of 64 in which a pair may differ to be looked at
ALIKE = 0.95  # correlation of the thumbnails
ALIKE_SMALL = 0.99  # the same for pictures below `SMALL`, which have little detail to differ in
SMALL = 64  # pixels of the shortest side
FLAT = 4.0  # standard deviation, grey levels, below which a thumbnail shows too little to be compared
# Measured on 280 photographs: re-encoded, rescaled and 10 % brighter copies, and those with red 5 % up and blue 5 % down, differ by at
# most 11 in chroma; those with a fifth more or less contrast or saturation by at most 0.23 of it. One drawing in yellow and in
# orange differs by 0.39, in two pale stains by 1.2, in red and green by 1.4.
TINGE = 12.0  # levels of 255, root mean square, by which the chroma of a pair may differ
TINGE_SHARE = 0.35  # the same, as a share of the stronger chroma of the two
GREY = 2.0  # chroma below which a picture is grey; it may be the copy of one in colour
STRICTER = (0.97, 0.98, 0.99, 0.995, 0.998)
_ROWS, _COLUMNS = 512, 2048
_PAIRS = 1 << 13  # pairs confirmed at a time: 2 x 32 MB of float32 thumbnails


@dataclass(frozen=True, eq=False)
class Pairs:
    """Near-duplicates: `index` (P, 2) int64, first below second; `alike` (P,) float32, their correlation."""

    index: NDArray[np.int64]
    alike: NDArray[np.float32]

    def keep(self, chosen: NDArray[np.bool_]) -> Pairs:
        """The pairs where `chosen` (P,) is true."""
        return Pairs(self.index[chosen], self.alike[chosen])


def near_pairs(
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    shortest: NDArray[np.int64],
) -> Pairs:
    """All pairs of near-duplicates.

    Args:
        hashes: (N,) uint64.
        thumbnails: (N, 32, 32) uint8 grey.
        colours: (N, 8, 8, 3) uint8 RGB.
        shortest: (N,) shortest side of the full pictures in pixels.
    """
    needed = np.where(shortest < SMALL, ALIKE_SMALL, ALIKE)
    coarse = thumbnails.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 64)
    telling = np.flatnonzero(coarse.std(axis=1) >= FLAT)
    flat = thumbnails.reshape(-1, 1024)
    index, alike = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for pairs in _close(hashes, telling):
        # What is alike in full is alike when blurred; asking that first spares most of the work.
        for pictures in (coarse, flat):
            found = _correlation(pictures[pairs[:, 0]], pictures[pairs[:, 1]])
            chosen = found >= np.maximum(needed[pairs[:, 0]], needed[pairs[:, 1]])
            pairs, found = pairs[chosen], found[chosen]
        chosen = _one_colour(colours[pairs[:, 0]], colours[pairs[:, 1]])
        index.append(pairs[chosen])
        alike.append(found[chosen])
    return Pairs(np.concatenate(index), np.concatenate(alike))


def _correlation(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.float32]:
    a, b = first.astype(np.float32), second.astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    both, one, other = (np.einsum("pd,pd->p", x, y) for x, y in ((a, b), (a, a), (b, b)))
    correlation: NDArray[np.float32] = both / np.sqrt(np.maximum(one * other, 1e-6))
    return correlation


def _one_colour(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether pairs (P, 8, 8, 3) agree in colour, or one of them has none: (P,)."""
    one, other = _chroma(first), _chroma(second)
    strengths = _size(one), _size(other)
    allowed = np.maximum(TINGE, TINGE_SHARE * np.maximum(*strengths))
    agree: NDArray[np.bool_] = (_size(one - other) <= allowed) | (np.minimum(*strengths) < GREY)
    return agree


def _chroma(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Red and blue less the lightness, (P, 64, 2): nought where a picture is grey."""
    rgb = colours.reshape(-1, 64, 3).astype(np.float32)
    return rgb[..., [0, 2]] - (rgb @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _size(chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square (P,)."""
    size: NDArray[np.float32] = np.sqrt(np.square(chroma).mean(axis=(1, 2)))
    return size


def _close(hashes: NDArray[np.uint64], chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """All pairs among `chosen` within `HASH_DISTANCE`: N^2 / 2 comparisons in tiles that fit the cache."""
    codes = hashes[chosen]
    for start in range(0, len(codes), _ROWS):
        rows = codes[start : start + _ROWS]
        for begin in range(start, len(codes), _COLUMNS):
            bits = _bit_count(rows[:, None] ^ codes[None, begin : begin + _COLUMNS])
            first, second = np.divmod(np.flatnonzero(bits <= HASH_DISTANCE), bits.shape[1])
            upper = begin + second > start + first
            pairs = np.stack([chosen[start + first[upper]], chosen[begin + second[upper]]], axis=1)
            for part in range(0, len(pairs), _PAIRS):
                yield pairs[part : part + _PAIRS]


def _bit_count(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Ones in each number. NumPy 2 counts by itself; for 1.26 in parallel sums (Hacker's Delight, 5-1)."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        counted: NDArray[np.uint8] = np.bitwise_count(values)
        return counted
    return _bit_count_by_sums(values)


def _bit_count_by_sums(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    twos, fours, eights, ones = (
        np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
    )
    values = values - ((values >> np.uint64(1)) & twos)
    values = (values & fours) + ((values >> np.uint64(2)) & fours)
    values = (values + (values >> np.uint64(4))) & eights
    return ((values * ones) >> np.uint64(56)).astype(np.uint8)


def components(count: int, links: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group number (count,) of each item; items joined by a chain of `links` (P, 2) share one."""
    graph = coo_matrix((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def shorten(count: int, pairs: Pairs) -> tuple[Pairs, NDArray[np.int64]]:
    """Drop the weakest links of overlong chains.

    Where a fixed camera or a simple drawing makes everything resemble everything, chains would join a large
    part of the pictures into one group, and no honest split could be cut. Groups above 1/20 of all pictures
    (or 20) lose their links below ever stricter marks. What holds together even then is one picture many times
    over and stays; only above 1/5 of all pictures it loses all its links.

    Returns:
        The pairs that stay, and the indices (M,) of the pictures that lost links.
    """
    kept, loosened = pairs, np.zeros(count, dtype=bool)
    for mark in (*STRICTER, np.inf):
        limit = max(20, count // (20 if np.isfinite(mark) else 5))
        groups = components(count, kept.index)
        overlong = (np.bincount(groups, minlength=1) > limit)[groups]
        weak = overlong[kept.index[:, 0]] & (kept.alike < mark)
        loosened[kept.index[weak].ravel()] = True
        kept = kept.keep(~weak)
    return kept, np.flatnonzero(loosened)
