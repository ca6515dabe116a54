"""What a report shows: plain records, filled by the run and read by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headstart.data.audit import Audit, Finding
from headstart.evaluate import TestReport
from headstart.verdict import Verdict

if TYPE_CHECKING:  # without torch
    from headstart.diagnosis.growth import Growth
    from headstart.diagnosis.similarity import Similarity
    from headstart.diagnosis.telling import Telling


@dataclass(frozen=True)
class StageRow:
    """One stage of the backbone. `parameters` and `flops` (multiply-adds of one image) are counts.

    `accuracy` and `accuracy_se`: shares, cross-validated, of a head on this stage alone (the depth profile); `shift`: how far its
    channel statistics lie from the source's, 0 to 1, None where it keeps none.
    """

    name: str
    parameters: int
    flops: int
    frozen: bool
    accuracy: float | None = None
    accuracy_se: float | None = None
    shift: float | None = None


@dataclass(frozen=True)
class HeadRow:
    """One head of the race. `taps` names its stages; `accuracy` is cross-validated, a share; `views`: how many augmented ones it is
    fitted to, beside the clean one."""

    name: str
    taps: str
    accuracy: float
    accuracy_se: float
    log_loss: float
    strength: float
    chosen: bool
    views: int = 0


@dataclass(frozen=True)
class CurvePoint:
    """One epoch of one training; losses in nats, accuracy a share, None where it was not measured."""

    epoch: int
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class RungRow:
    """One rung of the plan. `cut` names the first stage that trains; `gain` is over the best so far, a share.

    `curves` holds one curve per training: several where the rung was judged on several folds. `accuracy`,
    `gain` and `gain_se` are None where the rung was not tried.
    """

    name: str
    cut: str
    epochs: int
    learning_rate: float
    reason: str
    accuracy: float | None = None
    gain: float | None = None
    gain_se: float | None = None
    kept: bool = False
    curves: Sequence[Sequence[CurvePoint]] = ()


@dataclass(frozen=True)
class Mistake:
    """An image that a model answers against its label. `probability`: how sure it is; `jpeg`: a thumbnail."""

    name: str
    label: str
    predicted: str
    probability: float
    jpeg: bytes


@dataclass(frozen=True)
class Pair:
    """Two pictures that may show one thing: their names, on which side of the split each is, and a thumbnail of each."""

    names: tuple[str, str]
    sides: tuple[str, str]
    jpegs: tuple[bytes, bytes]


@dataclass(frozen=True)
class ReportData:
    """Everything in the report. Pictures are JPEG bytes as `thumbnail` makes them.

    `seconds` per phase, in order, and "total". `thumbnails` are (class, pictures) pairs, `mistakes` the final model's on test
    pictures, the most confident first, `doubts` the frozen head's on training pictures that it had not seen, the most doubtful label
    first, and `doubtful` how many there are, how many of them with confidence, and of how many; `findings` what to be careful about;
    `pairs` the first of `paired` that a suspected leak is about; `growth` the learning curve, None where there is none; `telling`
    how well unknown pictures are recognised, None where they are not; `similarity` how much the data are like the source; `command`
    repeats the run; `beside` are the backbones that answer together with the first; `uncalibrated` the models that no temperature was
    fitted to.
    """

    title: str
    backbone: str
    audit: Audit
    verdict: Verdict
    test: TestReport
    stages: Sequence[StageRow]
    heads: Sequence[HeadRow]
    rungs: Sequence[RungRow]
    plan_reasons: Sequence[str]
    thumbnails: Sequence[tuple[str, Sequence[bytes]]]
    mistakes: Sequence[Mistake]
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    versions: Mapping[str, str]
    command: str
    beside: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    findings: Sequence[Finding] = ()
    doubts: Sequence[Mistake] = ()
    doubtful: tuple[int, int, int] = (0, 0, 0)
    pairs: Sequence[Pair] = ()
    paired: int = 0
    growth: Growth | None = None
    telling: Telling | None = None
    similarity: Similarity | None = None
    uncalibrated: Sequence[str] = ()
