"""What the published hypernetworks are told of a graph: the distances and shapes of its nodes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn

from torch_geninit.graph.architecture import Architecture, Node, Shape

CUTOFF = 50
"""Longest path that becomes a virtual edge."""


def distances(architecture: Architecture) -> Tensor:
    """Return (N, N) int64: length of the shortest path i -> j if at most 50, else 0; without ``output``."""
    count = len(architecture.nodes) - 1
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in architecture.edges:
        if target < count:
            after[source].append(target)
    far = 1 << 20
    steps = torch.full((count, count), far, dtype=torch.int32)
    for node in reversed(range(count)):
        row = steps[node]
        for target in after[node]:
            torch.minimum(row, steps[target], out=row)
        row += 1
        row[node] = 0
    return torch.where(steps <= CUTOFF, steps, 0).long()


def shape4d(shape: Shape) -> Shape:
    """Return (out, in, height, width) of a parameter shape, as the shape encoder sees it."""
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        side = isqrt(shape[1])
        return (1, shape[2], side, side)
    return (*shape, 1, 1, 1)[:4]


def node_shape(node: Node) -> Shape | None:
    """Return the shape that the shape encoder is given for a node: its parameter's, or a pooling's window."""
    if node.parameters:
        return shape4d(node.parameters[0].shape)
    if node.shape:
        return shape4d(node.shape)
    kernel = node.attribute("kernel_size")
    return None if kernel is None else (1, 1, *kernel)


class ShapeEncoder(nn.Module):
    """Embed shapes: x = [C[out]; C[in]; S[height]; S[width]], nearest entries of two small vocabularies.

    Args:
        width: of a node embedding; each of the four parts has a quarter.
        classes: of the classifier, which has an entry of its own among the channels.
        kernel: largest kernel of the decoder, which bounds the spatial vocabulary.
    """

    def __init__(self, width: int, classes: int, kernel: int) -> None:
        super().__init__()
        self.channels = channel_vocabulary(classes)
        self.sides = spatial_vocabulary(kernel)
        self.embed_spatial = nn.Embedding(len(self.sides) + 1, width // 4)
        self.embed_channel = nn.Embedding(len(self.channels) + 1, width // 4)

    def forward(self, shapes: Sequence[Shape | None]) -> Tensor:
        """Embed N shapes as (N, width); None is a node without parameters."""
        missing = (len(self.channels),) * 2 + (len(self.sides),) * 2
        rows = [
            missing
            if shape is None
            else (
                _channel(self.channels, shape[0]),
                _channel(self.channels, shape[1]),
                _nearest(self.sides, 3 if shape[2] == 2 else shape[2]),
                _nearest(self.sides, 3 if shape[3] == 2 else shape[3]),
            )
            for shape in shapes
        ]
        index = torch.tensor(rows)
        parts = (self.embed_channel(index[:, :2]), self.embed_spatial(index[:, 2:]))
        return torch.cat([part.flatten(1) for part in parts], 1)


def channel_vocabulary(classes: int) -> list[int]:
    """Return the numbers of channels that have an embedding of their own, ascending."""
    return sorted({1, 3, classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)})


def spatial_vocabulary(kernel: int) -> list[int]:
    """Return the kernel sides that have an embedding of their own, ascending."""
    return sorted({*range(1, max(12, kernel), 2), 14, 16})


def _channel(vocabulary: list[int], value: int) -> int:
    return vocabulary.index(8) if 4 <= value <= 7 else _nearest(vocabulary, value)


def _nearest(vocabulary: list[int], value: int) -> int:
    """Index of the nearest entry, the smaller of two equally near."""
    above = bisect_left(vocabulary, value)
    if above == 0 or (above < len(vocabulary) and vocabulary[above] == value):
        return above
    if above == len(vocabulary):
        return above - 1
    return above if vocabulary[above] - value < value - vocabulary[above - 1] else above - 1
