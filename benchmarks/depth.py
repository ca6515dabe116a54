"""How deep to unfreeze: every depth trained from the store, whatever it gains, and what the plan's own ladder would have chosen.

For a data set, a number of training pictures and a seed: pictures are drawn class by class, all the others (600 at most) are tested
on, none of a group that was drawn from. Every rung starts from the same frozen features and heads, trains on all training pictures
and is tested, whatever held-out pictures would say of it. Seed by seed, size by size; within a size rung by rung over the sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accuracy import TESTED, drawn
from common import PLACES, SETS, commit, keep, results
from contest import LITE
from forecast import learnt
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.backbone import Backbone
from headstart.backbones.catalog import load_backbone
from headstart.data.dataset import Dataset
from headstart.data.splits import assign_folds, fold_count
from headstart.evidence import planned
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, together
from headstart.features.shift import shift
from headstart.features.store import Store
from headstart.forecast import Forecast, forecast
from headstart.heads import Head, Score
from headstart.ladder import Ladder, RungResult, finetune
from headstart.options import Options
from headstart.plan import Plan
from headstart.planner import FEW_LADDER, cut_for, decide, rung_from
from headstart.race import Race, race
from headstart.request import audited
from headstart.tasks.classification import ece, fit_temperature
from headstart.tuning import Tuning
from headstart.views import more_views
from regret import JUDGED, LADDER

import numpy as np  # isort: skip
from scipy.special import softmax  # isort: skip

RESULTS = Path(__file__).parent / "results" / "depth.json"
SIZES = ("5", "20", "600")  # pictures a class; then pictures in all, each class its share
RUNGS: dict[str, list[dict[str, Any]]] = {
    "from 6": [{"cut": 6}], "from 5": [{"cut": 5}], "from 4": [{"cut": 4}], "from 7": [{"cut": 7}], "from 8": [{"cut": 8}],
    "from 6, then from 5": [{"cut": 6}, {"cut": 5}], "from 6, then from 4": [{"cut": 6}, {"cut": 4}], "from 3": [{"cut": 3}],
    "from 2": [{"cut": 2}], "from 1": [{"cut": 1}], "from 0": [{"cut": 0}],
    "norms from 4": [{"cut": 4, "trains": "norms"}],
    "norms from 4, ten times the rate": [{"cut": 4, "trains": "norms", "lr_body": 1e-2}],
    "biases from 4, ten times the rate": [{"cut": 4, "trains": "biases", "lr_body": 1e-2}],
    "4 and 5 alone": [{"cut": 4, "until": 6}], "6 and 7 alone": [{"cut": 6, "until": 8}],
    "from 4, a third of the rate": [{"cut": 4, "lr_body": 3e-4}], "from 4, thrice the rate": [{"cut": 4, "lr_body": 3e-3}],
}  # fmt: skip
engine = cache(lambda source: Engine(load_backbone(LITE)))  # how it runs is decided on the pictures of each data set


@cache
def _audited(source: Path, seed: int) -> Dataset:
    return audited(source, Options(seed=seed), Store())


def draw(source: Path, size: str, seed: int) -> Dataset:
    """The pictures of one case, on two sides and in folds; where the data set comes with a test side, that is kept."""
    dataset = _audited(source, seed)
    pool = dataset.indices("train") if dataset.given else np.arange(len(dataset))
    most = len(pool) if dataset.given else len(pool) * 4 // 5  # something has to be left to test on
    limits = {"most": min(int(size), most)} if size == SIZES[-1] else {"each": int(size), "most": most}
    train = pool[drawn(dataset.labels[pool], seed, **limits)]
    rest = dataset.indices("test") if dataset.given else np.setdiff1d(pool, train)
    rest = rest[~np.isin(dataset.groups[rest], dataset.groups[train])]
    test = rest[drawn(dataset.labels[rest], seed, most=TESTED)]
    chosen = dataset.select([*train, *test])
    side, fold = np.repeat(["train", "test"], [len(train), len(test)]), np.full(len(chosen), -1)
    labels, groups = chosen.labels[: len(train)], chosen.groups[: len(train)]
    folds = fold_count(labels, groups, 5)
    fold[: len(train)] = assign_folds(labels, groups, chosen.digests[: len(train)], folds, seed)
    return replace(chosen, split=side, fold=fold)


@dataclass(frozen=True, eq=False)
class Case:
    """What all rungs of a case start from."""

    dataset: Dataset
    features: Features
    heads: Race
    plan: Plan
    store: Store
    engine: Engine

    @classmethod
    def of(cls, name: str, source: Path, size: str, seed: int) -> Case:
        store, dataset = Store(), draw(source, size, seed)
        own = engine(source)
        features = extract(own.backbone, dataset, store, engine=own)
        features, *_ = more_views(features, [own], dataset, store, seed=seed)
        pool = dataset.indices("train")
        heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
        options = Options(backbone=LITE, seed=seed, budget=None)
        plan = planned(dataset, [own], heads, features, options, store)
        return cls(dataset, features, heads, plan, store, own)

    @property
    def tuning(self) -> Tuning:
        """What trainings by the plan of this case share."""
        return Tuning(self.dataset, self.features, self.store, self.engine, self.plan)

    def _answers(self, score: Score) -> np.ndarray:
        """Test logits of a head on frozen features."""
        head = self.tuning.head(score, self.dataset.indices("train"))
        return head.answers(self.features, self.dataset.indices("test"))

    def facts(self) -> dict[str, Any]:
        """What is known before anything is fine-tuned, and how right heads on frozen features are."""
        heads, evidence = self.heads, self.plan.evidence
        assert evidence is not None
        far = shift(self.engine.backbone, self.dataset, self.features, self.store)
        pool, test = self.dataset.indices("train"), self.dataset.indices("test")
        answers = {"head": self._answers(heads.best), "last-stage head": self._answers(heads.last)}
        return {
            "images": len(pool), "classes": evidence.classes, "smallest_class": evidence.smallest_class, "tested": len(test),
            "judge": self.plan.judge, "head_accuracy": heads.accuracy, "head_accuracy_se": heads.best.accuracy_se,
            "last_stage_accuracy": heads.last.accuracy, "profile": evidence.profile, "head_log_loss": heads.best.log_loss,
            "shift": far.distance, "entropy": far.entropy,
            "right": {name: _marks(self._right(logits)) for name, logits in answers.items()},
            "ece": self._ece(answers["head"], heads.best.logits, self.dataset.labels[heads.pool]),
        }  # fmt: skip

    def _right(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(1) == self.dataset.labels[self.dataset.indices("test")]

    def _ece(self, logits: np.ndarray, held: np.ndarray, truth: np.ndarray) -> float:
        """Expected calibration error on the test pictures, at the temperature that suits held-out answers best."""
        beliefs = softmax(logits / np.float32(fit_temperature(held, truth)), axis=1)
        return float(ece(self.dataset.labels[self.dataset.indices("test")], beliefs))

    def tuned(self, name: str) -> dict[str, Any]:
        """Rungs on all training pictures, judged by nobody; or the ladder as it is planned."""
        began = time.perf_counter()
        if name == JUDGED:
            return self._judged()
        if name != LADDER:
            assert self.plan.evidence is not None
            rungs = [rung_from(self.plan.evidence, how["cut"]).model_copy(update=how) for how in RUNGS[name]]
            done = Ladder(self.tuning, self.heads).refit([(rung, 1.0) for rung in rungs])
            assert done is not None
            spent = time.perf_counter() - began
            own, beside = self._shown(*done), self._answers(self.heads.best)
            return {
                "seconds": spent,
                "right": _marks(self._right(own)),
                "right_with_head": _marks(self._with(own, beside)),
            }
        plan = _decided(self.plan)
        tuned = finetune(self.engine, self.heads, self.features, self.dataset, plan, self.store)
        spent = time.perf_counter() - began
        answers = self._shown(tuned.backbone, tuned.head, beside=tuned.together)
        return {
            "rungs": [self._row(result) for result in tuned.rungs], "seconds": spent, "right": _marks(self._right(answers)),
            "ece": self._ece(answers, tuned.logits, self.dataset.labels[tuned.held]),
        }  # fmt: skip

    def _judged(self) -> dict[str, Any]:
        """What held-out pictures say of the rung that few pictures get, when nothing is expected of it."""
        evidence = self.plan.evidence
        assert evidence is not None
        rung = rung_from(evidence, cut_for(evidence.flops, FEW_LADDER[0]))
        plan = self.plan.model_copy(
            update={"rungs": [rung], "evidence": evidence.model_copy(update={"forecast": None})}
        )
        (result,) = finetune(self.engine, self.heads, self.features, self.dataset, plan, self.store).rungs
        assert result.with_head is not None
        nats, error = result.with_head
        return {"cut": rung.cut, "gain": result.gain, "gain_se": result.gain_se, "likelier": nats, "likelier_se": error}

    @staticmethod
    def _row(result: RungResult) -> dict[str, Any]:
        return {
            "cut": result.rung.cut, "gain": result.gain, "gain_se": result.gain_se, "kept": result.kept, "together": result.together,
            "alpha": result.alpha, "epochs": result.rung.epochs, "seconds": result.seconds,
        }  # fmt: skip

    def _shown(self, backbone: Backbone, head: Head, *, beside: bool = False) -> np.ndarray:
        """Test logits of a trained network, perhaps beside the one that it was trained from."""
        whole = self.dataset.select(self.dataset.indices("test"))
        engines = [self.engine.alike(backbone), *([self.engine] if beside else [])]
        shown = together([extract(each.backbone, whole, self.store, engine=each) for each in engines])
        return head.answers(shown, np.arange(len(whole)))

    def _with(self, own: np.ndarray, beside: np.ndarray) -> np.ndarray:
        """Whether the mean of two calibrated answers to the test pictures is right; the temperatures of each half of the pictures
        are those that suit the other half."""
        truth = self.dataset.labels[self.dataset.indices("test")]
        both = np.zeros_like(own)
        for half in (0, 1):
            here, there = (slice(start, None, 2) for start in (half, 1 - half))
            for logits in (own, beside):
                both[here] += logits[here] / np.float32(fit_temperature(logits[there], truth[there]))
        return self._right(both)


def _marks(right: np.ndarray) -> str:
    return "".join(map(str, right.astype(int)))


def suite(given: argparse.Namespace) -> None:
    """Run what is missing and write after every rung."""
    record = results(RESULTS)
    sizes, names = given.sizes or SIZES, given.only or [*RUNGS, JUDGED, LADDER]
    for seed, size, name, source in product(given.seeds or [0], sizes, names, given.sets or SETS):
        key = f"{source}, size {size}, seed {seed}"
        found = record["cases"].setdefault(key, {"set": source, "size": size, "seed": seed, "rungs": {}})
        if name in found["rungs"]:
            continue
        # What is expected of a data set is what the others let expect.
        with patch.object(
            sys.modules[Forecast.__module__], "coefficients", cache(partial(learnt, record["cases"], without=source))
        ):
            case = _case(source, (given.data / PLACES[source]).resolve(), size, seed)
            if "right" not in found:
                found |= case.facts()
            found["rungs"][name] = row = {"commit": commit(), "load": os.getloadavg()[0], **case.tuned(name)}
        keep(record, RESULTS)
        if name == JUDGED:
            print(f"{key}: {name}: {row['likelier']:+.3f} ± {row['likelier_se']:.3f} nats", flush=True)
            continue
        before, after = (100 * marks.count("1") / len(marks) for marks in (found["right"]["head"], row["right"]))
        print(f"{key}: {name}: {before:.1f} -> {after:.1f} %, {row['seconds']:.0f} s", flush=True)


def _decided(plan: Plan) -> Plan:
    """The plan by what is expected now: the one in the store may know more data sets, or fewer."""
    evidence = plan.evidence
    assert evidence is not None and plan.budget is not None
    assert evidence.head_log_loss is not None and evidence.shift is not None
    known = evidence.head_log_loss, evidence.shift, evidence.images, evidence.classes
    new = evidence.model_copy(update={"forecast": forecast(*known, backbone=plan.backbone)})
    return decide(new, plan.budget, backbone=plan.backbone, seed=plan.seed)


_case = cache(Case.of)
