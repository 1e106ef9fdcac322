"""What the published hypernetworks do to an autograd walk before they use it as a graph.

Every rule here is the original's, kept because weights were trained on what it gives; none is how one would
write it anew. A vertex is known by its label: the parameter's name, or the autograd class
(``"ReluBackward0"``).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from torch_geninit.graph.autograd_graph import Graph, Leaf, Place, Vertex, prune, reachable, sort


class Refused(Exception):
    """The GHN-2 original refuses this network."""


PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""The originals' vocabulary: position = row of the embedding."""

_GHN2_MODULES = {
    "torch.nn.modules.conv.Conv2d": "conv",
    "torch.nn.modules.linear.Linear": "conv",
    "torch.nn.modules.batchnorm.BatchNorm2d": "bn",
    "torch.nn.modules.normalization.LayerNorm": "ln",
    "torchvision.models.convnext.LayerNorm2d": "ln",
}
_GHN3_MODULES = {
    **_GHN2_MODULES,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": "conv",
    "torch.nn.modules.activation.MultiheadAttention": "conv",
    "transformers.pytorch_utils.Conv1D": "conv",
    "torch.nn.modules.sparse.Embedding": "pos_enc",
    "torchvision.models.vision_transformer.Encoder": "pos_enc",
}
_OPERATIONS = {
    "Mean": "glob_avg",
    "AdaptiveAvgPool2D": "glob_avg",
    "MaxPool2DWithIndices": "max_pool",
    "AvgPool2D": "avg_pool",
    "Mul": "cse",
    "Add": "sum",
    "Cat": "concat",
}
_GHN2_OPERATIONS = {**_OPERATIONS, "Clone": "msa"}
_GHN3_OPERATIONS = {**_OPERATIONS, "Softmax": "msa"}
_SPECIAL = ("Mean", "Mul", "Clone", "Cat", "Add")
_VIT = "torchvision.models.vision_transformer.VisionTransformer"
_SWIN = "torchvision.models.swin_transformer.SwinTransformer"
_SQUEEZENET = "torchvision.models.squeezenet.SqueezeNet"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _family(owner: nn.Module) -> str | None:
    """Row of the module table that a module or one of its bases is."""
    return next((kind for kind in map(_name, type(owner).__mro__) if kind in _GHN3_MODULES), None)


def is_known_leaf(leaf: Leaf) -> bool:
    """Whether GHN-2's table has this very type (a subclass is unknown to it)."""
    return _name(type(leaf.owner)) in _GHN2_MODULES


def is_norm_bias(leaf: Leaf) -> bool:
    return ".bias" in f".{leaf.name}" and "norm" in type(leaf.owner).__name__.lower()


def _operation(label: str) -> str:
    return label.partition("Backward")[0]


def primitive(vertex: Vertex) -> str:
    """Return which of the originals' fifteen primitives a vertex of a finished graph is."""
    leaf = vertex.leaf
    if leaf is None:
        if vertex.label == "input":
            return "input"
        operation = _operation(vertex.label)
        return {**_GHN2_OPERATIONS, **_GHN3_OPERATIONS}.get(operation, "sum")
    kind = _GHN3_MODULES[_family(leaf.owner) or ""]
    if kind != "conv":
        return kind
    if "bias" in leaf.name:
        return "bias"
    if isinstance(leaf.owner, nn.Conv2d) and leaf.owner.groups > 1:
        return "dil_conv" if min(leaf.owner.dilation) > 1 else "sep_conv"
    return "conv"


def _unsupported(graph: Graph, operations: Iterable[str]) -> list[str]:
    def known(vertex: Vertex) -> bool:
        if vertex.leaf is None:
            return _operation(vertex.label) in operations
        return _family(vertex.leaf.owner) is not None and not is_norm_bias(vertex.leaf)

    return list(dict.fromkeys(v.label for v in graph.vertices if not known(v)))


# --- GHN-2 --------------------------------------------------------------------------------------------------


