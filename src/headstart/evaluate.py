"""Metrics on the sealed test set with paired bootstrap intervals: one set of resamples judges all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headstart.errors import DataError
from headstart.intervals import (
    Interval,
    balanced,
    balanced_tail,
    by_chance,
    calibration,
    exact_share,
    exact_tail,
    independent,
    percentiles,
    sign_test,
    unshifted,
    widest,
)
from headstart.tasks import classification
from headstart.tasks.catalog import TASKS
from headstart.tasks.resampling import Beliefs, Draws, bootstrap

Protocol = Literal["sealed test", "repeated cross-validation", "given pictures"]
DIFFERENCE_METRICS = ("accuracy", "log_loss", "balanced_accuracy")
RESAMPLED_GROUPS = 10  # of images: fewer hardly differ from resample to resample, and tell little of new ones


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scores(_Record):
    """All metrics of one model.

    `ece_uncalibrated` is the calibration error before temperature scaling. `ece_expected`: what a perfectly calibrated model that is
    as confident would show on as many pictures, on average: chance alone makes an error of calibration.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    log_loss: Interval
    ece: Interval
    ece_uncalibrated: Interval | None = None
    ece_expected: float | None = None


class Difference(_Record):
    """`metric` of model `a` minus that of model `b` on the same images, with its paired 95 % interval.

    `p` is the two-sided mid-p value of the sign test over images (McNemar's test), or over groups of them, for accuracy only.
    """

    a: str
    b: str
    metric: str
    value: float
    low: float
    high: float
    p: float | None = None


class ClassRow(_Record):
    """How the final model does on one class. `precision` is None where it was never predicted, `recall` and
    `f1` where it never was the label."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Bin(_Record):
    """One bin (low, high] of confidence: how many, how sure on average, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class TestReport(_Record):
    """The `test` block of `metrics.json`.

    `images`     pictures tested; each has `repeats` predictions under repeated cross-validation.
    `groups`     groups that they are of, such as shots of one object, which intervals and tests take as one each; None where every
                 picture stands alone.
    `opened`     how often the sealed test set was opened: 1, or 0 where none was cut.
    `confusion`  (label, predicted, count) of the final model, zero counts left out.
    """

    __test__: ClassVar[bool] = False  # pytest: not a test

    images: int
    opened: int
    protocol: Protocol
    repeats: int
    groups: int | None = None
    models: dict[str, Scores]
    differences: tuple[Difference, ...]
    classes: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, int, int], ...]
    reliability: tuple[Bin, ...]
    reliability_uncalibrated: tuple[Bin, ...] | None = None

    def difference(self, a: str, b: str, metric: str = "accuracy") -> Difference | None:
        """The paired difference of `a` and `b`, or None where it was not measured."""
        for found in self.differences:
            if (found.a, found.b, found.metric) == (a, b, metric):
                return found
        return None


