"""What is wrong with this data: findings as plain records, written as `audit.json` and shown as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headstart.data.facts import Facts
from headstart.data.listing import Listing

Severity = Literal["error", "warning", "note"]
SHOWN = 50  # names listed per finding; `total` counts them all
FEW = 10  # images per class below which a class is called small
IMBALANCE = 10.0  # ratio of the largest to the smallest class that is worth a warning
ELONGATED = 4.0  # ratio of the sides from which the central crop leaves most of a picture out
NARROW = 1 / 8  # share of the range of 16 bits below which a picture keeps too few grey levels of the 256 it is read in
BLANK = 1.0  # standard deviation, in levels, below which thumbnails are of one colour
TINY = 32  # pixels of the shortest side below which a picture is small beside larger ones


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Record):
    """One thing worth knowing: `kind` for programs, `message` and `next_step` for people, `items` names."""

    kind: str
    severity: Severity
    message: str
    next_step: str = ""
    items: tuple[str, ...] = ()
    total: int = 0

    @property
    def words(self) -> str:
        """The message and, where there is one, the next step."""
        return f"{self.message} {self.next_step}".strip()


class ClassCount(_Record):
    """Images of one class that are used, on each side."""

    name: str
    images: int
    train: int
    val: int
    test: int


class Audit(_Record):
    """A data set as found, cleaned and split.

    `images` pictures found; `usable` of them after cleaning, of so many given `groups`, None where none were given.
    `ignored` what else lay there: reason -> files.
    `modes`, `formats` Pillow's names -> pictures.  `sizes` width and height in pixels: smallest, median,
    largest.
    """

    format: int = 1
    source: str
    layout: str
    images: int
    usable: int
    groups: int | None = None
    classes: tuple[ClassCount, ...]
    splits: dict[str, int]
    folds: int
    ignored: dict[str, int]
    modes: dict[str, int]
    formats: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that forbid going on."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def ordered(self) -> tuple[Finding, ...]:
        """The findings, the gravest first."""
        return gravest_first(self.findings)

    def class_rows(self) -> list[tuple[str, int, int, int, int]]:
        """(class, images, train, val, test) of each class."""
        return [(row.name, row.images, row.train, row.val, row.test) for row in self.classes]


def finding(
    kind: str,
    severity: Severity,
    message: str,
    next_step: str = "",
    items: Iterable[str] = (),
    total: int | None = None,
) -> Finding:
    """A finding with at most `SHOWN` items and the number of all."""
    names = list(items)
    return Finding(
        kind=kind,
        severity=severity,
        message=message,
        next_step=next_step,
        items=tuple(names[:SHOWN]),
        total=len(names) if total is None else total,
    )


def gravest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes, each in their order."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda found: rank[found.severity]))


def plural(count: int, one: str, many: str = "") -> str:
    """ "1 picture", "2,000 pictures"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def left_aside(files: Mapping[str, int]) -> Finding | None:
    """What is said of files by what they are ("hidden", ".heic files") that were seen and left out; None where there are none."""
    if not files:
        return None
    parts = [f"{count:,} {what}" for what, count in files.items()]
    photos = {".heic", ".heif", ".raw", ".cr2", ".nef", ".dng"} & {what.split(" ")[0] for what in files}
    return finding(
        "ignored",
        "warning" if photos or any(what.startswith("pictures") for what in files) else "note",
        f"{plural(sum(files.values()), 'file')} left aside: {', '.join(parts)}.",
        "Convert them to JPEG to use them." if photos else "",
        parts,
    )


