"""How much more data would help: the frozen head's accuracy, measured on parts of the training pictures and carried on beyond them.

With five folds the head is fitted to one, two, three and all four of those that do not judge. The odds of a mistake are taken to fall
as a power of the number of pictures, as errors are known to do (Hestness et al. 2017, Deep Learning Scaling is Predictable,
Empirically, arXiv 1712.00409).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.diagnosis.doubts import knows
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.heads import LOGISTIC_STRENGTHS, Score, leaves, on_same_rows, solved, subject
from headstart.race import Race
from headstart.solvers import SOLVER, principal_axes

FEWEST = 20  # pictures; with fewer an interval says nothing
LONE = 0.2  # share of pictures whose class lies in one fold: nobody can answer them now, and twice as many would change that
FARTHEST = 4  # times the pictures that took part: as far as the intervals were measured
LONG = 10**6  # pictures times classes that take a minute or more
TIMES = (1.0, 2**0.5, 2.0, 2**1.5, 4.0)
_DRAWS = 2000


@dataclass(frozen=True)
class Prior:
    """The exponent before anything is measured, `exponent` ± `spread`, as fits seven data sets best (`benchmarks/growth.py`), and by
    how much the one to come may differ from the one that is measured, `drift`: the data sets hardly tell values below 0.2 apart."""

    exponent: float = 0.25
    spread: float = 0.4
    drift: float = 0.1


@dataclass(frozen=True)
class Foretold:
    """Accuracy to expect of `times` as many pictures, a share, with its 95 % interval."""

    times: float
    pictures: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Growth:
    """Accuracy out of fold of the best frozen head against the number of labelled training pictures.

    `measured` are pairs of pictures and accuracy, the last one as the race tells it, the others cleared by as much; `foretold` begins
    with the pictures at hand. Pictures are those that are labelled: out of fold, of F folds, a head is fitted to F − 1 parts of them.
    """

    measured: tuple[tuple[int, float], ...]
    foretold: tuple[Foretold, ...]

    @property
    def sentence(self) -> str:
        """What twice as many pictures would give."""
        now, then = self.foretold[0], next(each for each in self.foretold if each.times == 2)
        before, after = (f"{100 * each.accuracy:.1f} %" for each in (now, then))
        said = f"about {after} ({100 * then.low:.1f} to {100 * then.high:.1f}) out of fold"
        more = "With twice as many labelled pictures the frozen head would"
        return f"{more} stay at {said}." if before == after else f"{more} reach {said}, instead of {before}."


def growth(
    heads: Race,
    features: Features,
    dataset: Dataset,
    store: Store,
    progress: runtime.Progress = runtime.silent,
    deadline: float = math.inf,
) -> Growth | None:
    """The learning curve of the head that won the race, on the pictures that raced; what is fitted for it is fitted once per store.

    None where they are fewer than `FEWEST`, lie in fewer than three folds, or more than a share `LONE` of them have a class that lies
    in one; where twice the training pictures would be more than `FARTHEST` times as many; where the head is no better than the
    commonest class; and past `deadline` (on `time.monotonic`'s clock) where pictures times classes are more than `LONG`.
    """
    pool, pictures, best = heads.pool, len(dataset.indices("train")), heads.best
    labels, folds, count, classes = dataset.labels[pool], dataset.fold[pool], len(pool), len(dataset.classes)
    lone = np.array([len(np.unique(folds[labels == label])) < 2 for label in range(classes)])
    if count < FEWEST or len(np.unique(folds)) < 3 or lone[labels].mean() > LONE or 2 * pictures > FARTHEST * count:
        return None
    if not knows(heads, dataset.labels):
        return None
    spec = {
        **subject(features.table, features.rows[pool], labels, classes, folds),
        "beside": [other.table.folder.name for other in features.beside],
        "views": [view.table.folder.name for part in (features, *features.beside) for view in part.views],
        "heads": [
            (leaf.kind, leaf.taps, leaf.strength, leaf.temperature, leaf.views, factor) for leaf, factor in leaves(best)
        ],
        "solver": [LOGISTIC_STRENGTHS, *SOLVER],
    }
    memo = store.artifact("growth", spec)
    stored = memo.load()
    if stored is None:
        if count * classes > LONG and time.monotonic() > deadline:
            return None
        rows = [features.in_views(leaf.taps, pool, leaf.views) for leaf, _ in leaves(best)]
        parts = answered(rows, labels, folds, classes, best, progress)
        memo.save({}, {"parts": parts})
    else:
        parts = stored[1]["parts"]
    right = np.concatenate([parts, [best.logits.argmax(1) == labels]])
    reached = cleared(right, heads.accuracy)
    steps = [round(step * count / len(right)) for step in range(1, len(right) + 1)]
    times = [each for each in TIMES if each * pictures <= FARTHEST * count]
    rows = foretell(right, heads.accuracy, [each * pictures / count for each in times]).tolist()
    foretold = tuple(Foretold(each, round(each * pictures), *row) for each, row in zip(times, rows, strict=True))
    return Growth(tuple(zip(steps, reached, strict=True)), foretold)


def answered(
    rows: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    score: Score,
    progress: runtime.Progress = runtime.silent,
) -> NDArray[np.bool_]:
    """Whether the head that `score` speaks of is right out of fold when it is fitted to 1, 2, … of the other folds, short of all of
    them: (F − 2, M) for F folds. `rows` are features (V + 1, M, D) of the stages of each head that it is made of, in the views that it
    is fitted to, the clean one first; `labels` and `folds` (M,).

    Parts made of whole folds keep classes in their shares and near-duplicates together, and no order of the pictures matters.
    """
    factors = dict(leaves(score))
    seen_by = dict(zip(factors, rows, strict=True))
    _, place = np.unique(folds, return_inverse=True)
    count = int(place.max()) + 1
    tasks = [(size, judge) for size in range(count - 2, 0, -1) for judge in range(count)]  # the longest first

    def fitted(task: tuple[int, int]) -> NDArray[np.bool_]:
        size, judge = task
        turn, held = (place - judge) % count, place == judge
        inside, logits = (turn >= 1) & (turn <= size), np.zeros((int(held.sum()), classes))
        for alike in on_same_rows(factors):
            seen = seen_by[alike[0]]
            axes = principal_axes(seen[:, inside].reshape(-1, seen.shape[-1]))
            for leaf in alike:
                given = np.tile(labels[inside], len(seen))
                head = solved(axes, given, classes, leaf.kind, leaf.taps, leaf.strength, leaf.temperature)
                logits += factors[leaf] * head.logits(seen[0, held])
        return np.asarray(logits.argmax(1) == labels[held])

    right = np.zeros((count - 2, len(labels)), bool)
    with progress("Learning curve", len(tasks), "heads") as advance:
        for (size, judge), found in zip(tasks, runtime.parallel(fitted, tasks), strict=True):
            right[size - 1, place == judge] = found
            advance(1)
    return right


def cleared(right: NDArray[np.bool_], told: float) -> list[float]:
    """Accuracies (S,) of the same head fitted to ever more pictures, all lowered by `optimism`. `right` and `told` as for `slopes`."""
    count = right.shape[1]
    odds = _odds(1 - right.mean(1), count) + optimism(right, told)
    lowered = 1 - (expit(odds[:-1]) * (count + 1) - 0.5) / count
    return [*np.clip(lowered, 0.0, 1.0).tolist(), told]


def optimism(right: NDArray[np.bool_], told: float) -> float:
    """Log-odds by which the last accuracy lies above `told`: the head answers the pictures that it was chosen on, wherever it is
    fitted. `right` and `told` as for `slopes`."""
    seen, true = _odds(1 - np.array([right[-1].mean(), told]), right.shape[1])
    return float(true - seen)


def _odds(wrong: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Log-odds of these shares of `count` pictures, with half a picture of each sort more, so that none is infinite."""
    return np.asarray(logit((count * wrong + 0.5) / (count + 1)))


def slopes(right: NDArray[np.bool_], told: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-odds of a mistake with all pictures, and the exponent by which the odds fall, least squares: the estimate, then draws of a
    Bayesian bootstrap over pictures (Rubin 1981, doi 10.1214/aos/1176345338), (1 + draws,) each.

    `right` (S, M): whether each picture is answered rightly out of fold by a head fitted to 1/S, 2/S, … of the others; `told` is the
    accuracy that the race tells of the last, cleared of its having been chosen.
    """
    sizes, count = right.shape
    # Half a picture of each sort that learning makes, from always right to always wrong: no share is 0 or 1, however few mistakes.
    sorts = np.concatenate([~right.T, np.tri(sizes + 1, sizes, -1, dtype=bool)])
    wrong, sort = np.unique(sorts, axis=0, return_inverse=True)
    weight = np.bincount(sort.reshape(-1), np.repeat([1.0, 0.5], [count, sizes + 1]))
    drawn = np.random.default_rng(0).dirichlet(weight, _DRAWS)
    odds = logit(np.stack([weight / weight.sum(), *drawn]) @ wrong)
    odds += optimism(right, told)
    steps = np.log(np.arange(1, sizes + 1) / sizes)
    centred = steps - steps.mean()
    return odds[:, -1], -odds @ centred / np.square(centred).sum()


def foretell(
    right: NDArray[np.bool_], told: float, ratios: Sequence[float], prior: Prior | None = None
) -> NDArray[np.float64]:
    """Accuracy of `ratios` times the pictures, and the ends of its 95 % interval: (R, 3). `right` and `told` as for `slopes`.

    The exponent is drawn towards the prior the more, the less sure the measured one is. The interval holds the chance of these
    pictures and the doubt about the exponent.
    """
    prior = Prior() if prior is None else prior
    odds, measured = slopes(right, told)
    trust = prior.spread**2 / (prior.spread**2 + measured[1:].var() + prior.drift**2)
    doubt = np.hypot((1 - trust) * prior.spread, trust * prior.drift)
    noise = np.append(0.0, doubt * np.random.default_rng(1).standard_normal(_DRAWS))
    # More pictures are never taken to do harm.
    exponents = np.maximum(0.0, trust * measured + (1 - trust) * prior.exponent + noise)
    expected = []
    for ratio in np.log(ratios):
        accuracy = float(expit(logit(told) + exponents[0] * ratio))
        low, high = np.quantile(expit(exponents[1:] * ratio - odds[1:]), (0.025, 0.975))
        expected.append((accuracy, min(low, accuracy), max(high, accuracy)))
    return np.array(expected)
