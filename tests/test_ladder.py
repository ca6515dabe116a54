"""The ladder keeps what pays, drops what hurts, and ends as it would have ended had nobody stopped it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.choice import Ways
from headstart.cost import FOLDS_JUDGED, ON_EPOCHS, ON_RATE
from headstart.data.dataset import Dataset
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, together
from headstart.features.store import Store
from headstart.forecast import WORTH, Forecast
from headstart.heads import fit_head
from headstart.judge import Judged, said
from headstart.ladder import Finetuned, Ladder, finetune
from headstart.plan import Budget, Evidence, Judge, Plan, Rung
from headstart.planner import FEW_EACH
from headstart.race import Race, race
from headstart.suffix import FromStore, Net, between
from headstart.tasks.classification import fit_temperature
from headstart.train import Trained, train
from headstart.tuning import ALPHAS, Tuned, Tuning
from headstart.winner import fit_winner
from tests.toys import clearly_likelier, striped, stripes, tiny_backbone

PAYS = Rung(cut=1, epochs=8, views=2, lr_body=1e-2, lr_head=1e-2, batch=16, smoothing=0.0)
HURTS = Rung(cut=1, epochs=1, views=1, lr_body=30.0, lr_head=30.0, batch=16)


@dataclass(frozen=True, eq=False)
class Start:
    dataset: Dataset
    backbone: Backbone
    engine: Engine
    features: Features
    heads: Race

    def ladder(self, *rungs: Rung, store: Store | None = None, **options: Any) -> Ladder:
        fields = {name: options.pop(name) for name in ("deadline", "progress", "cached") if name in options}
        plan = Plan(backbone="net", stages=list(self.backbone.names), rungs=list(rungs), **options)
        return Ladder(Tuning(self.dataset, self.features, store or Store(), self.engine, plan, **fields), self.heads)


def start(dataset: Dataset, store: Store | None = None) -> Start:
    """Begun with the head on the last stage, which is right for half of the pictures, so that a rung can pay."""
    backbone = tiny_backbone()
    engine = Engine(backbone, precision="float32")
    features = extract(backbone, dataset, store or Store(), engine=engine)
    pool = dataset.indices("train")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], 3, pool)
    return Start(dataset, backbone, engine, features, replace(heads, best=heads.last))


@pytest.fixture
def begun() -> Start:
    return start(striped(150, contrast=30))


def state(tuned: Finetuned) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in tuned.backbone.state_dict().items()}
    return found | {
        "head.weight": torch.from_numpy(tuned.head.weight),
        "head.bias": torch.from_numpy(tuned.head.bias),
        "logits": torch.from_numpy(tuned.logits),
    }


def same(a: Finetuned, b: Finetuned) -> bool:
    one, other = state(a), state(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def is_head_only(begun: Start, tuned: Finetuned) -> bool:
    """Whether the model is the pretrained backbone, bit for bit, with the head that won the race, on all training pictures."""
    chosen = begun.heads.best
    pool = np.array(sorted(begun.dataset.indices("train"), key=lambda i: begun.dataset.digests[i]))
    head = fit_head(
        begun.features.stages(chosen.taps, pool),
        begun.dataset.labels[pool],
        3,
        chosen.kind,
        chosen.taps,
        chosen.strength,
        chosen.temperature,
    )
    return (
        tuned.backbone.digest() == tiny_backbone().digest()
        and np.array_equal(tuned.head.weight, head.weight)
        and np.array_equal(tuned.head.bias, head.bias)
    )


def test_a_rung_that_pays_is_kept_and_trained_again_on_everything(begun: Start) -> None:
    tuned = begun.ladder(PAYS).climb()
    (result,) = tuned.rungs
    assert result.kept and result.complete and result.gain > result.gain_se
    assert result.alpha in ALPHAS
    assert result.reason.startswith("kept: +")
    assert tuned.refit and tuned.kept == tuned.rungs
    truth = begun.dataset.labels[tuned.held]
    assert (tuned.logits.argmax(1) == truth).mean() == pytest.approx(result.accuracy)
    before, after = tiny_backbone().state_dict(), tuned.backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("stages.0.") for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)
    assert begun.backbone.digest() == tiny_backbone().digest()


def test_what_was_judged_goes_on_with_all_training_pictures(begun: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], int, float]] = []

    def trained(net: Net, source: Any, labels: Any, fit: Any, held: Any, rung: Rung, **how: Any) -> Trained:
        seen.append((set(fit.tolist()), rung.epochs, rung.lr_body))
        return train(net, source, labels, fit, held, rung, **how)

    monkeypatch.setattr("headstart.tuning.train", trained)
    tuned = begun.ladder(PAYS, refit="on").climb()
    assert tuned.refit and tuned.kept == tuned.rungs
    pool = set(begun.dataset.indices("train").tolist())
    judged = pool - set(tuned.held.tolist())
    assert seen == [(judged, PAYS.epochs, PAYS.lr_body), (pool, ON_EPOCHS, pytest.approx(ON_RATE * PAYS.lr_body))]
    monkeypatch.undo()
    fold = begun.ladder(PAYS, refit="none").climb()
    moved, apart = (
        sum(float((a - b).detach().square().sum()) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in ((fold.backbone, tiny_backbone()), (tuned.backbone, fold.backbone))
    )
    assert 0 < apart < 0.1 * moved, "it starts from what the fold ended with"
    frozen = [name for name in tuned.backbone.state_dict() if name.startswith("stages.0.") or "running" in name]
    before, after = tiny_backbone().state_dict(), tuned.backbone.state_dict()
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.parametrize("judge", ["fold", "folds"])
def test_a_rung_that_hurts_is_dropped_and_the_head_is_what_it_was(begun: Start, judge: str) -> None:
    tuned = begun.ladder(HURTS, PAYS, judge=judge).climb()
    assert [result.kept for result in tuned.rungs] == [False]  # and the ladder ends there
    assert tuned.rungs[0].reason.startswith("dropped: ")
    assert tuned.kept == ()
    assert is_head_only(begun, tuned)
    assert set(tuned.held) <= set(begun.dataset.indices("train"))


def test_a_rung_that_is_forced_is_kept_whatever_it_gains_and_is_judged_once(
    begun: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dropped,) = begun.ladder(HURTS).climb().rungs
    judged: list[int] = []

    def trained(*given: Any, **options: Any) -> Any:
        judged.append(len(given[4]))
        return train(*given, **options)

    monkeypatch.setattr("headstart.tuning.train", trained)
    (result,) = begun.ladder(replace_rung(HURTS, forced=True)).climb().rungs
    assert judged == [0]  # pictures held out: none in the refit, and what the first ladder judged is remembered
    assert result.kept and not dropped.kept and result.gain == dropped.gain <= 0
    assert result.cleared is not None and dropped.cleared is None
    cleared = f" points ({100 * result.cleared:+.1f} cleared of the choice) on"
    same = round(100 * result.cleared, 1) == round(100 * result.gain, 1)
    told = dropped.reason.replace("dropped", "kept, as asked for")
    assert result.reason == (told if same else told.replace(" points on", cleared))


@pytest.mark.parametrize(
    ("gain", "cleared", "told"),
    [
        (0.02, 0.011, "kept: +2.0 ± 1.0 points (+1.1 cleared of the choice) on 4 held-out"),
        (0.02, 0.02, "kept: +2.0 ± 1.0 points on 4 held-out"),
        (0.0, -0.0002, "kept: +0.0 ± 1.0 points on 4 held-out"),
        (0.02, None, "kept: +2.0 ± 1.0 points on 4 held-out"),
    ],
)
def test_what_clearing_takes_off_is_told_where_it_takes_something_off(
    gain: float, cleared: float | None, told: str
) -> None:
    found = Judged(0, 1.0, np.zeros((4, 2), np.float32), 0.9, gain, 0.01, (0.1, 0.02), kept=True, cleared=cleared)
    assert said(Rung(cut=5, epochs=1), found).startswith(told)


def test_the_head_that_won_is_what_a_rung_has_to_beat_and_the_last_stage_is_where_it_starts(
    begun: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head on all stages stands for the frozen model; the same rung from the last stage's head is tried against it."""
    wide = max((score for score in begun.heads.candidates if len(score.taps) > 1), key=lambda score: score.accuracy)
    other = replace(begun, heads=replace(begun.heads, best=wide))
    started: list[tuple[int, ...]] = []
    whole = Net.__init__

    def watched(self: Net, backbone: Backbone, head: Any, *rest: Any) -> None:
        started.append(head.taps)
        whole(self, backbone, head, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Net, "__init__", watched)
        dropped, kept = other.ladder(HURTS).climb(), other.ladder(PAYS).climb()
    assert set(started) == {begun.heads.last.taps}
    assert not dropped.kept and is_head_only(other, dropped)
    truth = begun.dataset.labels[dropped.held]
    frozen = float((dropped.logits.argmax(1) == truth).mean())
    assert kept.rungs[0].gain == pytest.approx(kept.rungs[0].accuracy - frozen)


