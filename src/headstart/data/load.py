"""The first step of everything: a source in any layout becomes an audited, de-duplicated, split `Dataset`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.audit import (
    Audit,
    ClassCount,
    Finding,
    class_findings,
    finding,
    look_findings,
    plural,
    shape_findings,
    source_findings,
    telltale_findings,
)
from headstart.data.clean import clean
from headstart.data.dataset import SPLITS, Dataset, Particulars
from headstart.data.facts import Facts, Memory, measure
from headstart.data.listing import Columns, Listing, natural
from headstart.data.readers import read
from headstart.data.sources import Unchanged
from headstart.data.splits import assign_folds, assign_test, fold_count
from headstart.errors import DataError, TooLittleData, UnreadableImage
from headstart.options import allowed
from headstart.runtime import Progress, silent

SMALL_POOL = 120  # usable pictures below which no test set is cut: cross-validation says more than 24 test pictures
LEAST = 8  # training pictures that anything can be cross-validated on


@dataclass(frozen=True)
class _Rules:
    """What the person chose: see `load_dataset`."""

    unreadable: Literal["skip", "error"]
    rare: Literal["train", "drop", "error"]
    test_fraction: float
    folds: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("unreadable", "rare"):
            if getattr(self, name) not in allowed(name):
                raise DataError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, allowed(name)))}."
                )
        if not isinstance(self.test_fraction, Real) or not 0 < self.test_fraction < 1:
            raise DataError(f"test_fraction={self.test_fraction!r}: expected a share between 0 and 1, such as 0.2.")
        if not isinstance(self.folds, Integral) or self.folds < 2:
            raise DataError(f"folds={self.folds!r}: expected a whole number, 2 or more.")
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise DataError(f"seed={self.seed!r}: expected a whole number, 0 to 2**63 - 1.")


def load_dataset(
    source: object,
    *,
    label: str = "label",
    path: str = "path",
    split: str = "split",
    group: str = "group",
    unreadable: Literal["skip", "error"] = "skip",
    rare: Literal["train", "drop", "error"] = "train",
    test_fraction: float = 0.2,
    folds: int = 5,
    seed: int = 0,
    memory: Memory | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Read, audit, de-duplicate and split labelled pictures.

    Args:
        source: a folder, table, .npz or IDX path, arrays (images, labels), or a Hugging Face data set.
        label, path, split, group: the names of a table's columns.
        unreadable: skip pictures that cannot be read, or make them fatal.
        rare: what to do with a class of one picture: train on it without testing it, drop it, or fail.
        test_fraction: share of each class to seal where no test set is given and there are pictures enough.
        folds: cross-validation folds of the training side.
        seed: decides the splits, together with the contents of the pictures and nothing else.
        memory: remembers what was measured on each picture, so that a second run decodes none.

    Raises:
        UnreadableImage: for pictures that cannot be read, where they are fatal.
        TooLittleData: for fewer than two classes, or no class with two pictures.
        DataError: for a source in no known layout.
    """
    rules = _Rules(unreadable, rare, test_fraction, folds, seed)
    listing = read(source, Columns(label=label, path=path, split=split, group=group))
    dataset, report = _examine(listing, rules, memory, progress)
    if report.errors:
        worst = report.errors[0]
        kind = UnreadableImage if worst.kind == "unreadable" else TooLittleData
        # What was dropped, or stands under two labels, may be why so little is left.
        why = [
            found for found in report.findings if found.kind in ("duplicates", "links", "conflict", "leak", "near_leak")
        ]
        raise kind(
            "\n".join(f"{listing.source}: {found.message} {found.next_step}" for found in (*report.errors, *why))
        )
    return dataset


