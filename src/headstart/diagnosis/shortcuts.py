"""Shortcut suspicion: how pictures were made tells their class, be it by size, file format, border, or light and colour.

Each trait alone answers for every training picture that raced by the five that are most alike in it, in other folds. Size, format
and border are no content: they are suspicious where they set some class apart. Natural pictures have a border, too, which tells as
much as what lies a little further in, so that is what a border is held against. Colour may well be what classes differ in; it is
suspicious where it tells nearly as much as the best head does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # scipy.stats has it, too, and takes half a second to import

from headstart.baselines import Thumbnails, pixel_features
from headstart.data.audit import Finding, finding, plural
from headstart.data.dataset import Dataset
from headstart.diagnosis.neighbours import nearest
from headstart.race import Race
from headstart.solvers import BLOCK
from headstart.verdict import percent

VOTERS = 5  # the pictures most alike that answer
FEWEST = 20  # pictures that a trait is looked at in at least
OWN = 8  # pictures of a class that may be set apart at least
SET_APART = 0.5  # informedness from which a trait sets a class apart
FURTHER_IN = 0.25  # informedness by which a border must exceed what lies further in
LEVEL = 0.005  # chance of a false alarm of one trait, over all classes
NEARLY = 0.75  # share of what the best head gains over the commonest class, from which colour alone is suspicious
_CELLS, _INSIDE = 16, 2  # side of the pictures in which border and colour are looked at; where the inside begins

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Recognition:
    """Of each class (K,): share of its pictures that a trait recognises, of the others that are taken for it, smoothed."""

    recognised: NDArray[np.float64]
    mistaken: NDArray[np.float64]
    error: NDArray[np.float64]

    @classmethod
    def of(cls, answers: Labels, labels: Labels, classes: int) -> Recognition:
        """From answers and labels (N,); one picture of each kind is added, so that none of none and all of one say little."""
        own, calls = np.bincount(labels, minlength=classes), np.bincount(answers, minlength=classes)
        hits = np.bincount(labels[answers == labels], minlength=classes)
        others = len(labels) - own
        recognised, mistaken = (hits + 1) / (own + 2), (calls - hits + 1) / (others + 2)
        spread = recognised * (1 - recognised) / (own + 2) + mistaken * (1 - mistaken) / (others + 2)
        return cls(recognised, mistaken, np.sqrt(spread))

    @property
    def informedness(self) -> NDArray[np.float64]:
        """Recognised less mistaken: 0 for guessing, 1 for knowing (Youden 1950)."""
        return self.recognised - self.mistaken


def shortcuts(dataset: Dataset, heads: Race, thumbs: Thumbnails) -> tuple[Finding, ...]:
    """Warnings of traits that tell the class, though they are no content, or though they should not tell as much."""
    pool = heads.pool
    if len(pool) < FEWEST:
        return ()
    blocks = [pool[start : start + BLOCK] for start in range(0, len(pool), BLOCK)]
    cells = np.concatenate([pixel_features(thumbs.read(block), _CELLS) for block in blocks])
    cells = cells.reshape(len(pool), _CELLS, _CELLS, 3)
    inside = cells[:, _INSIDE:-_INSIDE, _INSIDE:-_INSIDE]
    return (*_of_files(dataset, pool), *_of_border(dataset, pool, cells), *_of_colour(dataset, heads, inside))


def _of_files(dataset: Dataset, pool: Labels) -> list[Finding]:
    """What width, height and format tell."""
    if dataset.particulars is None:
        return []
    known, labels = dataset.particulars.select(pool), dataset.labels[pool]
    kinds = np.array(known.formats)[:, None] == np.unique(known.formats)
    sizes = [f"{width} x {height} pixels" for width, height in known.sizes]
    found = []
    for what, values, words in (
        ("size", np.log(np.maximum(known.sizes, 1)), sizes),
        ("file format", kinds.astype(float), known.formats),
    ):
        apart = set_apart(_answers(values, labels, dataset.fold[pool]), labels, len(dataset.classes))
        if len(apart):
            rows = [_commonest(dataset.classes[k], words, np.flatnonzero(labels == k)) for k in apart]
            next_step = (
                f"Save the pictures of all classes with one {what} and fit again: what is lost then was no content."
            )
            found.append(_warning(what, apart, dataset, rows, next_step))
    return found


def _of_border(dataset: Dataset, pool: Labels, cells: NDArray[np.float32]) -> list[Finding]:
    """What the outermost cells tell that those a little further in do not."""
    labels, fold = dataset.labels[pool], dataset.fold[pool]
    outside, inside = (_answers(frame(cells, place), labels, fold) for place in (0, _INSIDE))
    apart = set_apart(outside, labels, len(dataset.classes), inside)
    if not len(apart):
        return []
    edge, rest = cells[:, [0, -1]].mean((1, 2, 3)), cells[:, _INSIDE:-_INSIDE].mean((1, 2, 3))
    rows = [
        f"{dataset.classes[k]}: brightness of the upper and lower edge {percent(edge[labels == k].mean())}, "
        f"of the rest {percent(rest[labels == k].mean())}"
        for k in apart
    ]
    next_step = "Crop the borders off and fit again: what is lost then was no content."
    return [_warning("border", apart, dataset, rows, next_step)]


def _commonest(name: str, words: Sequence[str], members: Labels) -> str:
    word, count = Counter(words[i] for i in members).most_common(1)[0]
    return f"{name}: {count} of {len(members)} are {word}"


def frame(cells: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    """Median colours (N, 6) of (N, S, S, 3) `place` cells from the edge: above and below, left and right.

    A border is a colour that most of an edge has; what reaches the edge here and there is content, and leaves the median as it is.
    """
    stop = cells.shape[1] - place
    level = np.concatenate([cells[:, place, place:stop], cells[:, stop - 1, place:stop]], 1)
    upright = np.concatenate([cells[:, place:stop, place], cells[:, place:stop, stop - 1]], 1)
    return np.concatenate([np.median(level, 1), np.median(upright, 1)], 1)


def _answers(values: NDArray[np.floating], labels: Labels, folds: Labels) -> Labels:
    """The class (N,) of most of those in other folds that are most alike in `values` (N, D); of equals the nearest counts more."""
    z = ((values - values.mean(0)) / np.maximum(values.std(0), 1e-6)).astype(np.float32)
    apart, places = nearest(z, z, VOTERS, folds, folds)
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    weights = np.isfinite(apart) * np.linspace(1.1, 1.0, VOTERS)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[places]), weights)
    return np.asarray(votes.argmax(1), np.int64)


def set_apart(answers: Labels, labels: Labels, classes: int, beside: Labels | None = None) -> Labels:
    """Classes that the answers (N,) set apart for sure, the most so first; with answers `beside`, clearly better than these do."""
    told = Recognition.of(answers, labels, classes)
    lead, error, least = told.informedness, told.error, 0.0
    if beside is not None:
        other = Recognition.of(beside, labels, classes)
        lead, error, least = lead - other.informedness, np.hypot(error, other.error), FURTHER_IN
    sure = lead + float(ndtri(LEVEL / classes)) * error > 0
    enough = np.bincount(labels, minlength=classes) >= OWN
    chosen = np.flatnonzero((told.informedness >= SET_APART) & (lead >= least) & sure & enough)
    return chosen[np.argsort(-told.informedness[chosen], kind="stable")]


def _warning(what: str, apart: Labels, dataset: Dataset, rows: list[str], next_step: str) -> Finding:
    others = f" and {plural(len(apart) - 1, 'other class', 'other classes')}" if len(apart) > 1 else ""
    message = (
        f"The {what} of a picture alone tells '{dataset.classes[apart[0]]}'{others} from the rest ({rows[0]}). A model can learn that "
        "instead of what the pictures show."
    )
    return finding(f"shortcut_{what.split()[-1]}", "warning", message, next_step, rows)


def _of_colour(dataset: Dataset, heads: Race, inside: NDArray[np.float32]) -> list[Finding]:
    """What the mean colour tells, beside the best head on the same pictures; the spread of colours is texture, hence content."""
    labels, means = dataset.labels[heads.pool], inside.mean((1, 2))
    right = _answers(means, labels, dataset.fold[heads.pool]) == labels
    commonest = labels == np.bincount(labels).argmax()
    gain = right.astype(float) - commonest
    best = float((heads.best.logits.argmax(1) == labels).mean())
    possible = best - float(commonest.mean())
    if possible <= 0 or gain.mean() < max(NEARLY * possible, -float(ndtri(LEVEL)) * gain.std() / len(gain) ** 0.5):
        return []
    rows = [
        "{}: red {:.0f} %, green {:.0f} %, blue {:.0f} %".format(
            dataset.classes[k], *(100 * means[labels == k].mean(0))
        )
        for k in np.unique(labels)
    ]
    message = (
        f"The mean colour alone tells the class of {percent(right.mean())} of the training pictures, out of fold; the commonest "
        f"class is {percent(commonest.mean())} of them, and the best head on frozen features is right in {percent(best)}. The model "
        "may know light, camera or background instead of what the pictures show."
    )
    next_step = (
        "If colour is not what should tell the classes apart, take the pictures of all classes in the same light, or fit copies in "
        "shades of grey of equal brightness and see what is left."
    )
    return [finding("shortcut_colour", "warning", message, next_step, rows)]
