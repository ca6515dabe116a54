"""The race: every stage and some combinations of them get heads, cross-validation picks one, and it is kept with its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.choice import Ways, Weights, clearly_better, mean_and_error, numbered, paired_gain
from headstart.data.splits import least_each, thinned
from headstart.features.extract import Features
from headstart.features.store import Artifact, Store
from headstart.heads import (
    LOGISTIC_STRENGTHS,
    RIDGE_STRENGTHS,
    Kind,
    Score,
    blended,
    centroid_scores,
    logistic_scores,
    on_same_rows,
    ridge_scores,
    subject,
)
from headstart.solvers import SOLVER, Axes, principal_axes
from headstart.winner import IN_MEMORY, axes_of, shifted, solve

Scorer = Callable[[Axes, NDArray[np.int64], NDArray[np.int64], int, tuple[int, ...], int], list[Score]]
_Entrant = tuple[Kind, tuple[int, ...]]
_SCORERS: dict[Kind, Scorer] = {"ridge": ridge_scores, "logistic": logistic_scores, "centroid": centroid_scores}
RACED = IN_MEMORY  # pictures that race at most: more cost time and tell no head from another
# Pictures times classes, about, that race at most: what a step of logistic regression costs is in proportion to them.
CELLS = 2 * 10**6
WORTH = 0.005  # nats; a second backbone that is not likely to give as much is not worth its computation


@dataclass(frozen=True, eq=False)
class Race:
    """All candidates, the winner, the last-stage reference and the depth profile (one ridge score per stage).

    `accuracy` is what to expect of the winner: its own score less as much as it is flattered by having been chosen. `pool` (M,)
    are the pictures that the scores are of, in the order of their logits.
    """

    candidates: tuple[Score, ...]
    best: Score
    last: Score
    profile: tuple[Score, ...]
    accuracy: float
    reason: str
    pool: NDArray[np.int64]


def race(
    features: Features,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    pool: NDArray[np.int64],
    *,
    groups: NDArray[np.int64] | None = None,
    store: Store | None = None,
    progress: runtime.Progress = runtime.silent,
) -> Race:
    """Cross-validate heads on every backbone; `labels`, `folds` and `groups` (M,) belong to the pictures `pool` (M,). Pictures of one
    group are right or wrong together: standard errors count groups. Without `groups` each picture stands alone.

    The first backbone's winner is joined by that of another one, as the mean of their calibrated logits, where this makes the labels
    likelier out of fold, by as much as `WORTH` as far as the standard error tells. More need not be shown: on recorded draws pairs
    that few pictures cannot tell from the first alone were better on average (`benchmarks/backbones.py`). With a store, the same
    race is run once.
    """
    group = None if groups is None else numbered(groups)
    courses = [
        _Course(features.of(place), labels, folds, classes, pool, group) for place in range(1 + len(features.beside))
    ]
    runs = [_race(course, store, progress) for course in courses]
    first, given = runs[0], courses[0].thinned()
    joined = [
        given.joined([first.best, shifted(other.best, span.start)])
        for other, span in zip(runs[1:], features.spans[1:], strict=True)
    ]
    if not joined:
        return first
    ways = given.ways([first.best, *joined])

    def beside(weight: Weights | None = None) -> int:
        """The way that is best beside the first."""
        return 1 + int(np.argmax([ways.likelier(place, 0, weight)[0] for place in range(1, 1 + len(joined))]))

    def chosen(weight: Weights | None = None) -> int:
        """That one, or the first alone."""
        place = beside(weight)
        nats, error = ways.likelier(place, 0, weight)
        return place if nats > 0 and nats + error > WORTH else 0

    place, flattery = beside(), ways.optimism(chosen)[0]
    pair, (gain, error) = joined[place - 1], ways.gain(place, 0)
    found = replace(first, candidates=(*first.candidates, pair), accuracy=max(0.0, first.accuracy - flattery))
    if not chosen():
        return found
    return replace(
        found,
        best=pair,
        accuracy=found.accuracy + pair.accuracy - first.best.accuracy,
        reason=f"the two together are {_lead(gain, error)} the first alone out of fold, "
        f"{100 * (gain - flattery):+.1f} points once cleared of that choice, and the labels are likelier by "
        "{:.3f} ± {:.3f} nats".format(*ways.likelier(place, 0)),
    )


@dataclass(frozen=True, eq=False)
class _Course:
    """What heads of one backbone race on: the pictures `pool` (M,), their labels, folds and groups (M,), from 0 on; None where each
    stands alone."""

    features: Features
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    classes: int
    pool: NDArray[np.int64]
    group: NDArray[np.int64] | None = None

    def thinned(self) -> _Course:
        """A sample of at most `RACED` pictures, or where classes are very many of about `CELLS`, but 5 of each class."""
        most = min(RACED, CELLS // self.classes)
        sample = thinned(self.labels, most, least_each(most, self.classes))
        return replace(
            self,
            labels=self.labels[sample],
            folds=self.folds[sample],
            pool=self.pool[sample],
            group=None if self.group is None else numbered(self.group[sample]),
        )

    def key(self) -> dict[str, Any]:
        """What the outcome depends on, as part of a key."""
        rows, more = self.features.rows[self.pool], [self.folds] if self.group is None else [self.folds, self.group]
        return subject(self.features.table, rows, self.labels, self.classes, *more)

    def score(self, key: _Entrant, axes: Axes, views: int = 0) -> list[Score]:
        """Of every strength of a head that was tried, the chosen one first."""
        kind, taps = key
        return [
            self._over_groups(score)
            for score in _SCORERS[kind](axes, self.labels, self.folds, self.classes, taps, views)
        ]

    def joined(self, scores: Sequence[Score]) -> Score:
        """The score of their blend."""
        return self._over_groups(blended(scores, self.labels))

    def ways(self, scores: Sequence[Score]) -> Ways:
        """They as ways of answering, calibrated."""
        return Ways.of([score.logits for score in scores], self.labels, self.group)

    def better(self, one: Score, other: Score) -> bool:
        """Whether one is right clearly more often."""
        return clearly_better(one.logits, other.logits, self.labels, self.group)

    def ways_as_scored(self, scores: Sequence[Score]) -> Ways:
        """They as ways of answering, by the temperatures that they have."""
        from scipy.special import log_softmax  # takes a while to import, and models that only answer come past here

        row = np.arange(len(self.labels))
        right = np.stack([(score.logits.argmax(1) == self.labels).astype(float) for score in scores])
        loss = np.stack([-log_softmax(score.logits, axis=1)[row, self.labels] for score in scores])
        return Ways(right, loss.astype(np.float64), self.group)

    def _over_groups(self, score: Score) -> Score:
        """The score with standard errors over groups."""
        if self.group is None:
            return score
        ways = self.ways_as_scored([score])
        errors = [mean_and_error(each[0], None, self.group)[1] for each in (ways.right, ways.loss)]
        return replace(score, accuracy_se=errors[0], log_loss_se=errors[1])


def _race(whole: _Course, store: Store | None, progress: runtime.Progress) -> Race:
    """Heads on one backbone, per stage and combined.

    Ridge scores every stage (the depth profile) and the combinations, cheaply; the last stage, the best stage and the best
    combination go on to logistic regression. Their heads and the best ridge are the finalists. Where there are augmented views,
    these are fitted to them as well, and stay so unless the labels are clearly likelier without. The finalists' blend wins unless
    another beats it by more than two standard errors of the paired difference, and by three pictures. Of more than `RACED`
    pictures, or of fewer in very many classes, a sample races, and none in more views.
    """
    course = whole.thinned()
    features, labels, classes, pool = course.features, course.labels, course.classes, course.pool
    all_raced, raced = len(pool) == len(whole.pool), None
    known: dict[tuple[int, ...], Axes] = {}
    if store is not None:
        spec = {
            **course.key(),
            "solver": [LOGISTIC_STRENGTHS, RIDGE_STRENGTHS, *SOLVER, 5],
        }
        memo = store.artifact("race", spec)
        raced = _recalled(memo)
    if raced is None:
        raced = _compete(course, known, progress)
        if store is not None:
            _remember(memo, raced)
    last, candidates = raced.candidates[0], raced.candidates
    finalists, told, luck = [score for score in candidates if score.kind == "logistic"], "", 0.0
    finalists.append(max((score for score in candidates if score.kind == "ridge"), key=_rank))
    usual, best = course.joined(finalists), max(candidates, key=_rank)
    if features.views and all_raced:
        viewed = _in_views(finalists, course, store, progress)
        mean = course.joined(viewed)
        ways = course.ways([mean, usual])

        def without(weight: Weights | None = None) -> int:
            """Few pictures seldom tell, and more views seldom hurt."""
            return int(ways.clearly_likelier(1, 0, weight))

        luck, nats = ways.optimism(without)
        if not without():
            inside, outside = (float(loss.mean()) for loss in ways.loss)
            told = (
                f"; fitted to {len(features.views)} augmented views of each picture as well: log-loss out of fold {inside:.3f} "
                f"({inside + nats:.3f} cleared of that choice), {outside:.3f} without"
            )
            usual, last, best, candidates = mean, viewed[0], max(viewed, key=_rank), (*viewed, *candidates)
    candidates = (last, usual, *candidates[1:])
    if not course.better(best, usual):
        best = usual
    accuracy = max(0.0, best.accuracy - luck - raced.flattery)
    reason = _why(best, usual, last, course, raced.flattery) + told
    if store is not None and all_raced:  # both will be asked for, and their axes may be at hand
        for score in (last, *([part for part, _ in best.parts] or [best])):
            if score.taps in known and not score.views:
                solve(score, known[score.taps], features, labels, classes, pool, store)
    profile = tuple(score for score in raced.candidates if score.kind == "ridge" and len(score.taps) == 1)
    return Race(candidates, best, last, profile, accuracy, reason, pool)


def _in_views(
    finalists: Sequence[Score], course: _Course, store: Store | None, progress: runtime.Progress
) -> list[Score]:
    """The same heads, each fitted to augmented views of its pictures as well, at a strength chosen anew; and, with a store, solved
    while their rows are at hand."""
    features, labels, classes, views = course.features, course.labels, course.classes, len(course.features.views)
    memo = None
    if store is not None:
        spec = {
            **course.key(),
            "views": [view.table.folder.name for view in features.views],
            "heads": [(score.kind, score.taps) for score in finalists],
            "solver": [LOGISTIC_STRENGTHS, RIDGE_STRENGTHS, *SOLVER, 2],
        }
        memo = store.artifact("viewed", spec)
        if (stored := _recalled(memo)) is not None:
            return list(stored.candidates)
    found: dict[Score, Score] = {}
    with progress("Racing heads in more views", len(finalists), "heads") as advance:
        for alike in on_same_rows(finalists):  # one after the other: there are several times as many rows
            axes = axes_of(features, alike[0].taps, course.pool, views)
            for score in alike:
                found[score], *_ = course.score((score.kind, score.taps), axes, views)
                if store is not None:
                    solve(found[score], axes, features, labels, classes, course.pool, store)
                advance(1)
    viewed = [found[score] for score in finalists]
    if memo is not None:
        _remember(memo, _Raced(tuple(viewed), 0.0))
    return viewed


_PLAIN = ("kind", "taps", "strength", "accuracy", "accuracy_se", "log_loss", "log_loss_se", "temperature", "views")


@dataclass(frozen=True, eq=False)
class _Raced:
    """The candidates, the last stage's logistic head first, and by how much accuracy the best of them is flattered."""

    candidates: tuple[Score, ...]
    flattery: float


