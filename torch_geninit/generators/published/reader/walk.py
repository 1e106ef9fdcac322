"""The walk over an autograd graph by which the published hypernetworks read a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from torch_geninit.generators.published.reader.graph import Graph, Leaf, Vertex
from torch_geninit.generators.published.reader.vocabulary import is_known_leaf, is_norm_bias


class _Step(NamedTuple):
    """Stands for an autograd function: its name, what it reads, and what it saved."""

    key: Any
    name: str
    reads: tuple[Any, ...]
    function: Any


def _step(function: Any) -> _Step:
    if isinstance(function, _Step):
        return function
    name = _name(function)
    reads = tuple(f for f, _ in function.next_functions if f is not None)
    if name.startswith("ScaledDotProduct") or name.startswith("EfficientAttention"):
        # Fused attention leaves one function; the weights were trained when it left these three.
        sources = [f for f, _ in function.next_functions]
        query, key, value, *rest = [*sources, None, None]
        scores: Any = _plain((function, "scores"), "BmmBackward0", query, key)
        mask = next((f for f in rest if f is not None), None)
        if mask is not None:
            scores = _plain((function, "mask"), "AddBackward0", scores, mask)
        softmax = _plain((function, "softmax"), "SoftmaxBackward0", scores)
        return _plain(function, "BmmBackward0", softmax, value)
    if name.startswith("SafeSoftmax"):
        name = name[len("Safe") :]
    if name.startswith("Addmm") and function.next_functions[0][0] is not None:
        reads = (_behind_copies(reads[0]), *reads[1:])
    return _Step(function, name, reads, function)


def _name(function: Any) -> str:
    name: str = function.name()
    return name.rpartition("::")[2]


def _behind_copies(function: Any) -> Any:
    """Return the bias of which a linear layer adds a partly overwritten copy (Swin's second version)."""
    below = function
    while below is not None and _name(below).startswith(("CopySlices", "Clone")):
        below = below.next_functions[0][0]
    return below if hasattr(below, "variable") else function


def _plain(key: Any, name: str, *reads: Any) -> _Step:
    return _Step(key, name, tuple(f for f in reads if f is not None), None)


@dataclass
class _Ends:
    head: int
    tail: int


def walk(leaves: dict[int, Leaf], outputs: list[Tensor], *, all_leaves: bool) -> Graph:
    """Walk depth-first from the outputs; an operation with parameters becomes one vertex for each of them."""
    graph = Graph()
    ends: dict[Any, _Ends | None] = {}
    steps: dict[Any, _Step] = {}

    def leaf_of(function: Any) -> Leaf | None:
        variable = getattr(function, "variable", None)
        leaf = None if variable is None else leaves.get(id(variable))
        if leaf is None or all_leaves:
            return leaf
        return leaf if is_known_leaf(leaf) and not is_norm_bias(leaf) else None

    def visit(step: _Step) -> None:
        indices = []
        for function in step.reads:
            leaf = leaf_of(function)
            if leaf is None:
                continue
            if function not in ends:
                graph.append(Vertex(leaf.name, leaf))
                ends[function] = _Ends(len(graph) - 1, len(graph) - 1)
            indices.append(ends[function].tail)  # type: ignore[union-attr]
        if not indices:
            graph.append(Vertex(step.name, None, **_saved(step.function)))
            indices = [len(graph) - 1]
        ends[step.key] = _Ends(indices[0], indices[-1])
        steps[step.key] = step

    pending: list[Iterator[_Step]] = [iter([_step(o.grad_fn)]) for o in reversed(outputs)]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
        elif step.key not in steps:
            visit(step)
            pending.append(iter([_step(f) for f in step.reads if getattr(f, "variable", None) is None]))

    for key, step in steps.items():
        head = ends[key].head  # type: ignore[union-attr]
        for function in step.reads:
            if getattr(function, "variable", None) is not None:
                leaf = leaf_of(function)
                if leaf is None:
                    continue
                tail, name = ends[function].tail, leaf.name  # type: ignore[union-attr]
            else:
                below = _step(function)
                tail, name = ends[below.key].tail, below.name  # type: ignore[union-attr]
            if tail != head:
                graph.link(*((head, tail) if "bias" in name else (tail, head)))
    return graph


def heads(leaves: dict[int, Leaf], outputs: list[Tensor]) -> set[str]:
    """Name the parameters of the last layer before each output, behind operations with one input only."""
    names: set[str] = set()
    for output in outputs:
        step = _step(output.grad_fn)
        while True:
            below = [_step(f) for f in step.reads if getattr(f, "variable", None) is None]
            turned = [f for s in below if s.name.startswith(("TBackward", "Transpose")) for f in s.reads]
            read = [getattr(f, "variable", None) for f in (*step.reads, *turned)]
            found = {leaves[id(v)].name for v in read if v is not None and id(v) in leaves}
            if found or len(below) != 1:
                names |= found
                break
            step = below[0]
    return names


def _saved(function: Any) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    if hasattr(function, "_saved_keepdim"):
        saved["keepdim"] = bool(function._saved_keepdim)
    if hasattr(function, "_saved_kernel_size"):
        size = function._saved_kernel_size
        saved["kernel_size"] = (size, size) if isinstance(size, int) else tuple(size)
    return saved
