"""Heads may be fitted to more views of each picture: only where these are few, where there is time, and where it helps."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headstart import views as room
from headstart.data.dataset import Dataset
from headstart.diagnosis.growth import answered
from headstart.errors import StoreError
from headstart.evidence import cached_ahead
from headstart.features.activations import Cached, activation_bytes, cache_activations
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, together, with_views
from headstart.features.settle import settle
from headstart.features.store import Store
from headstart.heads import Kind, centroid_scores, fit_head, leaves, logistic_scores, ridge_scores
from headstart.options import Options
from headstart.race import Race, race
from headstart.solvers import principal_axes
from headstart.views import VIEWS, more_views
from headstart.winner import fit_winner
from tests.toys import Labels, clouds, striped, tiny_backbone


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return striped(150, contrast=30)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_backbone(), precision="float32")


def test_the_features_of_more_views_are_those_of_each_view_alone(
    dataset: Dataset, engine: Engine, store: Store
) -> None:
    other, pool = Engine(tiny_backbone(1), precision="float32"), dataset.indices("train")
    both = [extract(each.backbone, dataset, store, engine=each) for each in (engine, other)]
    found = with_views(together(both), [engine, other], dataset, store, 2, only=pool, seed=3)
    stages = len(found.own)
    rows = found.in_views((1, stages + 2), pool, 2)
    assert rows.shape == (3, len(pool), found.own[1] + found.own[2])
    np.testing.assert_array_equal(rows[0], together(both).stages((1, stages + 2), pool))
    for view in (1, 2):
        alone = [
            extract(
                each.backbone, dataset, Store(store.root.parent / "alone"), engine=each, only=pool, view=view, seed=3
            )
            for each in (engine, other)
        ]
        np.testing.assert_allclose(rows[view], together(alone).stages((1, stages + 2), pool), rtol=1e-5, atol=1e-5)
        assert not np.allclose(rows[view], rows[0])
    with pytest.raises(IndexError):
        found.in_views((0,), pool, 3)  # fewer views than a head was fitted to must not pass for them


@pytest.mark.parametrize("cuts", [(2,), (1, 3)])
def test_the_pass_for_the_views_of_heads_caches_what_rungs_start_from(
    dataset: Dataset, engine: Engine, store: Store, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same features; a rung then runs nothing but the clean view."""
    ran: list[int] = []
    pooled, at = Engine.pooled, Engine.activations_at

    def counted(engine: Engine, pictures: Any) -> Any:
        ran.append(len(pictures))
        return pooled(engine, pictures)

    def counted_at(engine: Engine, pictures: Any, cuts: Any) -> Any:
        ran.append(len(pictures))
        return at(engine, pictures, cuts)

    monkeypatch.setattr(Engine, "pooled", counted)
    monkeypatch.setattr(Engine, "activations_at", counted_at)
    elsewhere, pool = Store(store.root.parent / "elsewhere"), dataset.indices("train")
    made = [extract(engine.backbone, dataset, each, engine=engine) for each in (store, elsewhere)]
    ran.clear()
    found, _, kept = more_views(made[0], [engine], dataset, store, cuts=cuts)
    assert kept == list(cuts)
    assert sum(ran) == VIEWS * (len(pool) + 32), "of 32 it is told first how long they take"
    plain, *_ = more_views(made[1], [engine], dataset, elsewhere)
    taps = tuple(range(len(found.own)))
    np.testing.assert_array_equal(found.in_views(taps, pool, VIEWS), plain.in_views(taps, pool, VIEWS))

    def cached(where: Store) -> Cached:
        ran.clear()
        nobody, also = np.empty(0, np.int64), [(cut, False) for cut in cuts[:-1]]
        return cache_activations(
            engine.backbone, dataset, where, cuts[-1], VIEWS + 1, augmented=pool, clean=nobody, engine=engine, also=also
        )

    ahead = cached(store)
    assert sum(ran) == len(pool), "the clean view"
    alone = cached(elsewhere)
    assert sum(ran) == (VIEWS + 1) * len(pool)
    # Where heads had their views before, nothing is run ahead, and whoever trains from the cuts gets the same bit for bit.
    third = Store(store.root.parent / "third")
    more_views(extract(engine.backbone, dataset, third, engine=engine), [engine], dataset, third)
    ran.clear()
    assert more_views(made[0], [engine], dataset, third, cuts=cuts)[2] == [] and not ran
    after = cached(third)
    asked, views = np.repeat(pool, VIEWS + 1), np.tile(np.arange(VIEWS + 1), len(pool))
    for mine, its in zip(ahead.read(asked, views), alone.read(asked, views), strict=True):
        np.testing.assert_array_equal(mine, its)
    for mine, its in zip(ahead.read(asked, views), after.read(asked, views), strict=True):
        np.testing.assert_array_equal(mine, its)
    for cut in cuts[:-1]:
        cache_activations(
            engine.backbone, dataset, store, cut, VIEWS + 1, augmented=pool, clean=pool[:0], engine=engine
        )
    assert sum(ran) == (VIEWS + 1) * len(pool), "none is run again for a deeper cut"


