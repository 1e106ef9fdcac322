"""Places in an architecture that plans and generators look for: heads, packed projections, hidden scales."""

from __future__ import annotations

from collections import defaultdict
from math import prod

from torch_geninit.graph.architecture import Architecture

WEIGHTED = frozenset(("conv", "conv_transpose", "linear", "embedding", "recurrent", "attention", "input"))
"""Primitives at which a search for the layer that feeds an operation ends."""

QUERY_KEY_VALUE = 3

NORMS = frozenset(("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"))


def head_nodes(architecture: Architecture) -> dict[int, int]:
    """Return the last linear or convolutional layers before the outputs: node index -> their outputs.

    Walks back from the output through operations with one input and no parameters (pooling, flattening,
    softmax).
    """
    before = _sources(architecture)
    found: dict[int, int] = {}
    ends = [i for i, node in enumerate(architecture.nodes) if node.op == "output"]
    pending = [source for end in ends for source in before[end]]
    while pending:
        index = pending.pop()
        node = architecture.nodes[index]
        if node.op in ("linear", "conv"):
            weight = next((use for use in node.parameters if use.role == "weight"), None)
            if weight is not None:
                found[index] = weight.shape[0]
        elif not node.parameters and len(before[index]) == 1:
            pending += before[index]
    return found


def packed_sections(architecture: Architecture) -> dict[int, int]:
    """Return linear layers that make query, key and value at once: node index -> 3.

    They feed an attention and have three times as many outputs as it.
    """
    before = _sources(architecture)
    found: dict[int, int] = {}
    for index, node in enumerate(architecture.nodes):
        if node.op != "attention":
            continue
        pending, seen = list(before[index]), set(before[index])
        while pending:
            source = pending.pop()
            feeding = architecture.nodes[source]
            if feeding.op == "linear" and prod(feeding.shape) == QUERY_KEY_VALUE * prod(node.shape):
                found[source] = QUERY_KEY_VALUE
            elif feeding.op not in WEIGHTED:
                new = [s for s in before[source] if s not in seen]
                pending += new
                seen.update(new)
    return found


def normalised_kernels(architecture: Architecture) -> set[str]:
    """Return names of kernels whose output goes to normalisations alone, so that their scale does not matter.

    BatchNorm takes a bias of the convolution out, too; a norm over several channels does not, and the
    kernel's scale against that of its bias matters. A constant that is added in between is not noticed: it is
    no node of the graph.
    """
    before = _sources(architecture)
    readers: dict[int, list[int]] = defaultdict(list)
    for source, target in architecture.edges:
        readers[source].append(target)
    hidden: set[str] = set()
    read: set[str] = set()  # by anything else
    for index, node in enumerate(architecture.nodes):
        uses = {use.role: use.name for use in node.parameters}
        alone = node.op == "conv" and "weight" in uses and len(before[index]) == 1 and bool(readers[index])
        for reader in readers[index] if alone else ():
            norm = architecture.nodes[reader]
            # In another shape its channels are not the convolution's, and a bias is not taken out.
            unbiased = norm.op == "batch_norm" and norm.shape == node.shape or "bias" not in uses
            alone = alone and norm.op in NORMS and len(before[reader]) == 1 and unbiased
        kernel = {uses["weight"]} if alone else set()
        hidden |= kernel
        read |= {use.name for use in node.parameters} - kernel
    return hidden - read


def _sources(architecture: Architecture) -> dict[int, list[int]]:
    before: dict[int, list[int]] = defaultdict(list)
    for source, target in architecture.edges:
        before[target].append(source)
    return before