def test_a_second_rung_starts_from_the_first_and_cannot_make_it_worse(begun: Start) -> None:
    both = begun.ladder(PAYS, HURTS).climb()
    assert [result.kept for result in both.rungs] == [True, False]
    assert same(both, begun.ladder(PAYS).climb())


def replace_rung(rung: Rung, **changes: Any) -> Rung:
    return rung.model_copy(update=changes)


def test_a_rung_is_judged_on_whole_folds_by_models_that_did_not_see_them(begun: Start) -> None:
    dataset, pool = begun.dataset, begun.dataset.indices("train")
    some = begun.ladder(HURTS, judge="folds").tuning.judging()
    unproved = replace(dataset, split=np.where(dataset.split == "test", "unused", dataset.split))
    every = replace(begun, dataset=unproved).ladder(HURTS, judge="folds").tuning.judging()
    (one,) = begun.ladder(HURTS, judge="fold").tuning.judging()
    for fit, held in (*some, *every, one):
        assert sorted([*fit, *held]) == sorted(pool.tolist()), "what is not judged trains"
        assert not set(dataset.groups[fit]) & set(dataset.groups[held])
        assert len(set(dataset.fold[held])) == 1
    assert len(some) == FOLDS_JUDGED < len(every), "a test set proves the model in the end"
    assert sorted(np.concatenate([held for _, held in every]).tolist()) == sorted(pool.tolist())


