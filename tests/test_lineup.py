"""The line-up: another network stands beside the first, or takes its place, only where that is better beyond chance."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.backbones.catalog import load_backbone
from headstart.backbones.from_module import load_module
from headstart.choice import Ways, clearly_better
from headstart.data.dataset import Dataset
from headstart.errors import PartitionError
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, together
from headstart.features.store import Store
from headstart.ladder import Ladder
from headstart.lineup import Lineup, line_up
from headstart.options import Options
from headstart.plan import Plan, Rung
from headstart.race import WORTH, race
from headstart.tuning import Tuning
from headstart.winner import fit_winner
from tests.toys import SPEC, TinyNet, clearly_likelier, striped, stripes


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return striped(180, contrast=25)


def engine(seed: int, width: int = 8) -> Engine:
    return Engine(load_module(TinyNet(seed, width), SPEC), precision="float32")


def blind() -> Engine:
    """A network that sees nothing: every picture gives the same features."""
    net = TinyNet(0)
    with torch.no_grad():
        net.stem.weight.zero_()
    return Engine(load_module(net, SPEC), precision="float32")


def features_of(one: Engine, dataset: Dataset, store: Store) -> Features:
    return extract(one.backbone, dataset, store, engine=one, only=np.flatnonzero(dataset.split != "test"))


def lined_up(first: Engine, others: dict[str, Engine], dataset: Dataset, store: Store, **options: float) -> Lineup:
    found = features_of(first, dataset, store)
    return line_up(first, found, dataset, store, list(others), others.__getitem__, **options)


def test_no_other_is_tried_beside_one_that_is_surely_right(store: Store) -> None:
    plain, others = striped(480, contrast=120), {"wider": engine(1, 12)}
    found = lined_up(engine(0), others, plain, store)
    assert len(found.engines) == 1 and len(found.heads.pool) > 300 and found.heads.accuracy == 1.0
    assert "no other was tried" in found.reasons[0] and "99 %" in found.reasons[0]
    fewer = lined_up(engine(0), others, striped(180, contrast=120), store)  # so few right answers promise less
    assert fewer.heads.accuracy == 1.0 and "wider 100.0 %" in fewer.reasons[0]


def test_stages_of_several_backbones_are_counted_on(dataset: Dataset, store: Store) -> None:
    one, other = (features_of(each, dataset, store) for each in (engine(0), engine(1, 12)))
    both, pool = together([one, other]), dataset.indices("train")
    assert both.widths == one.widths + other.widths
    expected = np.concatenate([one.stages((1, 4), pool), other.stages((0, 3), pool)], axis=1)
    assert np.array_equal(both.stages((1, 4, 5, 8), pool), expected)
    assert np.array_equal(both.of(1).stages((2,), pool), other.stages((2,), pool))


def test_two_backbones_answer_with_the_mean_of_their_calibrated_logits(dataset: Dataset, store: Store) -> None:
    pool = dataset.indices("train")
    labels, folds = dataset.labels[pool], dataset.fold[pool]
    both = together([features_of(each, dataset, store) for each in (engine(0), engine(1, 12))])
    found = race(both, labels, folds, 3, pool, store=store)
    alone = [race(both.of(place), labels, folds, 3, pool, store=store) for place in (0, 1)]
    pair = found.candidates[-1]
    (first, heat), (second, warmth) = pair.parts
    assert np.array_equal(first.logits, alone[0].best.logits) and np.array_equal(second.logits, alone[1].best.logits)
    np.testing.assert_allclose(pair.logits, 0.5 * (first.logits / heat + second.logits / warmth), rtol=1e-4, atol=1e-4)
    assert min(second.taps) >= len(both.own) > max(first.taps)
    nats, error = Ways.of([pair.logits, first.logits], labels).likelier(0, 1)
    joined = nats > 0 and nats + error > WORTH
    assert (found.best is pair) == joined
    assert not joined or "once cleared of that choice" in found.reason
    told = alone[0].accuracy + found.best.accuracy - alone[0].best.accuracy
    assert found.accuracy <= told, "what chose a pair is taken off what is told of it"
    head = fit_winner(pair, both, labels, 3, pool, store)
    parts = [
        fit_winner(run.best, both.of(place), labels, 3, pool, store).answers(both.of(place), pool) / np.float32(t)
        for place, (run, t) in enumerate(zip(alone, (heat, warmth), strict=True))
    ]
    np.testing.assert_allclose(head.answers(both, pool), 0.5 * (parts[0] + parts[1]), rtol=1e-3, atol=1e-3)


def test_a_better_network_takes_the_first_place(dataset: Dataset, store: Store) -> None:
    seeing = engine(1)
    found = lined_up(blind(), {"seeing": seeing}, dataset, store)
    assert found.engines[0] is seeing
    assert "alone" in found.reasons[-1]
    assert found.heads.best.accuracy > 0.5


def test_of_a_sample_that_is_larger_than_a_race_some_race(
    dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of some hundred classes: each has twenty pictures in the sample."""
    monkeypatch.setattr(import_module("headstart.race"), "RACED", 90)
    seeing = engine(1)
    found = lined_up(blind(), {"seeing": seeing}, dataset, store)
    assert len(found.heads.pool) < len(dataset.indices("train")) and found.engines[0] is seeing


