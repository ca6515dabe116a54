"""The learning curve: it is that of the race's own head, sees nothing that it judges, and its intervals hold what they promise."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.dataset import Dataset
from headstart.diagnosis import growth as module
from headstart.diagnosis.growth import (
    FEWEST,
    LONE,
    Foretold,
    Growth,
    Prior,
    answered,
    cleared,
    foretell,
    growth,
    slopes,
)
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract
from headstart.features.store import Store
from headstart.heads import Kind, Score, centroid_scores, fit_head, logistic_scores, ridge_scores
from headstart.race import Race, race
from headstart.solvers import principal_axes
from tests.toys import Labels, clouds, striped, tiny_backbone

SCORERS = {"logistic": logistic_scores, "ridge": ridge_scores, "centroid": centroid_scores}
Rights = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def scored(kind: Kind, apart: float = 0.8, seed: int = 0) -> tuple[np.ndarray, Labels, Labels, Score]:  # type: ignore[type-arg]
    features, labels = clouds(300, width=30, apart=apart, seed=seed)
    folds = np.arange(300) // 3 % 5
    return features, labels, folds, SCORERS[kind](principal_axes(features), labels, folds, 3, (0,))[0]


@pytest.mark.parametrize("kind", SCORERS)
def test_the_curve_rises_to_what_the_race_says(kind: Kind) -> None:
    features, labels, folds, score = scored(kind, apart=0.35)
    parts = answered([features[None]], labels, folds, 3, score)
    assert parts.shape == (3, 300)
    curve = [*parts.mean(1), score.accuracy]
    assert curve[0] < curve[-1] - 0.03
    assert curve[2] == pytest.approx(curve[3], abs=0.05)
    whole = np.zeros(300, bool)  # fitted in the same way to all other folds, it answers as it did in the race
    for fold in range(5):
        head = fit_head(features[folds != fold], labels[folds != fold], 3, kind, (0,), score.strength, 1.0)
        whole[folds == fold] = head.logits(features[folds == fold]).argmax(1) == labels[folds == fold]
    assert (whole == (score.logits.argmax(1) == labels)).mean() > 0.97


@pytest.mark.parametrize("kind", SCORERS)
def test_no_head_has_seen_what_it_judges(kind: Kind) -> None:
    """Labels by chance, in more features than pictures: whoever has seen a picture knows its label."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((150, 400)).astype(np.float32)
    labels = draw.permutation(np.arange(150) % 3)
    score = Score(kind, (0,), 1e-6, 0, 0, 0, 0, np.zeros((150, 3), np.float32))
    parts = answered([features[None]], labels, np.arange(150) % 5, 3, score)
    assert np.abs(parts.mean(1) - 1 / 3).max() < 0.13


def test_neither_the_order_of_pictures_nor_the_names_of_folds_matter() -> None:
    features, labels, folds, score = scored("ridge")
    order = np.random.default_rng(0).permutation(300)
    one = answered([features[None]], labels, folds, 3, score)
    other = answered([features[None, order]], labels[order], 10 * folds[order], 3, score)
    assert (one[:, order] == other).mean() > 0.995  # but for the last bits of sums in another order
    right = np.concatenate([one, one[-1:]])
    assert np.array_equal(foretell(right, 0.9, [2]), foretell(right[:, order], 0.9, [2]))


@given(
    st.integers(2, 5).flatmap(
        lambda sizes: st.lists(st.lists(st.booleans(), min_size=sizes, max_size=sizes), min_size=20, max_size=60)
    ),
    st.floats(-0.1, 0.0),
)
def test_what_is_foretold_is_a_share_that_never_falls(columns: list[list[bool]], cleared: float) -> None:
    right = np.array(columns).T
    told = max(0.0, float(right[-1].mean()) + cleared)
    found = foretell(right, told, [1, 2, 4])
    assert found[0, 0] == pytest.approx(told)
    assert (np.diff(found[:, 0]) >= 0).all()
    accuracy, low, high = found.T
    assert (low >= 0).all() and (low <= accuracy).all() and (accuracy <= high).all() and (high <= 1).all()


