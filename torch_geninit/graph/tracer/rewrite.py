"""Small pure steps from what was recorded to an architecture.

Every step takes a list of drafts in execution order and returns a new one; each is linear in the number of
operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from torch_geninit.graph.tracer.draft import Draft, Drafts, count_consumers, merge
from torch_geninit.graph.tracer.patterns import fuse_attention, fuse_norms, name_activations

_CHANNEL_DIMENSION = {"linear": -1, "conv": 1, "conv_transpose": 1}


def simplify(drafts: Sequence[Draft]) -> Drafts:
    """Apply every step, in the order that they need."""
    result = list(drafts)
    for step in (prune, absorb_biases, name_activations, fuse_norms, fuse_attention):
        result = step(result)
    return result


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
