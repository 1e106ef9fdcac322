"""What the published hypernetworks do to an autograd walk before they use it as a graph.

Every rule here is the original's, kept because weights were trained on what it gives; none is how one would
write it anew. A vertex is known by its label: the parameter's name, or the autograd class
(``"ReluBackward0"``).
"""

from __future__ import annotations

from torch import nn

from torch_geninit.generators.published.reader.graph import Graph, Place, Vertex, prune, reachable, sort
from torch_geninit.generators.published.reader.vocabulary import (
    GHN2_OPERATIONS,
    GHN3_OPERATIONS,
    family,
    unsupported,
)

_VIT = "torchvision.models.vision_transformer.VisionTransformer"
_SWIN = "torchvision.models.swin_transformer.SwinTransformer"
_SQUEEZENET = "torchvision.models.squeezenet.SqueezeNet"


class Refused(Exception):
    """The GHN-2 original refuses this network."""


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

    unknown = [p for p in unsupported(graph, GHN2_OPERATIONS) if p != "input"]
    prune(graph, ["Mul", "Clone", *unknown, "Mean", "Add", "Cat"], keep)
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
    _prune_ghn3(graph, ["Mul", *unsupported(graph, GHN3_OPERATIONS), "Mean", "Add", "Cat"])
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
        if leaf is not None and family(leaf.owner) == _GHN3_POSITIONS:
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
