"""What a graph says about each node: numbers a hypernetwork reads, computed in linear time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from torch_geninit.graph.architecture import Architecture, Node
from torch_geninit.graph.vocabulary import PRIMITIVES

CENTRES = 8
"""Radial basis functions for each count; their centres are evenly spaced in log2(1 + count) over [0, 7]."""

CHANNELS_FIRST_IN_WEIGHT = frozenset(
    ("conv", "linear", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "scale")
)
"""Primitives whose weight's first extent is the channels of their output."""

HARMONICS = (1, 2, 4)
SHAPE_FEATURES = 9
FEATURES = SHAPE_FEATURES + 4 * CENTRES + 2 * 2 * len(HARMONICS)


@dataclass(frozen=True)
class NodeFeatures:
    """Tensors a hypernetwork reads of an architecture with N nodes and E edges.

    Attributes:
        primitive: (N,) int64, index into the vocabulary.
        values: (N, FEATURES) float32.
        source, target: (E,) int64, ends of each edge.
    """

    primitive: Tensor
    values: Tensor
    source: Tensor
    target: Tensor

    def to(self, device: torch.device | str) -> NodeFeatures:
        """Return the same features on ``device``."""
        return NodeFeatures(*(getattr(self, part.name).to(device) for part in fields(self)))


@dataclass(frozen=True)
class Depths:
    """Weighted layers on the longest path to each node, and from it to the output, itself included.

    ``in_stage`` and ``to_stage_end`` count within the node's stage: the nodes around it that are
    connected without a change in the number of positions.
    """

    below: list[int]
    above: list[int]
    in_stage: list[int]
    to_stage_end: list[int]


def node_features(architecture: Architecture) -> NodeFeatures:
    """Compute the features of every node.

    Counts c enter as radial basis functions exp(-2 (log2(1 + c) - centre)^2), relative depths r in [0, 1] as
    sin and cos of pi h r. No feature depends on names or on the order in which equal layers are listed.
    """
    index = {name: i for i, name in enumerate(PRIMITIVES)}
    positions = node_positions(architecture)
    depths = node_depths(architecture, positions)
    reference = positions[next(i for i, n in enumerate(architecture.nodes) if n.op == "input")]
    shapes = torch.tensor(
        [_shape_features(n, p, reference) for n, p in zip(architecture.nodes, positions, strict=True)]
    )
    counts = torch.tensor(
        [depths.below, depths.above, depths.in_stage, depths.to_stage_end], dtype=torch.float32
    )
    centres = torch.linspace(0, 7, CENTRES, dtype=torch.float32)
    radial = torch.exp(-2 * (torch.log2(1 + counts)[..., None] - centres) ** 2)
    relative = torch.stack(
        [
            counts[0] / (counts[0] + counts[1]).clamp(min=1),
            counts[2] / (counts[2] + counts[3]).clamp(min=1),
        ]
    )
    angles = math.pi * relative[..., None] * torch.tensor(HARMONICS, dtype=torch.float32)
    periodic = torch.cat([angles.sin(), angles.cos()], -1)
    values = torch.cat(
        [
            shapes.view(len(architecture.nodes), SHAPE_FEATURES),
            radial.permute(1, 0, 2).flatten(1),
            periodic.permute(1, 0, 2).flatten(1),
        ],
        1,
    )
    edges = torch.tensor(architecture.edges, dtype=torch.int64).view(-1, 2)
    primitive = torch.tensor([index[node.op] for node in architecture.nodes], dtype=torch.int64)
    return NodeFeatures(primitive, values, edges[:, 0], edges[:, 1])


def node_positions(architecture: Architecture) -> list[int]:
    """Count the positions of every node's output for one input: pixels of an image, tokens of a sequence.

    That is its elements divided by its channels, wherever they stand: those of a layer's own weight, else
    the extent along the axis where the node before has its channels.
    """
    nodes = architecture.nodes
    batch = max(next((n.shape[0] for n in nodes if n.op == "input" and n.shape), 1), 1)
    before: dict[int, int] = {}
    for source, target in architecture.edges:
        # Of several nodes before, one of the same shape keeps its channels where they were.
        if target not in before or nodes[source].shape == nodes[target].shape:
            before[target] = source
    channels: list[int] = []
    for index, node in enumerate(nodes):
        weight = next((use.shape for use in node.parameters if use.role == "weight"), ())
        if weight and node.op in CHANNELS_FIRST_IN_WEIGHT:
            channels.append(weight[0])
        elif node.op == "attention" and len(node.shape) == 4:
            channels.append(node.shape[1] * node.shape[3])  # heads and channels of each
        elif index in before:
            shape = nodes[before[index]].shape
            count = channels[before[index]]
            axis = next((a for a in (1, -1) if len(shape) > 1 and shape[a] == count), None)
            if axis is None or len(shape) != len(node.shape) or node.shape[axis] == 1:
                channels.append(count)
            else:
                channels.append(node.shape[axis])
        else:
            channels.append(node.shape[1] if len(node.shape) > 2 else 1)
    return [
        max(math.prod(node.shape) // batch // max(count, 1), 1)
        for node, count in zip(nodes, channels, strict=True)
    ]


def node_depths(architecture: Architecture, positions: list[int] | None = None) -> Depths:
    """Count weighted layers below and above every node; one sweep over the edges in each direction."""
    nodes = architecture.nodes
    weight = [int(any(len(use.shape) > 1 for use in node.parameters)) for node in nodes]
    extent = positions or node_positions(architecture)
    before: list[list[int]] = [[] for _ in nodes]
    after: list[list[int]] = [[] for _ in nodes]
    for source, target in architecture.edges:
        before[target].append(source)
        after[source].append(target)
    below, in_stage = weight.copy(), weight.copy()
    for v in range(len(nodes)):
        for u in before[v]:
            below[v] = max(below[v], below[u] + weight[v])
            if extent[u] == extent[v]:
                in_stage[v] = max(in_stage[v], in_stage[u] + weight[v])
    above, to_stage_end = weight.copy(), weight.copy()
    for v in reversed(range(len(nodes))):
        for u in after[v]:
            above[v] = max(above[v], above[u] + weight[v])
            if extent[u] == extent[v]:
                to_stage_end[v] = max(to_stage_end[v], to_stage_end[u] + weight[v])
    return Depths(below, above, in_stage, to_stage_end)


def _shape_features(node: Node, positions: int, reference: int) -> list[float]:
    weight = next((use.shape for use in node.parameters if use.role == "weight"), ())
    kernel = node.attribute("kernel_size", ())
    stride = node.attribute("stride", ())
    dilation = node.attribute("dilation", ())
    return [
        float(bool(weight)),
        _log(weight[0]) if weight else 0.0,
        _log(weight[1]) if len(weight) > 1 else 0.0,
        _log(math.prod(kernel)) if kernel else 0.0,
        _log(math.prod(stride)) if stride else 0.0,
        _log(math.prod(dilation)) if dilation else 0.0,
        _log(node.attribute("groups", 1)),
        _log(positions),
        _log(positions) - _log(reference),
    ]


def _log(value: int) -> float:
    """log2, scaled so that the usual range of widths and resolutions is about one unit."""
    return math.log2(max(value, 1)) / 5
