"""Which pictures stay, and which belong together: copies, near-duplicates, conflicts, leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.audit import Finding, finding, plural
from headstart.data.duplicates import Pairs, components, near_pairs, shorten
from headstart.data.facts import Facts
from headstart.data.listing import Listing
from headstart.data.sources import FileImages

_SEALED = {"": 0, "train": 0, "val": 1, "test": 2}


@dataclass(frozen=True, eq=False)
class Cleaned:
    """`kept` (M,) indices into the listing, ascending; `groups` (M,) what must not be parted."""

    kept: NDArray[np.int64]
    groups: NDArray[np.int64]
    findings: tuple[Finding, ...]


def clean(listing: Listing, facts: Facts) -> Cleaned:
    """Drop copies, and what a more sealed side shows as well; group what shows the same.

    Of copies with one label one stays, on the most sealed side (test before val before train). Copies with
    different labels all stay on that side, in one group. A near-duplicate of a picture on a more sealed side
    with the same label is dropped; other near-duplicates stay and share a group. Given groups are kept, and parted
    only where given splits part them, and so are near-duplicates with different labels.
    """
    kept, findings = _without_copies(listing, facts)
    pairs, more = _near(listing, facts, kept)
    findings += more
    kept, pairs, leaked = _without_leaks(listing, kept, pairs)
    findings += [*leaked, *_parted(listing, kept)]
    return Cleaned(kept, _groups(listing, facts, kept, pairs), tuple(findings))


def _without_copies(listing: Listing, facts: Facts) -> tuple[NDArray[np.int64], list[Finding]]:
    same: dict[str, list[int]] = {}
    for index in facts.readable.tolist():
        same.setdefault(facts.digests[index], []).append(index)
    kept, copies, links, crossing, conflicts = list[int](), list[str](), list[str](), list[str](), list[str]()
    names, images = listing.images.names, listing.images
    for members in same.values():
        sealed = max((listing.split[i] for i in members), key=lambda split: _SEALED[split])
        stay: dict[str, int] = {}
        for index in members:
            if listing.split[index] == sealed:
                stay.setdefault(listing.labels[index], index)
        kept += stay.values()
        if len({listing.labels[i] for i in members}) > 1:
            conflicts.append(" = ".join(f"{names[i]} ({listing.labels[i]})" for i in members))
        for index in set(members) - set(stay.values()):
            keeper = stay.get(listing.labels[index], next(iter(stay.values())))
            linked = isinstance(images, FileImages) and images.is_one_file(index, keeper)
            within = links if linked else copies
            (within if listing.split[index] == sealed else crossing).append(f"{names[index]} = {names[keeper]}")
    told = _copy_findings(sorted(copies), sorted(links), sorted(crossing), conflicts)
    return np.array(sorted(kept), dtype=np.int64), told


def _copy_findings(copies: list[str], links: list[str], crossing: list[str], conflicts: list[str]) -> list[Finding]:
    found = []
    if links:
        message = f"{plural(len(links), 'picture is', 'pictures are')} the same file as another with the same label."
        next_step = "It is named twice, or by a link, and counts once. Do not delete the file."
        found.append(finding("links", "warning", message, next_step, links))
    if copies:
        message = (
            f"{plural(len(copies), 'picture is an exact copy', 'pictures are exact copies')} of "
            "another with the same label."
        )
        found.append(
            finding("duplicates", "warning", message, "One of each is kept; the copies may be deleted.", copies)
        )
    if crossing:
        message = f"{plural(len(crossing), 'picture is', 'pictures are')} in two of the given splits."
        next_step = (
            "The test copy stays sealed; the train copy is not used. Earlier scores on this test set were too good."
        )
        found.append(finding("leak", "warning", message, next_step, crossing))
    if conflicts:
        message = f"{plural(len(conflicts), 'picture has', 'pictures have')} more than one label."
        next_step = "Decide which is right and delete the other; until then both are kept on one side."
        found.append(finding("conflict", "warning", message, next_step, conflicts))
    return found


def _near(listing: Listing, facts: Facts, kept: NDArray[np.int64]) -> tuple[Pairs, list[Finding]]:
    """Near-duplicates among the kept, as positions in `kept`, and what to say of them."""
    shortest = np.minimum(facts.width[kept], facts.height[kept])
    pairs = near_pairs(facts.hashes[kept], facts.thumbnails[kept], facts.colours[kept], shortest)
    digests = [facts.digests[i] for i in kept]
    different = np.array([digests[a] != digests[b] for a, b in pairs.index], dtype=bool)
    pairs, crowded = shorten(len(kept), pairs.keep(different))
    found = []
    names, labels = listing.images.names, listing.labels
    shown = [(int(kept[a]), int(kept[b])) for a, b in pairs.index]
    if shown:
        groups = components(len(kept), pairs.index)
        largest = int(np.bincount(groups).max())
        pictures = len(np.unique(pairs.index))
        message = f"{plural(pictures, 'picture')} nearly the same as another (groups of up to {largest})."
        items = [f"{names[a]} ~ {names[b]}" for a, b in shown]
        next_step = "They are kept on one side of every split."
        if any(labels[a] != labels[b] and listing.split[a] != listing.split[b] for a, b in shown):
            next_step = (
                "They are kept on one side of every split; with different labels, where the given splits have them."
            )
        found.append(finding("near_duplicates", "note", message, next_step, items))
    apart = [f"{names[a]} ({labels[a]}) ~ {names[b]} ({labels[b]})" for a, b in shown if labels[a] != labels[b]]
    if apart:
        message = f"{plural(len(apart), 'pair')} of nearly the same pictures with different labels."
        next_step = "Look at them: one label may be wrong. None is dropped for it."
        found.append(finding("near_conflict", "warning", message, next_step, apart))
    if len(crowded):
        message = (
            f"{plural(len(crowded), 'picture')} resemble so many others that they were not all kept together "
            "(simple drawings, a fixed camera, or frames of a film?)."
        )
        next_step = "If they come from a few recordings, say which in a table with a 'group' column."
        found.append(finding("crowded", "warning", message, next_step, [names[int(kept[i])] for i in crowded]))
    return pairs, found


def _without_leaks(
    listing: Listing, kept: NDArray[np.int64], pairs: Pairs
) -> tuple[NDArray[np.int64], Pairs, list[Finding]]:
    """Drop the less sealed one of near-duplicates with one label that given splits part. What has two labels is kept: the difference
    that a person saw may be too small for thumbnails."""
    if not any(listing.split):
        return kept, pairs, []
    rank = np.array([_SEALED[listing.split[i]] for i in kept], dtype=np.int64)
    first, second = pairs.index[:, 0], pairs.index[:, 1]
    labels = np.array([listing.labels[i] for i in kept], dtype=object)
    crossing = rank[first] != rank[second]
    leaking = crossing & (labels[first] == labels[second])
    loser = np.where(rank[first] < rank[second], first, second)[leaking]
    names = listing.images.names
    items = [f"{names[int(kept[a])]} ~ {names[int(kept[b])]}" for a, b in pairs.index[leaking]]
    stays = np.ones(len(kept), dtype=bool)
    stays[loser] = False
    moved = np.cumsum(stays) - 1
    inside = pairs.keep(stays[first] & stays[second] & ~crossing)
    found = []
    if len(loser):
        message = f"{plural(len(np.unique(loser)), 'picture')} nearly the same as one in a more sealed split."
        found.append(finding("near_leak", "warning", message, "Left out; the test pictures stay sealed.", items))
    return kept[stays], Pairs(moved[inside.index].astype(np.int64), inside.alike), found


def _parted(listing: Listing, kept: NDArray[np.int64]) -> list[Finding]:
    """A warning of given groups that given splits part."""
    sides: dict[str, set[str]] = {}
    for index in kept.tolist():
        sides.setdefault(listing.group[index], set()).add(listing.split[index])
    parted = sorted(name for name, found in sides.items() if name and len(found) > 1)
    if not parted:
        return []
    message = f"{plural(len(parted), 'given group stands', 'given groups stand')} in more than one of the given splits."
    next_step = "The test is then not of new groups, and its scores are too good. Give each group one split, or no splits at all."
    return [finding("parted", "warning", message, next_step, parted)]


def _groups(listing: Listing, facts: Facts, kept: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """Numbers (M,) joined by near-duplicates, by equal content, and by given groups within a split."""
    links = [pairs.index]
    seen: dict[tuple[str, str, str], int] = {}
    for position, index in enumerate(kept.tolist()):
        split = listing.split[index]
        for key in (("content", split, facts.digests[index]), ("group", split, listing.group[index])):
            if key[2]:
                links.append(np.array([[seen.setdefault(key, position), position]], dtype=np.int64))
    return components(len(kept), np.concatenate(links))
