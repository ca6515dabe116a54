"""Shared places: parts of one thing share many, whatever move, turn and light; two things of a kind few; it is remembered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from headstart.backbones.backbone import Backbone, InputSpec
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.diagnosis.leaks import Neighbours, closeness, leaks, overlaps, suspected
from headstart.diagnosis.overlap import COARSE, FINE, WIDE, Map, _descriptor, agreeing, shared_places
from headstart.features.engine import Engine
from headstart.features.settle import settle
from headstart.features.store import Store
from tests.diagnosis.given import dataset_of, featured, raced

SIDE = 160


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("test_resnet", pretrained=False)


def scene(seed: int) -> NDArray[np.uint8]:
    """A larger picture (240, 240, 3) of blobs: all scenes are alike in kind."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (30, 30, 3), dtype=np.uint8))
    return np.array(coarse.resize((240, 240), Image.Resampling.BICUBIC))


def shot(seed: int, at: int, turn: float = 0.0, light: float = 1.0) -> NDArray[np.uint8]:
    """A part of a scene, beginning `at` pixels down and across, turned by degrees."""
    turned = Image.fromarray(scene(seed)).rotate(turn, Image.Resampling.BICUBIC)
    part = np.asarray(turned, np.float32)[at : at + SIDE, at : at + SIDE] * light
    return part.clip(0, 255).astype(np.uint8)


def pictures(shots: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    return {"pictures": np.stack(shots)}


@pytest.mark.parametrize("seed", range(3))
def test_a_moved_map_agrees_where_it_overlaps_and_another_does_not(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    layout = Map(1, 28, 28, 1)
    large, other = (
        torch.nn.functional.normalize(torch.randn(34, 34, 12, generator=draw), dim=2).half() for _ in range(2)
    )
    one, moved = large[:28, :28].flatten(0, 1), large[6:, 4:32].flatten(0, 1)
    shared = agreeing(one, torch.stack([one, moved, other[:28, :28].flatten(0, 1)]), layout)
    assert shared[0] == 196 and shared[1] == 11 * 12 and shared[2] < 12


def test_parts_of_one_scene_share_many_places_and_scenes_of_a_kind_few(
    backbone: Backbone, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [shot(0, 40), shot(0, 60), shot(0, 40, turn=6), shot(0, 40, light=0.8), *(shot(n, 40) for n in range(1, 5))]
    dataset = dataset_of(np.zeros(8, np.int64), **pictures(shots))
    mates = np.arange(1, 8)[None]
    engine = Engine(backbone)
    shared = shared_places(engine, dataset, np.array([0]), mates, store)
    assert shared is not None and shared.shape == (1, 7)
    assert shared[0, :3].min() > 2 * shared[0, 3:].max(), shared

    monkeypatch.setattr(engine, "maps", None)
    again = shared_places(engine, dataset, np.array([0]), mates, store)
    assert again is not None and (again == shared).all(), "what was counted is remembered"


@pytest.mark.parametrize(("side", "across"), [(160, 160), (288, 288), (480, 480), (160, 320), (224, 161)])
def test_the_highest_map_that_is_fine_enough_is_compared_in_no_more_cells_than_needed(side: int, across: int) -> None:
    backbone = load_backbone("test_convnext", pretrained=False, input=InputSpec((side, across)))
    found = Map.of(backbone)
    assert found is not None and FINE <= min(found.height, found.width) <= COARSE
    done = np.cumsum(backbone.flops) / sum(backbone.flops)
    assert done[found.cut - 1] <= 0.5, "it takes no more than half of a pass"
    above = [backbone.map_size(place) for place in range(found.cut, len(backbone.stages)) if done[place] <= 0.5]
    assert all(size is None or min(size) < FINE for size in above)
    cells = Engine(backbone).maps(np.zeros((2, side, across, 3), np.uint8), found.cut)[:, :: found.step, :: found.step]
    assert cells.shape[:3] == (2, found.height, found.width) and len(found.places) == found.height * found.width


def test_a_wide_map_tells_the_same_by_fewer_numbers() -> None:
    raw = torch.randn(4, 400, 6 * WIDE, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    told = _descriptor(raw)(raw).float()
    assert told.shape == (8, 400, WIDE)
    assert torch.equal(told[:4], told[4:])
    assert (told[0] @ told[1].T).abs().mean() < 0.15, "what is unlike stays so"


def test_without_a_map_nothing_is_compared(store: Store) -> None:
    flat = load_backbone("test_vit", pretrained=False)
    dataset = dataset_of(np.zeros(4, np.int64), **pictures([shot(n, 40) for n in range(4)]))
    assert Map.of(flat) is None
    assert shared_places(Engine(flat), dataset, np.array([0]), np.array([[1, 2]]), store) is None


@pytest.mark.parametrize("each", [1, 2])
def test_overlapping_parts_are_suspected_where_features_tell_nothing(
    backbone: Backbone, store: Store, each: int
) -> None:
    count = 64
    shots = [shot(place // each, 10 + 55 * (place % each)) for place in range(count)]
    labels = np.arange(count) // each % 2
    dataset = dataset_of(labels, tested=np.arange(count) % 8 == 1, folds=np.arange(count) % 5, **pictures(shots))
    # Who is near is known, and how near tells nothing: of each class sixteen in a row lie about one point.
    draw = np.random.default_rng(0)
    raw = draw.standard_normal((count // 32, 1, 6)).repeat(32, 1).reshape(count, 6)
    raw = (raw + 0.3 * draw.standard_normal(raw.shape)).astype(np.float32)
    heads, features, engine = raced(dataset), featured(dataset, raw, store), Engine(backbone)
    near = Neighbours.of(dataset, heads, features)
    found = overlaps(near, dataset, engine, store)
    assert not closeness(near).sure
    assert found.shared and found.sure == (each == 2)
    told = leaks(dataset, suspected(dataset, heads, features, engine, store))
    if each == 2:
        assert "share far more places with" in told[0].message
        assert np.mean(found.pairs[:, 0] // 2 == found.pairs[:, 1] // 2) > 0.9
        assert all(dataset.fold[a] != dataset.fold[b] for a, b in found.pairs)
    else:
        assert told == ()


def test_a_picture_that_is_gone_ends_nothing(backbone: Backbone, store: Store, tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(shot(number, 40)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(6)))
    dataset, engine = load_dataset(tmp_path / "labels.csv"), Engine(backbone)
    settle(engine, dataset, store)
    (tmp_path / "3.png").unlink()
    assert shared_places(engine, dataset, np.array([0]), np.array([[1, 2, 3, 4, 5]]), store) is None
