"""Small pure steps from what was recorded to an architecture.

Every step takes a list of drafts in execution order and returns a new one; each is linear in the number of
operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

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
_CHANNEL_DIMENSION = {"linear": -1, "conv": 1, "conv_transpose": 1}


def simplify(drafts: Sequence[Draft]) -> Drafts:
    """Apply every step, in the order that they need."""
    result = list(drafts)
    for step in (prune, absorb_biases):
        result = step(result)
    return result


def assemble(drafts: Sequence[Draft], notes: Iterable[str] = ()) -> Architecture:
    """Freeze drafts as an architecture."""
    edges = {(source, target) for target, draft in enumerate(drafts) for source in draft.sources}
    return Architecture(
        nodes=tuple(Node(d.op, d.shape, d.uses, tuple(sorted(d.attributes))) for d in drafts),
        edges=tuple(sorted(edges)),
        vocabulary=VERSION,
        notes=tuple(notes),
    )


def prune(drafts: Drafts) -> Drafts:
    """Drop what neither the output nor an operation with parameters depends on; inputs stay."""
    alive = [draft.op in ("input", "output") or bool(draft.uses) for draft in drafts]
    for index in range(len(drafts) - 1, -1, -1):
        if alive[index]:
            for source in drafts[index].sources:
                alive[source] = True
    return merge(drafts, {index: None for index, kept in enumerate(alive) if not kept})


def absorb_biases(drafts: Drafts) -> Drafts:
    """Give a layer without bias the bias that is added to its output by the operation after it."""
    consumers = count_consumers(drafts)
    merged: dict[int, int | None] = {}
    result = list(drafts)
    for index, draft in enumerate(drafts):
        if draft.op != "bias" or len(draft.sources) != 1 or len(draft.uses) != 1:
            continue
        layer = draft.sources[0]
        owner, use = result[layer], draft.uses[0]
        dimension = _CHANNEL_DIMENSION.get(owner.op)
        if dimension is None or consumers[layer] != 1 or layer in merged:
            continue
        if any(known.role == "bias" for known in owner.uses) or len(owner.shape) < 2:
            continue
        if prod(use.shape) == owner.shape[dimension] == max(use.shape, default=1):
            result[layer] = replace(owner, uses=(*owner.uses, use))
            merged[index] = layer
    return merge(result, merged)


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


Step = Callable[[Drafts], Drafts]
