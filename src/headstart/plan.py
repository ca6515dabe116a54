"""The plan: which stages train, how, and why. `decide` is pure: evidence and budget in, a plan with reasons out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headstart.errors import PlanError
from headstart.forecast import WORTH, Forecast

Mode = Literal["auto", "head", "full"]
Trains = Literal["all", "norms", "biases"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Evidence(_Record):
    """What `decide` may look at; nothing in it comes from the test set but `tested`, the number of its pictures.

    Per stage: `flops` of one picture's forward pass; `activation_bytes[k-1]` of one picture at cut k, in `activation_dtype`, the
    one they are computed in; `forward_seconds` and `training_seconds` per picture, measured on this machine; `decode_seconds` per
    picture; `scratch_seconds` of one picture in the training of the small network from scratch; `beside_seconds` per picture of
    another backbone that answers together with the first. `views`: how many augmented views heads were fitted to, beside the
    clean one. `head_log_loss` in nats; `shift`, how far the pictures lie from the source (features/shift.py), and `forecast`, what
    recorded runs let expect of fine-tuning: None where that is not known.
    """

    images: int
    classes: int
    smallest_class: int
    tested: int
    head: str
    head_accuracy: float
    head_accuracy_se: float
    last_stage_accuracy: float
    profile: list[float]
    stages: list[str]
    flops: list[int]
    activation_bytes: list[int]
    activation_dtype: Literal["float32", "bfloat16"] = "float32"
    forward_seconds: list[float]
    training_seconds: list[float]
    decode_seconds: float
    scratch_seconds: float
    beside_seconds: float = 0.0
    views: int = 0
    head_log_loss: float | None = None
    shift: float | None = None
    forecast: Forecast | None = None


class Budget(_Record):
    """What the person allows: wall time in seconds for the whole run, and bytes for the store."""

    seconds: float | None = None
    spent_seconds: float = 0.0
    store_bytes: int | None = None


class Rung(_Record):
    """One step of the ladder: `stages[cut:]` train from activations cached at the cut.

    `epochs` passes over the training pictures, each in one of `views` cached views; AdamW with a one-cycle schedule that
    peaks at `lr_head` for the head and at `lr_body · lr_decay^depth` for a stage `depth` stages below the last one. Activations
    are cached as they are computed, or rounded where `rounded` is set: half the bytes where they are computed in float32.

    With `until`, only `stages[cut:until]` and the head train, and what lies above runs as it is (surgical fine-tuning, Lee et al.
    2023, arXiv 2210.11466). `trains` "norms" leaves all weights but the one-dimensional ones: gains and offsets of normalisation
    layers (Frankle et al. 2021, arXiv 2003.00152), and biases; "biases" leaves offsets and biases alone (BitFit, Ben Zaken et
    al. 2022, arXiv 2106.10199). What is `forced` is kept whatever it gains.
    """

    cut: int = Field(ge=0)
    until: int | None = Field(default=None, ge=1)
    trains: Trains = "all"
    forced: bool = False
    epochs: int = Field(ge=1, le=1000)
    lr_body: float = Field(default=1e-3, gt=0)
    lr_head: float = Field(default=1e-3, gt=0)
    lr_decay: float = Field(default=0.8, gt=0, le=1)
    views: int = Field(default=4, ge=1, le=64)
    rounded: bool = False
    batch: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    statistics: Literal["frozen", "learnt"] = "frozen"
    reason: str = ""

    @model_validator(mode="after")
    def _ends_above_its_cut(self) -> Rung:
        if self.until is not None and self.until <= self.cut:
            raise ValueError(
                f"until is {self.until}, and the cut {self.cut}: until takes a later stage, or null for all"
            )
        return self


class Plan(_Record):
    """Rungs in order, with reasons; `judge` tells how a rung is judged.

    "folds" trains it once per cross-validation fold (few pictures), "fold" holds one fold out (more pictures), "val" uses the
    validation set that the person gave. With `refit`, kept rungs are trained again on all training pictures. `scratch_epochs` is how
    long each small network from scratch trains; None: as long as transfer turned out to take, by the speeds in `evidence`.
    """

    format: Literal[1] = 1
    backbone: str
    stages: list[str]
    rungs: list[Rung]
    judge: Literal["folds", "fold", "val"] = "fold"
    refit: bool = True
    scratch_epochs: int | None = Field(default=30, ge=1)
    seed: int = 0
    reasons: list[str] = []
    evidence: Evidence | None = None
    budget: Budget | None = None

    @model_validator(mode="after")
    def _speeds_are_known(self) -> Plan:
        if self.scratch_epochs is None and self.evidence is None:
            raise ValueError("scratch_epochs is null, which takes the speeds in evidence; give a number")
        return self


RULES = 3  # of `decide`: a plan that was decided by others is not taken up again
# Pictures below which a rung is judged on every fold: a single fold of them decides nothing.
FEW_IMAGES = 500
# Share of the forward pass that each rung leaves frozen, from the top of the network downwards.
LADDER = (0.75, 0.45)
# With few pictures one deep rung gives as much as two (benchmarks/depth.py) in less time: the first that there is time for.
FEW_LADDER = (0.33, 0.75)


def decide(
    evidence: Evidence, budget: Budget, *, backbone: str, mode: Mode = "auto", given_val: bool = False, seed: int = 0
) -> Plan:
    """Turn evidence and budget into a plan; pure, no clock and no disk."""
    reasons = [
        f"the head on frozen features reaches {100 * evidence.head_accuracy:.1f} ± "
        f"{100 * evidence.head_accuracy_se:.1f} % out of fold ({evidence.head})"
    ]
    judge: Literal["folds", "fold", "val"] = "folds" if evidence.images < FEW_IMAGES or not evidence.tested else "fold"
    if given_val and evidence.tested:
        judge = "val"
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
            f"only the head is trained: {evidence.images} images are too few to cut a test set that could prove what more adds"
        )
    elif (mistakes := _mistakes(evidence, judge)) < _FEWEST_MISTAKES:
        reasons.append(
            f"only the head is trained: about {mistakes:.1f} mistakes are expected on the pictures that would judge more, "
            "so no gain could show"
        )
    elif judge == "folds" and expected is not None and not expected.carried and expected.gain < WORTH:
        reasons.append(
            f"only the head is trained: from runs on other data, fine-tuning is expected to gain {expected}, not worth its time"
        )
    else:
        for steps in [[share] for share in FEW_LADDER] if judge == "folds" else [list(LADDER)]:
            cuts = [cut_for(evidence.flops, share) for share in steps]
            rungs, more = _within(evidence, _ladder(evidence, list(dict.fromkeys(cuts))), budget, judge)
            reasons += [reason for reason in more if reason not in reasons]
            if rungs:
                break
        if rungs and expected is not None:
            reasons.append(f"from runs on other data, fine-tuning is expected to gain {expected}")
    return Plan(
        scratch_epochs=None,
        backbone=backbone,
        stages=evidence.stages,
        rungs=rungs,
        judge=judge,
        refit=judge != "val",
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
            else f"one step deeper, {100 * share:.0f} % stays frozen; tried only if the rung above it pays"
        )
        rungs.append(rung_from(evidence, cut, f"stages from {evidence.stages[cut]} on train: {why}"))
    return rungs


# Where fewer are expected, even a perfect rung would win less than judging it can show.
_FEWEST_MISTAKES = 1.5


def _mistakes(evidence: Evidence, judge: str) -> float:
    """How many the head is expected to make on the pictures that judge a rung; a given validation set is taken as no smaller."""
    return (1.0 - evidence.head_accuracy) * evidence.images * {"folds": 1.0, "fold": 0.2, "val": 1.0}[judge]


def cut_for(flops: list[int], share: float) -> int:
    """The cut whose frozen share of the forward pass is nearest to `share`; at least one stage freezes and one trains."""
    cuts = range(1, len(flops))
    return min(cuts, key=lambda cut: (abs(frozen_share(flops, cut) - share), -cut))


def frozen_share(flops: list[int], cut: int) -> float:
    """Share of the forward pass that lies before the cut."""
    return sum(flops[:cut]) / max(1, sum(flops))


def rung_from(evidence: Evidence, cut: int, reason: str = "") -> Rung:
    """The rung that trains `stages[cut:]`."""
    batch = 16 if evidence.images < FEW_IMAGES else 32
    return Rung(cut=cut, epochs=epochs_for(evidence.images), views=4 if cut else 1, batch=batch, reason=reason)


def epochs_for(images: int) -> int:
    """Passes over so many pictures. Fewer get more: what trains needs a number of steps, not of epochs."""
    least = min(24, round(1200 / max(1, images)))  # 75 steps of 16 pictures
    return max(6, least, min(12, round(6 * math.sqrt(1500 / max(1, images)))))


# Share of the training pictures that a training goes over where it is judged.
JUDGED = {"folds": 0.8, "fold": 0.8, "val": 1.0}


def seconds(evidence: Evidence, rung: Rung, judge: str) -> float:
    """Estimated wall time of a rung: its views through the frozen part, its judging and its refit."""
    trainings, refits = (5 if judge == "folds" else 1), judge != "val"
    return seconds_of(evidence, rung, rung.epochs * (trainings * JUDGED[judge] + refits))


def seconds_of(evidence: Evidence, rung: Rung, epochs: float) -> float:
    """Estimated wall time of a rung that goes over all training pictures `epochs` times."""
    view = evidence.decode_seconds + sum(evidence.forward_seconds[: rung.cut])
    step = sum(evidence.training_seconds[rung.cut :]) + (evidence.decode_seconds if rung.cut == 0 else 0.0)
    return evidence.images * (rung.views * view * (rung.cut > 0) + epochs * step)


# The search for its learning rate takes this many times the epochs of the small network's one training.
SCRATCH_SEARCH = 0.3
SCRATCH_BATCH = 32  # as good in as much time as 64, and better where there are few steps
_SCRATCH_EPOCHS, _SCRATCH_STEPS, _SCRATCH_MOST = 8, 160, 150  # at least, at least, at most: epochs, steps, epochs


def scratch_epochs(evidence: Evidence, tuning: float, trainings: int) -> tuple[int, str]:
    """Epochs that give each of the `trainings` from scratch its share of the wall time of transfer, within reason; in words, too.

    Transfer is one pass through the network for every view that heads were fitted to, and `tuning` seconds of rungs. With less than
    8 epochs or 160 steps the small network is no fair opponent; after 150 epochs it has long converged. Rounded to a power of 1.25, so
    that the noise of the measured speeds seldom changes it. Only where a test set was cut does it search for a learning rate.
    """
    once = evidence.decode_seconds + sum(evidence.forward_seconds) + evidence.beside_seconds
    transfer = evidence.images * (1 + evidence.views) * once + tuning
    images, search = (evidence.images, SCRATCH_SEARCH) if trainings == 1 else (round(0.8 * evidence.images), 0.0)
    least = max(_SCRATCH_EPOCHS, math.ceil(_SCRATCH_STEPS / math.ceil(images / SCRATCH_BATCH)))
    epochs = transfer / (trainings * images * evidence.scratch_seconds * (1.0 + search))
    even = round(1.25 ** round(math.log(max(1.0, epochs), 1.25)))
    if even < least:
        return least, f"{least} epochs, the least that is fair (its share of the time would be about {even})"
    if even > max(least, _SCRATCH_MOST):
        return (
            _SCRATCH_MOST,
            f"{_SCRATCH_MOST} epochs, when it has long converged (its share of the time would be about {even})",
        )
    return even, f"{even} epochs, about as long as transfer took"


def _within(evidence: Evidence, rungs: list[Rung], budget: Budget, judge: str) -> tuple[list[Rung], list[str]]:
    """Drop what neither the time nor the store has room for, deepest first, each with its reason."""
    kept: list[Rung] = []
    reasons: list[str] = []
    # The network from scratch is given as much time as transfer, so transfer may take half of what is left.
    left = None if budget.seconds is None else 0.5 * (budget.seconds - budget.spent_seconds)
    room = budget.store_bytes
    for rung in rungs:
        fitting = rung
        if room is not None and rung.cut:
            stored = _stored(evidence, rung, room)
            if stored is None or stored.cut in {other.cut for other in kept}:
                least = 2 * _view_bytes(evidence, rung.model_copy(update={"rounded": True}))
                reasons.append(
                    f"no rung from {evidence.stages[rung.cut]} on: two views of it take {_gigabytes(least)}, "
                    f"the store has room for {_gigabytes(room)}"
                )
                continue
            fitting = stored
        cost = seconds(evidence, fitting, judge)
        if left is not None and cost > left:
            reasons.append(
                f"no rung from {evidence.stages[fitting.cut]} on: it would take about {cost:.0f} s, "
                f"and {max(0.0, left):.0f} s are left"
            )
            continue
        kept.append(fitting)
        left = None if left is None else left - cost
        if room is not None and fitting.cut:  # the rung above is still in use while this one is judged
            room = max(0, room - fitting.views * _view_bytes(evidence, fitting))
    return kept, reasons


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


def load_plan(path: Path, *, backbone: str, stages: list[str], tested: bool = True, given_val: bool = True) -> Plan:
    """Read a plan file and check that it fits the backbone, and data with a test set (`tested`) and a validation set.

    Raises:
        PlanError: where it cannot be read, is malformed, speaks of other stages, or judges on pictures that there are not.
    """
    try:
        plan = Plan.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise PlanError(f"No plan at '{path}'. Give 'auto', 'head', 'full' or the path of a plan.json.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"The plan '{path}' is no readable JSON: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(f"The plan '{path}' is malformed at {where}: {first['msg']}.") from error
    if plan.backbone != backbone or plan.stages != stages:
        raise PlanError(
            f"The plan '{path}' is for {plan.backbone} with stages {', '.join(plan.stages)}; "
            f"this run has {backbone} with stages {', '.join(stages)}. Give --backbone {plan.backbone}, or write another plan."
        )
    deep = [rung.cut for rung in plan.rungs if rung.cut >= len(stages)]
    if deep:
        raise PlanError(f"The plan '{path}' has a rung with cut {deep[0]}; a cut lies between 0 and {len(stages) - 1}.")
    beyond = [rung.until for rung in plan.rungs if rung.until is not None and rung.until > len(stages)]
    if beyond:
        raise PlanError(f"The plan '{path}' has a rung until {beyond[0]}; there are {len(stages)} stages.")
    if plan.rungs and plan.judge == "val" and not given_val:
        raise PlanError(
            f'The plan \'{path}\' judges rungs on "val", and the data have no validation set. Write "judge": "fold".'
        )
    if plan.rungs and plan.judge != "folds" and not tested:
        raise PlanError(
            f"The plan '{path}' judges rungs on \"{plan.judge}\", and the data are too few for a test set: every picture has to "
            'answer for the model. Write "judge": "folds".'
        )
    return plan
