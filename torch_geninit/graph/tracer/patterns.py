"""Layers that are written out in several operations: attention, norms, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from torch_geninit.graph.architecture import ParameterUse
from torch_geninit.graph.tracer.draft import Draft, Drafts, count_consumers, merge, unique

_SCORE_OPERATIONS = frozenset(("bias", "scale", "add", "mul", "activation", "tanh", "other"))
_LONGEST_SCORE_CHAIN = 8
_SQUARES = ("pow", "square", "mul")
_GATED = {"tanh": "gelu", "erf": "gelu", "sigmoid": "silu"}


def fuse_attention(drafts: Drafts) -> Drafts:
    """Make one node of ``softmax(q @ k^T [* scale] [+ mask or bias]) @ v``.

    A parameter that takes part in the scores, as a table of relative positions does, belongs to the node.
    """
    consumers = count_consumers(drafts)
    result = list(drafts)
    merged: dict[int, int | None] = {}
    for index, draft in enumerate(drafts):
        if draft.op != "matmul":
            continue
        for weights in draft.sources:
            if drafts[weights].op != "softmax" or consumers[weights] != 1:
                continue
            chain = _scores(drafts, consumers, weights)
            if chain is None or merged.keys() & chain:
                continue
            inside = {weights, *chain}
            product = drafts[chain[-1]]
            others = [s for step in chain[:-1] for s in drafts[step].sources if s not in inside]
            values = [source for source in draft.sources if source != weights]
            uses = [_in_scores(use) for step in reversed(chain) for use in drafts[step].uses]
            result[index] = Draft(
                "attention",
                draft.shape,
                unique((*product.sources, *values, *others)),
                tuple({use.name: use for use in (*uses, *draft.uses)}.values()),
            )
            merged.update(dict.fromkeys(inside))
            break
    return merge(result, merged)


def _scores(drafts: Sequence[Draft], consumers: Sequence[int], softmax: int) -> tuple[int, ...] | None:
    """Return the operations from the softmax back to the product of queries and keys, or None."""
    size = prod(drafts[softmax].shape)
    paths: list[tuple[int, ...]] = [(source,) for source in drafts[softmax].sources]
    for _ in range(_LONGEST_SCORE_CHAIN):
        longer: list[tuple[int, ...]] = []
        for path in paths:
            draft = drafts[path[-1]]
            if consumers[path[-1]] != 1 or prod(draft.shape) != size:
                continue
            if draft.op == "matmul":
                return path
            if draft.op in _SCORE_OPERATIONS:
                longer.extend((*path, source) for source in draft.sources)
        paths = longer[:_LONGEST_SCORE_CHAIN]
    return None


def _in_scores(use: ParameterUse) -> ParameterUse:
    return replace(use, role="scale") if use.role == "weight" else use


def fuse_norms(drafts: Drafts) -> Drafts:
    """Make one node of an RMS or layer norm, and of the weight and bias after it."""
    readers: list[list[int]] = [[] for _ in drafts]
    for index, draft in enumerate(drafts):
        for source in draft.sources:
            readers[source].append(index)
    result = list(drafts)
    merged: dict[int, int | None] = {}
    for index, draft in enumerate(drafts):
        found = _normalised(drafts, draft)
        if found is None:
            continue
        source, inside, centred = found
        end = index
        uses: tuple[ParameterUse, ...] = ()
        for op in ("scale", "bias"):
            if len(readers[end]) == 1:
                after = drafts[readers[end][0]]
                if after.op == op and len(after.sources) == 1 and _per_channel(after):
                    end, uses = readers[end][0], (*uses, *after.uses)
        removed = {index, *_between(drafts, index, end)} - {end}
        for step in inside:
            if all(reader in removed or reader == index for reader in readers[step]):
                removed.add(step)
        if not uses or merged.keys() & {*removed, end}:
            continue
        op = "layer_norm" if centred else "rms_norm"
        result[end] = Draft(op, drafts[end].shape, (source,), uses)
        merged.update(dict.fromkeys(removed))
    return merge(result, merged)


def _between(drafts: Sequence[Draft], start: int, end: int) -> list[int]:
    """Return the operations after ``start`` on the chain that ends in ``end``."""
    steps = []
    while end != start:
        end = drafts[end].sources[0]
        if end != start:
            steps.append(end)
    return steps


def _per_channel(draft: Draft) -> bool:
    return len(draft.uses) == 1 and prod(draft.uses[0].shape) == max(draft.uses[0].shape, default=0)


def _normalised(drafts: Sequence[Draft], product: Draft) -> tuple[int, list[int], bool] | None:
    """Match ``x * rsqrt(mean(x**2))``: return x, the operations inside, and whether x is centred before."""
    if product.op != "mul" or len(product.sources) != 2:
        return None
    for x, root in (product.sources, product.sources[::-1]):
        if (drafts[root].kernel, product.kernel) not in (("rsqrt", "mul"), ("sqrt", "div")):
            continue
        if product.kernel == "div" and product.sources[0] != x:
            continue
        inside = [root]
        for kernels in (("mean",), _SQUARES):
            sources = drafts[inside[-1]].sources
            if len(sources) != 1 or drafts[sources[0]].kernel not in kernels:
                break
            inside.append(sources[0])
        else:
            (squared,) = drafts[inside[-1]].sources
            if squared != x and not _same_difference(drafts[squared], drafts[x]):
                continue
            centred = _centred(drafts, x)
            if centred is not None:
                return centred[0], list(dict.fromkeys((*inside, squared, *centred[1]))), True
            if squared == x:
                return x, inside, False
    return None


def _same_difference(a: Draft, b: Draft) -> bool:
    """Whether the same mean is removed twice, as code that computes it in two places does."""
    return a.kernel == b.kernel == "sub" and a.sources == b.sources


def _centred(drafts: Sequence[Draft], x: int) -> tuple[int, list[int]] | None:
    """Match ``x - mean(x)``."""
    difference = drafts[x]
    if difference.op != "add" or len(difference.sources) != 2:
        return None
    for source, mean in (difference.sources, difference.sources[::-1]):
        if drafts[mean].kernel == "mean" and drafts[mean].sources == (source,):
            return source, [x, mean]
    return None


def name_activations(drafts: Drafts) -> Drafts:
    """Make one node of ``x * sigmoid(x)`` and of GELU written with tanh or erf."""
    readers: list[int] = count_consumers(drafts)
    result = list(drafts)
    merged: dict[int, int | None] = {}
    for index, draft in enumerate(drafts):
        if draft.op != "mul" or len(draft.sources) != 2 or draft.uses:
            continue
        for x, gate in (draft.sources, draft.sources[::-1]):
            op = _GATED.get(drafts[gate].kernel)
            if op is None or readers[gate] != 1 or gate in merged:
                continue
            inside = _polynomial(drafts, readers, gate, x) if drafts[gate].kernel == "tanh" else [gate]
            if inside is None or drafts[inside[-1]].sources not in ((x,),):
                continue
            result[index] = Draft(op, draft.shape, (x,))
            merged.update(dict.fromkeys(inside))
            break
    return merge(result, merged)


def _polynomial(drafts: Sequence[Draft], readers: Sequence[int], gate: int, x: int) -> list[int] | None:
    """Match ``tanh(a * (x + b * x**3))``."""
    (inner,) = drafts[gate].sources
    if drafts[inner].op != "add" or readers[inner] != 1 or x not in drafts[inner].sources:
        return None
    cubes = [source for source in drafts[inner].sources if source != x]
    if len(cubes) == 1 and drafts[cubes[0]].kernel == "pow" and readers[cubes[0]] == 1:
        return [gate, inner, cubes[0]]
    return None
