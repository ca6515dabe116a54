"""From a finished run to what its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.data.images import decode
from headstart.diagnosis.diagnosis import Diagnosis
from headstart.diagnosis.doubts import Doubt
from headstart.diagnosis.similarity import Similarity
from headstart.errors import UnreadableImage
from headstart.heads import Score, leaves
from headstart.ladder import Finetuned, RungResult
from headstart.model import Model
from headstart.plan import Plan, Rung
from headstart.proof import Proof
from headstart.race import Race
from headstart.report.record import CurvePoint, HeadRow, Mistake, Pair, ReportData, RungRow, StageRow
from headstart.report.report import THUMBNAIL_SIDE, thumbnail
from headstart.tasks.classification import softmax

# How much a report shows at most, so that it stays small: classes with pictures, pictures of each, mistakes (or doubts), pairs.
_CLASSES, _PICTURES, _MISTAKES, _PAIRS = 12, 5, 24, 8


def gather(
    title: str,
    dataset: Dataset,
    heads: Race,
    plan: Plan,
    tuned: Finetuned,
    model: Model,
    proof: Proof,
    diagnosis: Diagnosis,
    seconds: Mapping[str, float],
    command: str,
    resumed: bool = False,
) -> ReportData:
    """Everything that the report shows, as plain records."""
    assert dataset.audit is not None
    return ReportData(
        title=title,
        backbone=model.backbone.origin.name,
        beside=[engine.backbone.origin.name for engine in model.engines[1:]],
        audit=dataset.audit,
        verdict=proof.verdict,
        test=proof.report,
        stages=_stages(heads, tuned, model, diagnosis.similarity),
        heads=[_head(score, heads, model) for score in heads.candidates],
        rungs=_rungs(plan, tuned),
        plan_reasons=(*plan.reasons, *tuned.reasons),
        thumbnails=_thumbnails(dataset),
        mistakes=_mistakes(dataset, proof),
        findings=diagnosis.findings,
        doubts=_doubts(dataset, diagnosis.doubts),
        doubtful=(len(diagnosis.doubts), sum(each.confident for each in diagnosis.doubts), diagnosis.looked_at),
        pairs=[_pair(dataset, *pair) for pair in diagnosis.pairs[:_PAIRS]],
        paired=len(diagnosis.pairs),
        growth=diagnosis.growth,
        telling=diagnosis.telling,
        similarity=diagnosis.similarity,
        uncalibrated=proof.uncalibrated,
        seconds=seconds,
        peak_memory_bytes=runtime.peak_memory_bytes(),
        versions=runtime.versions(),
        command=command,
        notes=_notes(tuned, proof, diagnosis, resumed),
    )


def _stages(heads: Race, tuned: Finetuned, model: Model, similarity: Similarity | None) -> list[StageRow]:
    backbone = model.backbone
    trained = {
        place for result in tuned.kept for place in range(len(backbone.names))[result.rung.cut : result.rung.until]
    }
    return [
        StageRow(
            name=name,
            parameters=sum(p.numel() for p in backbone.stages[place].parameters()),
            flops=backbone.flops[place] // 2,
            frozen=place not in trained,
            accuracy=heads.profile[place].accuracy,
            accuracy_se=heads.profile[place].accuracy_se,
            shift=None if similarity is None else similarity.shift.stages[place],
        )
        for place, name in enumerate(backbone.names)
    ]


def _head(score: Score, heads: Race, model: Model) -> HeadRow:
    names = model.backbone.names
    if score.taps[-1] >= len(names):
        where = " and ".join(engine.backbone.origin.name.removeprefix("timm:") for engine in model.engines)
    else:
        first, last = names[score.taps[0]], names[score.taps[-1]]
        where = first if len(score.taps) == 1 else f"{first} to {last}"
    return HeadRow(
        name=score.kind,
        taps=where,
        accuracy=score.accuracy,
        accuracy_se=score.accuracy_se,
        log_loss=score.log_loss,
        strength=score.strength,
        chosen=score is heads.best,
        views=max(leaf.views for leaf, _ in leaves(score)),
    )


def _rungs(plan: Plan, tuned: Finetuned) -> list[RungRow]:
    done = [_tried(plan, number, result) for number, result in enumerate(tuned.rungs, 1)]
    return done + [_untried(plan, number, rung) for number, rung in enumerate(plan.rungs, 1) if number > len(done)]


def _tried(plan: Plan, number: int, result: RungResult) -> RungRow:
    rung = result.rung
    return RungRow(
        name=f"Rung {number}",
        cut=plan.stages[rung.cut],
        epochs=result.epochs,
        learning_rate=rung.lr_body,
        reason=f"{rung.reason}; {result.reason}",
        accuracy=result.accuracy,
        gain=result.gain,
        gain_se=result.gain_se,
        kept=result.kept,
        curves=[
            [CurvePoint(row.epoch + 1, row.train_loss, row.val_loss, row.val_accuracy) for row in curve]
            for curve in result.curves
        ],
    )


def _untried(plan: Plan, number: int, rung: Rung) -> RungRow:
    return RungRow(f"Rung {number}", plan.stages[rung.cut], rung.epochs, rung.lr_body, f"{rung.reason}; not tried")


def _thumbnails(dataset: Dataset) -> list[tuple[str, list[bytes]]]:
    """A few training pictures of the first classes; the test pictures stay sealed from the eye, too."""
    pool = dataset.indices("train")
    shown = []
    for label, name in enumerate(dataset.classes[:_CLASSES]):
        pictures = []
        for index in pool[dataset.labels[pool] == label][:_PICTURES]:
            pictures.append(_thumbnail(dataset, int(index)))
        shown.append((name, [jpeg for jpeg in pictures if jpeg]))
    return shown


def _thumbnail(dataset: Dataset, index: int) -> bytes:
    """The picture as the backbone sees its colours and orientation; nothing where the file went away since it was used."""
    try:
        with dataset.images.open(index) as picture:
            return thumbnail(decode(picture, THUMBNAIL_SIDE))
    except UnreadableImage:
        return b""


def _mistakes(dataset: Dataset, proof: Proof) -> list[Mistake]:
    count = proof.report.images
    shares = softmax(proof.rivals["final"].calibrated[:count])
    answered, labels = shares.argmax(1), dataset.labels[proof.indices[:count]]
    wrong = np.flatnonzero(answered != labels)
    worst = wrong[np.argsort(-shares[wrong, answered[wrong]], kind="stable")][:_MISTAKES]
    shown = []
    for place in worst:
        index = int(proof.indices[place])
        shown.append(
            Mistake(
                dataset.names[index],
                dataset.classes[labels[place]],
                dataset.classes[answered[place]],
                float(shares[place, answered[place]]),
                _thumbnail(dataset, index),
            )
        )
    return shown


def _doubts(dataset: Dataset, doubtful: Sequence[Doubt]) -> list[Mistake]:
    return [
        Mistake(
            dataset.names[each.index],
            dataset.classes[dataset.labels[each.index]],
            dataset.classes[each.suggested],
            each.suggested_probability,
            _thumbnail(dataset, each.index),
        )
        for each in doubtful[:_MISTAKES]
    ]


def _pair(dataset: Dataset, one: int, other: int) -> Pair:
    return Pair(
        (dataset.names[one], dataset.names[other]),
        (str(dataset.split[one]), str(dataset.split[other])),
        (_thumbnail(dataset, one), _thumbnail(dataset, other)),
    )


def _notes(tuned: Finetuned, proof: Proof, diagnosis: Diagnosis, resumed: bool) -> list[str]:
    runs = proof.scratch
    notes = [
        f"The small network was trained for {proof.scratch_epochs}, at learning rate {runs[0].rate:g}"
        + ", the best of three on held-out pictures" * runs[0].searched
        + f", once for each of {len(runs)} folds" * (len(runs) > 1)
        + f", in {sum(run.seconds for run in runs):.0f} s."
    ]
    if tuned.kept and tuned.refit:
        notes.append("In the end kept rungs were trained on all training pictures.")
    if diagnosis.exactness is not None:
        notes.append(diagnosis.exactness.sentence)
    if resumed:
        notes.append("This run went on from one that was interrupted: the timings are those of its last part.")
    return notes
