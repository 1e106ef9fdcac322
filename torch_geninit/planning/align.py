"""A graph beside the model that it is said to be of: whether it fits, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torch.nn.parameter import is_lazy

from torch_geninit.graph.architecture import Architecture, ParameterUse
from torch_geninit.parameters.named import ParameterRef, canonical
from torch_geninit.planning.convolutions import CONVOLUTIONS

TELLING: dict[str, tuple[type[nn.Module], ...]] = {
    **CONVOLUTIONS,
    "batch_norm": (nn.modules.batchnorm._BatchNorm,),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
}
"""Primitives that tell which of torch's layers they came from; a linear one may come from anywhere."""


def fit(graph: Architecture, refs: Sequence[ParameterRef], model: str) -> Architecture:
    """Check a graph against the model's parameters, and make it the graph that a generator reads.

    Parameters get the names they have now: a graph may be older than the model's wrappers (torch.compile,
    DDP, fully_shard), so canonical names decide. A weight-normalised layer looks like the layer itself.
    """
    own = {ref.name: ref for ref in refs}
    by_canonical: dict[str, ParameterRef] = {}
    for ref in refs:
        by_canonical.setdefault(ref.canonical, own[ref.first or ref.name])
    read: dict[str, ParameterRef] = {}
    for name, (index, use) in graph.uses.items():
        found = own.get(name) or by_canonical.get(canonical(name))
        if found is None:
            raise ValueError(
                f"the graph is not of this {model}: it reads {name!r}, a parameter that it doesn't have. "
                "Trace this model, or leave graph= out"
            )
        compare(found, use, graph.nodes[index].op, model)
        read[name] = found
    if all(name == ref.name and ref.norm is None for name, ref in read.items()):
        return graph
    nodes = tuple(
        replace(
            node,
            parameters=tuple(
                replace(use, name=ref.name, role="weight" if ref.norm is not None else use.role)
                for use in node.parameters
                if not (ref := read[use.name]).derived
            ),
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def compare(ref: ParameterRef, use: ParameterUse, op: str, model: str) -> None:
    """Raise a ValueError if a parameter differs from the one that a node of the graph reads."""
    shape = None if is_lazy(ref.parameter) else tuple(ref.parameter.shape)
    layer = type(ref.owner)
    if shape == use.shape and (op not in TELLING or isinstance(ref.owner, TELLING[op])):
        return
    torchs_own = layer.__module__.startswith("torch.nn.modules.")
    other = torchs_own and any(isinstance(ref.owner, kinds) for name, kinds in TELLING.items() if name != op)
    if shape == use.shape and not other:
        return
    raise ValueError(
        f"the graph is not of this {model}: parameter {ref.name!r} differs:\n"
        f"  expected: {tuple(use.shape)}, read by {op}\n"
        f"  got:      {shape}, of a {layer.__name__}\n"
        "Trace this model, or leave graph= out"
    )