def test_a_network_that_adds_nothing_is_left_out(dataset: Dataset, store: Store) -> None:
    first = engine(0)
    found = lined_up(first, {"blind": blind()}, dataset, store)
    assert found.engines == (first,) and not found.features.beside
    assert max(found.heads.best.taps) < len(found.features.own)
    assert "no other network adds to it" in found.reasons[-1]


def test_one_that_helps_stands_beside_the_first_and_its_cost_is_told(dataset: Dataset, store: Store) -> None:
    first = engine(0)
    others = {str(seed): engine(seed, 16) for seed in (5, 6)}
    found = lined_up(first, others, dataset, store)
    assert len(found.engines) == 2
    assert "answer together, with" in found.reasons[-1] and "times the computation" in found.reasons[-1]
    assert len(found.tried.beside) == 2, "a test by cross-validation chooses among all that were tried"
    assert max(found.heads.best.taps) >= len(found.features.own)


def test_nobody_stands_beside_the_first_where_a_pair_is_not_wanted(dataset: Dataset, store: Store) -> None:
    first, others = engine(0), {str(seed): engine(seed, 16) for seed in (5, 6)}
    found = lined_up(first, others, dataset, store, pair=False)
    assert len(found.engines) == len(found.entrants) == 1 and not found.features.beside and not found.tried.beside
    assert "answers alone: a pair was not wanted" in found.reasons[-1]
    assert " 5 " in found.reasons[-1], "the others are told of all the same"
    better = lined_up(blind(), {"seeing": engine(1)}, dataset, store, pair=False)
    assert better.heads.best.accuracy > 0.5, "one that is better still takes the first place"


def test_those_with_the_least_computation_race_first(dataset: Dataset, store: Store) -> None:
    others = {"best": engine(6, 12), "wide": engine(5, 16), "narrow": engine(6, 4)}
    told = lined_up(engine(0), others, dataset, store).reasons[-1]
    assert 0 < told.index("best ") < told.index("narrow ") < told.index("wide "), (
        "behind the one that takes the first place"
    )


def test_one_that_cannot_be_used_is_told_and_passed_over(dataset: Dataset, store: Store) -> None:
    others = {"whole": engine(5, 16), "later": engine(6, 16)}

    def load(name: str) -> Engine:
        if name == "odd":
            raise PartitionError("odd can be cut into 2 stages.")
        return others[name]

    names, first = ["odd", *others], engine(0)
    found = line_up(first, features_of(first, dataset, store), dataset, store, names, load)
    assert found.reasons[0] == "odd was not tried: odd can be cut into 2 stages."
    assert all(name in found.reasons[-1] for name in others) and len(found.tried.beside) == 2
    again = line_up(first, features_of(first, dataset, store), dataset, store, names, load)
    assert again.reasons == found.reasons, "what was told is remembered, and nothing is told twice"