def test_a_given_validation_set_judges_and_is_not_trained_on() -> None:
    pictures, labels = stripes(180, contrast=30)
    sides = {"train": slice(0, 120), "val": slice(120, 150), "test": slice(150, 180)}
    begun = start(load_dataset({name: (pictures[part], labels[part]) for name, part in sides.items()}))
    tuned = begun.ladder(PAYS, judge="val", refit="none").climb()
    assert sorted(tuned.held.tolist()) == sorted(begun.dataset.indices("val").tolist())
    assert tuned.refit == (not tuned.kept)


@pytest.mark.parametrize("mirror", [True, False])
def test_training_from_the_store_gives_the_model_that_training_from_pictures_gives(begun: Start, mirror: bool) -> None:
    usual, begun = begun, replace(begun, dataset=replace(begun.dataset, mirror=mirror))
    stored = begun.ladder(PAYS).climb()
    root = Store().root.parent / "elsewhere"
    assert same(stored, begun.ladder(PAYS, store=Store(root), cached=False).climb())
    assert not [entry for entry in Store(root).entries() if entry.kind == "activations"]
    assert same(stored, usual.ladder(PAYS).climb()) == mirror


def test_the_same_seed_gives_the_same_model_and_another_seed_another(begun: Start) -> None:
    root = Store().root.parent
    runs = [begun.ladder(PAYS, store=Store(root / str(n)), seed=seed).climb() for n, seed in enumerate((4, 4, 5))]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_order_and_names_of_pictures_change_nothing(begun: Start) -> None:
    root = Store().root.parent / "elsewhere"
    shuffled = begun.dataset.select(np.random.default_rng(3).permutation(len(begun.dataset)))
    other = start(shuffled, Store(root))
    assert other.heads.best.accuracy == begun.heads.best.accuracy
    a, b = begun.ladder(PAYS).climb(), other.ladder(PAYS, store=Store(root)).climb()
    assert a.kept
    assert same(a, b)


