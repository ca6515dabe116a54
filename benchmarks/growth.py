"""Accuracy foretold for twice and four times the labelled pictures, against what the same head then reaches.

    python benchmarks/growth.py --data ../shared/data --seeds 0 1 2 3 4

Each data set is dealt into twenty parts, class by class. One, three or six of them are the labelled pictures, on which heads race; the
winner is then fitted to twice and four times as many, less a fold in turn as it is out of fold, and answers eight parts that are never
drawn. What is known of exponents beforehand is fitted to the other data sets, those that a case is not of.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import case_by_case, keep, results
from headstart import runtime
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.data.splits import assign_folds, fold_count
from headstart.diagnosis.growth import FEWEST, Prior, answered, foretell, slopes
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.heads import Score, leaves
from headstart.race import race
from headstart.winner import fit_winner

import numpy as np  # isort: skip
from scipy.optimize import minimize  # isort: skip
from scipy.special import logit  # isort: skip

RESULTS = Path(__file__).parent / "results" / "growth.json"
PARTS, DRAWN, TESTED, TIMES = 20, (1, 3, 6), 8, (2, 4)


def measured(source: Path, seed: int) -> list[dict[str, Any]]:
    """All draws from one data set: what there is to foretell from, and what is reached."""
    dataset = load_dataset(source)
    engine = Engine(load_backbone("tf_efficientnet_lite0"))
    store = Store()
    features = extract(engine.backbone, dataset, store, engine=engine)
    labels, classes = dataset.labels, len(dataset.classes)
    everything = np.array(sorted(range(len(dataset)), key=lambda i: dataset.digests[i]))

    def dealt(pool: Any, folds: int) -> Any:
        # A seed for parts and another one for folds: dealt in the same order, folds would be of certain parts.
        contents = [dataset.digests[i] for i in pool]
        return assign_folds(labels[pool], dataset.groups[pool], contents, folds, 100 * seed + folds)

    part = dealt(everything, PARTS)
    test = everything[part >= PARTS - TESTED]

    def reached(score: Score, parts: int) -> Any:
        """How often each test picture is answered rightly by heads fitted to these parts less a fold: (T,), shares."""
        pool = everything[part < parts]
        fold = dealt(pool, 5)

        def fitted(out: int) -> Any:
            fit = pool[fold != out]
            head = fit_winner(score, features, labels[fit], classes, fit, store)
            return head.answers(features, test).argmax(1) == labels[test]

        return np.mean(list(runtime.parallel(fitted, range(5))), axis=0)

    cases = []
    for parts in DRAWN:
        pool = everything[part < parts]
        fold = dealt(pool, fold_count(labels[pool], dataset.groups[pool], 5))
        if len(pool) < FEWEST or fold.max() < 2:
            continue
        heads = race(features, labels[pool], fold, classes, pool)
        best, began = heads.best, time.perf_counter()
        some = answered(
            [features.in_views(leaf.taps, pool, 0) for leaf, _ in leaves(best)], labels[pool], fold, classes, best
        )
        seconds = time.perf_counter() - began
        right = np.concatenate([some, [best.logits.argmax(1) == labels[pool]]])
        now = reached(best, parts)
        then = {t: _reached(now, reached(best, parts * t), t) for t in TIMES if parts * t <= PARTS - TESTED}
        cases.append(
            {
                "pictures": len(pool), "told": heads.accuracy, "now": float(now.mean()), "then": then, "tested": len(test),
                "right": Counter("".join("01"[each] for each in column) for column in right.T.astype(int)), "seconds": seconds,
            }
        )  # fmt: skip
    print(source, seed, [(case["pictures"], case["told"], case["then"]) for case in cases], flush=True)
    return cases


def _reached(now: Any, then: Any, times: int) -> dict[str, float]:
    """Accuracy then, and the exponent by which the odds of a mistake fell on these test pictures, with its variance."""
    count = len(now)
    before, after = (((1 - each).sum() + 0.5) / (count + 1) for each in (now, then))
    apart = (now - now.mean()) / (before * (1 - before)) - (then - then.mean()) / (after * (1 - after))
    few = sum(0.25 / (count * each) ** 2 for each in (before, after))  # that hardly a mistake was made says little
    return {
        "accuracy": float(then.mean()),
        "exponent": float((logit(before) - logit(after)) / np.log(times)),
        "variance": float((apart.var() / count + few) / np.log(times) ** 2),
    }


def learnt(by_set: dict[str, list[dict[str, Any]]]) -> Prior:
    """What cases say of exponents: the most likely prior for those that twice the pictures realised, every set weighing the same.

    They hardly tell one drift from another (below 0.2), so it stays what it is.
    """
    rows, drift, sets = [], Prior().drift, len(by_set)
    for cases in by_set.values():
        for case in cases:
            _, drawn = slopes(_right(case), case["told"])
            then = case["then"]["2"]
            rows.append((drawn[0], drawn[1:].var(), then["exponent"], then["variance"], 1 / len(cases)))
    slope, variance, true, noise, weight = np.array(rows).T

    def surprise(known: Any) -> float:
        spread = np.exp(known[1])
        trust = spread**2 / (spread**2 + variance + drift**2)
        doubt = trust**2 * (variance + drift**2) + ((1 - trust) * spread) ** 2 + noise
        off = true - trust * slope - (1 - trust) * known[0]
        return float((weight * (np.log(doubt) + off**2 / doubt)).sum())

    exponent, log_spread = minimize(surprise, [0.3, np.log(0.3)], method="Nelder-Mead").x
    # Centre and spread are known from so few sets that another one lies further off: the standard deviation of Student's t.
    few = ((1 + 1 / sets) * (sets - 1) / (sets - 3)) ** 0.5
    return Prior(float(exponent), float(np.exp(log_spread) * few), drift)


def _right(case: dict[str, Any]) -> Any:
    return np.repeat([[digit == "1" for digit in sort] for sort in case["right"]], list(case["right"].values()), 0).T


def judged(cases: Sequence[dict[str, Any]], times: int, prior: Prior) -> dict[str, Any]:
    """Means over forecasts against what was reached. An interval holds the accuracy among all pictures like these; to hold that among
    the test pictures `as_tested`, it needs the chance of those as well."""
    rows = []
    for case in cases:
        if str(times) in case["then"]:
            true = case["then"][str(times)]["accuracy"]
            told, low, high = foretell(_right(case), case["told"], [times], prior)[0]
            chance = 1.96 * (told * (1 - told) / case["tested"]) ** 0.5
            rows.append(
                {
                    "error": abs(told - true), "error_of_no_change": abs(case["told"] - true), "bias": told - true,
                    "gain": case["then"][str(times)]["accuracy"] - case["now"], "width": high - low,
                    "inside": low <= true <= high,
                    "as_tested": told - np.hypot(told - low, chance) <= true <= told + np.hypot(high - told, chance),
                }
            )  # fmt: skip
    return {"cases": len(rows)} | {key: mean(float(row[key]) for row in rows) for key in rows[0]}


def left_out() -> None:
    """Write beside the cases what each data set's forecasts are worth when the prior is fitted to the others."""
    record = results(RESULTS)
    by_set: dict[str, list[dict[str, Any]]] = {}
    for name, cases in record["cases"].items():
        by_set.setdefault(name.split()[0], []).extend(cases)
    record["prior"] = vars(learnt(by_set))
    record["left_out"] = {}
    for name, cases in by_set.items():
        prior = learnt({other: those for other, those in by_set.items() if other != name})
        found = {str(times): judged(cases, times, prior) for times in TIMES}
        record["left_out"][name] = {"prior": vars(prior), **found}
    keep(record, RESULTS)
    print(json.dumps({"prior": record["prior"], "left_out": record["left_out"]}, indent=1))


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
    left_out()
