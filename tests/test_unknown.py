"""About as many known pictures are lost as was said, far ones are told, and what is learnt of one side does not lean on the other."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import headstart
from headstart.data.load import load_dataset
from headstart.diagnosis.telling import EACH, MOST, LeftOut, Telling, _some, left_out
from headstart.features.engine import Engine
from headstart.features.extract import extract, together
from headstart.features.store import Store
from headstart.lineup import Lineup
from headstart.race import race
from headstart.transfer import knowing
from headstart.unknown import AXES, Answers, Cloud, Unknown, fit_unknown, looked_at
from tests.conftest import Trained
from tests.toys import stripes, tiny_backbone

Stages = list[NDArray[np.float64]]


def drawn(count: int, seed: int, away: float = 0.0) -> tuple[Stages, NDArray[np.float64], NDArray[np.int64]]:
    """Two stages of correlated numbers, logits and labels of three classes; `away` moves the second stage."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(12, 12))
    labels = random.integers(0, 3, count)
    second = random.normal(size=(count, 12)) @ mixing + away + 2.0 * labels[:, None]
    return [random.normal(size=(count, 5)), second], 4.0 * np.eye(3)[labels] + random.normal(size=(count, 3)), labels


def learnt(count: int = 400, seed: int = 0, lost: float = 0.05) -> Unknown:
    stages, logits, labels = drawn(count, seed)
    folds = np.arange(count) % 5
    found = fit_unknown((1, 3), stages, folds, stages, folds, logits, labels, lost)
    assert found is not None
    return found


def test_a_cloud_with_all_axes_has_mahalanobis_distances() -> None:
    rows, folds = drawn(200, 0)[0][1], np.arange(200) % 2
    cloud = Cloud.of(rows, folds)
    asked = drawn(30, 1)[0][1]
    for fold in (0, 1):
        seen = rows[folds != fold]
        scaled = (seen - seen.mean(0)) / cloud.scale[fold]
        covariance = np.cov(scaled.T)
        covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 12 * np.eye(12)
        apart = (asked - seen.mean(0)) / cloud.scale[fold]
        direct = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart) / 12
        assert cloud.squared(asked)[fold] == pytest.approx(direct, rel=1e-3)


def test_a_gaussian_has_not_seen_the_fold_that_it_leaves_out() -> None:
    rows, folds = drawn(100, 0)[0][1], np.arange(100) % 5
    other = rows.copy()
    other[folds == 2] += 50.0
    before, after = Cloud.of(rows, folds), Cloud.of(other, folds)
    assert np.array_equal(before.axes[2], after.axes[2]) and np.array_equal(before.mean[2], after.mean[2])
    assert not np.allclose(before.mean[0], after.mean[0])


@pytest.mark.parametrize("lost", [0.05, 0.2])
def test_about_as_many_known_pictures_are_lost_as_was_said(lost: float) -> None:
    shares = []
    for seed in range(10):
        known = learnt(200, seed, lost)
        stages, logits, _ = drawn(400, 1000 + seed)
        typical = known.typicality(stages, logits)
        assert np.array_equal(typical <= lost, known.strangeness(stages, logits) > known.threshold)
        shares.append((typical <= lost).mean())
    assert 0.6 * lost < float(np.mean(shares)) < 1.4 * lost


def test_what_lies_far_away_is_unknown_and_so_is_an_undecided_answer() -> None:
    known = learnt()
    stages, logits, _ = drawn(200, 7, away=25.0)
    assert (known.typicality(stages, logits) <= 0.05).mean() > 0.95
    stages, logits, _ = drawn(200, 7)
    assert (known.typicality(stages, logits) <= 0.05).mean() < 0.1
    assert (known.typicality(stages, 0.01 * logits) <= 0.05).mean() > 0.95


def test_logits_of_a_class_are_near_and_those_between_classes_are_not() -> None:
    _, logits, labels = drawn(500, 0)
    answers = Answers.of(logits, labels)
    _, others, theirs = drawn(200, 1)
    between = others + 2.0 * np.eye(3)[(theirs + 1) % 3] - 2.0 * np.eye(3)[theirs]
    assert np.median(answers.relative(between)) > np.quantile(answers.relative(others), 0.9)
    assert answers.relative(others + 7.0) == pytest.approx(answers.relative(others))  # a softmax does not see it either


def test_the_later_half_of_untouched_stages_is_looked_at() -> None:
    assert looked_at([range(9)]) == (4, 5, 6, 7, 8)
    assert looked_at([range(7), range(9, 12)]) == (3, 4, 5, 6, 10, 11)
    assert looked_at([range(0)]) == ()


