"""Baselines and the sealed test set: what transfer is held against, and the one time that the test set is opened.

Testing is a list of passes, each "train on these, answer those". With a sealed test set there is one pass; where the data
were too few to cut one, there is one pass per fold of repeated cross-validation, and heads race anew inside it. Which networks take
part, and which rungs are kept, is not decided anew: a kept rung answers out of fold, by what it was chosen by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.baselines import Thumbnails, fit_pixels, majority_logits, pixel_features, thumbnails
from headstart.cost import (
    JUDGES,
    judgings,
    proving,
    refitting,
    scratch_affordable,
    scratch_epochs,
    scratch_fair,
    seconds_of,
)
from headstart.data.audit import plural
from headstart.data.dataset import Dataset
from headstart.data.splits import assign_folds, by_likeness, fold_count
from headstart.evaluate import TestReport, evaluate
from headstart.features.extract import Features, extract_all, together
from headstart.features.store import Store
from headstart.ladder import Finetuned
from headstart.model import Model
from headstart.plan import Plan
from headstart.race import Race, race
from headstart.scratch import RATES, USUAL_RATES, Scratch, Scratching
from headstart.solvers import BLOCK
from headstart.tasks.classification import fit_temperature, softmax
from headstart.verdict import Verdict, decide_verdict
from headstart.winner import fit_winner, held_out

REPEATS = 3  # of five-fold cross-validation where no test set could be cut
_SMALL = 40  # pixels; pictures of this size or less gain nothing from thumbnails of 64


@dataclass(frozen=True, eq=False)
class Rival:
    """One model's logits (M, K) on the tested pictures, as they are and divided by the temperature that calibrates them; as they are
    where nothing does, and it is not `is_calibrated`."""

    logits: NDArray[np.float32]
    calibrated: NDArray[np.float32]
    is_calibrated: bool = True


@dataclass(frozen=True, eq=False)
class Pass:
    """Train on `fit`, answer `asked`; indices (M,) into the data set, in the order of the pictures' contents. `fold` (M,): the folds
    within `fit` that choices are made by, two at least."""

    fit: NDArray[np.int64]
    asked: NDArray[np.int64]
    fold: NDArray[np.int64]


# Logits of the pictures asked, and their temperature: None where no answers to pictures that were not seen tell one.
Answer = Callable[[Pass], tuple[NDArray[np.float32], float | None]]


@dataclass(frozen=True, eq=False)
class Baselines:
    """Rivals without pretrained weights, the passes that they were tested in, and the runs from scratch: how long each, and why.

    `thumbs` are the pictures that they saw.
    """

    thumbs: Thumbnails
    passes: tuple[Pass, ...]
    rivals: Mapping[str, Rival]
    scratch: tuple[Scratch, ...]
    scratch_epochs: str


@dataclass(frozen=True, eq=False)
class Proof:
    """What the test says. `indices` (M,) are the tested pictures, once per repeat; `rivals` by name, of which those that are
    `uncalibrated` stand in the report's log-loss and calibration error as they are."""

    report: TestReport
    verdict: Verdict
    indices: NDArray[np.int64]
    rivals: Mapping[str, Rival]
    scratch: tuple[Scratch, ...]
    scratch_epochs: str

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Names of the rivals that no temperature was fitted to."""
        return tuple(name for name, rival in self.rivals.items() if not rival.is_calibrated)


def passes(dataset: Dataset, tuned: Finetuned, seed: int) -> tuple[Pass, ...]:
    """The sealed test as one pass; without one, cross-validation repeated (once where a ladder was judged on its folds).

    A class whose pictures all lie in one group is trained on and never asked for: whoever answers has not seen it.
    """
    pool, test = dataset.indices("train"), dataset.indices("test")
    if len(test):
        return (Pass(pool, test, dataset.fold[pool]),)
    labels, groups, contents = dataset.labels[pool], dataset.groups[pool], [dataset.digests[i] for i in pool]
    repeated = (
        [dataset.fold[pool]]
        if tuned.rungs
        else [assign_folds(labels, groups, contents, 5, seed + repeat) for repeat in range(REPEATS)]
    )
    can_be_asked = np.array([len(np.unique(groups[labels == label])) > 1 for label in labels])
    sides = [(pool[fold != n], pool[(fold == n) & can_be_asked]) for fold in repeated for n in np.unique(fold)]
    return tuple(Pass(fit, asked, _folds(dataset, fit, seed)) for fit, asked in sides if len(asked) and len(fit) > 1)


def _folds(dataset: Dataset, fit: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Folds (M,) of the pictures that a pass trains on: those they have; anew where all have the same one, and with no regard to
    groups where there is one group alone. Whom the pass asks is in none of them."""
    fold, labels, contents = dataset.fold[fit], dataset.labels[fit], [dataset.digests[i] for i in fit]
    for groups in (dataset.groups[fit], np.arange(len(fit))):
        if len(np.unique(fold)) > 1:
            break
        fold = assign_folds(labels, groups, contents, fold_count(labels, groups, 5), seed)
    return fold


