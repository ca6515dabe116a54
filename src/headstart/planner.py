"""Which stages train, how, and why. `decide` is pure: evidence and budget in, a plan with reasons out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from headstart.cost import JUDGES, REFITS, for_rungs, judgings, seconds
from headstart.forecast import PROMISING
from headstart.plan import Budget, Evidence, Judge, Plan, Rung

Mode = Literal["auto", "head", "full"]
MODES: tuple[Mode, ...] = get_args(Mode)
RULES = 11  # of `decide`: a plan that was decided by others is not taken up again
# Pictures below which a rung is judged on several folds: a single fold of them decides nothing.
FEW_IMAGES = 500
FEW_EACH = 20  # training pictures a class: so few, or fewer than `FEW_IMAGES` in all, were most recorded runs'
# Share of the forward pass that each rung leaves frozen, from the top of the network downwards.
LADDER = (0.75, 0.45)
# With few pictures one deep rung gives as much as two (benchmarks/depth.py) in less time: the first that there is time for.
FEW_LADDER = (0.33, 0.75)
# Speeds are measured in a moment: the pace of the first rung decides on what lies below it, unless all take so many times too long.
_HOPELESS = 2.0
# Where there is no time for any rung as it should be, the first gets fewer epochs, down to this share (benchmarks/short_rungs.py).
SHORTEST = 0.5
WHOLE_VIEWS = 16  # where all stages train from pictures: nothing is cached, so that one view more costs nothing


def decide(evidence: Evidence, budget: Budget, *, backbone: str, mode: Mode = "auto", seed: int = 0) -> Plan:
    """Turn evidence and budget into a plan; pure, no clock and no disk."""
    reasons = [
        f"the head on frozen features reaches {100 * evidence.head_accuracy:.1f} ± "
        f"{100 * evidence.head_accuracy_se:.1f} % out of fold ({evidence.head})"
    ]
    judge = _judge(evidence.images, evidence.tested, evidence.validation)
    expected = evidence.forecast
    rungs: list[Rung] = []
    if mode == "head":
        reasons.append("only the head is trained: asked for with --plan head")
    elif mode == "full":
        reasons.append("every stage is trained from the start: asked for with --plan full")
        gentle = {"lr_body": 3e-4}  # the lowest stages are the easiest to spoil
        rungs = [rung_from(evidence, 0, "all stages train, as asked for").model_copy(update=gentle)]
    elif not evidence.tested:
        reasons.append(
            f"only the head is trained: of {evidence.images} images no test set could be cut that could prove what more adds"
        )
    elif (
        mistakes := _mistakes(evidence.head_accuracy, evidence.images, evidence.folds, judge, evidence.validation)
    ) < _FEWEST_MISTAKES:
        reasons.append(
            f"only the head is trained: about {mistakes:.1f} mistakes are expected on the pictures that would judge more, "
            "so no gain could show"
        )
    elif judge == "folds" and expected is not None and not expected.carried and expected.promise < PROMISING:
        reasons.append(
            f"only the head is trained: from runs on other data, fine-tuning is expected to gain {expected}; to try it, and keep "
            f"what held-out pictures approve of, promises {100 * expected.promise:.1f}, not worth its time"
        )
    else:
        rungs, refused = _fitting(evidence, budget, judge)
        reasons += refused
        if rungs and expected is not None:
            reasons.append(f"from runs on other data, fine-tuning is expected to gain {expected}")
    if rungs and 0 < evidence.validation < JUDGES and evidence.tested:
        reasons.append(
            f"rungs are judged on folds of the training pictures: the {evidence.validation} of the given validation set are too few"
        )
    return Plan(
        scratch_epochs=None,
        backbone=backbone,
        stages=evidence.stages,
        rungs=rungs,
        judge=judge,
        refit=REFITS[judge],
        seed=seed,
        reasons=reasons,
        evidence=evidence,
        budget=budget,
    )


def _ladder(evidence: Evidence, cuts: list[int]) -> list[Rung]:
    """A rung from each cut on, with its reason."""
    rungs = []
    for place, cut in enumerate(cuts):
        share = frozen_share(evidence.flops, cut)
        why = (
            f"{100 * share:.0f} % of the forward pass stays frozen and is computed once"
            if place == 0
            else f"one step deeper, {100 * share:.0f} % stays frozen; tried if the rung above it pays and at its pace there is time"
        )
        rungs.append(rung_from(evidence, cut, f"stages from {evidence.stages[cut]} on train: {why}"))
    return rungs


# Where fewer are expected, even a perfect rung would win less than judging it can show.
_FEWEST_MISTAKES = 1.5


def _mistakes(accuracy: float, images: int, folds: int, judge: Judge, validation: int) -> float:
    """How many the head is expected to make on the pictures that judge a rung."""
    trainings, share = judgings(folds, judge)
    return (1.0 - accuracy) * (validation if judge == "val" else images * trainings * (1 - share))


def _judge(images: int, tested: int, validation: int) -> Judge:
    if validation >= JUDGES and tested:
        return "val"
    return "folds" if images < FEW_IMAGES or not tested else "fold"


def _ladders(flops: list[int], judge: Judge) -> list[list[int]]:
    """The cuts of the ladders to try, the best that there may be time for first."""
    steps = [[share] for share in FEW_LADDER] if judge == "folds" else [list(LADDER)]
    return [list(dict.fromkeys(cut_for(flops, share) for share in shares)) for shares in steps]


def foreseen(
    flops: Sequence[int], images: int, *, tested: int, validation: int, folds: int, accuracy: float
) -> list[int]:
    """The cuts that rungs will train from, as far as heads tell that are right for a share `accuracy`; none where no rung could show a
    gain. What is run before there is a plan may then keep what enters them."""
    judge = _judge(images, tested, validation)
    if not tested or _mistakes(accuracy, images, folds, judge, validation) < _FEWEST_MISTAKES:
        return []
    return _ladders(list(flops), judge)[0]


def cut_for(flops: list[int], share: float) -> int:
    """The cut whose frozen share of the forward pass is nearest to `share`; at least one stage freezes and one trains."""
    cuts = range(1, len(flops))
    return min(cuts, key=lambda cut: (abs(frozen_share(flops, cut) - share), -cut))


def frozen_share(flops: list[int], cut: int) -> float:
    """Share of the forward pass that lies before the cut."""
    return sum(flops[:cut]) / max(1, sum(flops))


def rung_from(evidence: Evidence, cut: int, reason: str = "") -> Rung:
    """The rung that trains `stages[cut:]`."""
    batch, views = 16 if evidence.images < FEW_IMAGES else 32, 4 if cut else WHOLE_VIEWS
    return Rung(cut=cut, epochs=epochs_for(evidence.images), views=views, batch=batch, reason=reason)


def epochs_for(images: int) -> int:
    """Passes over so many pictures. Fewer get more: what trains needs a number of steps, not of epochs."""
    least = min(24, round(1200 / max(1, images)))  # 75 steps of 16 pictures
    return max(6, least, min(12, round(6 * math.sqrt(1500 / max(1, images)))))


def _fitting(evidence: Evidence, budget: Budget, judge: Judge) -> tuple[list[Rung], list[str]]:
    """The first ladder that there is time for, with fewer epochs where none has time for all; and why others are left out."""
    for least in (1.0, SHORTEST):
        refused = dict[str, None]()
        for cuts in _ladders(evidence.flops, judge):
            rungs, more = _within(evidence, _ladder(evidence, cuts), budget, judge, least)
            refused |= dict.fromkeys(more)
            if rungs:
                return rungs, list(refused)
    return [], list(refused)


def _within(
    evidence: Evidence, rungs: list[Rung], budget: Budget, judge: Judge, least: float
) -> tuple[list[Rung], list[str]]:
    """Drop what neither the time nor the store has room for, deepest first, each with its reason; the first may have fewer epochs, but
    no less than the share `least` of them."""
    kept: list[Rung] = []
    reasons: list[str] = []
    left, spent = for_rungs(budget), 0.0
    room = budget.store_bytes
    for rung in rungs:
        fitting = rung
        if room is not None and rung.cut:
            stored = _stored(evidence, rung, room)
            if stored is None or stored.cut in {other.cut for other in kept}:
                needed = 2 * _view_bytes(evidence, rung.model_copy(update={"rounded": True}))
                reasons.append(
                    f"no rung from {evidence.stages[rung.cut]} on: two views of it take {_gigabytes(needed)}, "
                    f"the store has room for {_gigabytes(room)}"
                )
                continue
            fitting = stored
        if not kept:
            fitting = _shortened(evidence, fitting, judge, left, least)
        cost = seconds(evidence, fitting, judge, kept)
        if spent + cost > (_HOPELESS if kept else 1.0) * left:
            reasons.append(
                f"no rung from {evidence.stages[fitting.cut]} on: it would take about {cost:.0f} s, "
                f"and {max(0.0, left - spent):.0f} s are left"
            )
            continue
        kept.append(fitting)
        spent += cost
        if room is not None and fitting.cut:  # the rung above is still in use while this one is judged
            room = max(0, room - fitting.views * _view_bytes(evidence, fitting))
    return kept, reasons


def _shortened(evidence: Evidence, rung: Rung, judge: Judge, left: float, least: float) -> Rung:
    """The rung in as many epochs as there is time for, but no less than the share `least`; as it is where that is not enough."""
    for epochs in range(rung.epochs, math.ceil(least * rung.epochs) - 1, -1):
        fewer = rung.model_copy(update={"epochs": epochs})
        if seconds(evidence, fewer, judge) <= left:
            why = f"; {epochs} of {rung.epochs} epochs, for which there is time" if epochs < rung.epochs else ""
            return fewer.model_copy(update={"reason": rung.reason + why})
    return rung


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.0f} GB" if count >= 1e11 else f"{count / 1e9:.2g} GB"


def _view_bytes(evidence: Evidence, rung: Rung) -> int:
    """Bytes of one cached view of all training pictures."""
    halved = rung.rounded and evidence.activation_dtype == "float32"
    return evidence.images * evidence.activation_bytes[rung.cut - 1] // (2 if halved else 1)


def _stored(evidence: Evidence, rung: Rung, room: int) -> Rung | None:
    """The rung as the store has room for it, None where two views of it have none: training on one alone overfits.

    What is given up first costs least: numbers of four bytes, then views down to two, then the cut, which moves up to smaller
    activations (benchmarks/store_limit.py).
    """
    above = range(rung.cut + 1, len(evidence.stages))
    fewer = [(rung.cut, views) for views in range(rung.views, 1, -1)]
    fewer += [(cut, views) for cut in above for views in range(rung.views, 1, -1)]
    small = [rung.model_copy(update={"cut": cut, "views": views, "rounded": True}) for cut, views in fewer]
    for choice in (rung, *small):
        if choice.views * _view_bytes(evidence, choice) <= room:
            if choice == rung:
                return rung
            given = ["in bfloat16"] if evidence.activation_dtype == "float32" else []
            given += [f"in {choice.views} of {rung.views} views"] if choice.views < rung.views else []
            why = rung.reason
            if choice.cut > rung.cut:
                share = 100 * frozen_share(evidence.flops, choice.cut)
                why = (
                    f"stages from {evidence.stages[choice.cut]} on train: {share:.0f} % of the forward pass stays frozen; "
                    f"the store has no room for what enters {evidence.stages[rung.cut]}"
                )
            why += f"; cached {' and '.join(given)}, for which there is room" if given else ""
            return choice.model_copy(update={"reason": why})
    return None