def test_heads_have_their_views_where_there_is_no_room_for_what_rungs_start_from(
    dataset: Dataset, engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(room, "cache_views", full)
    features = extract(engine.backbone, dataset, store, engine=engine)
    found, why, cached = more_views(features, [engine], dataset, store, cuts=(1,))
    assert (len(found.views), why, cached) == (VIEWS, "", [])


def test_nothing_is_cached_ahead_that_no_rung_may_ask_for(dataset: Dataset, engine: Engine, store: Store) -> None:
    split = dataset.split.copy()
    split[dataset.indices("train")[::5]] = "test"
    dataset = replace(dataset, split=split)
    features, pool = extract(engine.backbone, dataset, store, engine=engine), dataset.indices("train")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], 3, pool)
    poor, perfect = (replace(heads, accuracy=accuracy) for accuracy in (0.7, 1.0))

    def cuts(heads: Race = poor, engines: int = 1, **options: Any) -> list[int]:
        return cached_ahead(dataset, [engine] * engines, heads, Options(**options), store)

    assert len(cuts()) == 1 and 0 < cuts()[0] < len(engine.backbone.stages)
    bytes_each = activation_bytes(engine.backbone, cuts()[0], "float32")
    needed = store.in_use() // 2 + (VIEWS + 1) * len(pool) * bytes_each
    assert cuts(store_limit=2 * needed + 2) == cuts(store_limit=None) == cuts()
    for none in (
        cuts(perfect), cuts(engines=2), cuts(plan="head"), cuts(plan="full"), cuts(plan="mine.json"), cuts(store_limit=2 * needed - 1)
    ):  # fmt: skip
        assert none == []
    compiled = Engine(engine.backbone, precision="float32")
    compiled.adopt(replace(settle(engine, dataset, store), runner="openvino"))
    assert cached_ahead(dataset, [compiled], poor, Options(), store) == []


class Lanes:
    """Features by hand of one stage: (V + 1, N, D), the clean view first."""

    own = widths = (12,)
    beside, spans = (), (range(1),)

    def __init__(self, looks: np.ndarray) -> None:
        self._looks = looks
        self.views = tuple(Lanes(looks[[place]]) for place in range(1, len(looks)))

    def of(self, place: int) -> Lanes:
        return self

    def stages(self, taps: tuple[int, ...], indices: Labels | None = None) -> np.ndarray:
        return self._looks[0] if indices is None else self._looks[0][indices]

    def in_views(self, taps: tuple[int, ...], indices: Labels, views: int) -> np.ndarray:
        return self._looks[: views + 1, indices]


FOLDS = np.arange(60) // 3 % 5


