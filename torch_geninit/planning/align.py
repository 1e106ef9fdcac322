"""A graph beside the model that it is said to be of: whether it fits, and under which names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import nn
from torch.nn.parameter import is_lazy

from torch_geninit.graph.architecture import Architecture
from torch_geninit.parameters.named import ParameterRef, canonical
from torch_geninit.planning.convolutions import CONVOLUTIONS

TELLING: dict[str, tuple[type[nn.Module], ...]] = {
    **CONVOLUTIONS,
    "batch_norm": (nn.modules.batchnorm._BatchNorm,),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
}
"""Primitives that tell which of torch's layers they came from; a linear one may come from anywhere."""


def fit(graph: Architecture, refs: Sequence[ParameterRef]) -> Architecture:
    """Make a graph of this model the one that a generator reads.

    Parameters get the names they have now: a graph may be older than the model's wrappers (torch.compile,
    DDP, fully_shard), so canonical names decide. A weight-normalised layer looks like the layer itself.
    """
    find = _finder(refs)
    read = {name: ref for name in graph.uses if (ref := find(name)) is not None}
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


def _finder(refs: Sequence[ParameterRef]) -> Callable[[str], ParameterRef | None]:
    own = {ref.name: ref for ref in refs}
    by_canonical: dict[str, ParameterRef] = {}
    for ref in refs:
        by_canonical.setdefault(ref.canonical, own[ref.first or ref.name])
    return lambda name: own.get(name) or by_canonical.get(canonical(name))


def check(
    graph: Architecture, refs: Sequence[ParameterRef], model: nn.Module, trace: Callable[[], Architecture]
) -> None:
    """Refuse a graph that was passed and is of another model.

    A model may read a layer's weight with another operation than the layer's own. Where that is in doubt,
    a trace of the model decides, if it can be traced.

    Raises:
        ValueError: names the first parameter that differs.
    """
    find = _finder(refs)
    fresh: Architecture | None = None
    for name, (index, use) in graph.uses.items():
        ref, op = find(name), graph.nodes[index].op
        if ref is None:
            raise ValueError(
                f"the graph is not of this {type(model).__name__}: it reads {name!r}, a parameter that it "
                "doesn't have. Trace this model, or leave graph= out"
            )
        shape = None if is_lazy(ref.parameter) else tuple(ref.parameter.shape)
        if shape == use.shape:
            if is_read_so(ref, op):
                continue
            if fresh is None:
                with suppress(RuntimeError):  # it can't be traced
                    fresh = trace()
            if fresh is not None and ref.name in fresh.uses:
                if fresh.nodes[fresh.uses[ref.name][0]].op == op:
                    continue
        raise ValueError(
            f"the graph is not of this {type(model).__name__}: parameter {ref.name!r} differs:\n"
            f"  expected: {tuple(use.shape)}, read by {op}\n"
            f"  got:      {shape}, of a {type(ref.owner).__name__}\n"
            "Trace this model, or leave graph= out"
        )


def is_read_so(ref: ParameterRef, op: str) -> bool:
    """Whether an operation may be the one that a layer of the parameter's owner's class does."""
    if op not in TELLING or isinstance(ref.owner, TELLING[op]):
        return True
    torchs_own = type(ref.owner).__module__.startswith("torch.nn.modules.")
    return not torchs_own or not any(
        isinstance(ref.owner, kinds) for name, kinds in TELLING.items() if name != op
    )
