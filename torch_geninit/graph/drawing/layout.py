"""Where the boxes and wires of a drawn graph go: layers from top to bottom, in nearly linear time.

The longest path runs straight down the middle. A wire that skips layers or changes columns leaves its box
beside the middle, runs down a lane of its own between two columns, and enters from the side it comes from:
wires of different sources share a line only where they enter the same box, so a drawing can be read without
guessing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Edge = tuple[int, int]

GAP = 14.0
"""Height between two layers without a wire that turns there."""
TRACK = 7.0
"""Distance of two horizontal stretches in the same gap."""
LANE = 8.0
"""Distance of two vertical stretches between the same columns."""
GUTTER = 22.0
EXIT, ENTRY = 26.0, 14.0
"""Distance from a box's middle at which a turning wire leaves and enters: unequal, lest one hide another."""
MARGIN = 16.0


@dataclass(frozen=True)
class Box:
    """A node's rectangle, by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(frozen=True)
class Layout:
    """Boxes by node index, corners of each edge's wire, and the extent of it all."""

    boxes: tuple[Box, ...]
    wires: Mapping[Edge, tuple[Point, ...]]
    width: float
    height: float


def arrange(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], sources: frozenset[int]) -> Layout:
    """Place boxes of these (width, height) and route the edges.

    Args:
        sizes: of the boxes, nodes in topological order.
        edges: (source, target) with source < target.
        sources: nodes to put on top; others without predecessor go right above their first reader.
    """
    after: list[list[int]] = [[] for _ in sizes]
    before: list[list[int]] = [[] for _ in sizes]
    for source, target in edges:
        after[source].append(target)
        before[target].append(source)
    rank = _ranks(before, after, sources)
    heir = _heirs(before, after, rank)
    column = _columns(before, after, rank, heir)
    turning = [(u, v) for u, v in edges if heir[u] != v]
    buses = _buses(turning, rank, column)
    lanes = _lanes(buses)
    lowest, highest = min(column, default=0), max(column, default=0)
    widest: dict[int, float] = defaultdict(float)
    for node, (width, _) in enumerate(sizes):
        widest[column[node]] = max(widest[column[node]], width)
    used: dict[int, int] = defaultdict(int)
    for source, lane in lanes.items():
        used[buses[source].gutter] = max(used[buses[source].gutter], lane + 1)
    left: dict[int, float] = {}
    centre: dict[int, float] = {}
    x = MARGIN
    for index in range(lowest - 1, highest + 1):
        left[index] = x
        outer = index in (lowest - 1, highest)
        x += (0.0 if outer else GUTTER) + (LANE * used[index] + GUTTER / 2 if used[index] else 0.0)
        if index < highest:
            centre[index + 1] = x + widest[index + 1] / 2
            x += widest[index + 1]
        left[index + 1] = x
    width = x + MARGIN
    lane_x = {
        source: left[buses[source].gutter] + GUTTER / 2 + LANE * (lane + 0.5)
        for source, lane in lanes.items()
    }
    tracks, counts = _tracks(turning, rank, column, centre, buses, lane_x)
    heights: dict[int, float] = defaultdict(float)
    for node, (_, height) in enumerate(sizes):
        heights[rank[node]] = max(heights[rank[node]], height)
    tops: list[float] = []
    y = MARGIN
    for level in range(max(rank, default=-1) + 1):
        tops.append(y)
        y += heights[level] + (GAP if not counts[level] else GAP + TRACK * (counts[level] + 1))
    boxes = tuple(
        Box(centre[column[n]] - w / 2, tops[rank[n]] + (heights[rank[n]] - h) / 2, w, h)
        for n, (w, h) in enumerate(sizes)
    )

    def track_y(source: int, level: int) -> float:
        return tops[level] + heights[level] + GAP / 2 + TRACK * (tracks[source, level] + 0.5)

    wires: dict[Edge, tuple[Point, ...]] = {}
    for u, v in edges:
        start, end = boxes[u], boxes[v]
        if heir[u] == v:
            wires[u, v] = ((start.middle, start.bottom), (end.middle, end.y))
            continue
        out_x, in_x = _ports(buses.get(u), start.middle, end.middle, lane_x.get(u), rank[v] == rank[u] + 1)
        high, low = track_y(u, rank[u]), track_y(u, rank[v] - 1)
        path = [(out_x, start.bottom), (out_x, high)]
        if rank[v] > rank[u] + 1:
            path += [(lane_x[u], high), (lane_x[u], low)]
        wires[u, v] = (*path, (in_x, low), (in_x, end.y))
    return Layout(boxes, wires, width, y + MARGIN)


def _ranks(before: Sequence[list[int]], after: Sequence[list[int]], sources: frozenset[int]) -> list[int]:
    """Longest path from the top; what starts in the middle is drawn just above its first reader."""
    rank = [0] * len(before)
    for node, predecessors in enumerate(before):
        rank[node] = max((rank[p] + 1 for p in predecessors), default=0)
    for node, predecessors in enumerate(before):
        if not predecessors and node not in sources and after[node]:
            rank[node] = min(rank[s] for s in after[node]) - 1
    return rank


def _heirs(before: Sequence[list[int]], after: Sequence[list[int]], rank: Sequence[int]) -> list[int | None]:
    """Return for each node the one that goes straight below it: its chain goes on where most follows."""
    count = len(before)
    remaining = [0] * count
    for node in range(count - 1, -1, -1):
        remaining[node] = max((remaining[s] + 1 for s in after[node]), default=0)
    claims: list[list[int]] = [[] for _ in range(count)]
    for node in range(count):
        below = [s for s in after[node] if rank[s] == rank[node] + 1]
        if below:
            claims[max(below, key=lambda s: (remaining[s], -s))].append(node)
    heir: list[int | None] = [None] * count
    length = [1] * count
    for node in sorted(range(count), key=rank.__getitem__):
        if claims[node]:
            parent = max(claims[node], key=lambda p: (length[p], -p))
            heir[parent] = node
            length[node] = length[parent] + 1
    return heir