def _recalled(memo: Artifact) -> _Raced | None:
    stored = memo.load()
    if stored is None:
        return None
    record, arrays = stored
    candidates = tuple(
        Score(**{**row, "taps": tuple(row["taps"])}, logits=arrays[str(place)])
        for place, row in enumerate(record["scores"])
    )
    return _Raced(candidates, record["flattery"])


def _remember(memo: Artifact, raced: _Raced) -> None:
    rows = [{name: getattr(score, name) for name in _PLAIN} for score in raced.candidates]
    memo.save(
        {"scores": rows, "flattery": raced.flattery},
        {str(place): score.logits for place, score in enumerate(raced.candidates)},
    )


def _compete(course: _Course, known: dict[tuple[int, ...], Axes], progress: runtime.Progress) -> _Raced:
    features = course.features
    stages = len(features.widths)
    combined = sorted(
        {tuple(range(start, stages)) for start in (0, stages // 2, stages - 3) if 0 <= start < stages - 1}
    )
    singles, last = [(stage,) for stage in range(stages)], (stages - 1,)
    scores: dict[_Entrant, list[Score]] = {}  # of every strength that was tried, the chosen one first
    with progress("Racing heads", len(singles) + len(combined) + 4, "heads") as advance:

        def ran(tasks: Sequence[_Entrant]) -> None:
            def scored(task: _Entrant) -> tuple[Axes, list[Score]]:
                _, taps = task
                axes = known.get(taps) or principal_axes(features.stages(taps, course.pool))
                return axes, course.score(task, axes)

            # Side by side: eigenvectors and narrow products hardly gain from a second core.
            for task, (axes, found) in zip(tasks, runtime.parallel(scored, tasks), strict=True):
                known[task[1]] = axes  # the factorisation is most of the work, and scorers share it
                scores[task] = found
                advance(1)

        def best(among: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
            return max(among, key=lambda taps: _rank(scores["ridge", taps][0]))

        ran([("ridge", taps) for taps in (*combined, *reversed(singles))])  # the longest first
        finalists = {best(singles), *([best(combined)] if combined else [])} - {last}
        for taps in known.keys() - {last, *finalists}:
            del known[taps]  # no other can win, and they are large
        order: list[_Entrant] = [("logistic", taps) for taps in (last, *sorted(finalists))]
        order.append(("centroid", last))
        ran(order)
    order += [("ridge", taps) for taps in (*singles, *combined)]
    tried = [score for key in order for score in scores[key]]
    ways = course.ways_as_scored(tried)
    return _Raced(tuple(scores[key][0] for key in order), ways.optimism(ways.best)[0])


def _rank(score: Score) -> tuple[float, float]:
    return score.accuracy, -score.log_loss


def _why(best: Score, usual: Score, last: Score, course: _Course, flattery: float) -> str:
    if best is last:
        return "no other stage adds to the last one"
    gain, error = paired_gain(best.logits, last.logits, course.labels, course.group)
    ahead = f"{_words(best)} is {_lead(gain, error)} the last stage alone out of fold"
    if best is usual:
        return f"{ahead}; no single head is clearly better"
    return f"{ahead}, {100 * (gain - flattery):.1f} once cleared of being the best of many"


def _lead(gain: float, error: float) -> str:
    return (
        f"{100 * abs(gain):.1f} ± {100 * error:.1f} points {'ahead of' if gain > 0 else 'behind'}"
        if gain
        else "as often right as"
    )


def _words(score: Score) -> str:
    if not score.parts:
        return f"a {score.kind} head on {_where(score)}"
    places: dict[Kind, list[str]] = {}
    for part, _ in score.parts:
        places.setdefault(part.kind, []).append(_where(part))
    told = [
        f"{kind} heads on {', '.join(where[:-1])} and {where[-1]}" if where[1:] else f"a {kind} head on {where[0]}"
        for kind, where in places.items()
    ]
    return f"the mean of {' and '.join(told)}"


def _where(score: Score) -> str:
    first, last = score.taps[0] + 1, score.taps[-1] + 1
    return f"stage {first}" if first == last else f"stages {first}–{last}"