def audit(
    source: object,
    *,
    label: str = "label",
    path: str = "path",
    split: str = "split",
    group: str = "group",
    unreadable: Literal["skip", "error"] = "skip",
    rare: Literal["train", "drop", "error"] = "train",
    test_fraction: float = 0.2,
    folds: int = 5,
    seed: int = 0,
    memory: Memory | None = None,
    progress: Progress = silent,
) -> Audit:
    """The audit that `load_dataset` makes, also of data that cannot be used, with why nothing could be learnt from them: see its
    `errors`.

    Raises:
        DataError: for a source in no known layout.
    """
    rules = _Rules(unreadable, rare, test_fraction, folds, seed)
    listing = read(source, Columns(label=label, path=path, split=split, group=group))
    dataset, report = _examine(listing, rules, memory, progress)
    return report if report.errors else report.model_copy(update={"findings": (*report.findings, *lacking(dataset))})


def _examine(listing: Listing, rules: _Rules, memory: Memory | None, progress: Progress) -> tuple[Dataset, Audit]:
    if any(listing.split) and "train" not in listing.split:
        raise DataError(
            f"{listing.source}: got pictures for {', '.join(sorted(set(listing.split)))} and none to train on. "
            "Call those to learn from 'train': the folder, or the cell of the table."
        )
    facts = measure(listing.images, memory, progress)
    fatal = rules.unreadable == "error" or not len(facts.readable)
    findings = source_findings(listing, facts, "error" if fatal else "warning")
    cleaned = clean(listing, facts)
    findings += cleaned.findings
    sides = _sides(listing, cleaned.kept)
    kept, more = _without_lost_classes(listing, cleaned.kept, sides.split, rules)
    findings += sides.findings + more
    stay = np.isin(cleaned.kept, kept)
    dataset = _dataset(listing, facts, kept, cleaned.groups[stay], sides.split[stay])
    findings += class_findings(_counts(dataset))
    findings += shape_findings(facts, kept.tolist(), listing.images.names)
    findings += look_findings(facts, kept.tolist(), listing.images.names)
    findings += telltale_findings(facts, kept.tolist(), [listing.labels[i] for i in kept])
    if not any(found.severity == "error" and found.kind != "unreadable" for found in findings):
        dataset, more = _split(dataset, rules)
        findings += more
    report = _report(listing, facts, dataset, findings)
    return replace(dataset, audit=report), report


@dataclass(frozen=True, eq=False)
class _Sides:
    split: NDArray[np.str_]
    findings: list[Finding]


def _sides(listing: Listing, kept: NDArray[np.int64]) -> _Sides:
    """The given splits as they will be used: a lone "train" is none, "val" without "test" is the test."""
    given = set(listing.split) - {""}
    split = np.array([listing.split[i] for i in kept], dtype="<U5")
    if given == {"train"}:
        message = "Only a train split is given: a test set is cut from it."
        return _Sides(np.full(len(kept), "", dtype="<U5"), [finding("splits", "note", message)])
    if given == {"train", "val"}:
        split[split == "val"] = "test"
        message = (
            "The given 'val' is kept sealed as the test set, because there is no 'test'; folds are cut from 'train'."
        )
        return _Sides(split, [finding("splits", "note", message, "Add a test split to have 'val' used for choosing.")])
    return _Sides(split, [])


def _without_lost_classes(
    listing: Listing, kept: NDArray[np.int64], split: NDArray[np.str_], rules: _Rules
) -> tuple[NDArray[np.int64], list[Finding]]:
    """Drop what cannot be learnt (classes without a training picture) and, if chosen, lone pictures."""
    labels = [listing.labels[i] for i in kept]
    learnt = {name for name, side in zip(labels, split, strict=True) if side in ("", "train")}
    counts = Counter(labels)
    single = sorted((name for name in learnt if counts[name] == 1), key=natural)
    found = []
    lost = sorted(set(labels) - learnt, key=natural)
    if lost:
        message = f"{plural(len(lost), 'class has', 'classes have')} no training picture: {', '.join(lost[:5])}."
        found.append(finding("untrained", "warning", message, "Their pictures are not used. Add some to train.", lost))
    if single:
        action = {
            "train": ("warning", "Trained on and never tested. Add pictures, or choose rare='drop'."),
            "drop": ("warning", "Left out, as chosen."),
            "error": ("error", "Add pictures, or choose rare='train' or rare='drop'."),
        }[rules.rare]
        message = f"{plural(len(single), 'class has', 'classes have')} one picture only: {', '.join(single[:5])}."
        severity: Literal["error", "warning"] = "error" if action[0] == "error" else "warning"
        found.append(finding("rare", severity, message, action[1], single))
    away = set(lost) | (set(single) if rules.rare == "drop" else set())
    return kept[np.array([name not in away for name in labels], dtype=bool)], found


