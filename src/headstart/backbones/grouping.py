"""Group the possible cuts of a network into a handful of stages along its own coarse structure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headstart.backbones.flow import Candidate

MOST, FEWEST = 14, 4  # stages that a backbone should have
# A piece below both shares, of the whole network and of the piece after it, is no stage of its own.
CRUMB_OF_ALL, CRUMB_OF_NEXT = 0.03, 1 / 16
_CEILINGS = (0.45, 0.35, 0.25, 0.15, 0.05)  # tried in turn until there are FEWEST stages


@dataclass(frozen=True)
class Span:
    """The dynamic ops `start..stop` (half-open) and the cut that ends them (None at the network's end)."""

    start: int
    stop: int
    end: Candidate | None


def group(narrow: list[Candidate], wide: list[Candidate], costs: list[float], flops: list[int]) -> list[Span]:
    """Stages as consecutive spans over all positions.

    narrow: cuts that one tensor crosses; wide: cuts that a few tensors cross, used where a large span has no
        narrow one. costs: share of each position in the whole (sums to 1); flops: its FLOPs (0 for
        activations, norms, pooling).
    """
    whole = Span(0, len(costs), None)
    spans = [whole]
    for ceiling in _CEILINGS:
        spans = _divide(whole, narrow, wide, costs, flops, MOST - 1, ceiling)
        if len(spans) >= FEWEST:
            break
    return spans


def _divide(
    span: Span, narrow: list[Candidate], wide: list[Candidate], costs: list[float], flops: list[int],
    limit: int, ceiling: float,
) -> list[Span]:  # fmt: skip
    """Split at the shallowest cuts, split again what is still too large, then join neighbours down to
    `limit`."""
    pieces = _shallowest(span, narrow, costs, flops) or _shallowest(span, wide, costs, flops)
    if not pieces:
        return [span]
    result: list[Span] = []
    for piece in pieces:
        share = sum(costs[piece.start : piece.stop])
        if share > ceiling:
            room = max(2, math.ceil((MOST - 2) * share))
            result += _divide(piece, narrow, wide, costs, flops, room, ceiling)
        else:
            result.append(piece)
    return _join(result, costs, limit)


def _shallowest(span: Span, candidates: list[Candidate], costs: list[float], flops: list[int]) -> list[Span]:
    """Pieces at the least module depth that divides the span into two or more; none where nothing does.

    Crumbs inside a network (a down-sampling in front of its blocks) go with the piece that follows them.
    """
    inner = [c for c in candidates if span.start <= c.position < span.stop - 1]
    for depth in sorted({c.depth for c in inner}):
        pieces = _cut(span, [c for c in inner if c.depth <= depth], flops)
        pieces = _sweep(pieces, costs)
        if len(pieces) > 1:
            return pieces
    return []


def _sweep(pieces: list[Span], costs: list[float]) -> list[Span]:
    """Join crumbs to the piece that follows them; a network's stem is never one."""
    swept = pieces[-1:]
    for piece in reversed(pieces[:-1]):
        following = swept[0]
        cost, after = (sum(costs[p.start : p.stop]) for p in (piece, following))
        if piece.start and cost < min(CRUMB_OF_ALL, CRUMB_OF_NEXT * after):
            swept[0] = Span(piece.start, following.stop, following.end)
        else:
            swept.insert(0, piece)
    return swept


def _cut(span: Span, cuts: list[Candidate], flops: list[int]) -> list[Span]:
    """Cut, and let what does no matrix product or convolution (norm, activation, pooling) go with what it
    follows."""
    pieces: list[Span] = []
    start = span.start
    ends: list[tuple[int, Candidate | None]] = [*((c.position + 1, c) for c in cuts), (span.stop, span.end)]
    for stop, end in ends:
        if stop <= start:
            continue
        bare = not any(flops[start:stop])
        unfilled = bool(pieces) and not any(flops[pieces[-1].start : pieces[-1].stop])
        if pieces and (bare or unfilled):
            pieces[-1] = Span(pieces[-1].start, stop, end)
        else:
            pieces.append(Span(start, stop, end))
        start = stop
    return pieces


def _join(pieces: list[Span], costs: list[float], limit: int) -> list[Span]:
    """At most `limit` runs of consecutive pieces, as even as can be: the least sum of squared costs."""
    count = len(pieces)
    if count <= limit:
        return pieces
    sums = [0.0]
    for piece in pieces:
        sums.append(sums[-1] + sum(costs[piece.start : piece.stop]))
    best = [[0.0] + [float("inf")] * count]
    came: list[list[int]] = [[0] * (count + 1)]
    for _ in range(limit):
        row, back = [float("inf")] * (count + 1), [0] * (count + 1)
        for stop in range(1, count + 1):
            tries = [(best[-1][start] + (sums[stop] - sums[start]) ** 2, start) for start in range(stop)]
            row[stop], back[stop] = min(tries)
        best.append(row)
        came.append(back)
    runs: list[Span] = []
    stop = count
    for step in range(limit, 0, -1):
        start = came[step][stop]
        runs.append(Span(pieces[start].start, pieces[stop - 1].stop, pieces[stop - 1].end))
        stop = start
    return runs[::-1]
