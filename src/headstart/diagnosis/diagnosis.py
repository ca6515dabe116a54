"""What the run tells beside its verdict: labels worth a second look, what more pictures would add, and what to be careful about, each
with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from headstart import runtime
from headstart.data.audit import Finding
from headstart.data.dataset import Dataset
from headstart.diagnosis.doubts import Doubt, doubts
from headstart.diagnosis.growth import Growth, growth
from headstart.features.extract import Features
from headstart.features.store import Store
from headstart.race import Race


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Doubtful labels of `looked_at` training pictures, the most doubtful first; findings, each with a next step; and the learning
    curve, None where it could not be drawn."""

    doubts: tuple[Doubt, ...]
    looked_at: int
    findings: tuple[Finding, ...] = ()
    growth: Growth | None = None


def diagnose(
    dataset: Dataset, heads: Race, features: Features, store: Store, *, progress: runtime.Progress = runtime.silent
) -> Diagnosis:
    """Look at what the run has computed; nothing here changes the model or opens the test set."""
    return Diagnosis(
        doubts(heads, dataset.labels, dataset.fold),
        len(heads.pool),
        growth=growth(heads, features, dataset, store, progress),
    )
