"""What the run tells beside its verdict: labels worth a second look, and what to be careful about, each with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.data.audit import Finding
from headstart.data.dataset import Dataset
from headstart.diagnosis.doubts import Doubt, doubts
from headstart.race import Race


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Doubtful labels of `looked_at` training pictures, the most doubtful first, and findings, each with a next step."""

    doubts: tuple[Doubt, ...]
    looked_at: int
    findings: tuple[Finding, ...] = ()


def diagnose(dataset: Dataset, heads: Race) -> Diagnosis:
    """Look at what the run has computed; nothing here changes the model or opens the test set."""
    return Diagnosis(doubts(heads, dataset.labels, dataset.fold), len(heads.pool))