def _columns(
    before: Sequence[list[int]],
    after: Sequence[list[int]],
    rank: Sequence[int],
    heir: Sequence[int | None],
) -> list[int]:
    """Give each chain a column: the longest path the middle one, others a free one nearby."""
    inherited = {child for child in heir if child is not None}
    chains: list[list[int]] = []
    for node in range(len(heir)):
        if node not in inherited:
            chain = [node]
            while (child := heir[chain[-1]]) is not None:
                chain.append(child)
            chains.append(chain)
    column = [0] * len(heir)
    if not chains:
        return column
    spine = max(chains, key=len)
    top, bottom = rank[spine[0]], rank[spine[-1]]
    last: dict[int, int] = {}
    for chain in sorted(chains, key=lambda c: (rank[c[0]], c[0])):
        if chain is spine:
            continue
        first, end = rank[chain[0]], rank[chain[-1]]
        beside = before[chain[0]] or after[chain[-1]]
        anchor = column[beside[0]] if beside else 0
        outwards = 1 if anchor >= 0 else -1
        found = next(
            c
            for distance in range(len(chains) + abs(anchor) + 1)
            for c in (anchor + outwards * distance, anchor - outwards * distance)
            if last.get(c, -1) < first and (c != 0 or end < top or first > bottom)
        )
        last[found] = end
        for node in chain:
            column[node] = found
    return column


@dataclass(frozen=True)
class _Bus:
    """The wires of a source that skip layers: from gap ``first`` to ``last``, right of column ``gutter``."""

    gutter: int
    first: int
    last: int
    right: bool


def _buses(turning: Sequence[Edge], rank: Sequence[int], column: Sequence[int]) -> dict[int, _Bus]:
    targets: dict[int, list[int]] = defaultdict(list)
    for u, v in turning:
        if rank[v] > rank[u] + 1:
            targets[u].append(v)
    buses = {}
    for u, found in targets.items():
        right = 2 * sum(column[v] >= column[u] for v in found) >= len(found)
        gutter = column[u] if right else column[u] - 1
        buses[u] = _Bus(gutter, rank[u], max(rank[v] for v in found) - 1, right)
    return buses


def _lanes(buses: Mapping[int, _Bus]) -> dict[int, int]:
    """Give buses of a gutter lanes in which they don't meet; short ones next to their column."""
    taken: dict[int, list[list[tuple[int, int]]]] = defaultdict(list)
    lanes: dict[int, int] = {}
    for source, bus in sorted(buses.items(), key=lambda item: (item[1].last - item[1].first, item[0])):
        gutter = taken[bus.gutter]
        lane = next((i for i, intervals in enumerate(gutter) if _free(intervals, bus)), len(gutter))
        if lane == len(gutter):
            gutter.append([])
        insort(gutter[lane], (bus.first, bus.last))
        lanes[source] = lane
    return lanes


def _free(intervals: Sequence[tuple[int, int]], bus: _Bus) -> bool:
    """Whether a bus meets none of these disjoint, sorted intervals."""
    place = bisect_left(intervals, (bus.first, bus.last))
    below = place == 0 or intervals[place - 1][1] < bus.first
    return below and (place == len(intervals) or intervals[place][0] > bus.last)


def _ports(
    bus: _Bus | None, start: float, end: float, lane: float | None, adjacent: bool
) -> tuple[float, float]:
    """Return where a wire leaves and enters, on the sides on which it goes and comes."""
    leaves = end if adjacent or lane is None else lane
    if bus is not None:
        leaves = start + 1 if bus.right else start - 1
    comes = start if adjacent or lane is None else lane
    return start + (EXIT if leaves >= start else -EXIT), end + (ENTRY if comes >= end else -ENTRY)


def _tracks(
    turning: Sequence[Edge],
    rank: Sequence[int],
    column: Sequence[int],
    centre: Mapping[int, float],
    buses: Mapping[int, _Bus],
    lane_x: Mapping[int, float],
) -> tuple[dict[tuple[int, int], int], dict[int, int]]:
    """Give each source's horizontal stretch in a gap a track in which it meets no other's."""
    extents: dict[tuple[int, int], list[float]] = defaultdict(list)
    for u, v in turning:
        adjacent = rank[v] == rank[u] + 1
        start, end = centre[column[u]], centre[column[v]]
        ports = _ports(buses.get(u), start, end, lane_x.get(u), adjacent)
        extents[u, rank[u]] += [ports[0], ports[1] if adjacent else lane_x[u]]
        extents[u, rank[v] - 1] += [ports[1], ports[0] if adjacent else lane_x[u]]
    ends: dict[int, list[float]] = defaultdict(list)
    tracks: dict[tuple[int, int], int] = {}
    for (source, level), points in sorted(extents.items(), key=lambda item: (item[0][1], min(item[1]))):
        low, high = min(points), max(points)
        free = next((t for t, end in enumerate(ends[level]) if end + TRACK < low), len(ends[level]))
        if free == len(ends[level]):
            ends[level].append(high)
        else:
            ends[level][free] = high
        tracks[source, level] = free
    return tracks, defaultdict(int, {level: len(found) for level, found in ends.items()})
