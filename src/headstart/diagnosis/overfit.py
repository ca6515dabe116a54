"""What fine-tuning did beside its gain: held-out loss that rises again, and how far the features moved from the original ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.audit import Finding, finding
from headstart.data.dataset import Dataset
from headstart.features.extract import Features, extract
from headstart.features.store import Store
from headstart.ladder import Finetuned, RungResult
from headstart.model import Model

RISE = 0.1  # share by which the held-out loss ends above its least
PICTURES = 32


def overfit(tuned: Finetuned, stages: Sequence[str]) -> tuple[Finding, ...]:
    """A note of each kept rung whose held-out loss rose again while its training loss fell."""
    return tuple(
        note for number, result in enumerate(tuned.rungs, 1) if result.kept for note in _rising(result, number, stages)
    )


def _rising(result: RungResult, number: int, stages: Sequence[str]) -> list[Finding]:
    epochs = min(map(len, result.curves), default=0)
    if epochs < 2:
        return []
    held = np.mean([[row.val_loss for row in curve[:epochs]] for curve in result.curves], 0)
    right = np.mean([[row.val_accuracy for row in curve[:epochs]] for curve in result.curves], 0)
    trained = np.mean([[row.train_loss for row in curve[:epochs]] for curve in result.curves], 0)
    if not math.isfinite(held.sum()):
        return []
    end = epochs - 1  # whose weights are the model's
    least = int(held[: end + 1].argmin())
    if held[end] < (1 + RISE) * held[least] or trained[end] >= trained[least]:
        return []
    message = (
        f"Rung {number} (from {stages[result.rung.cut]} on) overfits: its held-out loss is least after epoch {least + 1} of "
        f"{end + 1}, at {held[least]:.3f}, and ends at {held[end]:.3f}, while its training loss falls from {trained[least]:.3f} to "
        f"{trained[end]:.3f}. {_harm(100 * right[least], 100 * right[end])}"
    )
    return [
        finding("overfit", "note", message, "Give it fewer epochs in plan.json, or label more; then run with --plan.")
    ]


def _harm(before: float, after: float) -> str:
    if after < before:
        return f"It hurts: of the held-out pictures {after:.1f} % are right at the end, {before:.1f} % were."
    return f"Answers do not suffer, only how sure they are: of the held-out pictures {after:.1f} % are right, {before:.1f} % were."


def drift(model: Model, features: Features, tuned: Finetuned, dataset: Dataset, store: Store) -> tuple[Finding, ...]:
    """A note of how far the features of the stages that were trained moved, on up to `PICTURES` training pictures."""
    if not tuned.kept:
        return ()
    some = dataset.indices("train")[:PICTURES]
    now = extract(model.backbone, dataset, store, engine=model.engine, only=some)
    first = min(result.rung.cut for result in tuned.kept)
    rows = []
    for stage in range(first, len(features.own)):
        alike = cosines(features.stages((stage,), some), now.stages((stage,), some))
        rows.append((float(alike.mean()), model.backbone.names[stage]))
    (kept, start), (left, end) = rows[0], rows[-1]
    message = (
        f"Fine-tuning moved the features: those of {len(some)} training pictures keep a mean cosine of {kept:.3f} with what they were "
        f"after {start}, the first stage that was trained, and of {left:.3f} after {end}, the last."
    )
    next_step = (
        "If the model will meet pictures that differ from these: run once more with --plan head, which forgets nothing, and set both "
        "side by side with headstart evaluate."
    )
    return (
        finding("drift", "note", message, next_step, [f"{name}: mean cosine {cosine:.3f}" for cosine, name in rows]),
    )


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines (N,) of the rows of two arrays (N, D)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(lengths, 1e-12), dtype=np.float32)
