"""A run: its folder on disk, and what it leaves in the caller's hands."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shlex
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from filelock import FileLock, Timeout

from headstart import bundle, runtime
from headstart.data.dataset import Dataset
from headstart.errors import DataError, OutputError
from headstart.finetune import Finetuned
from headstart.model import Model
from headstart.plan import Plan
from headstart.proof import Proof
from headstart.race import Race
from headstart.report.gather import gather
from headstart.report.report import render
from headstart.story import LOG, Story
from headstart.tasks.classification import softmax
from headstart.verdict import Verdict

FORMAT = 1
SEEN = "trained_on.txt"
SEEN_DIGITS = 16  # of a content digest: enough to know a picture by
WRITTEN = (SEEN, "audit.json", "plan.json", "predictions.csv", "report.html", "metrics.json")


class Settings(Protocol):
    """The options of a run: a frozen dataclass of plain values."""

    @property
    def seed(self) -> int: ...


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


@final
@dataclass(frozen=True)
class Folder:
    """The run folder while this process writes it; `path` is None for a run that is kept in memory."""

    path: Path | None
    config: dict[str, Any]
    _lock: FileLock | None = field(default=None, repr=False)
    _made: bool = field(default=False, repr=False)
    resumed: bool = False

    @classmethod
    def claim(
        cls,
        out: str | Path | None,
        source: object,
        options: Settings,
        *,
        overwrite: bool = False,
        command: str | None = None,
    ) -> Folder:
        """Make the folder, or take the one that an interrupted run with the same options left.

        Raises:
            OutputError: where it cannot be written, another run is writing it, or it holds a run with other options.
        """
        config = {
            "format": FORMAT,
            "source": _described(source),
            "options": asdict(options),  # type: ignore[call-overload]
            "versions": runtime.versions(),
        }
        path = None if out is None else Path(out)
        place = _described(source) if isinstance(source, str | Path) else source
        config["command"] = command or reproduce(place, options, path)
        if path is None:
            return cls(None, config)
        lock, made = FileLock(path / ".lock", timeout=0), not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"Another run is writing '{path}' now. Wait for it, or give another folder with --out."
            ) from error
        except OSError as error:
            raise OutputError(
                f"Cannot write the run folder '{path}': {error.strerror or error}. Give another one with --out."
            ) from error
        claimed = cls(path, config, lock, made)
        try:
            claimed = replace(claimed, resumed=claimed._settle(overwrite))
        except BaseException:
            claimed.__exit__()  # a folder that is not ours keeps no trace of the question
            raise
        return claimed

    def _settle(self, overwrite: bool) -> bool:
        """Whether an unfinished run of the same options lies here."""
        assert self.path is not None
        kept, before, same = self.path / "config.json", None, False
        others = [p.name for p in self.path.iterdir() if p.name not in (".lock", LOG)]
        if kept.exists():
            with contextlib.suppress(OSError, ValueError):
                before = json.loads(kept.read_text(encoding="utf-8"))
                same = all(before.get(key) == self.config[key] for key in ("source", "options"))
            if before is not None and not same and not overwrite:
                raise OutputError(
                    f"'{self.path}' holds a run on other data or with other options. Give another folder with --out, "
                    "or --overwrite to replace it."
                )
        elif others and not overwrite:
            raise OutputError(
                f"'{self.path}' is not empty and holds no run ({others[0]}, …). Give another folder with --out, "
                "or --overwrite to write into it."
            )
        if not same:  # what is interrupted from here on must not leave an old model beside new options
            for name in (bundle.CARD, bundle.WEIGHTS, *WRITTEN):
                (self.path / name).unlink(missing_ok=True)
        self.write("config.json", json.dumps(self.config, indent=1))
        return same and not (self.path / "metrics.json").exists()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None and self.path is not None:
            self._lock.release()
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink(missing_ok=True)
                if (
                    exc
                    and isinstance(exc[1], DataError)
                    and {p.name for p in self.path.iterdir()} <= {"config.json", LOG}
                ):
                    for name in ("config.json", LOG):  # data that cannot be used leave no run behind
                        (self.path / name).unlink(missing_ok=True)
                    if self._made:
                        self.path.rmdir()

    def write(self, name: str, text: str) -> None:
        """Write one file of the folder, atomically."""
        if self.path is not None:
            bundle.write_atomically(self.path / name, text.encode("utf-8", errors="backslashreplace"))

    def keep_model(self, story: Story, model: Model, dataset: Dataset) -> None:
        """Write the model as soon as there is one: its proof takes as long again, and may be interrupted."""
        if self.path is None:
            return
        for name in WRITTEN:  # what an earlier run here found out is not about this model
            (self.path / name).unlink(missing_ok=True)
        bundle.save(model, self.path, versions=runtime.versions())
        used = np.concatenate([dataset.indices("train"), dataset.indices("val")])  # validation pictures chose, too
        self.write(SEEN, "".join(f"{dataset.digests[i][:SEEN_DIGITS]}\n" for i in used))
        story.note("the model is saved and can be used; its proof follows")

    def keep(
        self,
        story: Story,
        options: Settings,
        dataset: Dataset,
        heads: Race,
        plan: Plan,
        tuned: Finetuned,
        model: Model,
        proof: Proof,
    ) -> Run:
        """Write what is told of the model: plan, audit, predictions, report, and `metrics.json`, which ends the run."""
        began = time.monotonic()
        predictions = _predictions(dataset, proof)
        if dataset.audit is not None:
            self.write("audit.json", dataset.audit.model_dump_json(indent=1))
        self.write("plan.json", plan.model_dump_json(indent=1))
        self.write("predictions.csv", _csv(predictions))
        timings = {**story.seconds, "total": story.total}
        shown = gather(dataset, heads, plan, tuned, model, proof, timings, self.config["command"], self.resumed)
        html = render(shown)
        story.seconds["report"] = time.monotonic() - began
        metrics = {
            "format": FORMAT,
            "verdict": proof.verdict.outcome,
            "overkill": proof.verdict.overkill,
            "chosen": "finetuned" if tuned.kept else "head",
            "sentence": proof.verdict.sentence,
            "test": proof.report.model_dump(mode="json"),
            "temperature": model.temperature,
            "rungs": [
                {
                    "cut": r.rung.cut,
                    "kept": r.kept,
                    "accuracy": r.accuracy,
                    "gain": r.gain,
                    "gain_se": r.gain_se,
                    "alpha": r.alpha,
                    "epochs": r.epochs,
                    "seconds": r.seconds,
                    "complete": r.complete,
                }
                for r in tuned.rungs
            ],
            "seconds": {"total": story.total, **story.seconds},
            "resumed": self.resumed,
            "peak_memory_bytes": runtime.peak_memory_bytes(),
        }
        self.write("report.html", html)
        self.write("metrics.json", json.dumps(_finite(metrics), indent=1, allow_nan=False))
        story.note(proof.verdict.sentence)
        return Run(self.path, dataset, plan, model, proof.verdict, metrics, predictions, html)


def _described(source: object) -> str:
    if isinstance(source, str | Path):
        return str(Path(source).expanduser().absolute())
    return f"{type(source).__module__}.{type(source).__name__} in memory"


def reproduce(source: object, options: Settings, folder: Path | None) -> str:
    """What gives this run again, with only what differs from the defaults: a command, or a line of Python for data in memory."""
    given = {
        each.name: getattr(options, each.name)
        for each in fields(options)  # type: ignore[arg-type]
        if getattr(options, each.name) != each.default or each.name == "seed"
    }
    if not isinstance(source, str | Path):
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        place = f"{str(folder)!r}, " if folder is not None else ""
        return f"headstart.fit({type(source).__name__}, {place}options=headstart.Options({said}))"
    words = ["headstart", "fit", str(source), *(["--out", str(folder)] if folder is not None else [])]
    for name, value in given.items():
        words += ["--" + name.replace("_", "-"), "none" if value is None else str(value)]
    return shlex.join(words)


def trained_on(folder: Path) -> frozenset[str]:
    """The first digits of the content digests of the pictures that the model of a run has seen; empty where unknown."""
    kept = folder / SEEN
    return frozenset(kept.read_text(encoding="utf-8", errors="replace").split()) if kept.exists() else frozenset()


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


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["path", "label", "predicted", "probability", "second", "second_probability"])
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


def free_folder(source: object) -> Path:
    """`runs/<name of the data>` as the default place of a run."""
    name = Path(str(source)).resolve().name if isinstance(source, str | Path) else "run"
    return Path("runs") / (name or "run")