def answers(each: tuple[Pass, ...], answer: Answer) -> Rival:
    """One rival's logits over all passes."""
    found = [answer(one) for one in each]
    logits = [logits for logits, _ in found]
    calibrated = np.concatenate([part / np.float32(1.0 if heat is None else heat) for part, heat in found])
    return Rival(np.concatenate(logits), calibrated, all(heat is not None for _, heat in found))


def baselines(
    dataset: Dataset,
    store: Store,
    plan: Plan,
    tuned: Finetuned,
    *,
    deadline: float = math.inf,
    seed: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> Baselines:
    """Majority class, pixels, and a small network that gets as much time as transfer, or about what the proof leaves of the time until
    the `deadline`."""
    each = passes(dataset, tuned, seed)
    classes, labels = len(dataset.classes), dataset.labels
    thumbs = thumbnails(dataset, store, side=32 if _usual_side(dataset) <= _SMALL else 64, progress=progress)
    wanted, why = _scratch_epochs(plan, tuned, len(each))
    rates, left = RATES if len(each) == 1 else USUAL_RATES, max(0.0, deadline - time.monotonic())
    epochs, fair, fewest, due = wanted, True, wanted, deadline
    if plan.evidence is not None:
        _, fewest = scratch_fair(plan.evidence, wanted, len(each))
        after = min(0.5 * left, proving(plan.evidence, bool(tuned.kept)))
        epochs, fair = scratch_affordable(plan.evidence, wanted, left - after, len(each))
        due = deadline - after
    runs: list[Scratch] = []

    def majority(one: Pass) -> tuple[NDArray[np.float32], float]:
        return majority_logits(labels[one.fit], classes, len(one.asked)), 1.0

    def pixels(one: Pass) -> tuple[NDArray[np.float32], float]:
        head, heat = fit_pixels(thumbs, labels[one.fit], one.fold, classes, one.fit, store, progress)
        blocks = [one.asked[start : start + BLOCK] for start in range(0, len(one.asked), BLOCK)]
        return np.concatenate([head.logits(pixel_features(thumbs.read(block))) for block in blocks]), heat

    def scratch(one: Pass) -> tuple[NDArray[np.float32], None]:
        val, first = dataset.indices("val"), one.fold == by_likeness(labels[one.fit], one.fold)[0]
        fit, held = (one.fit, val) if len(val) >= JUDGES else (one.fit[~first], one.fit[first])
        whole = Scratching(
            thumbs, dataset, store, wanted, fit, held, one.fit, one.asked, rates, seed, deadline, progress=progress
        )
        tried = (replace(whole, epochs=count) for count in range(wanted, fewest - 1, -1))
        stored = next((known for known in tried if known.is_stored()), None)
        if stored is not None:
            runs.append(stored.run())
        elif fair:
            paced = fewest if len(rates) > 1 else None
            runs.append(replace(whole, epochs=epochs, fewest=paced, due=due).run())
        else:
            now = time.monotonic()
            until = now + (due - now) / (len(each) - len(runs))
            short = replace(whole, epochs=epochs, rates=USUAL_RATES, fewest=1, due=until)
            runs.append(replace(short.run(), complete=False))
        # The long run has seen what was held out, and short trials are no measure of how sure it is; label smoothing bounds that.
        return runs[-1].logits, None

    # First whom the verdict needs most: the others hardly take time.
    trained = answers(each, scratch)
    rivals = {"majority": answers(each, majority), "pixels": answers(each, pixels), "scratch_cnn": trained}
    if not all(run.complete for run in runs):
        had = (
            "as long as there was time"
            if fair
            else f"{plural(min(run.epochs for run in runs), 'epoch')} at the usual rate, all that there was time for"
        )
        why = f"{had}; fair would have been {why}"
    elif any(run.epochs < wanted for run in runs):
        why = f"{plural(runs[0].epochs, 'epoch')}, as there was no time for {why}"
    return Baselines(thumbs, each, rivals, tuple(runs), why)


def _scratch_epochs(plan: Plan, tuned: Finetuned, trainings: int) -> tuple[int, str]:
    """As many as the plan says, or as transfer turned out to take: by the plan's speeds, so that a plan's run repeats."""
    if plan.scratch_epochs is not None:
        return plan.scratch_epochs, f"{plan.scratch_epochs} epochs, as the plan says"
    assert plan.evidence is not None  # a plan that has neither is refused
    _, share = judgings(plan.evidence.folds, plan.judge)
    again = tuned.kept[-1:] if plan.refit == "on" else tuned.kept  # what goes on, goes on with the last alone
    tuning = sum(
        seconds_of(
            plan.evidence,
            each.rung,
            share * each.passes + (refitting(each.rung, plan.refit) if each in again else 0),
            [other.rung for other in tuned.rungs[:place]],
        )
        for place, each in enumerate(tuned.rungs)
    )
    return scratch_epochs(plan.evidence, tuning, trainings)


def _usual_side(dataset: Dataset) -> float:
    sample = range(0, len(dataset), max(1, len(dataset) // 64))
    sides = []
    for index in sample:
        with dataset.images.open(index) as picture:
            sides.append(min(picture.size))
    return float(np.median(sides))


def prove(
    model: Model,
    heads: Race,
    tuned: Finetuned,
    features: Features,
    dataset: Dataset,
    against: Baselines,
    store: Store,
    *,
    seed: int = 0,
    progress: runtime.Progress = runtime.silent,
) -> Proof:
    """Open the test set, once, for every model together, and say what it shows."""
    labels, classes = dataset.labels, len(dataset.classes)
    sealed = len(dataset.indices("test")) > 0

    def head(one: Pass, last: bool = False) -> tuple[NDArray[np.float32], float]:
        """The race's winner (or its last-stage head) for the pictures of this pass."""
        fit, groups = one.fit, dataset.groups[one.fit]
        ran = heads if sealed else race(features, labels[fit], one.fold, classes, fit, groups=groups, store=store)
        score = ran.last if last else ran.best
        fitted = fit_winner(score, features, labels[one.fit], classes, one.fit, store)
        held, logits = held_out(score, ran.pool, features, labels[one.fit], one.fold, classes, one.fit, store)
        return fitted.answers(features, one.asked), fit_temperature(logits, labels[held])

    def final(one: Pass) -> tuple[NDArray[np.float32], float]:
        asked = dataset.select(one.asked)
        tested = together(extract_all(model.engines, asked, store, progress=progress))
        return model.head.answers(tested, np.arange(len(asked))), model.temperature

    def out_of_fold(one: Pass) -> tuple[NDArray[np.float32], float]:
        row = {int(index): place for place, index in enumerate(tuned.held)}
        return tuned.logits[[row[int(index)] for index in one.asked]], model.temperature

    rivals = {"head": answers(against.passes, head)}
    ladder = answers(against.passes, final if sealed else out_of_fold) if tuned.kept else rivals["head"]
    last = answers(against.passes, lambda one: head(one, last=True))
    rivals = {"final": ladder, **rivals, "last_stage_head": last, **against.rivals}
    asked = np.concatenate([one.asked for one in against.passes])
    repeats = 1 if sealed else len(asked) // len(np.unique(asked))
    # Every repeat in the same order of pictures: evaluation resamples pictures, not answers.
    blocks = np.arange(len(asked)).reshape(repeats, -1)
    order = np.concatenate([block[np.argsort(asked[block], kind="stable")] for block in blocks])
    rivals = {
        name: replace(rival, logits=rival.logits[order], calibrated=rival.calibrated[order])
        for name, rival in rivals.items()
    }
    report = evaluate(
        labels[asked[order]],
        {name: softmax(rival.calibrated) for name, rival in rivals.items()},
        uncalibrated={name: softmax(rival.logits) for name, rival in rivals.items()},
        classes=dataset.classes,
        seed=seed,
        repeats=repeats,
        groups=dataset.groups[asked[order][: len(order) // repeats]],
        protocol="sealed test" if sealed else "repeated cross-validation",
    )
    unfinished = None if all(run.complete for run in against.scratch) else "scratch_cnn"
    verdict = decide_verdict(report, unfinished=unfinished)
    if tuned.kept and not sealed:
        verdict = verdict.model_copy(update={"warnings": (chosen_by_the_same(tuned), *verdict.warnings)})
    return Proof(
        report,
        verdict,
        asked[order],
        rivals,
        against.scratch,
        against.scratch_epochs,
    )


def chosen_by_the_same(tuned: Finetuned) -> str:
    """What to say where the answers that the verdict is of have chosen the rungs that give them."""
    gain = sum(result.gain for result in tuned.kept)
    cleared = sum(result.gain if result.cleared is None else result.cleared for result in tuned.kept)
    return (
        "Without a test set, the fine-tuning that was kept is tested on the answers that it was chosen by: its gain of "
        f"{100 * gain:+.1f} points over the frozen head is {100 * cleared:+.1f} once cleared of that choice: the accuracy told is "
        f"about {100 * (gain - cleared):.1f} points too high."
    )