def evaluate(
    labels: NDArray[np.int64],
    probabilities: Beliefs,
    *,
    uncalibrated: Beliefs | None = None,
    final: str = "final",
    classes: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    repeats: int = 1,
    groups: NDArray[np.int64] | None = None,
    protocol: Protocol | None = None,
) -> TestReport:
    """Judge all models on the same images.

    labels (N,) int64; each of `probabilities` and `uncalibrated` (N, K), rows summing to one. With `repeats`
    R > 1 the rows are R passes over N / R images in the same order, and resampling is by image. With `groups`
    (N / R,) it is by group, and the sign test counts groups: pictures of one object are right or wrong together.
    The protocol is "sealed test" unless `repeats` or `protocol` says otherwise.

    Intervals are 95 % percentile intervals over `resamples` bootstrap draws; those of macro-F1 and ECE are shifted by the bootstrap's
    estimate of their bias, and that of ECE begins at 0 where a perfectly calibrated model would show as much. That of accuracy is no
    narrower than the exact one (Clopper & Pearson 1934) of as many independent images as those of the groups are worth, that of
    balanced accuracy than one whose variance counts two more pictures of the overall accuracy in each class: few pictures hardly vary
    from resample to resample. A share of 0 or 1, which no image speaks against, has exact intervals.

    Raises:
        DataError: where shapes, labels or probabilities do not fit together.
    """
    raw = dict(uncalibrated or {})
    count = _check(labels, probabilities, raw, final, repeats)
    names = tuple(str(k) for k in range(count)) if classes is None else tuple(classes)
    if len(names) != count:
        raise DataError(f"Got {len(names)} class names for {count} columns; expected as many.")
    kept = protocol or ("sealed test" if repeats == 1 else "repeated cross-validation")
    images = len(labels) // repeats
    alone = np.arange(images)
    unit = alone if groups is None else np.unique(groups, return_inverse=True)[1]
    ways = [unit]
    if int(unit.max()) + 1 < min(RESAMPLED_GROUPS, images):
        ways.append(alone)  # so few hardly differ from resample to resample: no interval is narrower than over images
    draws = [bootstrap(labels, probabilities, raw, each, resamples, seed) for each in ways]
    predicted = probabilities[final].argmax(1)
    return TestReport(
        images=images,
        groups=int(unit.max()) + 1 if len(np.unique(unit)) < images else None,
        opened=int(kept == "sealed test"),
        protocol=kept,
        repeats=repeats,
        models={
            name: _scores(labels, belief, raw.get(name), [each[name] for each in draws], unit)
            for name, belief in probabilities.items()
        },
        differences=tuple(
            _difference(labels, probabilities, draws, a, b, metric, unit)
            for a, b in _pairs(tuple(probabilities), final)
            for metric in DIFFERENCE_METRICS
        ),
        classes=_class_rows(labels, predicted, names),
        confusion=_confusion(labels, predicted, count),
        reliability=_reliability(labels, probabilities[final]),
        reliability_uncalibrated=_reliability(labels, raw[final]) if final in raw else None,
    )


