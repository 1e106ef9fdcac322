"""The reading half of a graph hypernetwork: node features to node embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_geninit.generators.ghn.features import FEATURES, NodeFeatures


class MessagePassing(nn.Module):
    """One round: h_v <- h_v + MLP([LN(h)_v, mean over predecessors, mean over successors])."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.update = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Update the states ``h`` (N, width) along E edges and against them; edges are two tensors (E,)."""
        x = self.norm(h)
        forward = _mean_over_edges(x, source, target)
        backward = _mean_over_edges(x, target, source)
        updated: Tensor = h + self.update(torch.cat([x, forward, backward], 1))
        return updated


def _mean_over_edges(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros_like(x).index_add_(0, target, x[source])
    degree = x.new_zeros(len(x)).index_add_(0, target, x.new_ones(len(target)))
    return total / degree.clamp(min=1)[:, None]


class Encoder(nn.Module):
    """Node features to node embeddings (N, width); ``primitives`` of the vocabulary have an embedding."""

    def __init__(self, primitives: int, width: int, rounds: int) -> None:
        super().__init__()
        self.primitive = nn.Embedding(primitives, width)
        self.project = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.rounds = nn.ModuleList(MessagePassing(width) for _ in range(rounds))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: NodeFeatures) -> Tensor:
        """Return the embeddings (N, width) of the nodes."""
        # Primitives newer than this encoder are read as "other", the last of those it knows.
        primitive = features.primitive.clamp(max=self.primitive.num_embeddings - 1)
        h = self.primitive(primitive) + self.project(features.values)
        for layer in self.rounds:
            h = layer(h, features.source, features.target)
        embedded: Tensor = self.norm(h)
        return embedded
