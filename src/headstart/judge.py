"""How a rung answers best, and whether it is kept: a pure function of its answers to pictures that it did not train on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart.choice import Logits, clearly_likelier, likelier, paired_gain
from headstart.forecast import WORTH, Forecast
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


def judge(
    shares: NDArray[np.float32],
    best: Logits,
    truth: NDArray[np.int64],
    *,
    beside: Logits | None = None,
    frozen: Logits | None = None,
    expected: Forecast | None = None,
    forced: bool = False,
) -> Judged:
    """Choose how a rung answers, from its held-out logits `shares` (A, M, K) at several interpolations, the whole way first, and
    whether that is kept.

    Alone, or with another backbone's calibrated logits `beside` (M, K), it has to make the labels `truth` (M,) clearly likelier than
    logits `best` (M, K), and be right more often, beyond the standard error; or as often, within it, and make the labels likelier by
    `SURER` standard errors. The mean of its answers and the `frozen` head's calibrated ones (M, K) varies less: it has to be right no
    less often, and make the labels clearly likelier. Few pictures can hardly show that. So both answer together, too, where what
    recorded runs let expect of it (`expected`), corrected by how much likelier it makes these labels, is worth the cost: few answers
    change, and the head's are flattered by having been chosen, but all beliefs move. That is asked only of a rung that is not `SPOILT`
    and does not make the labels clearly less likely. What is `forced` is kept alone.
    """
    alone = _judged(shares, best, truth, beside)
    # One picture more, and none lost, always exceeds its own standard error: it takes two.
    more = alone.gain > max(alone.gain_se, 1.5 / max(1, len(truth)))
    likely = clearly_likelier(alone.logits, best, truth, 1.0 if more else SURER)
    alone = replace(alone, kept=forced or (likely and alone.gain >= -alone.gain_se))
    if frozen is None or forced:
        return alone
    pair = replace(_judged(shares, best, truth, frozen), kept=True, together=True)
    whole = replace(_judged(shares[:1], best, truth, frozen), kept=True, together=True)
    alone, pair, whole = (replace(each, with_head=whole.likelier) for each in (alone, pair, whole))
    # What is kept alone costs half as much to run.
    if all(
        paired_gain(pair.logits, other, truth)[0] >= 0 and clearly_likelier(pair.logits, other, truth)
        for other in ([best, alone.logits] if alone.kept else [best])
    ):
        return pair
    if alone.kept or expected is None:
        return alone
    nats, error = whole.likelier
    if nats <= -error or _known(shares[0], truth) < SPOILT * _known(best, truth):
        return alone
    posterior = expected.seen(nats, error)
    return replace(whole if posterior.gain >= WORTH else alone, posterior=posterior)


def _judged(shares: NDArray[np.float32], best: Logits, truth: NDArray[np.int64], beside: Logits | None) -> Judged:
    """The share that makes the labels likeliest, calibrated, in the mean with calibrated logits `beside`; not kept yet. Which is right
    most often is a matter of a picture or two."""
    heats = [1.0] * len(shares)
    if beside is not None:
        heats = [fit_temperature(logits, truth) for logits in shares]
        shares = np.stack([0.5 * (logits / np.float32(t) + beside) for logits, t in zip(shares, heats, strict=True)])
    share = max(range(len(shares)), key=lambda place: _known(shares[place], truth))
    gain, error = paired_gain(shares[share], best, truth)
    accuracy = float((shares[share].argmax(1) == truth).mean())
    return Judged(share, heats[share], shares[share], accuracy, gain, error, likelier(shares[share], best, truth))


def _known(logits: Logits, truth: NDArray[np.int64]) -> float:
    """By how many nats calibrated logits (M, K) make the labels likelier than a guess does."""
    return likelier(logits, np.zeros_like(logits), truth)[0]
