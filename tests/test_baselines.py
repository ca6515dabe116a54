"""Baselines are what they say they are, learn what can be learnt, and are trained once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.baselines import Thumbnails, fit_pixels, majority_logits, pixel_features, thumbnails
from headstart.data.dataset import Dataset
from headstart.data.splits import thinned
from headstart.features.store import Store
from headstart.scratch import (
    RATES,
    USUAL_RATES,
    FromThumbnails,
    Scratching,
    SmallNet,
    scratch_backbone,
    scratch_seconds,
)
from headstart.tasks.classification import softmax
from tests.toys import striped, stripes

CPU = torch.device("cpu")


def test_majority_answers_with_the_shares_of_the_training_labels() -> None:
    logits = majority_logits(np.array([0, 1, 1, 1, 1, 1]), 3, 4)
    shares = softmax(logits)
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(shares, np.tile([1.5, 5.5, 0.5], (4, 1)) / 7.5, rtol=1e-6)


def test_pixel_features_are_means_of_blocks() -> None:
    picture = Image.fromarray(stripes(1, side=64)[0][0])
    exact = np.asarray(picture).astype(float).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    found = pixel_features(np.asarray(picture)[None])
    assert found.shape == (1, 16 * 16 * 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0].reshape(16, 16, 3) * 255, exact, rtol=1e-5)
    white = pixel_features(np.full((2, 32, 32, 3), 255, np.uint8))
    assert (white == 1.0).all()


@pytest.fixture
def dataset() -> Dataset:
    return striped(150, contrast=90)


@pytest.fixture
def thumbs(dataset: Dataset) -> Thumbnails:
    return thumbnails(dataset, Store(), side=32)


def test_thumbnails_are_the_pictures_and_are_made_once(
    dataset: Dataset, thumbs: Thumbnails, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, _ = stripes(150, contrast=90)
    assert np.array_equal(thumbs.read(np.array([3, 140])), pictures[[3, 140]])  # 32 px already: nothing to scale

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("headstart.baselines.batches", decoded)
    again = thumbnails(dataset, Store(), side=32)
    assert np.array_equal(again.read(np.arange(150)), thumbs.read(np.arange(150)))
    with pytest.raises(AssertionError, match="decoded again"):
        thumbnails(dataset, Store(), side=64)


def test_views_from_scratch_are_shifted_and_mirrored_and_repeat(thumbs: Thumbnails) -> None:
    source = FromThumbnails(thumbs, scratch_backbone(32, 0).input, flip=True)
    few = np.array([0, 1, 2])
    clean, beside = source.batch(few, np.zeros(3, np.int64), CPU)
    moved, _ = source.batch(few, np.array([1, 2, 3]), CPU)
    again, _ = source.batch(few, np.array([1, 2, 3]), CPU)
    assert clean.shape == (3, 3, 32, 32) and beside.shape == (3, 0)
    assert torch.equal(moved, again)
    assert not torch.equal(moved, clean)
    for a, b in zip(moved, clean, strict=True):  # shifting and mirroring move pixels and change none
        assert torch.equal(a.flatten(1).sort().values, b.flatten(1).sort().values)
    still = FromThumbnails(thumbs, scratch_backbone(32, 0).input, flip=False)
    for a, b in zip(still.batch(few, np.array([1, 2, 3]), CPU)[0], clean, strict=True):
        assert any(torch.equal(a, b.roll((x, y), (1, 2))) for x in range(-4, 5) for y in range(-4, 5))
    expected = (thumbs.read(few).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(clean.numpy(), expected, atol=1e-5)


def test_pixels_tell_bright_from_dark_and_not_the_turn_of_stripes(dataset: Dataset, thumbs: Thumbnails) -> None:
    pool = dataset.indices("train")
    bright = (thumbs.read(pool).mean((1, 2, 3)) > np.median(thumbs.read(pool).mean((1, 2, 3)))).astype(np.int64)
    unseen = dataset.indices("test")
    pixels = pixel_features(thumbs.read(unseen))
    head, _ = fit_pixels(thumbs, bright, dataset.fold[pool], 2, pool, Store())
    dark = thumbs.read(unseen).mean((1, 2, 3)) <= np.median(thumbs.read(pool).mean((1, 2, 3)))
    assert (head.logits(pixels).argmax(1) != dark).mean() > 0.7
    turned, heat = fit_pixels(thumbs, dataset.labels[pool], dataset.fold[pool], 3, pool, Store())
    assert turned.weight.shape == (768, 3)
    assert heat > 1, "what is learnt of stripes by heart is not worth its confidence"
    assert (turned.logits(pixels).argmax(1) == dataset.labels[unseen]).mean() < 0.65


def test_pixels_of_very_many_pictures_are_a_sample(
    dataset: Dataset, thumbs: Thumbnails, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = dataset.indices("train")
    few = pool[thinned(dataset.labels[pool], 70)]
    assert len(few) < len(pool)
    alone, heat = fit_pixels(thumbs, dataset.labels[few], dataset.fold[few], 3, few, Store())
    monkeypatch.setattr("headstart.baselines.PIXELS", 70)
    sampled = fit_pixels(thumbs, dataset.labels[pool], dataset.fold[pool], 3, pool, Store())
    assert np.array_equal(sampled[0].weight, alone.weight) and sampled[1] == heat


def test_of_very_many_classes_pixels_are_solved_at_once(
    dataset: Dataset, thumbs: Thumbnails, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, unseen = dataset.indices("train"), dataset.indices("test")
    bright = (thumbs.read(np.arange(150)).mean((1, 2, 3)) // 24).astype(np.int64)
    monkeypatch.setattr("headstart.baselines.ANSWERS", len(pool) * int(bright.max() + 1) - 1)
    monkeypatch.setattr("headstart.baselines.logistic_scores", None)
    classes, pixels = int(bright.max() + 1), pixel_features(thumbs.read(unseen))
    head, heat = fit_pixels(thumbs, bright[pool], dataset.fold[pool], classes, pool, Store())
    sure = softmax(head.logits(pixels) / np.float32(heat))
    assert head.kind == "ridge" and (sure.argmax(1) == bright[unseen]).mean() > 0.6
    assert sure.max(1).mean() == pytest.approx((sure.argmax(1) == bright[unseen]).mean(), abs=0.2), "calibrated"
    again, _ = fit_pixels(thumbs, bright[pool], dataset.fold[pool], classes, pool, Store())
    assert np.array_equal(again.weight, head.weight) and again.kind == "ridge"


def test_the_small_network_has_the_size_that_it_claims() -> None:
    net = SmallNet(coarse=False)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(0.3e6, rel=0.05)
    with torch.no_grad():
        assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert sum(scratch_backbone(64, 0).flops) == pytest.approx(sum(scratch_backbone(32, 0).flops), rel=0.05)


def test_fresh_weights_are_decided_by_the_seed() -> None:
    assert scratch_backbone(32, 1).digest() == scratch_backbone(32, 1).digest() != scratch_backbone(32, 2).digest()


def test_the_pace_of_the_small_network_is_measured() -> None:
    assert 1e-6 < scratch_seconds(32, 4) < 1.0


def scratching(dataset: Dataset, thumbs: Thumbnails, **changes: Any) -> Scratching:
    pool, test = dataset.indices("train"), dataset.indices("test")
    few = pool[:32]  # enough to tell whether it is trained at all
    parts = {"fit": few[8:], "held": few[:8], "whole": few, "test": test}
    return Scratching(thumbs, dataset, Store(), **{"epochs": 2, "rates": USUAL_RATES, **parts, **changes})


def test_the_network_from_scratch_learns_what_can_be_learnt(dataset: Dataset, thumbs: Thumbnails) -> None:
    pool = dataset.indices("train")
    fold = dataset.fold[pool]
    sides = {"fit": pool[fold != 0], "held": pool[fold == 0], "whole": pool}
    found = scratching(dataset, thumbs, epochs=25, rates=RATES, **sides).run()
    truth = dataset.labels[dataset.indices("test")]
    assert (found.logits.argmax(1) == truth).mean() > 0.6
    assert found.rate in RATES
    assert (found.complete, found.epochs) == (True, 25)


def test_the_network_from_scratch_sees_no_mirror_images_where_they_mean_something_else(
    dataset: Dataset, thumbs: Thumbnails
) -> None:
    usual, other = (scratching(replace(dataset, mirror=mirror), thumbs).run() for mirror in (True, False))
    assert not np.array_equal(usual.logits, other.logits)


def test_a_second_baseline_from_scratch_trains_nothing(
    dataset: Dataset, thumbs: Thumbnails, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scratching(dataset, thumbs).run()
    assert not [entry for entry in Store().entries() if entry.kind == "checkpoint"]

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("headstart.scratch.train", trained)
    second = scratching(dataset, thumbs).run()
    assert np.array_equal(first.logits, second.logits)
    assert (first.rate, first.seconds) == (second.rate, second.seconds)
    for changes in ({"epochs": 3}, {"seed": 1}, {"test": dataset.indices("test")[1:]}):
        with pytest.raises(AssertionError, match="trained again"):
            scratching(dataset, thumbs, **changes).run()


@pytest.mark.parametrize("rates", [RATES, USUAL_RATES])
def test_a_slow_pace_of_the_short_trainings_shortens_the_long_one(
    dataset: Dataset, thumbs: Thumbnails, rates: tuple[float, ...]
) -> None:
    several: dict[str, Any] = {"epochs": 4, "rates": rates, "fewest": 3}
    slow = scratching(dataset, thumbs, **several, due=-math.inf)
    shorter = slow.run()
    assert (shorter.epochs, shorter.complete) == (3, True)
    assert replace(slow, epochs=3).is_stored() and not slow.is_stored(), "kept as what it is"
    assert scratching(dataset, thumbs, **several).run().epochs == 4, "with time enough, all"


def test_a_baseline_cut_short_answers_and_is_finished_by_a_later_run(dataset: Dataset, thumbs: Thumbnails) -> None:
    short = scratching(dataset, thumbs, deadline=-math.inf).run()
    assert not short.complete
    assert np.isfinite(short.logits).all()
    whole = scratching(dataset, thumbs).run()
    assert whole.complete
