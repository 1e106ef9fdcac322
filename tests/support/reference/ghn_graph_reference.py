"""GHN-2's and GHN-3's graphs step by step, in one file because each is read beside one description.

Lists and sets of pairs, not the package's way.
A node is (label, parameter or None, autograd function or None), an edge a pair of positions. Where today's
originals go wrong on a network this does too, but for what the caller changes in the network beforehand.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

PRIMITIVES = (
    *("max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat", "input"),
    *("bias", "bn", "ln", "pos_enc", "glob_avg"),
)
COMMON = {"Conv2d": "conv", "Linear": "conv", "BatchNorm2d": "bn", "LayerNorm": "ln", "LayerNorm2d": "ln"}
MODULES = {
    2: COMMON,
    3: COMMON
    | {"NonDynamicallyQuantizableLinear": "conv", "MultiheadAttention": "conv"}
    | {"Embedding": "pos_enc", "Encoder": "pos_enc"},
}
SHARED = {"Mean": "glob_avg", "AdaptiveAvgPool2D": "glob_avg", "MaxPool2DWithIndices": "max_pool"}
SHARED |= {"AvgPool2D": "avg_pool", "Mul": "cse", "Add": "sum", "Cat": "concat"}
OPERATIONS = {2: SHARED | {"Clone": "msa"}, 3: SHARED | {"Softmax": "msa"}}

Edges = set[tuple[int, int]]


@dataclass
class Record:
    label: str
    parameter: Tensor | None = None
    owner: nn.Module | None = None
    function: Any = None


@dataclass
class Described:
    """A finished graph: of every node its primitive, its parameter's name, its shape; edges; distances."""

    primitives: list[str]
    names: list[str | None]
    shapes: list[tuple[int, ...] | None]
    edges: Edges
    distances: list[list[int]]


class Unreadable(Exception):
    """What the GHN-2 original answers with an assertion."""


# --- the walk -----------------------------------------------------------------------------------------------


def walk(model: nn.Module, outputs: Iterable[Tensor], family: int) -> tuple[list[Record], Edges]:
    known: dict[int, tuple[str, Tensor, nn.Module]] = {}
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            known.setdefault(id(parameter), (f"{path}.{own}" if path else own, parameter, module))
    nodes: list[Record] = []
    edges: Edges = set()
    ends: dict[Any, tuple[int, int]] = {}

    def leaf(f: Any) -> tuple[str, Tensor, nn.Module] | None:
        found = known.get(id(f.variable)) if hasattr(f, "variable") else None
        if found is None or family == 3:
            return found
        kind = type(found[2]).__name__
        return None if kind not in COMMON or ("Norm" in kind and ".bias" in found[0]) else found

    def visit(f: Any) -> None:
        inputs = [u for u, _ in f.next_functions if u is not None]
        own = []
        for u in inputs:
            found = leaf(u)
            if found is not None:
                if u not in ends:
                    nodes.append(Record(*found))
                    ends[u] = (len(nodes) - 1,) * 2
                own.append(ends[u][0])
        if not own:
            nodes.append(Record(f.name(), function=f))
            own = [len(nodes) - 1]
        ends[f] = own[0], own[-1]
        for u in inputs:
            if not hasattr(u, "variable") and u not in ends:
                visit(u)
            if u in ends and ends[u][1] != ends[f][0]:
                label = leaf(u)[0] if hasattr(u, "variable") else u.name()  # type: ignore[index]
                pair = (ends[f][0], ends[u][1])
                edges.add(pair if "bias" in label else pair[::-1])

    sys.setrecursionlimit(max(20_000, sys.getrecursionlimit()))
    for output in outputs:
        visit(output.grad_fn)
    return nodes, edges


# --- surgery ------------------------------------------------------------------------------------------------


def before(edges: Edges, i: int) -> list[int]:
    return [s for s, t in edges if t == i]


def after(edges: Edges, i: int) -> list[int]:
    return [t for s, t in edges if s == i]


def ordered(nodes: list[Record], edges: Edges, order: list[int]) -> tuple[list[Record], Edges]:
    place = {old: new for new, old in enumerate(order)}
    kept = {(place[s], place[t]) for s, t in edges if s in place and t in place}
    return [nodes[i] for i in order], kept


def topological(nodes: list[Record], edges: Edges) -> tuple[list[Record], Edges]:
    edges = {(s, t) for s, t in edges if s != t}
    order: list[int] = []
    while len(order) < len(nodes):
        done = set(order)
        held = {t for s, t in edges if s not in done}
        generation = [i for i in range(len(nodes)) if i not in done and i not in held]
        if not generation:
            raise Unreadable("a cycle")
        order += generation
    return ordered(nodes, edges, order)