def read_ghn2(graph: Graph, kind: str) -> Graph:
    """Turn a walk into GHN-2's graph.

    Raises:
        Refused: where the original does.
    """
    if kind == _VIT:
        raise Refused("a vision transformer")
    for index, vertex in enumerate(graph.vertices):
        if vertex.leaf and isinstance(vertex.leaf.owner, nn.Linear) and "bias" not in vertex.leaf.name:
            _put_weight_first(graph, index)
    _add_input(graph, [i for i, b in enumerate(graph.before) if not b], single=True)
    sort(graph)

    def keep(place: Place) -> bool:
        if place.label.startswith("Mul"):
            return place.near(-2).startswith("Hard")
        if place.label.startswith("Clone"):
            return place.near(-11).startswith("Softmax")
        if place.label.startswith("Mean"):
            return place.vertex.keepdim
        if place.label.startswith(("Cat", "Add")):
            return len(graph.before[place.index]) > 1
        return False

    unsupported = [p for p in _unsupported(graph, _GHN2_OPERATIONS) if p != "input"]
    prune(graph, ["Mul", "Clone", *unsupported, "Mean", "Add", "Cat"], keep)
    _check_connected(graph)
    if kind == _SQUEEZENET:
        _put_classifier_last(graph)
    return graph


def _put_weight_first(graph: Graph, weight: int) -> None:
    for bias in sorted(graph.after[weight]):
        for source in sorted(graph.before[bias]):
            if source != weight:
                graph.link(source, weight)
                graph.unlink(source, bias)


def _check_connected(graph: Graph) -> None:
    for start, neighbours in ((0, graph.after), (len(graph) - 1, graph.before)):
        if len(reachable(neighbours, {start})) < len(graph):
            raise Refused("vertices off every path from the input to the output")


# --- GHN-3 --------------------------------------------------------------------------------------------------


def read_ghn3(graph: Graph, kind: str) -> Graph:
    """Turn a walk into GHN-3's graph."""
    _prune_ghn3(graph, ["Mul", *_unsupported(graph, _GHN3_OPERATIONS), "Mean", "Add", "Cat"])
    _swap_weights_and_biases(graph)
    _take_bypasses_off_softmax(graph)
    if kind == _SWIN:
        _mend_swin(graph)
    _prune_ghn3(graph, ["Add", "Cat"])
    _add_input(
        graph, [i for i, b in enumerate(graph.before) if not b and "weight" in graph.vertices[i].label]
    )
    sort(graph)
    if kind == _VIT:
        _add_sum_after_positions(graph)
    if kind == _SQUEEZENET:
        _put_classifier_last(graph)
    return graph


def _put_classifier_last(graph: Graph) -> None:
    """Pool before the classifier, as in all networks of the training set: SqueezeNet pools after it."""
    if graph.vertices[-1].label.startswith("Mean"):
        graph.vertices.insert(-2, graph.vertices.pop())


def _prune_ghn3(graph: Graph, patterns: list[str]) -> None:
    squeezes = any(word in v.label.lower() for v in graph.vertices for word in ("sigmoid", "swish"))
    inputs = [len(b) for b in graph.before]

    def keep(place: Place) -> bool:
        label = place.label

        def near(offset: int) -> str:
            return place.near(offset).lower()

        head = place.position + 1 == len(place.labels) or any(
            near(offset).startswith(("classifier", "fc", "head")) for offset in (-1, -2)
        )
        if label.startswith("Mean"):
            return not squeezes or head
        if label.startswith("Mul"):
            return (
                squeezes
                and not head
                and (
                    near(-2).startswith(("hard", "sigmoid"))
                    or near(-3).startswith(("relu", "mean"))
                    or near(1).startswith(("hard", "sigmoid", "relu"))
                )
            )
        if label.startswith(("Cat", "Add")):
            return inputs[place.index] > 1
        return False

    prune(graph, patterns, keep)


