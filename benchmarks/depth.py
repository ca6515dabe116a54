"""How deep to unfreeze: every depth trained from the store, whatever it gains, and what the plan's own ladder would have chosen.

For a data set, a number of training pictures and a seed: pictures are drawn class by class, all the others (600 at most) are tested
on, none of a group that was drawn from. Every rung starts from the same frozen features and heads, is judged on held-out pictures
as always, refitted and tested. Seed by seed, size by size; within a size rung by rung over the sets.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TESTED, drawn
from common import PLACES, SETS, commit, keep, results
from contest import LITE
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.dataset import Dataset
from headstart.data.splits import assign_folds, fold_count
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract, together
from headstart.features.shift import shift
from headstart.features.store import Store
from headstart.finetune import Finetuned, RungResult, finetune
from headstart.heads import Score
from headstart.plan import Plan, rung_from, seconds
from headstart.race import Race, fit_winner, race
from headstart.request import Options, audited
from headstart.tasks.classification import ece, fit_temperature
from headstart.transfer import planned
from headstart.views import more_views
from regret import LADDER

import numpy as np  # isort: skip
from scipy.special import log_softmax, softmax  # isort: skip

RESULTS = Path(__file__).parent / "results" / "depth.json"
SIZES = ("5", "20", "600")  # pictures a class; then pictures in all, each class its share
RUNGS: dict[str, dict[str, Any]] = {
    "from 6": {"cut": 6}, "from 5": {"cut": 5}, "from 4": {"cut": 4}, "from 7": {"cut": 7}, "from 8": {"cut": 8},
    "norms from 4": {"cut": 4, "trains": "norms"}, "4 and 5 alone": {"cut": 4, "until": 6}, "from 3": {"cut": 3},
    "from 5, a third of the rate": {"cut": 5, "lr_body": 3e-4}, "from 5, thrice the rate": {"cut": 5, "lr_body": 3e-3},
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
    def of(cls, source: Path, size: str, seed: int) -> Case:
        store, dataset = Store(), draw(source, size, seed)
        own = engine(source)
        features = extract(own.backbone, dataset, store, engine=own)
        features, _ = more_views(features, [own], dataset, store, seed=seed)
        pool = dataset.indices("train")
        heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
        options = Options(backbone=LITE, seed=seed, budget=None)
        return cls(dataset, features, heads, planned(dataset, [own], heads, options, store), store, own)

    def _answers(self, score: Score) -> np.ndarray:
        """Test logits of a head on frozen features."""
        pool, labels = self.dataset.indices("train"), self.dataset.labels
        head = fit_winner(score, self.features, labels[pool], len(self.dataset.classes), pool, self.store)
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
        """One rung alone, kept whatever it gains; or the ladder as it is planned."""
        evidence = self.plan.evidence
        assert evidence is not None
        if name == LADDER:
            plan = self.plan
        else:
            how = RUNGS[name]
            rung = rung_from(evidence, how["cut"]).model_copy(update={**how, "forced": True})
            plan = self.plan.model_copy(update={"rungs": [rung]})
        began = time.perf_counter()
        done = finetune(self.engine, self.heads, self.features, self.dataset, plan, self.store)
        spent = time.perf_counter() - began
        return {
            "rungs": [self._row(result) for result in done.rungs], "seconds": spent,
            "estimated": sum(seconds(evidence, rung, plan.judge) for rung in plan.rungs), **self._tested(done),
        }  # fmt: skip

    @staticmethod
    def _row(result: RungResult) -> dict[str, Any]:
        return {
            "cut": result.rung.cut, "gain": result.gain, "gain_se": result.gain_se, "kept": result.kept, "together": result.together,
            "alpha": result.alpha, "epochs": result.rung.epochs, "seconds": result.seconds,
        }  # fmt: skip

    def _tested(self, done: Finetuned) -> dict[str, Any]:
        """How it answers alone and together with the frozen head: marks on the test pictures, and on held-out ones what is gained over
        the head."""
        test, pool = self.dataset.indices("test"), self.heads.pool
        whole = self.dataset.select(test)
        engines = [self.engine.alike(done.backbone), *([self.engine] if done.together else [])]
        shown = together([extract(each.backbone, whole, self.store, engine=each) for each in engines])
        place = {int(picture): i for i, picture in enumerate(pool)}
        before, truth = self.heads.best.logits[[place[int(i)] for i in done.held]], self.dataset.labels[done.held]
        answers = done.head.answers(shown, np.arange(len(whole)))
        cool, heat = (np.float32(fit_temperature(logits, truth)) for logits in (before, done.logits))
        both, both_held = answers, done.logits
        if not done.together:
            both, both_held = answers / heat + self._answers(self.heads.best) / cool, done.logits / heat + before / cool
        return {
            "right": _marks(self._right(answers)), "ece": self._ece(answers, done.logits, truth),
            "alone": _gained(done.logits, before, truth),
            "right_with_head": _marks(self._right(both)), "ece_with_head": self._ece(both, both_held, truth),
            "with_head": _gained(both_held, before, truth),
        }  # fmt: skip


def _gained(after: np.ndarray, before: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, and logarithm of the true class's likelihood: mean difference per picture, and its standard error."""
    right = (after.argmax(1) == truth) * 1.0 - (before.argmax(1) == truth)
    likelier, root = _log_likelihood(after, truth) - _log_likelihood(before, truth), max(1, len(truth)) ** 0.5
    return {
        "gain": float(right.mean()), "gain_se": float(right.std() / root),
        "likelier": float(likelier.mean()), "likelier_se": float(likelier.std() / root),
    }  # fmt: skip


def _marks(right: np.ndarray) -> str:
    return "".join(map(str, right.astype(int)))


def _log_likelihood(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of the true class (N,), at the temperature that suits these answers best."""
    heat = np.float32(fit_temperature(logits, truth))
    return log_softmax(logits / heat, axis=1)[np.arange(len(truth)), truth]


def suite(given: argparse.Namespace) -> None:
    """Run what is missing and write after every rung."""
    record = results(RESULTS)
    sizes, names = given.sizes or SIZES, given.only or [*RUNGS, LADDER]
    for seed, size, name, source in product(given.seeds or [0], sizes, names, given.sets or SETS):
        key = f"{source}, size {size}, seed {seed}"
        found = record["cases"].setdefault(key, {"set": source, "size": size, "seed": seed, "rungs": {}})
        if name in found["rungs"]:
            continue
        case = _case((given.data / PLACES[source]).resolve(), size, seed)
        if "right" not in found:
            found |= case.facts()
        found["rungs"][name] = row = {"commit": commit(), "load": os.getloadavg()[0], **case.tuned(name)}
        keep(record, RESULTS)
        before, after = (100 * marks.count("1") / len(marks) for marks in (found["right"]["head"], row["right"]))
        print(f"{key}: {name}: {before:.1f} -> {after:.1f} %, {row['seconds']:.0f} s", flush=True)


_case = cache(Case.of)