def looks(spread: float, views: int = 3, shuffled: bool = False) -> tuple[np.ndarray, Labels]:
    """Clouds, and the same pictures moved about in further views: (V + 1, 60, 12), labels (60,)."""
    x, y = clouds(count=60, apart=0.8, seed=4)
    draw = np.random.default_rng(0)
    scale = x.std(0)
    moved = [x + spread * scale * draw.standard_normal(x.shape) for _ in range(views)]
    if shuffled:
        moved = [draw.permutation(each) for each in moved]
    return np.stack([x, *moved]).astype(np.float32), y


def raced(rows: np.ndarray, y: Labels) -> Race:
    return race(Lanes(rows), y, FOLDS, 3, np.arange(60))  # type: ignore[arg-type]


def test_heads_are_fitted_to_more_views_unless_the_labels_are_clearly_likelier_without() -> None:
    rows, y = looks(0.6)
    plain, found = raced(rows[:1], y), raced(rows, y)
    assert found.last.views == 3 and plain.last.views == 0
    assert found.last.log_loss < plain.last.log_loss
    assert "; fitted to 3 augmented views of each picture as well: log-loss out of fold " in found.reason


def test_views_that_show_something_else_are_left_out() -> None:
    rows, y = looks(0.6, shuffled=True)
    plain, found = raced(rows[:1], y), raced(rows, y)
    assert all(score.views == 0 for score in found.candidates)
    np.testing.assert_array_equal(found.best.logits, plain.best.logits)
    assert found.reason == plain.reason


@pytest.mark.parametrize("kind", ["logistic", "ridge", "centroid"])
def test_out_of_fold_answers_come_from_heads_that_saw_no_view_of_the_picture(kind: Kind) -> None:
    rows, y = looks(0.3)
    scores = {"logistic": logistic_scores, "ridge": ridge_scores, "centroid": centroid_scores}
    axes = principal_axes(rows.reshape(-1, 12))
    best = scores[kind](axes, y, FOLDS, 3, (0,), views=3)[0]
    assert best.views == 3 and best.logits.shape == (60, 3)
    told = np.empty_like(best.logits)
    for fold in range(5):
        inside = fold != FOLDS
        head = fit_head(
            rows[:, inside].reshape(-1, 12), np.tile(y[inside], 4), 3, kind, (0,), best.strength, best.temperature
        )
        told[~inside] = head.logits(rows[0, ~inside])
    # Axes and scales are those of all rows in the race, and of a fold's own here.
    assert (told.argmax(1) == best.logits.argmax(1)).mean() > 0.9
    assert np.corrcoef(told.ravel(), best.logits.ravel())[0, 1] > 0.97
    # Pictures that are copied into the views of others would be recognised, had they been seen.
    leaky = np.concatenate([rows[:1], rows[:1], rows[:1], rows[:1]])
    again = scores[kind](principal_axes(leaky.reshape(-1, 12)), y, FOLDS, 3, (0,), views=3)[0]
    alone = scores[kind](principal_axes(rows[0]), y, FOLDS, 3, (0,))[0]
    np.testing.assert_allclose(again.logits, alone.logits, rtol=2e-2, atol=2e-2)


def test_the_winner_is_fitted_to_all_its_views_and_remembered(dataset: Dataset, engine: Engine, store: Store) -> None:
    pool = dataset.indices("train")
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    clean = extract(engine.backbone, dataset, store, engine=engine)
    found = with_views(clean, [engine], dataset, store, 2, only=pool)
    heads = race(found, labels, folds, 3, pool, store=store)
    score = replace(heads.last, views=2)
    head = fit_winner(score, found, labels, 3, pool, store)
    rows = found.in_views(score.taps, pool, 2)
    expected = fit_head(
        rows.reshape(-1, rows.shape[-1]),
        np.tile(labels, 3),
        3,
        score.kind,
        score.taps,
        score.strength,
        score.temperature,
    )
    np.testing.assert_array_equal(head.weight, expected.weight)
    np.testing.assert_array_equal(fit_winner(score, found, labels, 3, pool, store).weight, head.weight)
    plain = fit_winner(replace(score, views=0), found, labels, 3, pool, store)
    assert not np.array_equal(plain.weight, head.weight)
    with pytest.raises(IndexError):
        fit_winner(score, clean, labels, 3, pool, store)
    again = race(found, labels, folds, 3, pool, store=store)
    assert [(s.kind, s.taps, s.views) for s in again.candidates] == [
        (s.kind, s.taps, s.views) for s in heads.candidates
    ]
    np.testing.assert_array_equal(again.best.logits, heads.best.logits)