def test_answers_alone_are_enough_where_everything_was_trained() -> None:
    _, logits, labels = drawn(200, 0)
    folds = np.arange(200) % 5
    known = fit_unknown((), [], folds, [], folds, logits, labels)
    assert known is not None
    assert (known.typicality([], logits) <= 0.05).mean() < 0.1
    assert (known.typicality([], 0.01 * logits) <= 0.05).mean() > 0.95


def test_a_picture_of_another_side_is_judged_by_all() -> None:
    trained, (held, logits, labels) = drawn(200, 0)[0], drawn(60, 1)
    folds = np.arange(200) % 5
    found = fit_unknown((0, 1), trained, folds, held, np.full(60, -1), logits, labels)
    assert found is not None
    distances = np.stack([cloud.squared(rows).mean(0) for cloud, rows in zip(found.clouds, held, strict=True)])
    assert found.scales[:2, 0] == pytest.approx(np.median(distances, axis=1), rel=1e-5)
    one = np.stack([cloud.squared(rows)[0] for cloud, rows in zip(found.clouds, held, strict=True)])
    assert found.scales[:2, 0] != pytest.approx(np.median(one, axis=1), rel=1e-5)


def test_it_does_not_depend_on_units_and_survives_what_never_changes() -> None:
    stages, logits, labels = drawn(300, 0)
    folds = np.arange(300) % 5
    plain = fit_unknown((0, 1), stages, folds, stages, folds, logits, labels)
    larger = [stages[0] * 1000.0 + 5.0, stages[1]]
    scaled = fit_unknown((0, 1), larger, folds, larger, folds, logits, labels)
    still = [np.ones((300, 4)), *stages]
    with_still = fit_unknown((0, 1, 2), still, folds, still, folds, logits, labels)
    assert plain is not None and scaled is not None and with_still is not None
    assert scaled.held == pytest.approx(plain.held, rel=1e-2)
    assert np.array_equal(with_still.held, plain.held)


@pytest.mark.parametrize(("count", "folds"), [(18, np.arange(18) % 5), (40, np.zeros(40, int))])
def test_nothing_is_learnt_from_too_little(count: int, folds: NDArray[np.int64]) -> None:
    stages, logits, labels = drawn(count, 0)
    assert fit_unknown((0, 1), stages, folds, stages, folds, logits, labels) is None


def test_wide_stages_keep_few_axes() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 200))
    cloud = Cloud.of(rows, np.arange(300) % 5)
    assert cloud.axes.shape == (5, 200, AXES)
    assert cloud.weights.shape == (5, AXES + 1)
    # Across the axes all variances are taken to be equal, here rightly; along them new rows lie less far than those that chose them.
    assert 1.0 < cloud.squared(np.random.default_rng(1).normal(size=(500, 200))).mean() < 2.0


def test_arrays_give_the_same_answers_again() -> None:
    known = learnt()
    again = Unknown.of(known.taps, known.lost, known.arrays)
    stages, logits, _ = drawn(50, 3)
    assert np.array_equal(again.typicality(stages, logits), known.typicality(stages, logits))


def test_a_run_knows_and_says_what_is_unknown(trained: Trained) -> None:
    model = headstart.load(trained.run)
    kept = [rung["cut"] for rung in json.loads((trained.run / "metrics.json").read_text())["rungs"] if rung["kept"]]
    assert model.unknown is not None and model.unknown.taps == looked_at([range(min([7, *kept]))])
    known = model.predict(sorted(trained.pictures.rglob("*.png")))
    assert np.mean([row.unknown for row in known]) < 0.2
    beside = model.predict(sorted(trained.pictures.rglob("*.png")), views=2)
    moved = np.array([one.typicality - other.typicality for one, other in zip(known, beside, strict=True)])
    assert np.abs(moved).max() < 0.03, "what is seen of a picture beside itself does not count"
    assert np.std([row.typicality for row in known]) > 0.1
    assert np.abs(known.probabilities - beside.probabilities).max() > 0.01
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    strange = model.predict(list(noise))
    assert all(row.unknown and row.typicality <= 0.05 and row.label in model.classes for row in strange)


def test_without_it_no_picture_is_unknown(trained: Trained) -> None:
    model = headstart.load(trained.run)
    model.unknown = None
    row = model.predict([np.zeros((40, 40, 3), np.uint8)])[0]
    assert not row.unknown and np.isnan(row.typicality)