def test_one_that_gives_no_numbers_is_passed_over(
    dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = TinyNet(3)
    with torch.no_grad():
        net.stem.weight[0] = float("nan")
    broken = Engine(load_module(net, SPEC), precision="float32")
    others = {"broken": broken, "whole": engine(5, 16)}
    found = lined_up(engine(0), others, dataset, store)
    assert "broken was not tried: " in found.reasons[0] and len(found.tried.beside) == 1
    monkeypatch.setattr("headstart.lineup._pace", lambda *_: 0.0)  # it is found out with the others
    later = lined_up(engine(0), others, dataset, Store(store.root / "later"))
    assert "broken was not tried: " in later.reasons[0] and len(later.tried.beside) == 1


def test_networks_beyond_their_share_of_the_time_are_not_even_loaded(
    dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, clock = list[str](), SimpleNamespace(now=0.0)
    monkeypatch.setattr("headstart.lineup.time", SimpleNamespace(monotonic=lambda: clock.now))

    def load(name: str) -> Engine:
        loaded.append(name)
        clock.now += 30.0
        return engine(5, 16)

    first, names = engine(0), [str(place) for place in range(9)]
    features = features_of(first, dataset, store)
    found = line_up(first, features, dataset, store, names, load, deadline=100.0)
    rest = "1, 2, 3, 4, 5, 6, 7, 8 were not tried: "
    assert loaded == ["0"] and found.reasons[0] == rest + "other networks had taken their share of the time"
    late = line_up(first, features, dataset, Store(store.root / "late"), names, load, deadline=29.0)
    assert loaded == ["0"] and late.engines == (first,) and late.reasons == (f"0, {rest}no time is left",)


def test_a_slow_network_that_is_surely_worse_is_dropped_early(
    dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.lineup.SIFTED", 60)
    monkeypatch.setattr("headstart.lineup.LONG", 0.0)
    slow, other = blind(), engine(5, 16)
    found = lined_up(engine(0), {"blind": slow, "5": other}, dataset, store)
    assert "blind was dropped after 60 training pictures" in found.reasons[0]
    assert "blind" not in found.reasons[-1] and "5 " in found.reasons[-1]
    seen = extract(slow.backbone, dataset, store, engine=slow, only=np.empty(0, np.int64))
    assert 0 < (seen.rows >= 0).sum() < len(dataset.indices("train")), "the others were never run through it"


def test_what_was_decided_is_remembered_and_time_bounds_what_is_tried(dataset: Dataset, store: Store) -> None:
    others = {str(seed): engine(seed, 16) for seed in (5, 6)}
    short = Store(store.root / "late")
    late = lined_up(engine(0), others, dataset, short, deadline=time.monotonic() - 1, budget=1.0)
    assert len(late.engines) == 1 and late.reasons == ("5, 6 were not tried: no time is left",)
    resumed = lined_up(engine(0), others, dataset, short, budget=1.0)
    assert len(resumed.engines) == 1 and resumed.reasons == late.reasons
    assert len(lined_up(engine(0), others, dataset, short, budget=600.0).engines) == 2, "with another budget they are"
    found = lined_up(engine(0), others, dataset, store)
    again = lined_up(engine(0), others, dataset, store, deadline=time.monotonic() - 1)
    names = [[each.backbone.digest() for each in lineup.engines] for lineup in (found, again)]
    assert names[0] == names[1] and len(names[0]) == 2
    assert np.array_equal(found.heads.best.logits, again.heads.best.logits)


def test_a_finetuned_network_answers_together_with_the_one_beside_it(dataset: Dataset, store: Store) -> None:
    one, other = engine(0), engine(5, 4)
    both = together([features_of(each, dataset, store) for each in (one, other)])
    pool = dataset.indices("train")
    heads = race(both, dataset.labels[pool], dataset.fold[pool], 3, pool, store=store)
    pair = heads.candidates[-1]
    weak = replace(heads.last, logits=np.zeros_like(heads.last.logits))
    heads = replace(heads, best=replace(pair, parts=((weak, 50.0), pair.parts[1])))
    rung = Rung(cut=1, epochs=12, views=2, lr_body=1e-2, lr_head=1e-2)
    plan = Plan(backbone="net", stages=list(one.backbone.names), rungs=[rung])
    tuned = Ladder(Tuning(dataset, both, store, one, plan), heads).climb()
    assert tuned.kept, "the rung pays here"
    partner, heat = pair.parts[1]
    assert tuned.head.taps == tuple(sorted({len(both.own) - 1, *partner.taps}))
    head = fit_winner(partner, both, dataset.labels[pool], 3, pool, store)
    rows = tuned.head.weight[both.own[-1] :]
    np.testing.assert_allclose(rows, head.weight / np.float32(2 * heat), rtol=1e-4, atol=1e-6)
    assert (tuned.logits.argmax(1) == dataset.labels[tuned.held]).mean() > 0.5


def test_better_beyond_chance_takes_more_than_a_few_pictures() -> None:
    labels = np.arange(60) % 3
    sure = (4.0 * np.eye(3)[labels]).astype(np.float32)
    for wrong, better in ((0, False), (3, False), (4, True), (12, True)):
        other = sure.copy()
        other[:wrong] = np.roll(other[:wrong], 1, axis=1)
        assert clearly_better(sure, other, labels) is better
        assert not clearly_better(other, sure, labels)
    assert clearly_likelier(sure, np.zeros((60, 3), np.float32), labels)
    assert not clearly_likelier(sure, sure, labels)


def test_fit_races_the_networks_that_came_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr("headstart.views.VIEWS", 1)
    pictures, labels = stripes(126, contrast=12)
    stages = list(load_backbone("tf_efficientnet_lite0").names)
    plan = {"backbone": "timm:tf_efficientnet_lite0", "stages": stages, "rungs": [], "scratch_epochs": 1}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run = hs.fit((pictures, labels), tmp_path / "run", Options(plan=str(tmp_path / "plan.json"), budget=None))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "backbones: " in log and "tf_efficientnet_lite2" in log
    model = hs.load(tmp_path / "run")
    assert [each.backbone.origin.name for each in model.engines] == [
        each.backbone.origin.name for each in run.model.engines
    ]
    some = list(pictures[:6])
    assert np.array_equal(model.predict(some).probabilities, run.model.predict(some).probabilities)