def test_where_no_mistake_is_made_the_interval_still_has_a_lower_end() -> None:
    found = foretell(np.ones((4, 200), bool), 1.0, [2])[0]
    assert found[0] == found[2] == 1
    assert 0.96 < found[1] < 0.998


def worlds(count: int, pictures: int, seed: int) -> list[tuple[Rights, float]]:
    """Right answers at a quarter, half, three quarters and all, and the accuracy at twice as many, of learning by a power law."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        exponent = max(0.0, draw.normal(Prior.exponent, Prior.spread))
        odds = np.exp(draw.uniform(-3.5, 0)) * np.array([0.25, 0.5, 0.75, 1, 2]) ** -exponent
        odds[-1] = odds[-2] * 2 ** -max(0.0, draw.normal(exponent, Prior.drift))
        shares = odds / (1 + odds)
        # A picture is as hard for the one head as for the other, more or less: mistakes come together.
        hard = 0.8 * draw.random(pictures)[None, :] + 0.2 * draw.random((4, pictures))
        cut = np.quantile(0.8 * draw.random(100_000) + 0.2 * draw.random(100_000), shares[:4])
        made.append((hard >= cut[:, None], 1 - shares[4]))
    return made


@pytest.mark.parametrize("pictures", [40, 200, 1500, 20_000])
def test_intervals_hold_the_truth_as_often_as_they_say(pictures: int) -> None:
    inside, error, unchanged = [], [], []
    for right, true in worlds(150, pictures, seed=pictures):
        told, low, high = foretell(right, float(right[-1].mean()), [2])[0]
        inside.append(low <= true <= high)
        error.append(abs(told - true))
        unchanged.append(abs(right[-1].mean() - true))
    assert np.mean(inside) >= 0.9
    assert np.mean(error) < np.mean(unchanged)


def test_few_pictures_lean_on_the_prior_and_many_on_what_was_measured() -> None:
    (few, _), (many, _) = worlds(1, 30, seed=1)[0], worlds(1, 5000, seed=1)[0]
    steep, flat = Prior(exponent=1.0, spread=0.1), Prior(exponent=0.0, spread=0.1)
    moved = {}
    for name, right in (("few", few), ("many", many)):
        told = float(right[-1].mean())
        now, *then = [
            np.log(a / (1 - a)) for a in (told, *(foretell(right, told, [2], p)[0, 0] for p in (flat, steep)))
        ]
        moved[name] = (then[1] - then[0]) / np.log(2)
        assert then[0] >= now
    assert moved["few"] > 0.75 > moved["many"]


def test_what_is_cleared_of_choice_is_cleared_along_the_whole_curve() -> None:
    right = np.arange(240) < np.array([[214], [217], [220], [222]])
    assert cleared(right, 222 / 240) == pytest.approx(right.mean(1))
    lowered = cleared(right, 0.911)
    assert lowered[-1] == 0.911 and (np.diff(lowered) > 0).all(), (
        "it never seems to fall for being cleared at its end alone"
    )
    assert (lowered < right.mean(1)).all()
    (odds, exponent), (worse, alike) = slopes(right, 222 / 240), slopes(right, 0.911)
    assert (worse > odds).all() and alike == pytest.approx(exponent)
    assert all(
        0 <= share <= 1 for share in cleared(np.zeros((4, 20), bool), 0.0) + cleared(np.ones((4, 20), bool), 0.9)
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Race, Features, Dataset, Store]:
    dataset, backbone = striped(36, contrast=25), tiny_backbone()
    store = Store(tmp_path_factory.mktemp("store"))
    features = extract(backbone, dataset, store, engine=Engine(backbone, precision="float32"))
    pool = dataset.indices("train")
    return race(features, dataset.labels[pool], dataset.fold[pool], 3, pool), features, dataset, store


def test_a_run_s_curve_begins_with_what_the_race_tells(
    case: tuple[Race, Features, Dataset, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, features, dataset, store = case
    found = growth(heads, features, dataset, store)
    assert found is not None
    assert [pictures for pictures, _ in found.measured] == [9, 18, 27, 36]
    assert [found.measured[-1][1], found.foretold[0].accuracy] == pytest.approx([heads.accuracy] * 2)
    assert [each.pictures for each in found.foretold] == [36, 51, 72, 102, 144]
    then = found.foretold[2]
    assert f"about {100 * then.accuracy:.1f} % ({100 * then.low:.1f} to {100 * then.high:.1f})" in found.sentence
    monkeypatch.setattr(module, "answered", lambda *_: pytest.fail("fitted again"))
    assert growth(heads, features, dataset, store) == found


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (0.9, "would reach about 99.9 % (98.0 to 100.0) out of fold, instead of 90.0 %."),
        (0.9994, "would stay at about 99.9 % (98.0 to 100.0) out of fold."),
    ],
)
def test_where_nothing_is_to_be_gained_no_gain_is_told(now: float, told: str) -> None:
    found = Growth(((20, now),), (Foretold(1, 20, now, 0.8, 1.0), Foretold(2, 40, 0.9991, 0.98, 1.0)))
    assert found.sentence == f"With twice as many labelled pictures the frozen head {told}"


def first(heads: Race, count: int) -> Race:
    """The same race, as if only the first pictures had taken part."""
    return replace(heads, pool=heads.pool[:count], best=replace(heads.best, logits=heads.best.logits[:count]))


def test_a_sample_that_raced_foretells_for_all_pictures(case: tuple[Race, Features, Dataset, Store]) -> None:
    heads, features, dataset, store = case
    found = growth(first(heads, 24), features, dataset, store)
    assert found is not None
    assert [pictures for pictures, _ in found.measured] == [6, 12, 18, 24]
    assert [each.pictures for each in found.foretold] == [36, 51, 72], "no further than four times those that raced"
    assert found.foretold[0].accuracy > heads.accuracy


def test_a_long_curve_is_drawn_while_there_is_time_and_then_no_more(
    case: tuple[Race, Features, Dataset, Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heads, features, dataset, _ = case
    store, over = Store(tmp_path), time.monotonic()
    monkeypatch.setattr(module, "LONG", 36 * 3 - 1)
    assert growth(heads, features, dataset, store, deadline=over) is None
    found = growth(heads, features, dataset, store, deadline=math.inf)
    assert found is not None and growth(heads, features, dataset, store, deadline=over) == found, "known by now"
    monkeypatch.setattr(module, "LONG", 36 * 3)
    assert growth(heads, features, dataset, Store(tmp_path / "other"), deadline=over) == found, "takes no time"


def test_nothing_is_said_where_nothing_can_be_known(
    case: tuple[Race, Features, Dataset, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, features, dataset, store = case

    def unknown(heads: Race = heads, dataset: Dataset = dataset) -> bool:
        return growth(heads, features, dataset, store) is None

    monkeypatch.setattr(module, "foretell", lambda right, told, ratios: np.zeros((len(ratios), 3)))
    assert not unknown() and not unknown(first(heads, FEWEST))
    assert unknown(first(heads, FEWEST - 1))
    assert unknown(replace(heads, accuracy=12 / 36)), "the commonest class is right as often"
    assert unknown(dataset=replace(dataset, fold=dataset.fold % 2))
    labels = dataset.labels.copy()
    labels[: round(LONE * 36) + 1] = np.arange(3, 4 + round(LONE * 36))  # each the only one of its class
    assert unknown(dataset=replace(dataset, labels=labels, classes=tuple("abcdefghijklmnop")))
    monkeypatch.setattr(module, "FEWEST", 1)
    assert unknown(first(heads, 17)) and not unknown(first(heads, 18)), "72 pictures are more than four times 17"
