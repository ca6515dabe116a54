"""The plan as data: what `decide` may look at, what it gives, and the file that a plan is read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headstart.errors import PlanError
from headstart.forecast import Forecast

Trains = Literal["all", "norms", "biases"]
Judge = Literal["folds", "fold", "val"]
Refit = Literal["again", "on", "none"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Evidence(_Record):
    """What `decide` may look at; nothing in it comes from the test set but `tested`, the number of its pictures. `validation`: how
    many the person gave to judge by.

    Per stage: `flops` of one picture's forward pass; `activation_bytes[k-1]` of one picture at cut k, in `activation_dtype`, the
    one they are computed in; `forward_seconds` and `training_seconds` per picture, measured on this machine; `decode_seconds` per
    picture; `scratch_seconds` of one picture in the training of the small network from scratch; `beside_seconds` per picture of
    another backbone that answers together with the first. `views`: how many augmented views heads were fitted to, beside the
    clean one, and `cached` the cuts at which all views but that one are cached already; `folds`: those of cross-validation.
    `head_log_loss` in nats; `shift`, how far the pictures lie from the source (features/shift.py), and `forecast`, what recorded
    runs let expect of fine-tuning: None where that is not known.
    """

    images: int
    classes: int
    smallest_class: int
    tested: int
    validation: int = 0
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
    cached: list[int] = []
    folds: int = Field(default=5, ge=1)
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

    def rides(self, above: Sequence[Rung]) -> bool:
        """Whether the pass that caches the views of the first of the rungs `above` keeps those of this one as well: where none of them
        trains the stages below its cut."""
        return bool(above) and 0 < self.cut < min(rung.cut for rung in above) and self.views == above[0].views

    @model_validator(mode="after")
    def _ends_above_its_cut(self) -> Rung:
        if self.until is not None and self.until <= self.cut:
            raise ValueError(
                f"until is {self.until}, and the cut {self.cut}: until takes a later stage, or null for all"
            )
        return self


class Plan(_Record):
    """Rungs in order, with reasons; `judge` tells how a rung is judged.

    "folds" trains it once for each of three cross-validation folds, or of as many as `judgings` says (few pictures; all folds
    without a test set), "fold" holds one out (more pictures), "val" uses the validation set that the person gave. `refit` tells
    how kept rungs come to see all training pictures: "again" trains them on all from the start, "on" goes on with all where the
    first judged training ended, for a few epochs at a small rate, "none" leaves that one as it is, and is usual with "val": its
    pictures are trained on neither way. A plan file may say `true` for "again", `false` for
    "none". `scratch_epochs` is how long each small network from scratch trains; None: as long as transfer turned out to take, by
    the speeds in `evidence`.
    """

    format: Literal[1] = 1
    backbone: str
    stages: list[str]
    rungs: list[Rung]
    judge: Judge = "fold"
    judgings: int | None = Field(default=None, ge=1)
    refit: Refit = "again"
    scratch_epochs: int | None = Field(default=30, ge=1)
    seed: int = 0
    reasons: list[str] = []
    evidence: Evidence | None = None
    budget: Budget | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_refit_where_all_were_trained_on(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("judge") == "val":
            return {"refit": "none", **given}
        return given

    @field_validator("refit", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object) -> object:
        return {True: "again", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _speeds_are_known(self) -> Plan:
        if self.scratch_epochs is None and self.evidence is None:
            raise ValueError("scratch_epochs is null, which takes the speeds in evidence; give a number")
        return self


def read_plan(path: Path) -> Plan:
    """Read a plan file, whatever backbone and data it is for.

    Raises:
        PlanError: where it cannot be read, or is malformed.
    """
    try:
        return Plan.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise PlanError(f"No plan at '{path}'. Give 'auto', 'head', 'full' or the path of a plan.json.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"The plan '{path}' is no readable JSON: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(f"The plan '{path}' is malformed at {where}: {first['msg']}.") from error


def load_plan(
    path: Path,
    *,
    backbone: str,
    stages: list[str],
    tested: bool = True,
    given_val: bool = True,
    read: Plan | None = None,
) -> Plan:
    """Read a plan file, unless it was `read` before, and check that it fits the backbone, and data with a test set (`tested`) and a
    validation set.

    Raises:
        PlanError: where it cannot be read, is malformed, speaks of other stages, or judges on pictures that there are not.
    """
    plan = read_plan(path) if read is None else read
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