def _swap_weights_and_biases(graph: Graph) -> None:
    """Make ... -> weight -> bias -> ... of a weight that hangs beside the path into its operation."""
    for i in range(len(graph)):
        if graph.before[i] or "weight" not in graph.vertices[i].label:
            continue
        for o in sorted(graph.after[i]):
            mine, other = graph.vertices[i], graph.vertices[o]
            same = mine.leaf and other.leaf and mine.leaf.owner is other.leaf.owner
            if not same and "softmax" not in other.label.lower():
                continue
            fan_out = len(graph.after[i])
            if not graph.before[o] - {i}:
                continue
            graph.vertices[i], graph.vertices[o] = other, mine
            graph.unlink(i, o)
            graph.link(o, i)
            if fan_out == 1:
                for x in sorted(graph.after[o] - {i}):
                    graph.unlink(o, x)
                    graph.link(i, x)


def _take_bypasses_off_softmax(graph: Graph) -> None:
    frozen = [set(targets) for targets in graph.after]
    sources = [set(b) for b in graph.before]
    for i, vertex in enumerate(graph.vertices):
        if "softmax" not in vertex.label.lower():
            continue
        for o in sorted(frozen[i]):
            for j in sorted(sources[o] - {i}):
                paths = _count_paths(frozen, sources, j, o)
                forward = j in graph.after[i]
                if paths > 1 or not forward:
                    graph.unlink(j, o)
                if paths == 1 and not forward:
                    graph.link(j, i)


def _count_paths(after: list[set[int]], before: list[set[int]], source: int, target: int) -> int:
    """Count simple paths, up to two: a vertex from which the target can't be reached is never entered."""
    useful = reachable(before, {target})
    count, path, stack = 0, [source], [iter(after[source] & useful)]
    while stack and count < 2:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
            path.pop()
        elif child == target:
            count += 1
        elif child not in path:
            path.append(child)
            stack.append(iter(after[child] & useful))
    return count


def _mend_swin(graph: Graph) -> None:
    labels = [v.label for v in graph.vertices]
    for i, label in enumerate(labels):
        if label.lower().endswith("norm.weight"):
            wanted = label.replace("norm", "reduction")
            reduction = next((k for k, other in enumerate(labels) if wanted in other), None)
            if reduction is not None and reduction in graph.before[i]:
                # Swin's second version reduces first: the rule, written for the first, would close a cycle
                for source in sorted(graph.before[i] - {reduction}):
                    graph.unlink(source, i)
                    graph.link(source, reduction)
                continue
            for o in sorted(graph.after[i]):
                if labels[o].endswith("norm1.weight") or "Add" in labels[o]:
                    graph.unlink(i, o)
                    if reduction is not None:
                        graph.link(i, reduction)
        if label.endswith("attn.proj.bias"):
            for o in sorted(graph.after[i]):
                if labels[o].endswith("reduction.weight"):
                    graph.unlink(i, o)
                    for x in sorted(graph.after[o]):
                        if labels[x].startswith("AddBackward"):
                            graph.link(i, x)


def _add_sum_after_positions(graph: Graph) -> None:
    i = 0
    while i < len(graph):
        leaf = graph.vertices[i].leaf
        if leaf is not None and _family(leaf.owner) == _GHN3_POSITIONS:
            new = graph.append(Vertex("AddBackward0"))
            for source in sorted(graph.before[i]):
                graph.unlink(source, i)
                graph.link(source, new)
            for target in sorted(graph.after[i]):
                graph.unlink(i, target)
                graph.link(new, target)
            graph.link(i, new)
            graph.reorder([*range(i + 1), new, *range(i + 1, new)])
        i += 1


_GHN3_POSITIONS = "torchvision.models.vision_transformer.Encoder"


# --- both ---------------------------------------------------------------------------------------------------


def _add_input(graph: Graph, first: list[int], *, single: bool = False) -> None:
    if single and len(first) != 1:
        raise Refused("more than one vertex, or none, without a predecessor")
    new = graph.append(Vertex("input"))
    for target in first:
        graph.link(new, target)