def source_findings(listing: Listing, facts: Facts, unreadable: Severity) -> list[Finding]:
    """What can be said before cleaning: what the reader says, ignored files, unreadable pictures."""
    found = [finding("layout", "warning", warning) for warning in listing.warnings]
    found += [finding("layout", "note", note) for note in listing.notes]
    if aside := left_aside(listing.ignored):
        found.append(aside)
    bad = [f"{listing.images.names[i]}: {why}" for i, why in enumerate(facts.reasons) if why]
    if bad:
        found.append(
            finding(
                "unreadable",
                unreadable,
                f"{plural(len(bad), 'picture')} of {len(facts.reasons):,} cannot be read: "
                f"{bad[0]}{f', and {len(bad) - 1:,} more' if len(bad) > 1 else ''}.",
                ("Repair or remove them." if unreadable == "error" else "They are skipped. Repair them to use them.")
                + " Paths in a table are absolute, or relative to its folder." * (listing.layout == "table"),
                bad,
            )
        )
    return found


def shape_findings(facts: Facts, chosen: Sequence[int], names: Sequence[str]) -> list[Finding]:
    """Odd sizes and mixed channel modes among the pictures `chosen`."""
    found = []
    width, height = facts.width[list(chosen)], facts.height[list(chosen)]
    shortest = np.minimum(width, height)
    described = [f"{names[i]}: {facts.width[i]} x {facts.height[i]}" for i in chosen]
    long = np.flatnonzero(np.maximum(width, height) >= ELONGATED * np.maximum(shortest, 1))
    if len(long):
        found.append(
            finding(
                "elongated",
                "warning",
                f"{plural(len(long), 'picture')} at least {ELONGATED:g} times as long as wide: the "
                f"central crop sees little of {'it' if len(long) == 1 else 'them'}.",
                "Crop them to what matters, if that is not their middle.",
                [described[i] for i in long],
            )
        )
    tiny = np.flatnonzero(shortest < TINY)
    if len(tiny) and np.median(shortest) >= 2 * TINY:
        found.append(
            finding(
                "tiny",
                "warning",
                f"{plural(len(tiny), 'picture')} less than {TINY} pixels high or wide among larger ones.",
                "Check that they are no icons or thumbnails.",
                [described[i] for i in tiny],
            )
        )
    modes = Counter(facts.modes[i] for i in chosen)
    if len(modes) > 1:
        listed = ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
        usual = modes.most_common(1)[0][0]
        found.append(
            finding(
                "modes",
                "note",
                f"The pictures have different channel modes ({listed}); all are read as RGB.",
                items=[f"{names[i]}: {facts.modes[i]}" for i in chosen if facts.modes[i] != usual],
            )
        )
    return found


def look_findings(facts: Facts, chosen: Sequence[int], names: Sequence[str]) -> list[Finding]:
    """Pictures among `chosen` that show little: 16 bits of which few are used, one colour throughout."""
    index = np.array(chosen, dtype=np.int64)
    spans = facts.spans[index]
    deep = ~np.isnan(spans[:, 0])
    shares = (spans[:, 1] - spans[:, 0]) / 65535
    narrow, found = shares < NARROW, []
    if narrow.any():
        usual = float(np.median(shares[narrow]))
        low, high = spans[narrow, 0].min(), spans[narrow, 1].max()
        found.append(
            finding(
                "narrow",
                "warning",
                f"{narrow.sum():,} of {plural(int(deep.sum()), '16-bit picture')} use {100 * usual:.2g} % of their range: "
                f"of 256 grey levels they keep about {math.ceil(255 * usual) + 1}.",
                f"Stretch them to the full range, all by the same two values (these lie from {low:,.0f} to {high:,.0f}).",
                [f"{names[i]}: {facts.spans[i, 0]:.0f} to {facts.spans[i, 1]:.0f}" for i in index[narrow]],
            )
        )
    blank = _blank(facts, index) & ~narrow
    if blank.any():
        count = int(blank.sum())
        found.append(
            finding(
                "blank",
                "warning",
                f"{count:,} of {plural(len(index), 'picture')} {'is' if count == 1 else 'are'} of one colour throughout.",
                "There is nothing to learn from them but their colour. Check that these are the pictures you mean."
                if count == len(index)
                else "Look at them, and remove those that failed.",
                [names[i] for i in index[blank]],
            )
        )
    return found