def prune(
    nodes: list[Record],
    edges: Edges,
    patterns: Iterable[str],
    keep: Callable[[list[str], int, int], bool],
) -> tuple[list[Record], Edges]:
    """``keep(labels, position, in-degree now)``; the in-degrees at the start are the caller's to know."""
    for pattern in patterns:
        labels = [node.label for node in nodes]
        gone = []
        for i, label in enumerate(labels):
            if pattern in label and not keep(labels, i, len(before(edges, i))):
                edges = edges | {(p, s) for p in before(edges, i) for s in after(edges, i) if p != s}
                gone.append(i)
        nodes, edges = ordered(nodes, edges, [i for i in range(len(nodes)) if i not in gone])
    return nodes, edges


def operation(label: str) -> str:
    return label.split("Backward")[0]


def unknown(nodes: list[Record], family: int) -> list[str]:
    found = []
    for node in nodes:
        kind = type(node.owner).__name__
        bias = ".bias" in node.label and "norm" in kind.lower()
        if (kind not in MODULES[family] or bias) and operation(node.label) not in OPERATIONS[family]:
            found.append(node.label)
    return sorted(set(found) - {"input"})


# --- GHN-2 --------------------------------------------------------------------------------------------------


def ghn2(model: nn.Module, output: Tensor) -> Described:
    if type(model).__name__ == "VisionTransformer":
        raise Unreadable("a vision transformer")
    nodes, edges = walk(model, [output], 2)
    for w, node in enumerate(nodes):
        if isinstance(node.owner, nn.Linear) and "bias" not in node.label:
            for o in after(edges, w):
                edges |= {(p, w) for p in before(edges, o) if p != w}
                edges = {(s, t) for s, t in edges if t != o or s == w}
    first = [i for i in range(len(nodes)) if not before(edges, i)]
    if len(first) != 1:
        raise Unreadable("several beginnings")
    nodes.append(Record("input"))
    edges.add((len(nodes) - 1, first[0]))
    nodes, edges = topological(nodes, edges)
    keepdims: dict[tuple[str, int], bool] = {}

    def keep(labels: list[str], i: int, inputs: int) -> bool:
        label = labels[i]
        if label.startswith("Mul"):
            return labels[i - 2].startswith("Hard")
        if label.startswith("Clone"):
            return labels[i - 11].startswith("Softmax")
        if label.startswith("Mean"):
            return bool(keepdims[label, i])
        return label.startswith(("Add", "Cat")) and inputs > 1

    # one pass a pattern, so that positions can be looked up in the list as it is
    for pattern in ["Mul", "Clone", *unknown(nodes, 2), "Mean", "Add", "Cat"]:
        keepdims = {(n.label, i): getattr(n.function, "_saved_keepdim", False) for i, n in enumerate(nodes)}
        nodes, edges = prune(nodes, edges, [pattern], keep)
    d = shortest(len(nodes), edges)
    for start, pairs in ((0, edges), (len(nodes) - 1, {(t, s) for s, t in edges})):
        found = {start}
        while more := {t for s, t in pairs if s in found} - found:
            found |= more
        if len(found) < len(nodes):
            raise Unreadable("a node off the path")
    if type(model).__name__ == "SqueezeNet":
        # the original decodes the pooling as its head; this is what GHN-3's code does
        nodes = pooled_first(nodes)
    return described(model, nodes, edges, d, 2)


# --- GHN-3 --------------------------------------------------------------------------------------------------


def ghn3(model: nn.Module, outputs: Iterable[Tensor]) -> Described:
    nodes, edges = walk(model, outputs, 3)
    nodes, edges = prune3(nodes, edges, ["Mul", *unknown(nodes, 3), "Mean", "Add", "Cat"])
    for i in range(len(nodes)):
        if before(edges, i) or "weight" not in nodes[i].label:
            continue
        for o in after(edges, i):
            owner = nodes[i].owner is not None and nodes[i].owner is nodes[o].owner
            n_out = len(after(edges, i))
            if not (owner or "softmax" in nodes[o].label.lower()) or before(edges, o) == [i]:
                continue
            nodes[i], nodes[o] = nodes[o], nodes[i]
            edges = edges - {(i, o)} | {(o, i)}
            if n_out == 1:
                moved = [x for x in after(edges, o) if x != i]
                edges = edges - {(o, x) for x in moved} | {(i, x) for x in moved}
    frozen = set(edges)
    for i, node in enumerate(nodes):
        if "softmax" in node.label.lower():
            for o in after(frozen, i):
                for j in before(frozen, o):
                    if j != i:
                        n, direct = paths(len(nodes), frozen, j, o), (i, j) in edges
                        if n > 1 or not direct:
                            edges = edges - {(j, o)}
                        if n == 1 and not direct:
                            edges = edges | {(j, i)}
    if type(model).__name__ == "SwinTransformer":
        edges = swin(nodes, edges)
    nodes, edges = prune3(nodes, edges, ["Add", "Cat"])
    first = [i for i in range(len(nodes)) if not before(edges, i) and "weight" in nodes[i].label]
    nodes.append(Record("input"))
    edges |= {(len(nodes) - 1, i) for i in first}
    nodes, edges = topological(nodes, edges)
    if type(model).__name__ == "VisionTransformer":
        nodes, edges = positions(nodes, edges)
    if type(model).__name__ == "SqueezeNet":
        nodes = pooled_first(nodes)
    return described(model, nodes, edges, shortest(len(nodes), edges), 3)


