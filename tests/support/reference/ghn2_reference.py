"""GHN-2's forward pass, one node and one tensor at a time, with none of the package's shortcuts.

A graph is a list of (primitive index, 4-D shape or None) and a matrix D of distances: 1 for an edge, 2 to 50
for a virtual one, 0 for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return x @ weight.reshape(weight.shape[0], -1).T + state[f"{name}.bias"]


# --- node features ------------------------------------------------------------------------------------------


def channels(classes: int) -> list[int]:
    found = {1, 3, classes}
    found |= (
        {8 * n for n in range(1, 8)} | {64 + 16 * n for n in range(252)} | {4096 + 32 * n for n in range(129)}
    )
    return sorted(found)


def sides(kernel: int) -> list[int]:
    return sorted({n for n in range(max(12, kernel)) if n % 2} | {14, 16})


def look_up(value: int, entries: list[int], spatial: bool) -> int:
    if spatial and value == 2:
        value = 3
    if not spatial and 4 <= value <= 7:
        value = 8
    best = min(entries, key=lambda entry: (abs(entry - value), entry))
    return entries.index(best)


def shape_features(state: State, shape: Sequence[int] | None, classes: int, kernel: int) -> Tensor:
    known_channels, known_sides = channels(classes), sides(kernel)
    if shape is None:
        rows = [len(known_channels)] * 2 + [len(known_sides)] * 2
    else:
        rows = [look_up(n, known_channels, False) for n in shape[:2]]
        rows += [look_up(n, known_sides, True) for n in shape[2:]]
    channel, side = state["shape_enc.embed_channel.weight"], state["shape_enc.embed_spatial.weight"]
    return torch.cat([channel[rows[0]], channel[rows[1]], side[rows[2]], side[rows[3]]])


def features(
    state: State, nodes: Sequence[tuple[int, Sequence[int] | None]], classes: int, kernel: int
) -> Tensor:
    rows = [state["embed.weight"][p] + shape_features(state, s, classes, kernel) for p, s in nodes]
    return torch.stack(rows)


# --- gated graph network ------------------------------------------------------------------------------------


def message(state: State, network: str, h: Tensor) -> Tensor:
    return linear(state, f"{network}.fc.2", linear(state, f"{network}.fc.0", h).relu()).relu()


def gru(state: State, m: Tensor, h: Tensor) -> Tensor:
    given = state["gnn.gru.weight_ih"] @ m + state["gnn.gru.bias_ih"]
    kept = state["gnn.gru.weight_hh"] @ h + state["gnn.gru.bias_hh"]
    (gr, gz, gn), (kr, kz, kn) = given.chunk(3), kept.chunk(3)
    r, z = torch.sigmoid(gr + kr), torch.sigmoid(gz + kz)
    return (1 - z) * torch.tanh(gn + r * kn) + z * h


def gated_gnn(state: State, x: Tensor, d: Tensor) -> Tensor:
    virtual = "gnn.mlp_ve.fc.0.weight" in state
    h = list(x)
    for order, heard in ((range(len(h)), d), (range(len(h) - 1, -1, -1), d.T)):
        for v in order:
            m = torch.zeros_like(h[v])
            for u in range(len(h)):
                steps = int(heard[u, v])
                if steps == 1:
                    m = m + message(state, "gnn.mlp", h[u])
                if steps >= 1 and virtual:
                    m = m + message(state, "gnn.mlp_ve", h[u]) / steps
            h[v] = gru(state, m, h[v])
    return torch.stack(h)


def node_mlp(state: State, x: Tensor) -> Tensor:
    """The ablation without a graph: two layers, each with a ReLU behind it."""
    return torch.stack([message(state, "gnn", row) for row in x])


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


# --- decoders -----------------------------------------------------------------------------------------------


def rounded(n: int, cap: int) -> int:
    n = min(n, cap)
    if n % 3 == 0:
        n = n // 3 * 4
    return cap if n >= cap / 2 else n


def all_positions(state: State, x: Tensor, kernel: int) -> Tensor:
    """The first decoder layer at every kernel position: (4C, S, S)."""
    return linear(state, "decoder.fc.0", x).relu().view(-1, kernel, kernel)


def last_layers(state: State, f: Tensor, size: tuple[int, int]) -> Tensor:
    """(4C, h, w) to (O, I, h, w)."""
    c, h, w = f.shape
    u = linear(state, "decoder.conv.0", f.reshape(c, h * w).T).relu()
    return linear(state, "decoder.conv.2", u).T.reshape(*size, h, w)


def decode_kernel(
    state: State, x: Tensor, shape: Sequence[int], size: tuple[int, int], kernel: int, head: bool = False
) -> Tensor:
    """Return (o, i, h, w) for the rounded channels, or (K, i) for a classifier."""
    o, i = rounded(shape[0], size[0]), rounded(shape[1], size[1])
    kh, kw = shape[2:]
    f = all_positions(state, x, kernel)[:, :kh, :kw]
    full = last_layers(state, f, size)
    if i <= size[1] // 2 or (o < size[0] and not head):
        n_in = i // 3 * 4 if i < size[1] and i % 3 == 0 else min(i, size[1])
        n_out = size[0] if head else min(size[0], o)
        rows = torch.arange(n_out * size[1]).reshape(-1, n_in)[:: size[1] // n_in].flatten()
        full = full.reshape(-1, *full.shape[2:])[rows].view(n_out, n_in, *full.shape[2:])[
            :, : min(size[1], i)
        ]
        if min(kh, kw) > min(full.shape[2:]):
            full = full.repeat(1, 1, 2, 2)
    return classify(state, full[:, :, 0, 0]) if head else full


def classify(state: State, full: Tensor) -> Tensor:
    """(O, i) to (K, i)."""
    return linear(state, "decoder.class_layer_predictor.1", full.relu().T).T


def decode_flat(
    state: State, x: Tensor, shape: Sequence[int], size: tuple[int, int], kernel: int, head: bool = False
) -> Tensor:
    """The ablation without convolutions: two layers give all values at once, or all of a classifier."""
    first = linear(state, "decoder.mlp.fc.0", x).relu()
    if head:
        return linear(state, "decoder.class_layer_predictor.1", first).view(-1, size[1])
    return linear(state, "decoder.mlp.fc.2", first).view(*size, kernel, kernel)[:, :, : shape[2], : shape[3]]


def decode_vectors(state: State, x: Tensor, head: bool = False) -> Tensor:
    """Return (2, length): weight and bias."""
    z = linear(state, "decoder_1d.fc.2", linear(state, "decoder_1d.fc.0", x).relu()).view(2, -1)
    return linear(state, "bias_class.1", z.relu()) if head else z


# --- tiling and normalisation -------------------------------------------------------------------------------


def repeat_to(block: Tensor, dim: int, length: int) -> Tensor:
    block = block.narrow(dim, 0, min(length, block.shape[dim]))
    copies = math.ceil(length / block.shape[dim])
    return torch.cat([block] * copies, dim).narrow(dim, 0, length)


def tile(block: Tensor, shape: Sequence[int]) -> Tensor:
    if len(shape) == 1:
        return repeat_to(block, 0, shape[0])
    if len(shape) == 2 and block.ndim == 4:
        block = block[:, :, 0, 0]
    if len(shape) == 4:
        if block.ndim == 2:
            block = block[:, :, None, None]
        block = block[:, :, : shape[2], : shape[3]]
    return repeat_to(repeat_to(block, 0, shape[0]), 1, shape[1])


def normalise(p: Tensor, role: str) -> Tensor:
    if p.ndim == 1:
        return 2 * torch.sigmoid(0.5 * p) if role == "weight" else torch.tanh(0.2 * p)
    if p.ndim > 2 and p.shape[0] == 1 and p.shape[2] >= 11:
        return p
    beta = 1 if p.ndim > 2 and (p.shape[1] == 1 or p.shape[2] < p.shape[3]) else 2
    return p * math.sqrt(beta / p[0].numel())
