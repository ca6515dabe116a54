"""The story of a run while it goes on: what the person is told, what the log keeps, and how long each phase took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, final

from headstart.data.dataset import Dataset
from headstart.folder import LOG

if TYPE_CHECKING:
    from headstart.features.way import Way
    from headstart.ladder import Finetuned
    from headstart.lineup import Lineup
    from headstart.plan import Plan
    from headstart.race import Race


@final
class Story:
    """What happened, line by line, and how long each phase took."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._tell = tell
        self._began = time.monotonic()
        self._log: Path | None = None
        self.seconds: dict[str, float] = {}
        self.way: Way | None = None
        self.lines: list[str] = []

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def to(self, folder: Path | None) -> Iterator[None]:
        """Also write every line to the log of the run folder; None for a run that is kept in memory."""
        self._log = None if folder is None else folder / LOG
        try:
            yield
        except BaseException as error:
            self.note(f"stopped: {type(error).__name__}: {error}")
            raise

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        self.note(f"{name} took {self.seconds[name]:.1f} s")

    def note(self, line: str) -> None:
        """Keep a line that the person is told elsewhere, or need not be."""
        stamped = f"{self.total:9.1f}  {line}"
        self.lines.append(stamped)
        if self._log is not None:
            with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(stamped + "\n")

    def say(self, line: str) -> None:
        """Tell a line to the person, and keep it."""
        self.note(line)
        if self._tell is not None:
            self._tell(line)

    def dataset(self, dataset: Dataset) -> None:
        """What the data are."""
        sides = ", ".join(
            f"{len(dataset.indices(s)):,} {s}" for s in ("train", "val", "test") if len(dataset.indices(s))
        )
        self.say(f"{len(dataset):,} images of {len(dataset.classes)} classes: {sides}")
        if dataset.audit is not None:
            for finding in dataset.audit.findings:
                if finding.severity != "note":
                    self.say(f"{finding.severity}: {finding.message}")
                else:
                    self.note(f"note: {finding.message}")

    def engine(self, way: Way) -> None:
        """How the frozen stages are run, and how well that agrees with plain float32."""
        self.way = way
        agreement = "" if way.agreement is None else f", features at a cosine of {way.agreement:.5f} with plain float32"
        self.note(f"engine: {way}{agreement}")

    def heads(self, heads: Race, pictures: int) -> None:
        """Which head won, and why; on how many of the training pictures, where not on all."""
        best, raced = heads.best, len(heads.pool)
        sample = f" (of a sample of {raced:,}; then fitted to all {pictures:,})" if raced < pictures else ""
        self.say(
            f"frozen head: {100 * heads.accuracy:.1f} ± {100 * best.accuracy_se:.1f} % out of fold{sample}; {heads.reason}"
        )

    def lineup(self, lineup: Lineup) -> None:
        """Which backbones answer, and why."""
        for reason in lineup.reasons:
            self.say(f"backbones: {reason}")

    def views(self, heads: Race, views: int, why: str) -> None:
        """Whether the heads were fitted to more views of the pictures."""
        if heads.last.views:
            self.say(
                f"with {views} more views of each picture: {100 * heads.accuracy:.1f} % out of fold; {heads.reason}"
            )
        elif views:
            self.say(
                f"views: heads do without {views} more of each picture, with which the labels are clearly less likely"
            )
        elif why:
            self.say(f"views: {why}")

    def plan(self, plan: Plan) -> None:
        """What is going to be tried, and why."""
        for reason in plan.reasons[1:]:
            self.say(f"plan: {reason}")
        for rung in plan.rungs:
            self.say(
                f"plan: {rung.reason or f'stages from {plan.stages[rung.cut]} on train'}; {rung.epochs} epochs, {rung.views} views"
            )

    def finetuned(self, tuned: Finetuned, plan: Plan) -> None:
        """How each rung did."""
        for result in tuned.rungs:
            self.say(f"rung from {plan.stages[result.rung.cut]}: {result.reason}")
        for reason in tuned.reasons:
            self.say(reason)