@contextmanager
def _counting(told: list[int], total: int) -> Iterator[runtime.Advance]:
    def advance(count: int = 1, /, **_: object) -> None:
        told.append(count)
        if len(told) == total:
            raise KeyboardInterrupt

    yield advance


@pytest.mark.parametrize(
    ("epochs_done", "refit"), [(1, "again"), (5, "again"), (8, "again"), (9, "again"), (8, "on"), (9, "on")]
)
def test_interrupted_at_any_epoch_and_resumed_ends_with_the_same_model(
    begun: Start, epochs_done: int, refit: str
) -> None:
    """Eight epochs of judging, then those of the refit; the interrupt comes as one of them ends."""
    expected = begun.ladder(PAYS, refit=refit).climb()
    assert expected.kept
    root, told = Store().root.parent / "elsewhere", list[int]()

    def progress(description: str, total: int, unit: str = "images", /) -> Any:
        return _counting(told, epochs_done) if unit == "epochs" else runtime.silent(description, total, unit)

    with pytest.raises(KeyboardInterrupt):
        begun.ladder(PAYS, store=Store(root), progress=progress, refit=refit).climb()
    resumed = begun.ladder(PAYS, store=Store(root), refit=refit).climb()
    assert same(resumed, expected)
    assert [result.curves for result in resumed.rungs] == [result.curves for result in expected.rungs]
    assert not [entry for entry in Store(root).entries() if entry.kind == "checkpoint"]