def _dataset(
    listing: Listing,
    facts: Facts,
    kept: NDArray[np.int64],
    groups: NDArray[np.int64],
    split: NDArray[np.str_],
) -> Dataset:
    names = [listing.labels[i] for i in kept]
    classes = tuple(sorted(set(names), key=natural))
    index = {name: number for number, name in enumerate(classes)}
    digests = tuple(facts.digests[i] for i in kept)
    return Dataset(
        images=Unchanged(listing.images.select(kept.tolist()), digests),
        labels=np.array([index[name] for name in names], dtype=np.int64),
        classes=classes,
        split=split,
        fold=np.full(len(kept), -1, dtype=np.int64),
        groups=np.unique(groups, return_inverse=True)[1].astype(np.int64).reshape(-1),
        digests=digests,
        source=listing.source,
        given=frozenset(set(listing.split) - {""}),
        particulars=Particulars(
            sizes=np.stack([facts.width[kept], facts.height[kept]], axis=1),
            formats=tuple(f"{facts.formats[i] or 'array'}, {facts.modes[i]}" for i in kept),
            groups=tuple(listing.group[i] for i in kept),
        ),
    )


def _split(dataset: Dataset, rules: _Rules) -> tuple[Dataset, list[Finding]]:
    """Cut a test set where none is given and there is enough, then folds from what is left for training."""
    findings = []
    split = dataset.split.copy()
    if not dataset.indices("test").size:
        pool = np.flatnonzero(split != "val")
        split[pool] = "train"
        if len(dataset) < SMALL_POOL:
            message = f"{len(dataset)} usable pictures are too few to seal some for a test."
            next_step = f"Figures come from repeated cross-validation. From {SMALL_POOL} pictures on a test set is cut."
            findings.append(finding("no_test", "note", message, next_step))
        else:
            contents = [dataset.digests[i] for i in pool]
            test = assign_test(dataset.labels[pool], dataset.groups[pool], contents, rules.test_fraction, rules.seed)
            split[pool[test]] = "test"
            if not test.any():
                findings.append(_uncut(dataset.labels[pool], dataset.groups[pool]))
    train = np.flatnonzero(split == "train")
    labels, groups = dataset.labels[train], dataset.groups[train]
    folds = fold_count(labels, groups, rules.folds)
    fold = dataset.fold.copy()
    fold[train] = assign_folds(labels, groups, [dataset.digests[i] for i in train], folds, rules.seed)
    if folds < rules.folds:
        message = f"{folds} folds instead of {rules.folds}: no class has more independent pictures to train on."
        findings.append(finding("folds", "note", message))
    done, more = _without_partial_val(replace(dataset, split=split, fold=fold))
    findings += more
    untested = [name for name, count in zip(done.classes, done.counts("test"), strict=True) if not count]
    if done.indices("test").size and untested:
        message = (
            f"{plural(len(untested), 'class is', 'classes are')} trained on but not in the test set: "
            f"{', '.join(untested[:5])}."
        )
        findings.append(
            finding("untested", "warning", message, "Nothing will be known about how well they do.", untested)
        )
    return done, findings