def _check(labels: NDArray[np.int64], beliefs: Beliefs, raw: Beliefs, final: str, repeats: int) -> int:
    """The number of classes, once all inputs are known to fit together."""
    if final not in beliefs or not set(raw) <= set(beliefs):
        raise DataError(
            f"Got probabilities of {sorted(beliefs)} and uncalibrated ones of {sorted(raw)}; "
            f"expected '{final}' among the first and the second to be some of the first."
        )
    if labels.ndim != 1 or not len(labels) or repeats < 1 or len(labels) % repeats:
        raise DataError(
            f"Got labels of shape {labels.shape} for {repeats} repeats; expected (N,), N a multiple of that."
        )
    if (labels.reshape(repeats, -1) != labels[: len(labels) // repeats]).any():
        raise DataError("Every repeat must list the same images in the same order; their labels differ.")
    shape = (len(labels), int(beliefs[final].shape[-1]))
    for name, belief in [*beliefs.items(), *raw.items()]:
        if belief.shape != shape:
            raise DataError(f"Got probabilities of shape {belief.shape} for '{name}'; expected {shape}.")
        if not (belief >= 0).all() or not np.allclose(belief.sum(1), 1, atol=1e-3):
            raise DataError(f"Probabilities of '{name}' must be ≥ 0, with rows that sum to 1.")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise DataError(f"Got labels {labels.min()} to {labels.max()}; expected 0 to {shape[1] - 1}.")
    return shape[1]


def _pairs(names: Sequence[str], final: str) -> list[tuple[str, str]]:
    """Which models are compared: the final one with all, then what the verdict asks of the others."""
    pairs = [(final, name) for name in names if name != final]
    asked = (("head", "scratch_cnn"), ("scratch_cnn", "majority"), ("pixels", "majority"))
    return pairs + [pair for pair in asked if set(pair) <= set(names) and pair[0] != final]


def _scores(
    labels: NDArray[np.int64],
    belief: NDArray[np.floating],
    raw: NDArray[np.floating] | None,
    draws: Sequence[Draws],
    unit: NDArray[np.int64],
) -> Scores:
    right = belief.argmax(1) == labels
    found: dict[str, Interval] = {}
    chance = by_chance(belief, len(labels))
    for name, metric in TASKS["classification"].metrics.items():
        value = metric(labels, belief)
        if name == "ece":
            found[name] = widest([calibration(value, each[name], chance) for each in draws])
        else:
            ends = unshifted if name == "macro_f1" else percentiles
            found[name] = widest([ends(value, each[name]) for each in draws])
    often = right.reshape(-1, len(unit)).mean(0)
    counted = independent(often, unit)
    low, high = exact_share(float(often.mean()) * counted, counted)
    found["accuracy"] = widest([found["accuracy"], Interval(value=found["accuracy"].value, low=low, high=high)])
    if len(np.unique(belief.argmax(1))) > 1:  # who answers all alike has the same mean recall on any pictures
        found["balanced_accuracy"] = widest([found["balanced_accuracy"], balanced(often, labels[: len(unit)], counted)])
    if right.all() or not right.any():
        # Resampling answers without an exception gives no exception; that is not yet a proof of none.
        pairs = np.unique(np.stack([labels[: len(unit)], unit]), axis=1)
        by_class = balanced_tail(np.unique(pairs[0], return_counts=True)[1])
        for name, tail in (
            ("accuracy", exact_tail(int(unit.max()) + 1)),
            ("balanced_accuracy", by_class),
            ("macro_f1", by_class),
        ):
            low, high = (tail, 1.0) if right.all() else (0.0, 1 - tail)
            found[name] = Interval(value=found[name].value, low=low, high=high)
    if raw is not None:
        value = classification.ece(labels, raw)
        chance_of_raw = by_chance(raw, len(labels))
        found["ece_uncalibrated"] = widest(
            [calibration(value, each["ece_uncalibrated"], chance_of_raw) for each in draws]
        )
    return Scores(**found, ece_expected=float(chance.mean()))


def _difference(
    labels: NDArray[np.int64],
    beliefs: Beliefs,
    draws: Sequence[Mapping[str, Draws]],
    a: str,
    b: str,
    metric: str,
    unit: NDArray[np.int64],
) -> Difference:
    """The paired difference of one metric; see `evaluate`."""
    measure = TASKS["classification"].metrics[metric]
    value = measure(labels, beliefs[a]) - measure(labels, beliefs[b])
    found = widest([percentiles(value, each[a][metric] - each[b][metric]) for each in draws])
    unit = np.tile(unit, len(labels) // len(unit))
    right = [np.bincount(unit, beliefs[name].argmax(1) == labels) for name in (a, b)]
    wins, losses = int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum())
    same = np.array_equal(beliefs[a], beliefs[b])
    if metric != "log_loss" and wins + losses == 0 and not same:
        # Two different models that never differed on n groups of images may still differ on the next ones.
        reach = 1 - exact_tail(len(right[0]))
        found = Interval(value=value, low=min(found.low, -reach), high=max(found.high, reach))
    p = sign_test(wins, losses) if metric == "accuracy" else None
    return Difference(a=a, b=b, metric=metric, value=value, low=found.low, high=found.high, p=p)


def _class_rows(labels: NDArray[np.int64], predicted: NDArray[np.int64], names: Sequence[str]) -> tuple[ClassRow, ...]:
    hits, support, calls = classification.class_counts(labels, predicted, len(names))
    return tuple(
        ClassRow(
            name=name,
            support=int(s),
            predicted=int(c),
            precision=float(h / c) if c else None,
            recall=float(h / s) if s else None,
            f1=float(2 * h / (s + c)) if s else None,
        )
        for name, h, s, c in zip(names, hits, support, calls, strict=True)
    )


def _confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[tuple[int, int, int], ...]:
    cells, counts = np.unique(labels * classes + predicted, return_counts=True)
    return tuple((int(c) // classes, int(c) % classes, int(n)) for c, n in zip(cells, counts, strict=True))


def _reliability(labels: NDArray[np.int64], belief: NDArray[np.floating]) -> tuple[Bin, ...]:
    """The non-empty bins of confidence of (N, K), in order."""
    confidence, right = belief.max(1), belief.argmax(1) == labels
    bins, width = classification.confidence_bin(confidence), 1 / classification.ECE_BINS
    return tuple(
        Bin(
            low=float(m * width),
            high=float((m + 1) * width),
            count=int((bins == m).sum()),
            confidence=float(confidence[bins == m].mean()),
            accuracy=float(right[bins == m].mean()),
        )
        for m in np.unique(bins)
    )