def prune3(nodes: list[Record], edges: Edges, patterns: list[str]) -> tuple[list[Record], Edges]:
    gated = any(word in node.label.lower() for node in nodes for word in ("sigmoid", "swish"))
    degree = {id(node): len(before(edges, i)) for i, node in enumerate(nodes)}
    for pattern in patterns:
        now = list(nodes)

        def keep(labels: list[str], i: int, _: int, now: list[Record] = now) -> bool:
            def name(k: int) -> str:
                return labels[i + k].lower()

            end = i + 1 >= len(labels)
            head = end or any(name(k).startswith(("classifier", "fc", "head")) for k in (-1, -2))
            if labels[i].startswith("Mean"):
                return head if gated else True
            if labels[i].startswith("Mul"):
                beside = name(-2).startswith(("hard", "sigmoid")) or name(-3).startswith(("relu", "mean"))
                beside = beside or (not end and name(1).startswith(("hard", "sigmoid", "relu")))
                return gated and not head and beside
            return labels[i].startswith(("Cat", "Add")) and degree[id(now[i])] > 1

        nodes, edges = prune(nodes, edges, [pattern], keep)
    return nodes, edges


def pooled_first(nodes: list[Record]) -> list[Record]:
    """Move the last record three places before the end; edges stay with the positions."""
    return [*nodes[:-3], nodes[-1], *nodes[-3:-1]]


def paths(count: int, edges: Edges, source: int, target: int) -> int:
    """Paths in a graph without cycles, by dynamic programming."""
    found = {target: 1}

    def number(i: int) -> int:
        if i not in found:
            found[i] = sum(number(t) for t in after(edges, i))
        return found[i]

    return number(source)


def swin(nodes: list[Record], edges: Edges) -> Edges:
    for i, node in enumerate(nodes):
        if node.label.lower().endswith("norm.weight"):
            for o in after(edges, i):
                if nodes[o].label.endswith("norm1.weight") or "Add" in nodes[o].label:
                    wanted = node.label.replace("norm", "reduction")
                    edges = edges - {(i, o)}
                    edges |= {(i, k) for k in [k for k, n in enumerate(nodes) if wanted in n.label][:1]}
        if node.label.endswith("attn.proj.bias"):
            for o in after(edges, i):
                if nodes[o].label.endswith("reduction.weight"):
                    sums = {(i, x) for x in after(edges, o) if nodes[x].label.startswith("AddBackward")}
                    edges = edges - {(i, o)} | sums
    return edges


def positions(nodes: list[Record], edges: Edges) -> tuple[list[Record], Edges]:
    (own,) = (i for i, node in enumerate(nodes) if type(node.owner).__name__ == "Encoder")
    new = len(nodes)
    edges = {(new if s == own else s, new if t == own else t) for s, t in edges} | {(own, new)}
    order = [*range(own + 1), new, *range(own + 1, new)]
    return ordered([*nodes, Record("AddBackward0")], edges, order)


# --- what the hypernetwork is told --------------------------------------------------------------------------


def shortest(count: int, edges: Edges) -> list[list[int]]:
    """Breadth first from every node; 0 where there is no path of at most 50 edges."""
    following: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        following[source].append(target)
    rows = []
    for start in range(count):
        row, front = [0] * count, {start}
        for steps in range(1, 51):
            front = {t for s in front for t in following[s] if not row[t] and t != start}
            for t in front:
                row[t] = steps
        rows.append(row)
    return rows


def primitive(node: Record, family: int) -> str:
    if node.label == "input":
        return "input"
    if node.owner is None:
        return OPERATIONS[family].get(operation(node.label), "sum")
    kind = MODULES[family][type(node.owner).__name__]
    if kind != "conv":
        return kind
    if "bias" in node.label:
        return "bias"
    if getattr(node.owner, "groups", 1) > 1:
        return "dil_conv" if min(node.owner.dilation) > 1 else "sep_conv"  # type: ignore[arg-type]
    return "conv"


def described(
    model: nn.Module, nodes: list[Record], edges: Edges, d: list[list[int]], family: int
) -> Described:
    kinds = [primitive(node, family) for node in nodes]
    shapes: list[tuple[int, ...] | None] = []
    for node, kind in zip(nodes, kinds, strict=True):
        if node.parameter is not None:
            shapes.append(four(tuple(node.parameter.shape)))
        elif kind in ("max_pool", "avg_pool"):
            kernel = getattr(node.function, "_saved_kernel_size", (3, 3))
            shapes.append((1, 1, *((kernel, kernel) if isinstance(kernel, int) else kernel)))
        else:
            shapes.append(None)
    names = [None if node.parameter is None else node.label for node in nodes]
    return Described(kinds, names, shapes, edges, d)


def four(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3 and shape[0] == 1 and shape[1] > 1 and shape[2] > 1:
        side = math.floor(math.sqrt(shape[1]))
        return (1, shape[2], side, side)
    return (*shape, 1, 1, 1)[:4]
