"""What fine-tuning may be expected to gain before it is tried, as it was in recorded runs on other data.

That is: in accuracy, of a rung that answers together with the frozen head. It grows with what the head does not know, provided that it
knows something at all, with the distance from the source, and with the pictures a class. The numbers are fitted to the depth suite
(benchmarks/forecast.py), and tested there on data sets that they were not fitted to. Networks without running statistics have no
shift, and no forecast. Held-out pictures correct it by how much likelier a rung makes their labels: that tells more than how many
answers change, which are few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

# Two networks cost twice as much to run as one, and a rung the time to train it: what is to be expected has to be worth that.
WORTH = 0.005
# What trying a rung has to promise: twice that, since where nothing is kept its time is lost.
PROMISING = 0.01


@dataclass(frozen=True)
class Forecast:
    """Expected gain in accuracy over the frozen head, as a share of pictures, and its standard error; `carried` over from runs of
    another backbone."""

    gain: float
    error: float
    carried: bool = False

    def updated(self, gain: float, error: float) -> Forecast:
        """The posterior, when held-out pictures say `gain` with a standard `error` above 0: the product of two normal densities."""
        before, seen = self.error**-2, error**-2
        return Forecast((before * self.gain + seen * gain) / (before + seen), (before + seen) ** -0.5, self.carried)

    def seen(self, likelier: float, error: float) -> Forecast:
        """The posterior, when a rung together with the frozen head makes held-out labels `likelier` by so many nats on the mean, with
        a standard `error`.

        What that says of the gain does not begin at nothing: the held-out answers are of networks that saw fewer pictures, and the
        head is the best of many on these very pictures. Where it is `carried` over to another backbone it is half as sure.
        """
        learnt = coefficients()["held_out"]
        constant, slope = learnt["weights"]
        return self.updated(
            constant + slope * likelier, math.hypot(slope * error, learnt["error"]) * (1 + self.carried)
        )

    @property
    def promise(self) -> float:
        """What trying it may be expected to gain, where held-out pictures decide afterwards whether it is kept: unlike `gain` never
        below 0, and the more, the less is known.

        The mean of what is left of the posterior's own distribution once losses are dropped (the knowledge gradient: Frazier, Powell
        & Dayanik 2008, doi 10.1137/070693424); pictures are taken to be as sure as they were in recorded runs, at most.
        """
        seen = coefficients()["held_out"]["error"] * (1 + self.carried)
        spread = self.error**2 / math.hypot(self.error, seen)
        z = self.gain / spread
        density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-z / math.sqrt(2))
        return spread * density + self.gain * below

    def __str__(self) -> str:
        return f"{100 * self.gain:+.1f} ± {100 * self.error:.1f} points"


def forecast(
    log_loss: float, shift: float, images: int, classes: int, *, backbone: str, learnt: Mapping[str, Any] | None = None
) -> Forecast:
    """What a rung may be expected to gain.

    `log_loss` is that of the head on frozen features, in nats, on held-out pictures; `shift` the squared Hellinger distance of channel
    statistics from the source's (features/shift.py); `images` and `classes` are those of the training set. Where runs of this
    `backbone` were not recorded, the standard error is doubled; it grows with the room beyond what was recorded, the gain does not.
    `learnt` stands in for the numbers that come with the package.
    """
    learnt = learnt or coefficients()
    (near, far), (few, many) = learnt["shift"], learnt["each"]
    each = min(max(images / max(1, classes), few), many)  # beyond what was recorded, the nearest that was
    known = terms(log_loss, min(max(shift, near), far), each, classes)
    # All terms grow with the room. With hundreds of classes there can be far more of it than in any run.
    within = min(1.0, learnt["room"] / max(known[0], 1e-12))
    gain = within * sum(weight * term for weight, term in zip(learnt["weights"], known, strict=True))
    carried = backbone != learnt["backbone"]
    error = math.hypot(learnt["error"], learnt["error_slope"] * known[0])
    return Forecast(gain, error * (1 + carried), carried)


def terms(log_loss: float, shift: float, each: float, classes: int) -> tuple[float, float, float]:
    """What the gain is linear in: the room there is, alone, times the log of the shift, times that of the pictures a class, `each`."""
    chance = math.log(max(2, classes))
    room = log_loss * max(0.0, 1 - log_loss / chance) ** 0.5  # nothing, where the head knows all or nothing
    return room, room * math.log(shift), room * math.log(each)


@cache
def coefficients() -> dict[str, Any]:
    """The fitted numbers, and what they were fitted to."""
    read: dict[str, Any] = json.loads(files("headstart").joinpath("forecast.json").read_text(encoding="utf-8"))
    return read
