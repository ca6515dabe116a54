"""A run: what it leaves in its folder, and in the caller's hands."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart import bundle, runtime
from headstart.data.dataset import Dataset
from headstart.diagnosis.diagnosis import Diagnosis
from headstart.diagnosis.doubts import Doubt
from headstart.diagnosis.exactness import Exactness
from headstart.diagnosis.growth import Growth
from headstart.diagnosis.similarity import Similarity
from headstart.diagnosis.telling import Telling
from headstart.folder import FORMAT, SEEN, SEEN_DIGITS, WRITTEN, Folder
from headstart.ladder import Finetuned, RungResult
from headstart.model import Model
from headstart.plan import Plan
from headstart.proof import Proof
from headstart.race import Race
from headstart.report.gather import gather
from headstart.report.report import render
from headstart.story import Story
from headstart.tasks.classification import softmax
from headstart.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Run:
    """What `fit` gives back; everything in it is also in `folder`, where one was asked for."""

    folder: Path | None
    dataset: Dataset
    plan: Plan
    model: Model
    verdict: Verdict
    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    report_html: str

    @property
    def report(self) -> Path | None:
        """The HTML report, where the run has a folder."""
        return None if self.folder is None else self.folder / "report.html"


def keep_model(folder: Folder, story: Story, model: Model, dataset: Dataset) -> None:
    """Write a model as soon as there is one: what follows takes longer, and may be interrupted."""
    if folder.path is None:
        return
    for name in set(WRITTEN) - {SEEN}:  # what an earlier run here found out is not about this model
        (folder.path / name).unlink(missing_ok=True)
    used = np.concatenate([dataset.indices("train"), dataset.indices("val")])  # validation pictures chose, too
    folder.write(SEEN, "".join(f"{dataset.digests[i][:SEEN_DIGITS]}\n" for i in used))  # there is no model without it
    bundle.save(model, folder.path, versions=runtime.versions())
    story.note("a model is saved and can be used; what follows improves or proves it")


def keep(
    folder: Folder,
    story: Story,
    dataset: Dataset,
    heads: Race,
    plan: Plan,
    tuned: Finetuned,
    model: Model,
    proof: Proof,
    diagnosis: Diagnosis,
) -> Run:
    """Write what is told of the model: plan, audit, predictions, report, and `metrics.json`, which ends the run."""
    began = time.monotonic()
    predictions = _predictions(dataset, proof)
    if dataset.audit is not None:
        folder.write("audit.json", dataset.audit.model_dump_json(indent=1))
    folder.write("plan.json", plan.model_dump_json(indent=1))
    folder.write("predictions.csv", _csv(_PREDICTED, predictions))
    folder.write("doubts.csv", _csv(_DOUBTED, _doubted(dataset, diagnosis.doubts)))
    timings = {**story.seconds, "total": story.total}
    title, command = folder.title or dataset.source, folder.config["command"]
    shown = gather(title, dataset, heads, plan, tuned, model, proof, diagnosis, timings, command, folder.resumed)
    html = render(shown)
    story.seconds["report"] = time.monotonic() - began
    metrics = _metrics(folder, story, tuned, model, proof, diagnosis)
    folder.write("report.html", html)
    folder.write("metrics.json", json.dumps(_finite(metrics), indent=1, allow_nan=False))
    for told in (diagnosis.telling, diagnosis.exactness):
        if told is not None:
            story.note(told.sentence)
    story.note(proof.verdict.sentence)
    return Run(folder.path, dataset, plan, model, proof.verdict, metrics, predictions, html)


def _metrics(
    folder: Folder, story: Story, tuned: Finetuned, model: Model, proof: Proof, diagnosis: Diagnosis
) -> dict[str, Any]:
    """What `metrics.json` holds; docs/run-folder.md says what each means."""
    return {
        "format": FORMAT,
        "verdict": proof.verdict.outcome,
        "overkill": proof.verdict.overkill,
        "chosen": "finetuned" if tuned.kept else "head",
        "backbones": [engine.backbone.origin.name for engine in model.engines],
        "sentence": proof.verdict.sentence,
        "test": proof.report.model_dump(mode="json"),
        "temperature": model.temperature,
        "rungs": [_rung(result) for result in tuned.rungs],
        "engine": None if story.way is None else asdict(story.way),
        "exactness": _told(diagnosis.exactness),
        "findings": [finding.model_dump(mode="json") for finding in diagnosis.findings],
        "doubts": {
            "pictures": len(diagnosis.doubts),
            "confident": sum(each.confident for each in diagnosis.doubts),
            "of": diagnosis.looked_at,
        },
        "unknown": _told(diagnosis.telling),
        "similarity": _told(diagnosis.similarity),
        "growth": _told(diagnosis.growth),
        "seconds": {"total": story.total, **story.seconds},
        "resumed": folder.resumed,
        "peak_memory_bytes": runtime.peak_memory_bytes(),
    }


def _rung(result: RungResult) -> dict[str, Any]:
    return {
        "cut": result.rung.cut,
        "kept": result.kept,
        "accuracy": result.accuracy,
        "gain": result.gain,
        "gain_se": result.gain_se,
        "cleared_gain": result.cleared,
        "alpha": result.alpha,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "caching_seconds": result.caching,
        "complete": result.complete,
        "together": result.together,
        "likelier": _nats(result.likelier),
        "with_head": None if result.with_head is None else _nats(result.with_head),
        "posterior": None if result.posterior is None else asdict(result.posterior),
    }


def _told(finding: Exactness | Growth | Similarity | Telling | None) -> dict[str, Any] | None:
    """What a diagnosis found, its sentence first."""
    return None if finding is None else {"sentence": finding.sentence, **asdict(finding)}


def _nats(likelier: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("nats", "error"), likelier, strict=True))


def _predictions(dataset: Dataset, proof: Proof) -> list[dict[str, Any]]:
    """One row per tested picture (its first repeat): path, label, predicted, probability, second, second_probability."""
    count = proof.report.images
    shares = softmax(proof.rivals["final"].calibrated[:count])
    rows = []
    for index, row in zip(proof.indices[:count], shares, strict=True):
        first, second = np.argsort(-row, kind="stable")[:2]
        rows.append(
            {
                "path": dataset.names[int(index)],
                "label": dataset.classes[dataset.labels[index]],
                "predicted": dataset.classes[first],
                "probability": float(row[first]),
                "second": dataset.classes[second],
                "second_probability": float(row[second]),
            }
        )
    return sorted(rows, key=lambda row: str(row["path"]))


def _doubted(dataset: Dataset, doubtful: Sequence[Doubt]) -> list[dict[str, Any]]:
    """One row per doubtful label, the most doubtful first."""
    return [
        {
            "path": dataset.names[each.index],
            "label": dataset.classes[dataset.labels[each.index]],
            "label_probability": each.label_probability,
            "suggested": dataset.classes[each.suggested],
            "suggested_probability": each.suggested_probability,
            "confident": "yes" if each.confident else "no",
        }
        for each in doubtful
    ]


_PREDICTED = ("path", "label", "predicted", "probability", "second", "second_probability")
_DOUBTED = ("path", "label", "label_probability", "suggested", "suggested_probability", "confident")


def _csv(columns: Sequence[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({n: f"{v:.6f}" if isinstance(v, float) else v for n, v in row.items()} for row in rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