def _uncut(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> Finding:
    """Why enough pictures give no test set: each class must keep some to train on, and groups stay whole."""
    if np.bincount(labels).max() < 3:
        message, more = (
            "No class has the three pictures that one could be sealed of for a test.",
            "Add pictures of each class.",
        )
    else:
        number = plural(len(np.unique(groups)), "group")
        message = f"The pictures are of {number}: too few, or too large, to seal some for a test."
        more = "Add pictures of other groups: more of the same do not help."
    return finding("no_test", "warning", message, f"Figures come from repeated cross-validation. {more}")


def _without_partial_val(dataset: Dataset) -> tuple[Dataset, list[Finding]]:
    """Leave a "val" aside that lacks a class with two or more training pictures: what it approves of may be bad for that class. Folds
    take its place."""
    val, train = dataset.counts("val"), dataset.counts("train")
    missed = [name for name, held, learnt in zip(dataset.classes, val, train, strict=True) if not held and learnt > 1]
    if not val.sum() or not missed:
        return dataset, []
    message = (
        f"{plural(len(missed), 'class is', 'classes are')} trained on but not in the given 'val': {', '.join(missed[:5])}. "
        f"{plural(int(val.sum()), 'picture')} of 'val' {'is' if val.sum() == 1 else 'are'} not used; folds are cut from 'train'."
    )
    next_step = "Add pictures of every class to 'val' to have it used for choosing, or move them all to 'train'."
    left = dataset.select(np.flatnonzero(dataset.split != "val").tolist())
    return left, [finding("unvalidated", "warning", message, next_step, missed)]


def lacking(dataset: Dataset) -> list[Finding]:
    """Why no model can be made of a data set that can be read: nothing could be held out to judge by, or to test on."""
    pool = dataset.indices("train")
    labels, groups = dataset.labels[pool], dataset.groups[pool]
    apart = {(int(label), int(group)) for label, group in zip(labels, groups, strict=True)}
    learnt = len(pool) - np.bincount(groups, minlength=1).max()  # whoever is asked about a group learns from the others
    more = "Add pictures of other groups, or give the groups apart."
    if len(pool) > 1 and len(np.unique(groups)) < 2:
        message = (
            f"All {len(pool):,} training pictures belong to one group, so that none could be held out to judge by."
        )
    elif len(pool) < LEAST or len(np.unique(dataset.fold[pool])) < 2:
        message = (
            f"{plural(len(pool), 'usable training picture')} of {plural(len(dataset.classes), 'class', 'classes')}."
        )
        more = f"At least {LEAST} are needed, with two or more in some class, to cross-validate anything. Add pictures."
    elif not len(dataset.indices("test")) and (learnt < 2 or len(apart) == len({label for label, _ in apart})):
        message = (
            "No test set could be cut, and the pictures of each class (or all but one picture) belong to one group, so that none "
            "could be held out to test on."
        )
    else:
        return []
    return [finding("lacking", "error", message, more)]


def _counts(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.classes, (int(count) for count in dataset.counts()), strict=True))


def _given_groups(dataset: Dataset) -> int | None:
    given = set() if dataset.particulars is None else {group for group in dataset.particulars.groups if group}
    return len(given) or None


def _report(listing: Listing, facts: Facts, dataset: Dataset, findings: list[Finding]) -> Audit:
    sides = {side: dataset.counts(side) for side in SPLITS}
    readable = facts.readable
    sizes = np.stack([facts.width[readable], facts.height[readable]], axis=1) if len(readable) else np.zeros((1, 2))
    return Audit(
        source=listing.source,
        layout=listing.layout,
        images=len(listing.labels),
        usable=len(dataset),
        groups=_given_groups(dataset),
        classes=tuple(
            ClassCount(name=name, images=count, **{side: int(sides[side][k]) for side in SPLITS})
            for k, (name, count) in enumerate(_counts(dataset).items())
        ),
        splits={side: int(counts.sum()) for side, counts in sides.items()},
        folds=int(dataset.fold.max(initial=-1)) + 1,
        ignored=dict(listing.ignored),
        modes=dict(Counter(facts.modes[i] for i in readable).most_common()),
        formats=dict(Counter(facts.formats[i] or "array" for i in readable).most_common()),
        sizes={
            "smallest": _size(sizes.min(axis=0)),
            "median": _size(np.median(sizes, axis=0)),
            "largest": _size(sizes.max(axis=0)),
        },
        findings=tuple(findings),
    )


def _size(pair: NDArray[np.generic]) -> tuple[int, int]:
    return (int(pair.tolist()[0]), int(pair.tolist()[1]))
