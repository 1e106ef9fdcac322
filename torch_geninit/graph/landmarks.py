"""Places in an architecture that plans and generators look for: heads, packed projections, hidden scales."""

from __future__ import annotations

from collections import defaultdict
from math import prod

from torch_geninit.graph.architecture import Architecture

WEIGHTED = frozenset(("conv", "conv_transpose", "linear", "embedding", "recurrent", "attention", "input"))
"""Primitives at which a search for the layer that feeds an operation ends."""

QUERY_KEY_VALUE = 3

CHANNEL_NORMS = frozenset(("batch_norm", "instance_norm"))
"""Primitives that normalise each channel by itself."""
NORMS = CHANNEL_NORMS | {"group_norm", "layer_norm", "rms_norm"}


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

    A norm over each channel takes a bias of the convolution out, too; one over several channels does not, and
    the kernel's scale against that of its bias matters.
    """
    readers: dict[int, set[str]] = defaultdict(set)
    for source, target in architecture.edges:
        readers[source].add(architecture.nodes[target].op)
    found = set()
    for index, node in enumerate(architecture.nodes):
        uses = {use.role: use.name for use in node.parameters}
        norms = CHANNEL_NORMS if "bias" in uses else NORMS
        if node.op == "conv" and "weight" in uses and readers[index] and readers[index] <= norms:
            found.add(uses["weight"])
    return found


def _sources(architecture: Architecture) -> dict[int, list[int]]:
    before: dict[int, list[int]] = defaultdict(list)
    for source, target in architecture.edges:
        before[target].append(source)
    return before
