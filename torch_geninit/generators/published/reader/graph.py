"""A graph over an ordered list of vertices, and the surgery that the published hypernetworks do on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

from torch_geninit.graph.architecture import Shape


@dataclass(frozen=True)
class Leaf:
    """A parameter, and the module (of the copy) that owns it."""

    name: str
    owner: nn.Module
    shape: Shape


@dataclass(frozen=True)
class Vertex:
    """One function of the autograd graph, or a parameter (``leaf``) that it reads."""

    label: str
    leaf: Leaf | None = None
    keepdim: bool = False
    kernel_size: Shape | None = None


@dataclass
class Graph:
    """A directed graph over an ordered list of vertices."""

    vertices: list[Vertex] = field(default_factory=list)
    after: list[set[int]] = field(default_factory=list)
    before: list[set[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.vertices)

    def append(self, vertex: Vertex) -> int:
        """Add a vertex without edges and return its index."""
        self.vertices.append(vertex)
        self.after.append(set())
        self.before.append(set())
        return len(self.vertices) - 1

    def link(self, source: int, target: int) -> None:
        """Add the edge from ``source`` to ``target``, if it is not there."""
        self.after[source].add(target)
        self.before[target].add(source)

    def unlink(self, source: int, target: int) -> None:
        """Take the edge from ``source`` to ``target`` out, if it is there."""
        self.after[source].discard(target)
        self.before[target].discard(source)

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yield every edge as (source, target)."""
        return ((source, target) for source, targets in enumerate(self.after) for target in targets)

    def bridge(self, index: int) -> None:
        """Link every predecessor of a vertex to every successor; its own edges stay until it is dropped."""
        for source in sorted(self.before[index]):
            for target in sorted(self.after[index]):
                if source != target:
                    self.link(source, target)

    def isolate(self, index: int) -> None:
        """Take out all edges of a vertex."""
        for source in self.before[index]:
            self.after[source].discard(index)
        for target in self.after[index]:
            self.before[target].discard(index)
        self.after[index], self.before[index] = set(), set()

    def reorder(self, order: list[int]) -> None:
        """Keep the vertices of ``order``, in that order."""
        place = {old: new for new, old in enumerate(order)}
        self.vertices = [self.vertices[old] for old in order]
        self.after = [{place[t] for t in self.after[old] if t in place} for old in order]
        self.before = [{place[s] for s in self.before[old] if s in place} for old in order]

    def generations(self) -> list[int]:
        """Sort topologically by generations (Kahn), ties by index; what a cycle holds up is left out."""
        waiting = [len(b) for b in self.before]
        order: list[int] = []
        generation = [i for i, n in enumerate(waiting) if n == 0]
        while generation:
            order += generation
            following = []
            for source in generation:
                for target in self.after[source]:
                    waiting[target] -= 1
                    if waiting[target] == 0:
                        following.append(target)
            generation = sorted(following)
        return order


@dataclass(frozen=True)
class Place:
    """A vertex amid the list as it is during one pass."""

    graph: Graph
    index: int
    labels: list[str]
    position: int

    @property
    def label(self) -> str:
        """Label of the vertex at this place."""
        return self.labels[self.position]

    @property
    def vertex(self) -> Vertex:
        """The vertex at this place."""
        return self.graph.vertices[self.index]

    def near(self, offset: int) -> str:
        """Return the label ``offset`` places on; the list is a ring."""
        return self.labels[(self.position + offset) % len(self.labels)]


def prune(graph: Graph, patterns: Iterable[str], keep: Callable[[Place], bool]) -> None:
    """Take out, pattern by pattern, vertices whose label contains the pattern, unless ``keep`` wants them."""
    left = list(range(len(graph)))
    labels = [v.label for v in graph.vertices]
    for pattern in patterns:
        gone = set()
        for position, index in enumerate(left):
            if pattern in labels[position] and not keep(Place(graph, index, labels, position)):
                graph.bridge(index)
                gone.add(index)
        if gone:
            # only now: within a pass what was taken out still counts as a neighbour
            for index in gone:
                graph.isolate(index)
            left = [index for index in left if index not in gone]
            labels = [graph.vertices[index].label for index in left]
    graph.reorder(left)


def reachable(neighbours: list[set[int]], start: set[int]) -> set[int]:
    """Return the vertices that can be reached from ``start``, itself included."""
    seen, pending = set(start), list(start)
    while pending:
        new = neighbours[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


def sort(graph: Graph) -> None:
    """Sort topologically, the input first.

    Where a layer is used twice the walk has closed a cycle, on which the originals give up sorting: it is
    cut where the rest of the network enters it.
    """
    for i in range(len(graph)):
        graph.unlink(i, i)
    while len(order := graph.generations()) < len(graph):
        sorted_ = set(order)
        circular = [i for i in range(len(graph)) if i in reachable(graph.after, graph.after[i])]
        entry = max(circular, key=lambda i: (bool(graph.before[i] & sorted_), i))
        for source in graph.before[entry] & reachable(graph.after, {entry}):
            graph.unlink(source, entry)
    start = len(graph) - 1
    graph.reorder([start, *(i for i in order if i != start)])
