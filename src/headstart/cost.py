"""What a plan takes: wall time of a rung, and how long the small network from scratch trains beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headstart.plan import Budget, Evidence, Judge, Plan, Refit, Rung

Tried = tuple[
    Rung, int, float
]  # a rung, the epochs of all the trainings that judged it, and the seconds that these took

TRANSFER_SHARE = (
    0.5  # of the time that is left, which rungs may take: the network from scratch is given as much as transfer
)
# Pictures of a given validation set from which on it judges: as many as a fold holds where one fold does. The fewer they are, the more
# often a rung that gains nothing seems to gain.
JUDGES = 100
# Of the folds, those that a rung is judged on with "folds", where a test set proves the model in the end.
FOLDS_JUDGED = 3
# How kept rungs come to see all training pictures. Few that were held out are a large part of them, and are trained on from the start;
# of many, going on with all gives as much in a fraction of the time (benchmarks/finishing.py).
REFITS: dict[Judge, Refit] = {"folds": "again", "fold": "on", "val": "none"}
ON_EPOCHS, ON_RATE = 2, 0.1  # passes over all training pictures that go on, and at which share of the last rung's rates


def judgings(folds: int, judge: Judge) -> tuple[int, float]:
    """How many trainings judge a rung, each on a fold or on a given validation set; and the share of the training pictures that one
    of them goes over."""
    return (1, 1.0) if judge == "val" else (min(FOLDS_JUDGED, folds) if judge == "folds" else 1, 1 - 1 / folds)


def refitting(rung: Rung, refit: Refit) -> int:
    """Passes over all training pictures that a kept rung takes in the end."""
    return {"again": rung.epochs, "on": ON_EPOCHS, "none": 0}[refit]


def seconds(
    evidence: Evidence,
    rung: Rung,
    judge: Judge,
    above: Sequence[Rung] = (),
    refit: Refit | None = None,
    times: float = 1.0,
) -> float:
    """Estimated wall time of a rung: its views through the frozen part, its judging and its refit (None: the usual one). Its views
    may have been cached by the rungs `above` it; training takes so many `times` as long as was measured."""
    trainings, share = judgings(evidence.folds, judge)
    epochs = rung.epochs * trainings * share + refitting(rung, refit or REFITS[judge])
    return seconds_of(evidence, rung, epochs, above, times)


def pace(evidence: Evidence, trained: Sequence[tuple[Rung, float, float]]) -> float:
    """How many times as long as estimated rungs trained, each with its passes over all training pictures and the seconds they took."""
    expected = sum(training_seconds(evidence, rung, epochs) for rung, epochs, _ in trained)
    return sum(took for *_, took in trained) / expected if expected else 1.0


def seconds_of(evidence: Evidence, rung: Rung, epochs: float, above: Sequence[Rung] = (), times: float = 1.0) -> float:
    """Estimated wall time of a rung that goes over all training pictures `epochs` times; `above` and `times` as for `seconds`."""
    views = 0 if rung.cut == 0 or rung.rides(above) else 1 if rung.cut in evidence.cached else rung.views
    view = evidence.decode_seconds + sum(evidence.forward_seconds[: rung.cut])
    return evidence.images * views * view + times * training_seconds(evidence, rung, epochs)


def training_seconds(evidence: Evidence, rung: Rung, epochs: float) -> float:
    """Of these, the seconds that training takes once the views are cached."""
    step = sum(evidence.training_seconds[rung.cut :]) + (evidence.decode_seconds if rung.cut == 0 else 0.0)
    return evidence.images * epochs * step


def for_rungs(budget: Budget) -> float:
    """Seconds that rungs may take."""
    return math.inf if budget.seconds is None else TRANSFER_SHARE * (budget.seconds - budget.spent_seconds)


def too_long(plan: Plan, rung: Rung, tried: Sequence[Tried]) -> str:
    """Why there is no time for another rung, by the pace of those that were `tried`; "" where there is, or nothing is known of it.

    It hangs on nothing but what is remembered of them: the same run on the same data decides the same.
    """
    if plan.evidence is None or plan.budget is None or not tried:
        return ""
    times, left = _paced(plan, plan.evidence, plan.budget, tried)
    needed = seconds(plan.evidence, rung, plan.judge, [above for above, *_ in tried], plan.refit, times)
    if needed <= left:
        return ""
    return f"at the pace of the one above it would take about {needed:.0f} s, and {max(0.0, left):.0f} s are left"


def too_slow(plan: Plan, tried: Tried) -> bool:
    """Whether another training of a first rung on a fold, and its refit, take longer than there is time, by the pace of those that
    were `tried`."""
    if plan.evidence is None or plan.budget is None:
        return False
    times, left = _paced(plan, plan.evidence, plan.budget, [tried])
    rung, (_, share) = tried[0], judgings(plan.evidence.folds, plan.judge)
    more = share * rung.epochs + refitting(rung, plan.refit)
    return times * training_seconds(plan.evidence, rung, more) > left


def _paced(plan: Plan, known: Evidence, budget: Budget, tried: Sequence[Tried]) -> tuple[float, float]:
    """How many times as long as estimated rungs trained that were `tried`; and the seconds that are left then."""
    _, share = judgings(known.folds, plan.judge)
    times = pace(known, [(rung, share * epochs, took) for rung, epochs, took in tried])
    above = [rung for rung, *_ in tried]
    spent = sum(seconds_of(known, rung, share * epochs, above[:n], times) for n, (rung, epochs, _) in enumerate(tried))
    return times, for_rungs(budget) - spent


# The search for its learning rate takes this many times the epochs of the small network's one training.
SCRATCH_SEARCH = 0.3
SCRATCH_BATCH = 32  # as good in as much time as 64, and better where there are few steps
_SCRATCH_EPOCHS, _SCRATCH_STEPS, _SCRATCH_MOST = 8, 160, 150  # at least, at least, at most: epochs, steps, epochs
_STEP = 1.25  # epochs are rounded to a power of it: one less is about as fair


def scratch_epochs(evidence: Evidence, tuning: float, trainings: int) -> tuple[int, str]:
    """Epochs that give each of the `trainings` from scratch its share of the wall time of transfer, within reason; in words, too.

    Transfer is one pass through the network for every view that heads were fitted to, and `tuning` seconds of rungs. With less than
    8 epochs or 160 steps the small network is no fair opponent; after 150 epochs it has long converged. Rounded to a power of 1.25, so
    that the noise of the measured speeds seldom changes it. Only where a test set was cut does it search for a learning rate.
    """
    once = evidence.decode_seconds + sum(evidence.forward_seconds) + evidence.beside_seconds
    transfer = evidence.images * (1 + evidence.views) * once + tuning
    images, search = _scratch_pass(evidence, trainings)
    least = _least_fair(images)
    epochs = transfer / (trainings * images * evidence.scratch_seconds * (1.0 + search))
    even = round(_STEP ** round(math.log(max(1.0, epochs), _STEP)))
    if even < least:
        return least, f"{least} epochs, the least that is fair (its share of the time would be about {even})"
    most = max(least, _SCRATCH_MOST)
    if even > most:
        return most, f"{most} epochs, when it has long converged (its share of the time would be about {even})"
    return even, f"{even} epochs, about as long as transfer took"


def scratch_affordable(evidence: Evidence, epochs: int, left: float, trainings: int) -> tuple[int, bool]:
    """Epochs of each of the `trainings` from scratch that the `left` seconds have room for, and whether they are fair, each with its
    search for a rate. Else a schedule without a search: a short one that ends is worth more than a long one cut off."""
    images, search = _scratch_pass(evidence, trainings)
    once = trainings * images * evidence.scratch_seconds
    for fair in scratch_fair(evidence, epochs, trainings):
        if once * fair * (1.0 + search) <= left:
            return fair, True
    return max(1, min(epochs, int(left / once))), False


def scratch_fair(evidence: Evidence, epochs: int, trainings: int) -> tuple[int, int]:
    """The fair `epochs` of each training from scratch, and a step of rounding fewer, where that is still as many as are fair."""
    images, _ = _scratch_pass(evidence, trainings)
    return epochs, min(epochs, max(_least_fair(images), round(epochs / _STEP)))


def _least_fair(images: int) -> int:
    """Epochs of so many pictures below which the small network is no fair opponent."""
    return max(_SCRATCH_EPOCHS, math.ceil(_SCRATCH_STEPS / math.ceil(images / SCRATCH_BATCH)))


def proving(evidence: Evidence, tuned: bool) -> float:
    """Estimated seconds of what comes when all is decided: the sealed pictures run through the networks that answer, and through the
    one that was `tuned` as well; the rest takes about as long as a pass of the training pictures through the first."""
    once = evidence.decode_seconds + sum(evidence.forward_seconds) + evidence.beside_seconds
    return (1 + tuned) * evidence.tested * once + evidence.images * sum(evidence.forward_seconds)


def _scratch_pass(evidence: Evidence, trainings: int) -> tuple[int, float]:
    """Pictures of an epoch of one training from scratch, and how many times its epochs the search for a rate takes beside it."""
    return (evidence.images, SCRATCH_SEARCH) if trainings == 1 else (round(0.8 * evidence.images), 0.0)
