"""What GHN-3 does otherwise than GHN-2: a graph transformer, a centred decoder, tables of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.reference.ghn2_reference import (
    State,
    all_positions,
    classify,
    last_layers,
    layer_norm,
    linear,
    repeat_to,
    rounded,
)


def edge_bias(state: State, d: Tensor) -> Tensor:
    """(heads, N, N), from a vector of 2C for every pair of nodes."""
    table = state["gnn.0.attn.edge_embed.embed.weight"]
    pairs = torch.cat([table[d + 2], table[d.T + 2]], -1)
    hidden = linear(state, "gnn.0.attn.proj_e.0", pairs).relu()
    return linear(state, "gnn.0.attn.proj_e.2", hidden).permute(2, 0, 1)


def transformer(state: State, x: Tensor, d: Tensor) -> Tensor:
    edges = d == 1
    for node in range(len(x)):
        x[node] = (
            x[node]
            + state["gnn.0.centrality_embed_in.weight"][min(int(edges[:, node].sum()), 100)]
            + state["gnn.0.centrality_embed_out.weight"][min(int(edges[node].sum()), 100)]
            + state["gnn.0.input_dist_embed.weight"][min(int(d[0, node]), 1000)]
        )
    bias = edge_bias(state, d)
    layer = 0
    while f"gnn.{layer}.ln1.weight" in state:
        x = x + attention(state, f"gnn.{layer}.attn", layer_norm(state, f"gnn.{layer}.ln1", x), bias)
        y = linear(state, f"gnn.{layer}.ff.net.0", layer_norm(state, f"gnn.{layer}.ln2", x))
        gelu = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + linear(state, f"gnn.{layer}.ff.net.3", gelu)
        layer += 1
    return x


def attention(state: State, name: str, y: Tensor, bias: Tensor) -> Tensor:
    heads, width = len(bias), y.shape[1] // len(bias)
    q, k, v = (y @ state[f"{name}.to_qkv.weight"].T).chunk(3, 1)
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[:, own] @ k[:, own].T / math.sqrt(width) + bias[head]
        parts.append(torch.softmax(scores, 1) @ v[:, own])
    return linear(state, f"{name}.to_out.0", torch.cat(parts, 1))


def decode_kernel(
    state: State, x: Tensor, shape: Sequence[int], size: tuple[int, int], kernel: int, head: bool = False
) -> Tensor:
    """Return (o, i, h, w) for the rounded channels, or (K, i) for a classifier."""
    o, i = rounded(shape[0], size[0]), rounded(shape[1], size[1])
    middle = kernel // 2
    rows, columns = (slice(max(0, middle - n // 2), middle + math.ceil(n / 2)) for n in shape[2:])
    full = last_layers(state, all_positions(state, x, kernel)[:, rows, columns], size)[:, :i]
    if min(shape[2:]) > min(full.shape[2:]):
        full = F.interpolate(full, tuple(shape[2:]), mode="bilinear", align_corners=False)
    return classify(state, full[:, :, 0, full.shape[3] // 2]) if head else full[:o]


def tile(block: Tensor, shape: Sequence[int]) -> Tensor:
    if len(shape) == 1:
        return repeat_to(block, 0, shape[0])
    if len(shape) == 2 and block.ndim == 4:
        block = block[:, :, block.shape[2] // 2, block.shape[3] // 2]
    if len(shape) == 4:
        if block.ndim == 2:
            block = block[:, :, None, None]
        h, w = block.shape[2:]
        rows = slice(h // 2 - shape[2] // 2, h // 2 + math.ceil(shape[2] / 2))
        columns = slice(w // 2 - shape[3] // 2, w // 2 + math.ceil(shape[3] / 2))
        block = block[:, :, rows, columns]
    return repeat_to(repeat_to(block, 0, shape[0]), 1, shape[1])


def table(block: Tensor, shape: Sequence[int], drawn: Tensor) -> Tensor:
    """(1, i, s, s) to (1, L, D), the row ``drawn`` (1, 1, i) first."""
    _, i, s, _ = block.shape
    grid = torch.stack([block[0, :, r, c] for r in range(s) for c in range(s)])[None]
    return repeat_to(torch.cat([drawn, grid], 1), 2, shape[2])
