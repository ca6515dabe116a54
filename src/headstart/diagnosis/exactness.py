"""What bfloat16 does to answers: those of the finished model to some of the sealed test pictures, once more in plain float32."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from headstart.data.audit import Finding, finding
from headstart.data.dataset import Dataset
from headstart.errors import UnreadableImage
from headstart.features.engine import Engine
from headstart.features.extract import extract_all, together
from headstart.features.store import Store
from headstart.features.way import PLAIN
from headstart.intervals import sign_test
from headstart.model import Model
from headstart.proof import Proof

PICTURES = 64
SURE = 0.05  # two-sided: from five answers on that bfloat16 alone gets wrong, where it alone gets none right


@dataclass(frozen=True)
class Exactness:
    """Of so many test `pictures` those that get the `same` answer as in plain float32, those whose right answer is `lost` by bfloat16,
    and those whose right answer is `won`. The head is the model's, and learnt from features in bfloat16."""

    pictures: int
    same: int
    lost: int
    won: int

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        whose = f"Of {self.pictures} test pictures, {self.same} get the same answer from the same head in plain float32"
        if self.same == self.pictures:
            return f"{whose}."
        return f"{whose}; of the others {self.lost} are right in float32 alone, and {self.won} in bfloat16 alone."

    @property
    def findings(self) -> tuple[Finding, ...]:
        """A warning where bfloat16 surely loses right answers."""
        if self.lost <= self.won or sign_test(self.won, self.lost) >= SURE:
            return ()
        message = f"The rounding of bfloat16 costs right answers. {self.sentence}"
        return (finding("bfloat16", "warning", message, "Run again with --precision float32."),)


def exactness(
    model: Model, dataset: Dataset, proof: Proof, store: Store, *, deadline: float = math.inf
) -> Exactness | None:
    """Answers of the model to an even choice of the test pictures beside those in plain float32.

    None where it computes in float32 anyhow, where there is no sealed test set, past `deadline` (on `time.monotonic`'s clock), and
    where a picture is gone.
    """
    rounded = any(engine.settled == "bfloat16" for engine in model.engines)
    if not rounded or not len(dataset.indices("test")) or time.monotonic() > deadline:
        return None
    # By content: names and order of files must not move what is told.
    order = sorted(range(len(proof.indices)), key=lambda row: dataset.digests[proof.indices[row]])
    count = min(PICTURES, len(order))
    rows = np.array(order)[np.arange(count) * len(order) // count]
    asked, answers = dataset.select(proof.indices[rows]), proof.rivals["final"].logits[rows].argmax(1)
    plain = [Engine(engine.backbone) for engine in model.engines]
    for engine in plain:
        engine.adopt(PLAIN)
    try:
        features = together(extract_all(plain, asked, store))
    except UnreadableImage:  # gone since it was tested: no reason to end a run
        return None
    exact = model.head.answers(features, np.arange(count)).argmax(1)
    differ, right = answers != exact, asked.labels
    return Exactness(
        count,
        int((~differ).sum()),
        lost=int((differ & (exact == right)).sum()),
        won=int((differ & (answers == right)).sum()),
    )
