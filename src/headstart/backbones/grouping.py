"""Group the possible cuts of a network into a handful of stages along its own coarse structure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headstart.backbones.flow import Candidate

MOST, FEWEST = 14, 4  # stages that a backbone should have
_CEILINGS = (0.45, 0.35, 0.25, 0.15, 0.05)  # largest share of one stage; tried in turn until there are FEWEST
# A piece below both shares, of the whole network and of the piece after it, is no stage of its own.
_CRUMB_OF_ALL, _CRUMB_OF_NEXT = 0.03, 1 / 16


@dataclass(frozen=True)
class Span:
    """The dynamic ops `start..stop` (half-open) and the cut that ends them (None at the network's end)."""

    start: int
    stop: int
    end: Candidate | None


class Work:
    """Per position: `flops` (0 for norms, activations, pooling) and `weights` that no earlier position uses.

    A position's cost is 0.7 of its share in the FLOPs plus 0.3 of its share in the weights.
    """

    def __init__(self, flops: list[int], weights: list[int]) -> None:
        self.flops, self.weights = flops, weights
        all_flops, all_weights = max(sum(flops), 1), max(sum(weights), 1)
        costs = (0.7 * f / all_flops + 0.3 * w / all_weights for f, w in zip(flops, weights, strict=True))
        self.sums = [0.0]
        for cost in costs:
            self.sums.append(self.sums[-1] + cost)

    def cost(self, span: Span) -> float:
        """Share of a span in the whole network, 0 to 1."""
        return self.sums[span.stop] - self.sums[span.start]

    def bare(self, span: Span) -> bool:
        """Whether a span has no product or convolution, or no weights of its own: nothing to train there."""
        return not (any(self.flops[span.start : span.stop]) and any(self.weights[span.start : span.stop]))


def group(narrow: list[Candidate], wide: list[Candidate], work: Work) -> list[Span]:
    """Stages as consecutive spans over all positions.

    narrow: cuts that one tensor crosses; wide: cuts that a few tensors cross, for large spans without narrow
        ones.
    """
    whole = Span(0, len(work.flops), None)
    spans = [whole]
    for ceiling in _CEILINGS:
        spans = _divide(whole, narrow, wide, work, MOST - 1, ceiling)
        if len(spans) >= FEWEST:
            break
    return spans


def _divide(
    span: Span, narrow: list[Candidate], wide: list[Candidate], work: Work, limit: int, ceiling: float
) -> list[Span]:
    """Split at the shallowest cuts, split again what is still too large, then join neighbours to `limit`."""
    pieces = _shallowest(span, narrow, work) or _shallowest(span, wide, work)
    if not pieces:
        return [span]
    result: list[Span] = []
    for piece in pieces:
        share = work.cost(piece)
        if share > ceiling:
            room = max(2, math.ceil((MOST - 2) * share))
            result += _divide(piece, narrow, wide, work, room, ceiling)
        else:
            result.append(piece)
    return _join(result, work, limit)


def _shallowest(span: Span, candidates: list[Candidate], work: Work) -> list[Span]:
    """Pieces at the least module depth that divides the span into two or more; none where nothing does.

    Crumbs inside a network (a down-sampling in front of its blocks) go with the piece that follows them.
    """
    inner = [c for c in candidates if span.start <= c.position < span.stop - 1]
    for depth in sorted({c.depth for c in inner}):
        pieces = _sweep(_cut(span, [c for c in inner if c.depth <= depth], work), work)
        if len(pieces) > 1:
            return pieces
    return []


def _cut(span: Span, cuts: list[Candidate], work: Work) -> list[Span]:
    """Cut, and let bare pieces (a norm, an activation, pooling) go with what they follow."""
    pieces: list[Span] = []
    start = span.start
    ends: list[tuple[int, Candidate | None]] = [*((c.position + 1, c) for c in cuts), (span.stop, span.end)]
    for stop, end in ends:
        piece = Span(start, stop, end)
        if stop <= start:
            continue
        if pieces and (work.bare(piece) or work.bare(pieces[-1])):
            pieces[-1] = Span(pieces[-1].start, stop, end)
        else:
            pieces.append(piece)
        start = stop
    return pieces


def _sweep(pieces: list[Span], work: Work) -> list[Span]:
    """Join crumbs to the piece that follows them; a network's stem is never one."""
    swept = pieces[-1:]
    for piece in reversed(pieces[:-1]):
        after = swept[0]
        if piece.start and work.cost(piece) < min(_CRUMB_OF_ALL, _CRUMB_OF_NEXT * work.cost(after)):
            swept[0] = Span(piece.start, after.stop, after.end)
        else:
            swept.insert(0, piece)
    return swept


def _join(pieces: list[Span], work: Work, limit: int) -> list[Span]:
    """At most `limit` runs of consecutive pieces, as even as can be: the least sum of squared costs."""
    count = len(pieces)
    if count <= limit:
        return pieces
    sums = [work.sums[pieces[0].start], *(work.sums[piece.stop] for piece in pieces)]
    best = [0.0] + [math.inf] * count  # best[stop]: the least sum over the first `stop` pieces, in k runs so far
    came: list[list[int]] = []
    for _ in range(limit):
        tries = [
            min((best[start] + (sums[stop] - sums[start]) ** 2, start) for start in range(stop))
            for stop in range(1, count + 1)
        ]
        best = [math.inf, *(value for value, _ in tries)]
        came.append([0, *(start for _, start in tries)])
    runs: list[Span] = []
    stop = count
    for back in reversed(came):
        start = back[stop]
        runs.append(Span(pieces[start].start, pieces[stop - 1].stop, pieces[stop - 1].end))
        stop = start
    return runs[::-1]
