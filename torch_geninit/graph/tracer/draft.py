"""A node while the graph is being made, and what the steps of making it share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.vocabulary import VERSION

Attributes = tuple[tuple[str, int | Shape], ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A node while the graph is being made.

    Attributes:
        op: primitive.
        shape: shape of the first output.
        sources: indices of the drafts it reads, without repetition, each smaller than its own.
        uses: parameters it reads.
        attributes: as :attr:`Node.attributes`.
        kernel: ATen name of the operation, for steps that look for a pattern.
    """

    op: str
    shape: Shape
    sources: tuple[int, ...] = ()
    uses: tuple[ParameterUse, ...] = ()
    attributes: Attributes = ()
    kernel: str = ""


Drafts = list[Draft]


def count_consumers(drafts: Sequence[Draft]) -> list[int]:
    """Count the operations that read each draft."""
    consumers = [0] * len(drafts)
    for draft in drafts:
        for source in draft.sources:
            consumers[source] += 1
    return consumers


def merge(drafts: Sequence[Draft], merged: Mapping[int, int | None]) -> Drafts:
    """Remove drafts, where ``merged`` says which earlier one stands for each of them, if any."""
    if not merged:
        return list(drafts)
    position: list[int | None] = []
    result: Drafts = []
    for index, draft in enumerate(drafts):
        if index in merged:
            target = merged[index]
            position.append(None if target is None else position[target])
            continue
        sources = unique(position[source] for source in draft.sources)
        position.append(len(result))
        result.append(draft if sources == draft.sources else replace(draft, sources=sources))
    return result


def unique(indices: Iterable[int | None]) -> tuple[int, ...]:
    """Return the indices in order of first appearance, without None and repetition."""
    return tuple(dict.fromkeys(index for index in indices if index is not None))


def assemble(drafts: Sequence[Draft], notes: Iterable[str] = ()) -> Architecture:
    """Freeze drafts as an architecture."""
    edges = {(source, target) for target, draft in enumerate(drafts) for source in draft.sources}
    return Architecture(
        nodes=tuple(Node(d.op, d.shape, d.uses, tuple(sorted(d.attributes))) for d in drafts),
        edges=tuple(sorted(edges)),
        vocabulary=VERSION,
        notes=tuple(notes),
    )
