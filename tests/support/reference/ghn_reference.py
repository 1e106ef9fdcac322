"""Slow twin of the graph hypernetwork: one node, one edge, one kernel position at a time."""

from __future__ import annotations

import math

import networkx as nx
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_geninit.generators.ghn.features import node_features
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.architecture import Architecture


def depths(architecture: Architecture) -> dict[str, list[int]]:
    """Weighted layers on the longest path below, above and within the stage, by networkx."""
    weighted = [any(len(u.shape) > 1 for u in node.parameters) for node in architecture.nodes]
    extent = [math.prod(n.shape[2:]) if len(n.shape) > 2 else 1 for n in architecture.nodes]

    def longest(edges: list[tuple[int, int]]) -> list[int]:
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(weighted)))
        graph.add_weighted_edges_from((u, v, int(weighted[v])) for u, v in edges)
        found = []
        for node in graph:
            part = graph.subgraph(nx.ancestors(graph, node) | {node})
            paths = [
                nx.dag_longest_path_length(
                    part.subgraph(nx.descendants(part, start) | {start}), weight="weight"
                )
                + weighted[start]
                for start in part
            ]
            found.append(max(paths))
        return found

    edges = list(architecture.edges)
    within = [(u, v) for u, v in edges if extent[u] == extent[v]]
    return {
        "below": longest(edges),
        "above": longest([(v, u) for u, v in edges]),
        "in_stage": longest(within),
        "to_stage_end": longest([(v, u) for u, v in within]),
    }


def embed(generator: GraphHyperNetwork, architecture: Architecture) -> Tensor:
    encoder = generator.encoder
    features = node_features(architecture)
    h = [
        encoder.primitive.weight[p] + encoder.project(v)
        for p, v in zip(features.primitive, features.values, strict=True)
    ]
    for layer in encoder.rounds:
        x = [layer.norm(one) for one in h]
        zero = torch.zeros_like(x[0])

        def mean(nodes: list[int], x: list[Tensor] = x, zero: Tensor = zero) -> Tensor:
            return torch.stack([x[n] for n in nodes]).mean(0) if nodes else zero

        h = [
            h[v]
            + layer.update(
                torch.cat(
                    [
                        x[v],
                        mean([s for s, t in architecture.edges if t == v]),
                        mean([t for s, t in architecture.edges if s == v]),
                    ]
                )
            )
            for v in range(len(h))
        ]
    return torch.stack([encoder.norm(one) for one in h])


def kernel(
    generator: GraphHyperNetwork,
    x: Tensor,
    o: int,
    i: int,
    size: tuple[int, int],
    shape: tuple[int, int],
    normalised: bool,
    part: str = "conv",
    section: int | None = None,
) -> Tensor:
    """W[o, i, s] = gain(x) sqrt(2 / fan_in) V / rms(V), V[o, i, s] = sum_r c_r(x, s) T_r[o, i].

    The kernel is cropped from the middle; the gain is 1 where BatchNorm reads the kernel.
    """
    d = generator.decoder
    u = d.trunk(x)
    gain = 1.0 if normalised else d.gain(u).exp()
    if section is not None:
        u = u + d.section.weight[section]
    bank = d.banks[part]
    grid = d.positions(u).view(d.kernel, d.kernel, d.mix)
    height, width = size
    top, left = (d.kernel - height) // 2, (d.kernel - width) // 2
    out = torch.zeros(o, i, height, width)
    for y in range(height):
        for z in range(width):
            c = bank.coefficients(F.gelu(grid[top + y, left + z]))
            for r in range(len(c)):
                out[:, :, y, z] += c[r] * bank.templates[r, :o, :i]
    return out / out.square().mean().sqrt() * gain * math.sqrt(2 / (shape[1] * height * width))


def table(generator: GraphHyperNetwork, x: Tensor, grid: int, channels: int, token: bool) -> Tensor:
    """Rows of a table over a grid x grid of positions, one more in front of them for a token of its own."""
    d = generator.decoder
    vectors = d.table(d.trunk(x)).view(1 + d.basis**2, d.channels)
    rows = [vectors[0]] if token else []
    for y in range(grid):
        for z in range(grid):
            row = torch.zeros(d.channels)
            for j in range(d.basis):
                for k in range(d.basis):
                    wave = math.cos(math.pi * j * (y + 0.5) / grid) * math.cos(math.pi * k * (z + 0.5) / grid)
                    row = row + wave * vectors[1 + j * d.basis + k]
            rows.append(row)
    return torch.stack([row[[c % d.channels for c in range(channels)]] for row in rows])
