"""A way in which a backbone is run: which stages at which precision, in folded copies or not, by which compiler."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.features.compiled import Runner
from headstart.features.precision import Precision

ROUNDED = "means kept"  # how folded weights are rounded (`rounding`): features depend on it


@dataclass(frozen=True)
class Way:
    """How a backbone is run: `stages[:exact]` in float32, the others at `precision`; whether in folded copies; the least cosine of any
    picture's pooled features of any stage with plain float32 (None where nothing was compared); what runs the others; and whether the
    device decodes JPEG files."""

    precision: Precision
    exact: int = 0
    folded: bool = False
    agreement: float | None = None
    runner: Runner = "eager"
    decodes: bool = False

    def __str__(self) -> str:
        runner = "" if self.runner == "eager" else f" {self.runner}"
        return f"{self.before_compiling}{runner}{', decoded there' * self.decodes}"

    @property
    def before_compiling(self) -> str:
        """The way of activations at a cut, which no compiler runs and whose pictures Pillow decodes, as text."""
        after = f" after {self.exact}" if self.precision != "float32" and self.exact else ""
        folded = " folded" if self.precision == "float32" else f" folded, {ROUNDED}"
        return f"{self.precision}{after}{folded * self.folded}"


PLAIN = Way("float32")