def test_interrupted_within_an_epoch_or_while_activations_are_cached(
    begun: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = begun.ladder(PAYS).climb()
    for kind, method, after in ((Engine, "activations_at", 5), (FromStore, "batch", 9), (FromStore, "batch", 70)):
        store, left = Store(Store().root.parent / f"{method}{after}"), [after]
        whole = getattr(kind, method)

        def killed(*values: Any, left: list[int] = left, whole: Any = whole) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return whole(*values)

        with monkeypatch.context() as patch:
            patch.setattr(kind, method, killed)
            with pytest.raises(KeyboardInterrupt):
                begun.ladder(PAYS, store=store).climb()
        assert same(begun.ladder(PAYS, store=store).climb(), expected)


def test_a_ladder_that_was_climbed_is_not_trained_again(begun: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begun.ladder(PAYS).climb()

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("headstart.tuning.train", trained)
    second = begun.ladder(PAYS).climb()
    assert same(first, second)
    assert second.rungs[0].curves == first.rungs[0].curves
    with pytest.raises(AssertionError, match="trained again"):
        begun.ladder(replace_rung(PAYS, lr_body=2e-3)).climb()
    worded = begun.ladder(replace_rung(PAYS, reason="other words")).climb()
    assert same(first, worded)


def test_past_the_deadline_the_head_is_the_model_and_says_so(begun: Start) -> None:
    tuned = begun.ladder(PAYS, deadline=-1.0).climb()
    assert tuned.rungs == ()
    assert tuned.reasons == ("the rung from blocks.0 on was not tried: the time was used up",)
    assert is_head_only(begun, tuned)


def test_one_pass_caches_what_all_rungs_start_from(begun: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, deeper = replace_rung(PAYS, cut=2, forced=True), replace_rung(PAYS, forced=True)
    alone = begun.ladder(upper, store=Store(Store().root.parent / "elsewhere")).climb()
    ran: list[tuple[int, ...]] = []
    whole = Engine.activations_at

    def counted(engine: Engine, pictures: Any, cuts: Any) -> Any:
        ran.append((len(pictures), *cuts))
        return whole(engine, pictures, cuts)

    monkeypatch.setattr(Engine, "activations_at", counted)
    tuned = begun.ladder(upper, deeper).climb()
    assert len(tuned.kept) == 2
    assert {row[1:] for row in ran} == {(1, 2)}
    assert sum(row[0] for row in ran) == PAYS.views * len(begun.dataset.indices("train"))
    assert tuned.rungs[0].curves == alone.rungs[0].curves


def measured(begun: Start, *, decoding: float, forward: float) -> Evidence:
    """Seconds a picture before any rung was trained; a second for each stage that trains."""
    stages = list(begun.backbone.names)
    return Evidence.model_construct(
        images=len(begun.dataset.indices("train")),
        classes=3,
        folds=5,
        stages=stages,
        decode_seconds=decoding,
        forward_seconds=[forward] * len(stages),
        training_seconds=[1.0] * len(stages),
        cached=[],
        forecast=None,
    )


@pytest.mark.parametrize("slower", [0.4, 0.9])
def test_the_pace_of_the_first_rung_decides_whether_there_is_time_for_the_next(
    begun: Start, monkeypatch: pytest.MonkeyPatch, slower: float
) -> None:
    """All would take twice too long by the speeds that were measured before; the first then takes `slower` times as long."""
    known = measured(begun, decoding=0.5, forward=0.25)
    stages, images = len(known.stages), known.images
    upper, deeper = replace_rung(PAYS, cut=2, forced=True), PAYS
    judged, refit = images * 0.8 * PAYS.epochs, images * PAYS.epochs
    caching = images * PAYS.views * (0.5 + 2 * 0.25)
    first = judged * (stages - 2) + caching
    second = (judged + refit) * (stages - 1)  # the first has cached its views
    budget = Budget(seconds=first + second, spent_seconds=0.0)  # rungs may take half of it
    begins = Ladder._try

    def paced(*given: Any) -> Any:
        result, *rest = begins(*given)
        each = slower * judged * (stages - 2) / result.passes
        curves = tuple(tuple(replace(row, seconds=each) for row in curve) for curve in result.curves)
        return replace(result, curves=curves), *rest

    monkeypatch.setattr(Ladder, "_try", paced)
    tuned = begun.ladder(upper, deeper, evidence=known, budget=budget).climb()
    assert tuned.rungs[0].kept
    if slower < 0.5:
        assert (len(tuned.rungs), tuned.reasons, tuned.left_out) == (2, (), ())
        return
    left = 0.5 * (first + second) - slower * (first - caching) - caching
    assert tuned.reasons == (
        "the rung from blocks.0 on was not tried: at the pace of the one above it would take about "
        f"{slower * second:.0f} s, and {max(0.0, left):.0f} s are left",
    )
    assert tuned.left_out == (deeper,) and len(tuned.rungs) == 1
    # Without a budget it is tried.
    assert len(begun.ladder(upper, deeper, evidence=known).climb().rungs) == 2


def slow(begun: Start, rung: Rung, monkeypatch: pytest.MonkeyPatch, times: float = 4.0) -> tuple[Evidence, float]:
    """What was measured before: a second a stage. Training then takes so many times as long; the seconds of an epoch of it."""
    known = measured(begun, decoding=0.0, forward=10.0)
    epoch, trained = times * known.images * (len(known.stages) - rung.cut), Tuning.train

    def paced(*given: Any) -> Tuned:
        found = trained(*given)
        curve = tuple(replace(row, seconds=0.8 * epoch) for row in found.outcome.curve)
        return replace(found, outcome=replace(found.outcome, curve=curve))

    monkeypatch.setattr(Tuning, "train", paced)
    return known, epoch


@pytest.mark.parametrize("room_for", [1, 2, 3])
def test_folds_judge_as_far_as_the_pace_of_the_first_leaves_time_for_the_refit(
    monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    """The plan that then stands in the run repeats it, also where the frozen head answers beside it."""
    begun = start(striped(150, contrast=20))
    before, epoch = slow(begun, TOGETHER, monkeypatch)
    known = before.model_copy(update={"forecast": HOPE})  # with which it is kept, however few are held out
    caching = known.images * TOGETHER.views * 10.0 * TOGETHER.cut  # no slower than it was measured
    passes = TOGETHER.epochs * (0.8 * room_for + 1.0)  # those folds, and the refit
    budget = Budget(seconds=2 * (caching + (passes + 0.4) * epoch), spent_seconds=0.0)  # rungs may take half of it
    tuned = begun.ladder(TOGETHER, judge="folds", evidence=known, budget=budget).climb()
    (rung,) = tuned.rungs
    assert rung.kept and rung.complete and tuned.refit and tuned.together
    assert len(rung.curves) == room_for
    again = begun.ladder(TOGETHER, judge="folds", evidence=known, judgings=tuned.judgings)
    assert len(tuned.held) == len(tuned.logits) == sum(len(held) for _, held in again.tuning.judging())
    assert tuned.judgings == (None if room_for == FOLDS_JUDGED else room_for)
    said = f"; judged on {room_for} of 3 folds, as at their pace there was no time for all"
    assert rung.reason.endswith(said) == (room_for < FOLDS_JUDGED)
    repeated = again.climb()
    assert same(repeated, tuned) and repeated.judgings is None


def test_without_a_test_set_every_fold_judges_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = striped(40)
    begun = start(replace(whole, split=np.full(len(whole), "train")))
    known, _ = slow(begun, PAYS, monkeypatch)
    budget = Budget(seconds=1.0, spent_seconds=0.0)
    tuned = begun.ladder(PAYS, judge="folds", evidence=known, budget=budget).climb()
    assert len(tuned.rungs[0].curves) == len(np.unique(begun.dataset.fold)) > FOLDS_JUDGED
    assert tuned.judgings is None


@pytest.mark.parametrize("judge", ["fold", "folds"])
def test_a_plan_says_how_many_folds_judge(begun: Start, judge: str) -> None:
    found = begun.ladder(PAYS, judge=judge, judgings=2).tuning.judging()
    assert len(found) == (2 if judge == "folds" else 1)


class Clock:
    """A clock that strikes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    perf_counter = staticmethod(time.perf_counter)  # what is saved when does not hang on this clock

    def monotonic(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else 100.0


def test_time_that_runs_out_in_the_refit_gives_the_first_splits_model(
    begun: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = PAYS.epochs * math.ceil(len(begun.ladder(PAYS).tuning.judging()[0][0]) / 16)
    monkeypatch.setattr("headstart.train.time", Clock(steps + 3))
    tuned = begun.ladder(PAYS, deadline=50.0 + 1e12).climb()  # the ladder's own clock never strikes
    assert tuned.refit
    monkeypatch.setattr("headstart.train.time", Clock(steps + 3))
    monkeypatch.setattr("headstart.ladder.time", Clock(10**6))
    cut_short = begun.ladder(PAYS, deadline=50.0, store=Store(Store().root.parent / "elsewhere")).climb()
    assert cut_short.rungs[0].kept and cut_short.rungs[0].complete
    assert not cut_short.refit
    assert cut_short.reasons == (
        "the refit did not end, for want of time or as it diverged: the model of the first split is kept",
    )
    assert cut_short.backbone.digest() != tiny_backbone().digest()


def test_interpolation_ends_where_it_says() -> None:
    a = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    b = {"w": torch.tensor([3.0, 7.0]), "n": torch.tensor(9)}
    assert torch.equal(between(a, b, 1.0)["w"], b["w"])
    assert torch.equal(between(a, b, 0.0)["w"], a["w"])
    assert torch.equal(between(a, b, 0.25)["w"], torch.tensor([1.5, 3.25]))
    assert int(between(a, b, 0.25)["n"]) == 9  # a count cannot be averaged


def test_the_share_that_judges_best_is_taken(begun: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one share allowed the model is that far from its start; with all, it is the best of them."""
    alone = {}
    for share in ALPHAS:
        with monkeypatch.context() as patch:
            for place in ("headstart.ladder.ALPHAS", "headstart.tuning.ALPHAS"):
                patch.setattr(place, (share,))
            (result,) = begun.ladder(PAYS).climb().rungs
        assert result.alpha == share
        alone[share] = result.accuracy
    (result,) = begun.ladder(PAYS).climb().rungs
    assert result.accuracy == max(alone.values()) == alone[result.alpha]


@pytest.mark.parametrize("judge", ["fold", "folds"])
def test_a_training_that_diverges_is_dropped_even_where_it_is_forced(begun: Start, judge: Judge) -> None:
    wild = replace_rung(PAYS, lr_body=1e20, lr_head=1e20, forced=True)
    tuned = begun.ladder(wild, judge=judge).climb()
    (result,) = tuned.rungs
    assert not result.kept and not result.complete and result.reason.startswith("dropped: its training diverged")
    assert math.isfinite(result.gain) and np.isfinite(tuned.logits).all()
    assert tuned.backbone is begun.ladder(wild).tuning.engine.backbone
    assert not [entry for entry in Store().entries() if "checkpoint" in entry.kind]


def test_the_whole_network_can_be_trained(begun: Start) -> None:
    tuned = begun.ladder(replace_rung(PAYS, cut=0, views=1, epochs=2)).climb()
    assert len(tuned.rungs) == 1
    assert not [entry for entry in Store().entries() if entry.kind == "activations"]
    if tuned.kept:
        assert not torch.equal(tuned.backbone.state()["stem.weight"], begun.backbone.state()["stem.weight"])


def test_finetune_is_the_ladder(begun: Start) -> None:
    plan = Plan(backbone="net", stages=list(begun.backbone.names), rungs=[replace_rung(PAYS, epochs=2)])
    found = finetune(begun.engine, begun.heads, begun.features, begun.dataset, plan, Store())
    again = copy.copy(begun.ladder(replace_rung(PAYS, epochs=2))).climb()
    assert same(found, again)
    assert replace(found, reasons=()).rungs[0].rung.epochs == 2


TOGETHER = Rung(cut=1, epochs=6, views=2, lr_body=3e-3, lr_head=3e-3, batch=16)


def test_a_rung_that_is_not_right_more_often_may_answer_together_with_the_frozen_head() -> None:
    begun = start(striped(150, contrast=20))
    ladder = begun.ladder(TOGETHER, judge="folds")
    tuned, pool = ladder.climb(), begun.dataset.indices("train")
    (result,) = tuned.rungs
    assert result.kept and result.together and tuned.together
    assert 0 <= result.gain < result.gain_se  # for accuracy alone it would have been dropped
    assert result.reason.startswith("kept: together with the frozen head +")
    labels = begun.dataset.labels[tuned.held]
    frozen = ladder.tuning.held_out(begun.heads.best)
    assert clearly_likelier(tuned.logits, frozen, labels)
    alone = begun.ladder(replace_rung(TOGETHER, forced=True), judge="folds").climb()
    assert not alone.together and alone.rungs[0].reason.startswith("kept, as asked for")
    # Both heads are the very ones, each calibrated: the trained one's part of the answer is a multiple of its own logits.
    test = begun.dataset.indices("test")
    engine = begun.engine.alike(tuned.backbone)
    seen = [extract(each.backbone, begun.dataset, Store(), engine=each) for each in (engine, begun.engine)]
    whole = tuned.head.answers(together(seen), test)
    still = fit_winner(begun.heads.best, begun.features, begun.dataset.labels[pool], 3, pool, Store()).answers(
        begun.features, test
    )
    rest = whole - 0.5 * still / np.float32(fit_temperature(frozen, labels))
    own = ladder._final(pool, [], tuned.rungs, [])[1].answers(seen[0], test)
    share = float((rest * own).sum() / (own * own).sum())
    np.testing.assert_allclose(rest, share * own, atol=1e-3)
    assert share > 0


def test_without_a_pair_no_rung_answers_together_with_the_frozen_head() -> None:
    ladder = start(striped(150, contrast=20)).ladder(TOGETHER, judge="folds")  # with a pair it is kept together
    tuned = replace(ladder, pair=False).climb()
    assert not tuned.together and not any(result.together for result in tuned.rungs)
    assert tuned.rungs[0].with_head is None, "not even looked at"


def told(likelier: bool) -> type[Ways]:
    """What a jury goes by, where what is clearly likelier is settled beforehand."""

    class Settled(Ways):
        def clearly_likelier(self, *given: Any, **more: Any) -> bool:
            return likelier

    return Settled


def test_what_is_kept_alone_answers_together_only_where_that_is_right_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headstart.judge.Ways", told(True))
    seen = set()
    for contrast in (24, 27, 32, 40, 50):
        begun = start(striped(150, contrast=contrast))
        (alone,) = begun.ladder(replace_rung(PAYS, forced=True), judge="folds").climb().rungs
        (result,) = begun.ladder(PAYS, judge="folds").climb().rungs
        assert result.kept and result.accuracy >= alone.accuracy
        seen.add(result.together)
    assert seen == {False, True}  # both sides of the rule were seen


HOPE = Forecast(0.1, 0.02)


def test_where_pictures_are_few_recorded_runs_count_for_the_first_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.judge.Ways", told(False))  # pictures alone do not tell
    begun = start(striped(150, contrast=20))

    def climb(
        *rungs: Rung, expected: Forecast | None = HOPE, judge: str = "folds", each: int = 50, **more: Any
    ) -> Finetuned:
        known = Evidence.model_construct(forecast=expected, images=each * 3, classes=3)
        return begun.ladder(*rungs, judge=judge, evidence=known, **more).climb()

    tuned = climb(TOGETHER, PAYS)
    (result,) = tuned.rungs  # what other runs kept is no bar for a second rung
    assert result.kept and result.together and tuned.together and 0 <= result.gain < result.gain_se
    assert result.with_head == result.likelier and result.posterior == HOPE.seen(*result.likelier)
    assert result.reason.endswith(f" nats likelier; with what runs on other data let expect {result.posterior}")
    for expected in (None, Forecast(-0.02, 0.005), Forecast(-0.1, 0.02)):
        (dropped,) = climb(TOGETHER, expected=expected).rungs
        assert not dropped.kept and (dropped.posterior is None) == (expected is None)
        assert dropped.posterior is None or (
            dropped.posterior.gain < WORTH
            and "; together with the frozen head " in dropped.reason
            and dropped.reason.endswith(f" let expect {dropped.posterior}")
        )
    for unlike in ({"trains": "norms"}, {"until": 2}, {"cut": 0, "views": 1}):
        (other,) = climb(TOGETHER.model_copy(update=unlike)).rungs
        assert other.posterior is None
    (few,) = climb(TOGETHER, judge="fold", each=FEW_EACH).rungs
    assert few.with_head is not None and few.posterior == HOPE.seen(*few.with_head), "few of each class"
    assert climb(TOGETHER, judge="fold", each=FEW_EACH + 1).rungs[0].posterior is None
    forced = replace_rung(PAYS, forced=True)
    assert [rung.posterior for rung in climb(forced, TOGETHER).rungs] == [None, None], "only the first is like theirs"


@pytest.mark.parametrize("judge", ["fold", "folds"])
def test_a_rung_that_time_cut_short_is_not_kept_on_the_word_of_other_runs(
    judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.judge.Ways", told(False))
    begun = start(striped(150, contrast=20))
    monkeypatch.setattr("headstart.tuning.train", partial(_cut_short, train))
    evidence = Evidence.model_construct(forecast=Forecast(0.1, 0.001), images=30, classes=3)
    (result,) = begun.ladder(TOGETHER, judge=judge, evidence=evidence).climb().rungs
    assert not result.complete and not result.kept and result.posterior is None
    assert judge == "fold" or result.reason == "dropped: the time was used up after 0 of 3 trainings"


def test_of_several_trainings_all_must_end_for_a_rung_to_be_kept(begun: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged in part by networks that did not train is not what is kept in the end; what was asked for is kept."""
    (whole,) = begun.ladder(PAYS, judge="folds").climb().rungs
    assert whole.kept and whole.complete
    left = [1]

    def some(*given: Any, **more: Any) -> Trained:
        left[0] -= 1
        return train(*given, **more) if left[0] >= 0 else _cut_short(train, *given, **more)

    monkeypatch.setattr("headstart.tuning.train", some)
    tuned = begun.ladder(PAYS, judge="folds", store=Store(Store().root.parent / "elsewhere")).climb()
    assert tuned.rungs[0].reason == "dropped: the time was used up after 1 of 3 trainings"
    assert is_head_only(begun, tuned)
    forced = begun.ladder(replace_rung(PAYS, forced=True), judge="folds", store=Store(Store().root.parent / "there"))
    assert [(rung.kept, rung.complete) for rung in forced.climb().rungs] == [(True, False)]


def _cut_short(whole: Callable[..., Trained], *given: Any, **more: Any) -> Trained:
    return replace(whole(*given, **more), complete=False)