def _blank(facts: Facts, index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether pictures (M,) are of one colour throughout, or nearly."""
    blank = np.zeros(len(index), dtype=bool)
    for start in range(0, len(index), 4096):  # bounds the float copies
        part = index[start : start + 4096]
        grey, colour = facts.thumbnails[part].reshape(-1, 1024), facts.colours[part].reshape(-1, 64, 3)
        spread = np.maximum(grey.std(axis=1, dtype=np.float32), colour.std(axis=1, dtype=np.float32).max(axis=1))
        blank[start : start + 4096] = spread < BLANK
    return blank


def telltale_findings(facts: Facts, chosen: Sequence[int], labels: Sequence[str]) -> list[Finding]:
    """Whether format, mode or size give the class away: a model would learn how the pictures were made."""
    if len(chosen) < 20:
        return []
    majority = Counter(labels).most_common(1)[0][1] / len(labels)
    traits = {
        "file format": [facts.formats[i] for i in chosen],
        "channel mode": [facts.modes[i] for i in chosen],
        "size": [f"{facts.width[i]} x {facts.height[i]}" for i in chosen],
    }
    found = []
    for trait, values in traits.items():
        counts: dict[str, Counter[str]] = {}
        for value, label in zip(values, labels, strict=True):
            counts.setdefault(value, Counter())[label] += 1
        guessed = sum(max(inner.values()) for inner in counts.values()) / len(labels)
        # A trait with nearly as many values as pictures guesses all of them and means nothing.
        if len(counts) <= math.sqrt(len(chosen)) and guessed - majority > 0.5 * (1 - majority):
            found.append(
                finding(
                    "telltale",
                    "warning",
                    f"The {trait} alone tells the class of {guessed:.0%} of the pictures (the "
                    f"commonest class: {majority:.0%}).",
                    "A model can learn that instead of what the pictures show. Bring the classes to one "
                    "format and size before trusting a score.",
                    [
                        f"{value}: {inner.most_common(1)[0][0]} {max(inner.values())} of {sum(inner.values())}"
                        for value, inner in counts.items()
                    ],
                )
            )
    return found


def class_findings(counts: dict[str, int]) -> list[Finding]:
    """Too few classes, too few pictures in some, imbalance."""
    if len(counts) < 2:
        only = f"one class ('{next(iter(counts))}')" if counts else "no class"
        return [
            finding(
                "classes",
                "error",
                f"Got {only} with usable pictures. Expected at least two classes.",
                "Add a folder (or label) of pictures that are something else.",
            )
        ]
    found = []
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(name.strip().casefold(), []).append(name)
    if twins := [" / ".join(f"'{name}'" for name in names) for names in alike.values() if len(names) > 1]:
        message = f"Classes differ in case or spaces alone: {'; '.join(twins[:3])}."
        found.append(finding("alike", "warning", message, "Rename them where they are one class.", twins))
    if max(counts.values()) < 2:
        found.append(
            finding(
                "few",
                "error",
                "No class has more than one picture.",
                "Add pictures: two per class at the very least.",
            )
        )
    small = [f"{name}: {count}" for name, count in counts.items() if 2 <= count < FEW]
    if small:
        shown = "; ".join([*small[:3], *(["…"] if len(small) > 3 else [])])
        found.append(
            finding(
                "few",
                "warning",
                f"{plural(len(small), 'class has', 'classes have')} fewer than {FEW} pictures ({shown}).",
                f"Figures for {'it' if len(small) == 1 else 'them'} will be rough. Add pictures, or merge classes.",
                small,
            )
        )
    ratio = max(counts.values()) / min(counts.values())
    if ratio >= IMBALANCE:
        largest, smallest = (
            max(counts, key=lambda name: counts[name]),
            min(counts, key=lambda name: counts[name]),
        )
        found.append(
            finding(
                "imbalance",
                "warning",
                f"The largest class ('{largest}', {counts[largest]:,}) has {ratio:.0f} times the "
                "pictures of the "
                f"smallest ('{smallest}', {counts[smallest]:,}).",
                "Look at balanced accuracy, not accuracy alone.",
            )
        )
    return found