def test_a_class_that_was_left_out_is_told_where_it_is_unlike_the_others(store: Store) -> None:
    pictures, labels = stripes(120, classes=3, side=48)
    bright = np.random.default_rng(1).integers(225, 256, pictures[labels == 2].shape)
    pictures[labels == 2] = bright
    dataset, backbone = load_dataset((pictures, labels)), tiny_backbone()
    features = extract(backbone, dataset, store)
    pool = dataset.indices("train")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], 3, pool)
    taps = tuple(range(len(features.own)))
    stages = [features.stages((tap,), pool) for tap in taps]
    known = fit_unknown(
        taps, stages, dataset.fold[pool], stages, dataset.fold[pool], heads.best.logits, dataset.labels[pool]
    )
    assert known is not None
    told = {each.name: each for each in left_out(known, heads, features, dataset, store)}
    assert set(told) == {"0", "1", "2"}
    assert told["2"].told == 1.0 and told["2"].pictures == int((dataset.labels[pool] == 2).sum())
    two = replace(dataset, labels=np.minimum(dataset.labels, 1))
    assert left_out(known, heads, features, two, store) == ()
    once = left_out(known, heads, features, dataset, store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.diagnosis.telling.fit_unknown", None)  # what was found out is not computed again
        assert left_out(known, heads, features, dataset, store) == once


@pytest.mark.parametrize(("classes", "each"), [(6, 240), (300, 20), (3, 40), (2000, 2)])
def test_so_many_pictures_take_part_and_no_more(classes: int, each: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    taken = _some(labels)
    assert len(np.unique(taken)) == len(taken) == min(MOST, len(labels))
    largest = np.sort(np.bincount(labels[taken]))[-4:]
    assert largest.min() >= min(EACH, each)


def test_the_sentence_says_both_shares() -> None:
    told = Telling(0.05, 1.0, 0.04, 50, (LeftOut("a", 10, 0.5), LeftOut("b", 10, 0.1)))
    assert "loses 2 of the 50 sealed test pictures (0.5 to 13.7 %)" in told.sentence
    assert "tells 30 % of the pictures of a class" in told.sentence
    assert Telling(0.05, 1.0, None, 0, told.left_out).sentence.endswith(
        "strange: that tells 30 % of the pictures of a class that was left out of training, on average over 2 classes left out in "
        "turn, 10 to 50 %."
    )
    assert Telling(0.05, 1.0, None, 0, ()).sentence.endswith("as strange.")


@pytest.mark.parametrize(("cut", "joined"), [(None, False), (2, False), (0, False), (2, True)])
def test_a_run_learns_from_untouched_stages_of_all_backbones_and_from_held_out_answers(
    store: Store, cut: int | None, joined: bool
) -> None:
    dataset = load_dataset(stripes(150, classes=3, side=48))
    val = dataset.indices("train")[:30]
    split, fold = dataset.split.copy(), dataset.fold.copy()
    split[val], fold[val] = "val", -1
    dataset = replace(dataset, split=split, fold=fold)
    backbones = [tiny_backbone(seed) for seed in (0, 1)]
    features = together([extract(each, dataset, store) for each in backbones])
    pool, own = dataset.indices("train"), len(features.own)
    heads = race(features, dataset.labels[pool], dataset.fold[pool], 3, pool)
    answers = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    kept = () if cut is None else (SimpleNamespace(rung=SimpleNamespace(cut=cut)),)
    tuned: Any = SimpleNamespace(kept=kept, held=val, logits=answers, together=joined)
    lineup = replace(Lineup.alone(Engine(backbones[0]), features, heads), engines=tuple(map(Engine, backbones)))
    known = knowing(tuned, lineup, dataset, 1.0, store)
    assert known is not None
    untouched = (
        0 if joined else own if cut is None else cut
    )  # the original network, where it stands beside, has them all
    assert known.taps == looked_at([range(untouched), range(own, 2 * own)])
    assert len(known.held) == (len(heads.pool) if cut is None else 30)
    unknown = (known.typicality(features.apart(known.taps, val), answers) <= 0.05).mean()
    assert (
        unknown > 0.9 if cut is None else unknown < 0.4
    )  # answers by chance are strange beside those of a head, not beside their like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.unknown.fit_unknown", None)  # it is remembered
        again = knowing(tuned, lineup, dataset, 1.0, store)
    assert again is not None and np.array_equal(again.held, known.held)
