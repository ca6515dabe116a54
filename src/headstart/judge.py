"""How a rung answers best, and whether it is kept: a pure function of its answers to pictures that it did not train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.choice import Logits, Ways, Weights
from headstart.forecast import WORTH, Forecast
from headstart.plan import Rung
from headstart.tasks.classification import fit_temperature

SPOILT = 1 / 3  # of what the head knows in nats: a rung that knows less was ruined by its training
SURER = 1.5  # standard errors; one picture that is answered far better makes one of them


@dataclass(frozen=True, eq=False)
class Judged:
    """A rung as it answers: which of the `shares` that were given, and its held-out logits (M, K).

    `heat` is what its own logits are divided by in them. `gain` and `gain_se`: accuracy over the best so far. `likelier`: by how
    many nats they make the labels likelier than the best so far does, calibrated, and the standard error. `together`: these are its
    answers together with the frozen head. `with_head`: how much likelier the labels become with that head and all that training
    changed, where that was looked at. `posterior`: what is then to be expected, by recorded runs and these pictures, where it decided.
    `cleared`: of what is kept, the gain less its optimism: how it answers and whether it is kept are chosen anew by bootstrap samples,
    and looked at on the pictures left out; what these samples would drop gains nothing there.
    """

    share: int
    heat: float
    logits: Logits
    accuracy: float
    gain: float
    gain_se: float
    likelier: tuple[float, float]
    kept: bool = False
    together: bool = False
    with_head: tuple[float, float] | None = None
    posterior: Forecast | None = None
    cleared: float | None = None


def judge(
    shares: NDArray[np.float32],
    best: Logits,
    truth: NDArray[np.int64],
    *,
    beside: Logits | None = None,
    frozen: Logits | None = None,
    expected: Forecast | None = None,
    forced: bool = False,
    groups: NDArray[np.int64] | None = None,
) -> Judged:
    """Choose how a rung answers, from its held-out logits `shares` (A, M, K) at several interpolations, the whole way first, and
    whether that is kept.

    Alone, or with another backbone's calibrated logits `beside` (M, K), it has to make the labels `truth` (M,) clearly likelier than
    logits `best` (M, K), and be right more often, beyond the standard error; or as often, within it, and make the labels likelier by
    `SURER` standard errors. The mean of its answers and the `frozen` head's calibrated ones (M, K) varies less: it has to be right no
    less often, and make the labels clearly likelier. Few pictures can hardly show that. So both answer together, too, where what
    recorded runs let expect of it (`expected`), corrected by how much likelier it makes these labels, is worth the cost: few answers
    change, and the head's are flattered by having been chosen, but all beliefs move. That is asked only of a rung that is not `SPOILT`
    and does not make the labels clearly less likely. What is `forced` is kept alone. Never more than two networks answer together:
    either `beside` or `frozen` is given, or neither. Standard errors are over `groups` (M,), where pictures share any.
    """
    assert beside is None or frozen is None
    alone = [(logits, 1.0) for logits in shares] if beside is None else _averaged(shares, beside, truth)
    pairs = [] if frozen is None or forced else _averaged(shares, frozen, truth)
    given, whole = [*alone, *pairs], _FIRST + len(alone)
    ways = Ways.of([best, np.zeros_like(best), *(logits for logits, _ in given)], truth, groups)
    jury = _Jury(ways, len(alone), bool(pairs), expected, forced)
    way, kept, posterior = jury.verdict()
    logits, heat = given[way - _FIRST]
    gain, error = ways.gain(way, _BEST)
    return Judged(
        share=(way - _FIRST) % len(alone),
        heat=heat,
        logits=logits,
        accuracy=float(ways.right[way].mean()),
        gain=gain,
        gain_se=error,
        likelier=ways.likelier(way, _BEST),
        kept=kept,
        together=way >= whole,
        with_head=ways.likelier(whole, _BEST) if pairs else None,
        posterior=posterior,
        cleared=gain - ways.optimism(jury.chosen)[0] if kept else None,
    )


def said(rung: Rung, found: Judged) -> str:
    """What was decided, and by which figures."""
    kept = "kept, as asked for" if rung.forced else "kept" if found.kept else "dropped"
    gain, cleared = (
        round(100 * share, 1) for share in (found.gain, found.gain if found.cleared is None else found.cleared)
    )
    beside = f" ({cleared:+.1f} cleared of the choice)" if cleared != gain else ""
    points = f"{gain:+.1f} ± {100 * found.gain_se:.1f} points{beside} on {len(found.logits)} held-out pictures"
    told = f"{kept}: {'together with the frozen head ' if found.together else ''}{points}, whose labels are {_nats(found.likelier)}"
    if found.posterior is None or found.with_head is None:
        return told
    apart = "" if found.together else f"; together with the frozen head {_nats(found.with_head)}"
    return f"{told}{apart}; with what runs on other data let expect {found.posterior}"


def _nats(likelier: tuple[float, float]) -> str:
    nats, error = likelier
    return f"{abs(nats):.2f} ± {error:.2f} nats {'less likely' if nats < 0 else 'likelier'}"


_BEST, _GUESS, _FIRST = 0, 1, 2  # places among the ways that a jury looks at


@dataclass(frozen=True, eq=False)
class _Jury:
    """Decides among `ways`: the best so far, a guess, a rung's `count` shares alone, the whole way first, and, with `pairs`, the same
    together with the frozen head. A `weight` (M,) says how often a picture counts."""

    ways: Ways
    count: int
    pairs: bool
    expected: Forecast | None
    forced: bool

    def chosen(self, weight: Weights | None = None) -> int:
        """The way that answers in the end."""
        way, kept, _ = self.verdict(weight)
        return way if kept else _BEST

    def verdict(self, weight: Weights | None = None) -> tuple[int, bool, Forecast | None]:
        """The way that a rung answers, whether it is kept, and what is to be expected of it where that decided."""
        ways, whole = self.ways, _FIRST + self.count
        alone = self._likeliest(range(_FIRST, whole), weight)
        gain, error = ways.gain(alone, _BEST, weight)
        # One picture more, and none lost, always exceeds its own standard error: it takes two.
        more = gain > max(error, 1.5 / max(1, ways.right.shape[1]))
        kept = self.forced or (ways.clearly_likelier(alone, _BEST, weight, 1.0 if more else SURER) and gain >= -error)
        if not self.pairs:
            return alone, kept, None
        pair = self._likeliest(range(whole, whole + self.count), weight)
        # What is kept alone costs half as much to run.
        if all(
            ways.gain(pair, other, weight)[0] >= 0 and ways.clearly_likelier(pair, other, weight)
            for other in ([_BEST, alone] if kept else [_BEST])
        ):
            return pair, True, None
        if kept or self.expected is None:
            return alone, kept, None
        nats, error = ways.likelier(whole, _BEST, weight)
        if nats <= -error or self._known(_FIRST, weight) < SPOILT * self._known(_BEST, weight):
            return alone, False, None
        posterior = self.expected.seen(nats, error)
        return (whole, True, posterior) if posterior.gain >= WORTH else (alone, False, posterior)

    def _likeliest(self, among: Sequence[int], weight: Weights | None) -> int:
        """Which is right most often is a matter of a picture or two."""
        return max(among, key=lambda way: self._known(way, weight))

    def _known(self, way: int, weight: Weights | None) -> float:
        """By how many nats it makes the labels likelier than a guess does."""
        return self.ways.likelier(way, _GUESS, weight)[0]


def _averaged(shares: NDArray[np.float32], other: Logits, truth: NDArray[np.int64]) -> list[tuple[Logits, float]]:
    """The mean of each share's calibrated logits and calibrated logits `other` (M, K), and what the share's are divided by in it."""
    heats = [fit_temperature(logits, truth) for logits in shares]
    return [(0.5 * (logits / np.float32(heat) + other), heat) for logits, heat in zip(shares, heats, strict=True)]
