"""Where a data set lies by size and by likeness to what the backbone was trained on; what practice would do, and what was measured.

The quadrant explains, and decides nothing: no threshold for it has ever been validated. Practice is that of Yosinski et al. 2014
(How transferable are features in deep neural networks?, arXiv 1411.1792) and of the courses that followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.data.dataset import Dataset
from headstart.features.shift import Shift
from headstart.ladder import Finetuned
from headstart.race import Race
from headstart.verdict import percent

LARGE = 1000  # training pictures
NEAR = 0.06  # of the shift: drawn between the sets of `benchmarks/shift.py`, photographs and satellite pictures on one side
SURE = 0.5  # of the source classifier's entropy, which stands in where a network has no running statistics
_PRACTICE = {
    (False, True): "train a linear head on the last stage and leave the network alone",
    (False, False): "train a head on earlier stages, as the last ones are made for the source",
    (True, True): "fine-tune the whole network at a small learning rate",
    (True, False): "fine-tune the whole network, or train one from scratch",
}


@dataclass(frozen=True)
class Similarity:
    """The quadrant and the numbers behind it.

    `pictures` are those trained on; `similar` is None where nothing tells; `best_stage` counts from 0, and `gap` is by how much a head
    on it alone is ahead of one on the last stage, a share; `edges`: how many pictures, and what distance, part them.
    """

    shift: Shift
    pictures: int
    large: bool
    similar: bool | None
    best_stage: int
    gap: float
    evidence: str
    practice: str
    measured: str
    edges: tuple[int, float] = (LARGE, NEAR)

    @property
    def sentence(self) -> str:
        """All in a row."""
        return " ".join(part for part in (self.evidence, self.practice, self.measured) if part)


def similarity(shift: Shift, heads: Race, tuned: Finetuned, dataset: Dataset, stages: Sequence[str]) -> Similarity:
    """Place a data set; `stages` are the names of the first backbone's."""
    pictures, similar = len(dataset.indices("train")), _similar(shift)
    scores = [score.accuracy for score in heads.profile[: len(stages)]]
    best = max(range(len(scores)), key=lambda place: (scores[place], place))
    large = pictures >= LARGE
    return Similarity(
        shift,
        pictures,
        large,
        similar,
        best,
        scores[best] - scores[-1],
        _evidence(shift, similar, large, pictures, stages[best], len(scores) - 1 - best, scores[best] - scores[-1]),
        "" if similar is None else f"Practice would {_PRACTICE[large, similar]}.",
        _measured(heads, tuned, stages),
    )


def _similar(shift: Shift) -> bool | None:
    if shift.distance is not None:
        return shift.distance < NEAR
    return None if shift.entropy is None else shift.entropy < SURE


def _evidence(
    shift: Shift, similar: bool | None, large: bool, pictures: int, stage: str, behind: int, gap: float
) -> str:
    size = f"{'Many' if large else 'Few'} pictures ({pictures:,} to train on)"
    told = []
    if shift.distance is not None:
        told.append(f"channel statistics lie {shift.distance:.3f} from the source's, on a scale from 0 to 1")
    if shift.entropy is not None:
        told.append(
            f"the source's classifier of {shift.classes:,} classes has {100 * shift.entropy:.0f} % of the largest possible entropy"
        )
    where = (
        "no single stage serves better than the last"
        if not behind or gap <= 0
        else f"the best single stage is {stage}, {behind} before the last and {100 * gap:.1f} points ahead of it"
    )
    kind = {True: ", much like the source: ", False: ", unlike the source: ", None: ": "}[similar]
    return f"{size}{kind}{'; '.join([*told, where])}."


def _measured(heads: Race, tuned: Finetuned, stages: Sequence[str]) -> str:
    """What the run found out instead."""
    best, last = heads.best, heads.last
    shown, cleared = percent(best.accuracy), percent(heads.accuracy)
    beside = "" if cleared == shown else f" ({cleared} once cleared of being the best of many)"
    if best is last:
        said = f"a head on the last stage is right for {shown} out of fold{beside}, and no other is clearly better"
    else:
        number = f"{len(best.taps)} {'stages' if len(best.taps) > 1 else 'stage'}"
        where = "stages of both networks" if best.taps[-1] >= len(stages) else number
        said = f"a head on {where} is right for {shown} out of fold{beside}, one on the last stage for {percent(last.accuracy)}"
    tried = [
        f"fine-tuning from {stages[result.rung.cut]} on {'was kept' if result.kept else 'did not pay'} ({100 * result.gain:+.1f} ± "
        f"{100 * result.gain_se:.1f} points)"
        for result in tuned.rungs
    ]
    return f"Measured here: {'; '.join([said, *(tried or ['no fine-tuning was tried'])])}."
