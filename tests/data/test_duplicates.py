from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from headstart.data import duplicates
from headstart.data.duplicates import HASH_DISTANCE, Pairs, components, near_pairs, shorten
from headstart.data.facts import perceptual_hash
from tests.data.pictures import encoded, scene


def found(images: list[Image.Image]) -> set[tuple[int, int]]:
    grey = np.stack([np.asarray(i.convert("L").resize((32, 32), Image.Resampling.BILINEAR)) for i in images])
    shortest = np.array([min(image.size) for image in images])
    colours = np.stack([np.asarray(i.convert("RGB").resize((8, 8), Image.Resampling.BOX)) for i in images])
    return {(int(a), int(b)) for a, b in near_pairs(perceptual_hash(grey), grey, colours, shortest).index}


def tinted(image: Image.Image, light: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image.convert("RGB")) * np.array(light), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        lambda i: Image.open(io.BytesIO(encoded(i, "JPEG", quality=30))).convert("RGB"),
        lambda i: i.resize((i.width // 2, i.height // 2), Image.Resampling.BICUBIC),
        lambda i: i.resize((i.width, i.height * 4 // 5), Image.Resampling.BICUBIC),
        lambda i: ImageEnhance.Brightness(i).enhance(1.1),
        lambda i: ImageEnhance.Contrast(i).enhance(0.8),
        lambda i: i.convert("L"),
        lambda i: tinted(i, (1.05, 1.0, 0.95)),
        lambda i: ImageEnhance.Color(i).enhance(0.8),
    ],
    ids=["recompressed", "half", "squashed", "brighter", "flatter", "grey", "warmer", "paler"],
)
def test_changed_copies_are_found_and_others_are_not(change: object) -> None:
    assert callable(change)
    originals = [scene(seed, 320, 240) for seed in range(40)]
    assert found(originals) == set()
    assert found(originals + [change(image) for image in originals]) == {(i, i + 40) for i in range(40)}


@pytest.mark.parametrize(
    ("one", "other"),
    [((1.0, 0.35, 0.2), (0.3, 0.9, 0.3)), ((1.0, 0.8, 0.2), (1.0, 0.5, 0.2)), ((0.9, 0.7, 0.8), (0.7, 0.7, 0.9))],
    ids=["red and green", "yellow and orange", "two stains"],
)
def test_one_drawing_in_two_colours_is_two_pictures(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> None:
    drawings = [scene(seed, 320, 240).convert("L") for seed in range(20)]
    assert found([tinted(each, light) for light in (one, other) for each in drawings]) == set()
    assert found([*drawings, *(tinted(each, one) for each in drawings)]) == {(i, i + 20) for i in range(20)}


def test_strokes_on_black_do_not_collapse() -> None:
    random = np.random.default_rng(0)
    digits = []
    for _ in range(300):  # slanted strokes of different place and weight, 28 x 28
        rows, columns = np.mgrid[0:28, 0:28]
        slant, place, weight = random.uniform(-0.4, 0.4), random.uniform(11, 17), random.uniform(1, 3)
        stroke = np.exp(-(((columns - place - slant * (rows - 14)) / weight) ** 2)) * (
            np.abs(rows - 14) < random.uniform(8, 11)
        )
        digits.append(Image.fromarray((255 * stroke).astype(np.uint8)))
    pairs = found(digits)
    groups = components(300, np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2))
    assert np.bincount(groups).max() <= 30


@pytest.mark.parametrize(("contrast", "expected"), [(2, 0), (40, 1)])
def test_pictures_that_show_next_to_nothing_are_not_called_alike(contrast: int, expected: int) -> None:
    light = np.linspace(200, 200 + contrast, 32)[:, None] + np.zeros((32, 32))
    pages = np.stack([light, light]).astype(np.uint8)  # empty pages under the same lamp
    colours = np.zeros((2, 8, 8, 3), np.uint8)
    assert len(near_pairs(np.zeros(2, np.uint64), pages, colours, np.array([100, 100])).index) == expected


def test_equal_hashes_of_other_pictures_are_no_pairs() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    colours = np.zeros((2, 8, 8, 3), np.uint8)
    assert not len(near_pairs(np.zeros(2, np.uint64), grey, colours, np.array([100, 100])).index)


def test_textures_do_not_collapse() -> None:
    random = np.random.default_rng(0)
    textures = []
    for _ in range(150):
        rough = Image.fromarray(random.integers(60, 200, (50, 50), dtype=np.uint8))
        textures.append(rough.resize((200, 200), Image.Resampling.BICUBIC))
    assert found(textures) == set()


def test_pairs_equal_those_of_comparing_everything_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 16)
    monkeypatch.setattr(duplicates, "_COLUMNS", 24)
    monkeypatch.setattr(duplicates, "_PAIRS", 7)
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 12, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(0, 64, (100, 6)).astype(np.uint64)
    hashes = base[random.integers(0, 12, 100)] ^ np.bitwise_xor.reduce(flips, axis=1)
    chosen = np.sort(random.choice(100, 90, replace=False))
    expected = {
        (a, b) for a in chosen.tolist() for b in chosen.tolist()
        if a < b and int(hashes[a] ^ hashes[b]).bit_count() <= HASH_DISTANCE
    }  # fmt: skip
    result = [tuple(pair) for block in duplicates._close(hashes, chosen) for pair in block.tolist()]
    assert len(result) == len(set(result)) > 50
    assert set(result) == expected


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_bits_are_counted_alike_with_and_without_numpy_2(values: list[int]) -> None:
    array = np.array(values, dtype=np.uint64)
    expected = [value.bit_count() for value in values]
    assert duplicates._bit_count(array).tolist() == expected
    assert duplicates._bit_count_by_sums(array).tolist() == expected


def chain(length: int, alike: float, start: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    first = np.arange(start, start + length - 1)
    return np.stack([first, first + 1], axis=1), np.full(length - 1, alike, np.float32)


def test_only_overlong_chains_lose_links_and_the_weakest_first() -> None:
    short, overlong, strong = chain(20, 0.951), chain(60, 0.96, 20), chain(15, 0.999, 80)
    mixed = chain(30, 0.9965, 100)
    mixed[1][::10] = 0.955
    index = np.concatenate([short[0], overlong[0], strong[0], mixed[0]])
    alike = np.concatenate([short[1], overlong[1], strong[1], mixed[1]])
    kept, loosened = shorten(200, Pairs(index, alike))
    sizes = np.bincount(components(200, kept.index))
    assert sorted(sizes[sizes > 1].tolist()) == [9, 10, 10, 15, 20]
    assert set(loosened.tolist()) == set(range(20, 80)) | {100, 101, 110, 111, 120, 121}


def test_one_picture_many_times_over_stays_together_up_to_a_fifth_of_all() -> None:
    index, alike = chain(30, 0.999)
    kept, loosened = shorten(150, Pairs(index, alike))
    assert (len(kept.index), len(loosened)) == (29, 0)


def test_a_group_that_nothing_loosens_is_given_up() -> None:
    index, alike = chain(100, 1.0)
    kept, loosened = shorten(150, Pairs(index, alike))
    assert (len(kept.index), len(loosened)) == (0, 100)


@settings(max_examples=50)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_components_are_the_reachable_sets(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, links = case
    groups = components(count, np.array(links, dtype=np.int64).reshape(-1, 2))
    reach = np.eye(count, dtype=bool)
    for a, b in links:
        reach[a, b] = reach[b, a] = True
    for _ in range(count):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    assert np.array_equal(groups[:, None] == groups[None], reach)
