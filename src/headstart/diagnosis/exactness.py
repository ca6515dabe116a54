"""What computing in bfloat16 costs in answers: the finished model on some of the tested pictures, once more in plain float32."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.audit import Finding, finding
from headstart.data.dataset import Dataset
from headstart.features.engine import PLAIN, Engine
from headstart.features.extract import extract_all, together
from headstart.features.store import Store
from headstart.model import Model

PICTURES = 64


@dataclass(frozen=True)
class Exactness:
    """Of so many `pictures` those that get the `same` answer as in plain float32, those that are `right`, and are `right_exactly` in
    plain float32; `sealed` says whether they are test pictures, which the model has not learnt from."""

    pictures: int
    same: int
    right: int
    right_exactly: int
    sealed: bool

    @property
    def error(self) -> float:
        """Standard error of `right_exactly`, pictures."""
        return math.sqrt(self.right_exactly * (1 - self.right_exactly / self.pictures))

    @property
    def harms(self) -> bool:
        """Whether more answers are lost than the standard error of float32's, and more than one."""
        return self.right_exactly - self.right > max(1.0, self.error)

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        whose = "sealed test pictures" if self.sealed else "pictures"
        return (
            f"The model computes in bfloat16: of {self.pictures} {whose}, {self.same} get the same answer as in plain float32; "
            f"{self.right} are right, and {self.right_exactly} in float32."
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """A warning where bfloat16 harms."""
        if not self.harms:
            return ()
        next_step = "Run again with --precision float32, which takes longer, and keep the better of the two."
        message = f"{self.sentence} That is more than the {self.error:.1f} that chance may move."
        return (finding("bfloat16", "warning", message, next_step),)


def exactness(
    model: Model, dataset: Dataset, indices: NDArray[np.int64], store: Store, *, deadline: float = math.inf
) -> Exactness | None:
    """Answers to some of the tested pictures `indices` (M,), by the model as it runs and in plain float32; None where it computes in
    float32 anyhow, and past `deadline` (on `time.monotonic`'s clock)."""
    if all(engine.settled != "bfloat16" for engine in model.engines) or time.monotonic() > deadline:
        return None
    tested = np.unique(indices)
    some = tested[:: math.ceil(len(tested) / PICTURES)]
    asked, sealed = dataset.select(some), len(dataset.indices("test")) > 0
    plain = [Engine(engine.backbone, precision=PLAIN.precision, folded=False) for engine in model.engines]
    rounded, exact = (
        model.head.answers(together(extract_all(engines, asked, store)), np.arange(len(asked))).argmax(1)
        for engines in (model.engines, plain)
    )
    same, right, right_exactly = (
        int((a == b).sum()) for a, b in ((rounded, exact), (rounded, asked.labels), (exact, asked.labels))
    )
    return Exactness(len(asked), same, right, right_exactly, sealed)