def test_the_learning_curve_is_of_heads_in_their_views() -> None:
    rows, y = looks(0.6)
    score = raced(rows, y).last
    assert score.views == 3
    found = answered([rows], y, FOLDS, 3, score)
    inside, held = (FOLDS >= 1) & (FOLDS <= 3), FOLDS == 0  # the longest part that judges the first fold
    head = fit_head(
        rows[:, inside].reshape(-1, 12), np.tile(y[inside], 4), 3, score.kind, (0,), score.strength, score.temperature
    )
    np.testing.assert_array_equal(found[-1, held], head.logits(rows[0, held]).argmax(1) == y[held])


def begun(dataset: Dataset, engine: Engine, store: Store) -> Features:
    return extract(engine.backbone, dataset, store, engine=engine, only=np.flatnonzero(dataset.split != "test"))


def test_only_few_pictures_are_seen_in_more_views(
    dataset: Dataset, engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = begun(dataset, engine, store)
    found, why, _ = more_views(features, [engine], dataset, store)
    assert len(found.views) == VIEWS and not why
    assert (found.views[0].rows[dataset.split == "test"] == -1).all()  # the sealed pictures are not looked at
    for limit in ("A_CLASS", "IN_ALL"):
        with monkeypatch.context() as patch:
            patch.setattr(room, limit, {"A_CLASS": 39, "IN_ALL": 119}[limit])
            assert more_views(features, [engine], dataset, store) == (features, "", [])


def test_without_time_for_more_views_there_are_none_and_that_is_remembered(
    dataset: Dataset, engine: Engine, store: Store
) -> None:
    features = begun(dataset, engine, store)
    found, why, _ = more_views(features, [engine], dataset, store, deadline=time.monotonic() - 1)
    assert found is features
    assert why == "no time is left for more of each picture: heads do without"
    assert more_views(features, [engine], dataset, store, deadline=math.inf) == (features, why, [])


def test_another_budget_decides_anew_and_a_full_store_goes_without(
    dataset: Dataset, engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = begun(dataset, engine, store)
    more_views(features, [engine], dataset, store, deadline=time.monotonic() - 1, budget=1.0)
    found, *_ = more_views(features, [engine], dataset, store, budget=600.0)
    assert len(found.views) == VIEWS

    def full(*given: object, **options: object) -> Features:
        raise StoreError("there is no room")

    monkeypatch.setattr(room, "with_views", full)
    assert more_views(features, [engine], dataset, store, budget=600.0) == (
        features, "heads do without more of them: there is no room", [],
    )  # fmt: skip


def test_two_backbones_answer_together_in_their_views(dataset: Dataset, engine: Engine, store: Store) -> None:
    other, pool = Engine(tiny_backbone(1), precision="float32"), dataset.indices("train")
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    both = together([begun(dataset, each, store) for each in (engine, other)])
    found = with_views(both, [engine, other], dataset, store, 2, only=pool)
    pair = race(found, labels, folds, 3, pool, store=store).candidates[-1]
    assert {tap >= len(found.own) for tap in pair.taps} == {False, True}
    head = fit_winner(pair, found, labels, 3, pool, store)
    parts = [fit_winner(part, found, labels, 3, pool, store).answers(found, pool) / heat for part, heat in pair.parts]
    np.testing.assert_allclose(head.answers(found, pool), np.mean(parts, axis=0), rtol=1e-3, atol=1e-3)
    curve = answered([found.in_views(leaf.taps, pool, leaf.views) for leaf, _ in leaves(pair)], labels, folds, 3, pair)
    assert curve.shape[1] == len(pool)
