"""From node features to node embeddings, as the published hypernetworks do it.

There is a network a node (MLP), a gated graph network (GHN-1 and 2), and a graph transformer (GHN-3).
Modules are nested so that their state dicts carry the originals' tensor names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.generators.published.features import CUTOFF

# --- GHN-1, GHN-2 and their ablation without a graph --------------------------------------------------------


class _Messages(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    @property
    def first(self) -> nn.Linear:
        return self.fc[0]  # type: ignore[return-value]

    @property
    def second(self) -> nn.Linear:
        return self.fc[2]  # type: ignore[return-value]


class NodeMLP(_Messages):
    """Two layers for each node by itself; no node hears of another."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, h: Tensor, d: Tensor) -> Tensor:
        """Return new states (N, width) from ``h``; the distances ``d`` (N, N) are not used."""
        return F.relu(self.fc(h))


class GatedGNN(nn.Module):
    """One sweep along the edges and one against them, each node a GRU step on its neighbours' new states.

    With D the distances, M and V two networks (V if ``virtual``), sweep forward and then, with D transposed,
    back::

        m_v = sum_{u: D[u,v] = 1} M(h_u) + sum_{u: D[u,v] >= 1} V(h_u) / D[u,v]
        h_v = GRU(m_v, h_v)

    Nodes of one topological level don't depend on each other and are computed together.
    """

    def __init__(self, width: int, virtual: bool) -> None:
        super().__init__()
        self.mlp = _Messages(width, width // 2 if virtual else width)
        self.mlp_ve = _Messages(width, width // 2) if virtual else None
        self.gru = nn.GRUCell(width, width)

    def forward(self, h: Tensor, d: Tensor) -> Tensor:
        """Sweep both ways over the states ``h`` (N, width); ``d`` (N, N) holds the distances."""
        h = self._sweep(h, d.T)
        return self._sweep(h, d)

    def _sweep(self, h: Tensor, from_: Tensor) -> Tensor:
        """``from_[v, u]`` is the distance at which v hears u."""
        order, sizes = _levels(from_ == 1)
        networks = [self.mlp] if self.mlp_ve is None else [self.mlp, self.mlp_ve]
        heard = from_[order][:, order].float()
        weights = [(heard == 1).float()]
        if self.mlp_ve is not None:
            weights.append(torch.where(heard >= 1, 1 / heard.clamp(min=1), 0))
        weight = torch.stack(weights, 2).flatten(1)
        messages = h.new_zeros(len(h), len(networks) * h.shape[1])
        stacked = messages.view(-1, h.shape[1])
        first_w = torch.cat([n.first.weight for n in networks])
        first_b = torch.cat([n.first.bias for n in networks])
        second_w: Tensor = torch.block_diag(*[n.second.weight for n in networks])  # type: ignore[no-untyped-call]
        second_b = torch.cat([n.second.bias for n in networks])
        gru, width = self.gru, h.shape[1]
        h = h[order]
        recurrent = F.linear(h, gru.weight_hh, gru.bias_hh)
        start = 0
        for size in sizes:
            level = slice(start, start + size)
            # nothing from this level on has spoken yet
            m = weight[level, : start * len(networks)] @ stacked[: start * len(networks)]
            given, kept = F.linear(m, gru.weight_ih, gru.bias_ih), recurrent[level]
            r, z = torch.sigmoid(given[:, : 2 * width] + kept[:, : 2 * width]).chunk(2, 1)
            n = torch.tanh(torch.addcmul(given[:, 2 * width :], r, kept[:, 2 * width :]))
            new = torch.lerp(n, h[level], z)
            h[level] = new
            hidden = F.relu(F.linear(new, first_w, first_b))
            messages[level] = F.relu(F.linear(hidden, second_w, second_b))
            start += size
        back = torch.empty_like(h)
        back[order] = h
        return back


def _levels(heard: Tensor) -> tuple[Tensor, list[int]]:
    """Sort nodes by the length of the longest path that ends in them; ``heard[v, u]`` is the edge u -> v."""
    waiting = heard.sum(1)
    pairs = heard.T.nonzero().tolist()
    after: list[list[int]] = [[] for _ in range(len(heard))]
    for source, target in pairs:
        after[source].append(target)
    remaining: list[int] = waiting.tolist()
    level = [node for node, count in enumerate(remaining) if count == 0]
    order: list[int] = []
    sizes: list[int] = []
    while level:
        order += level
        sizes.append(len(level))
        following = []
        for source in level:
            for target in after[source]:
                remaining[target] -= 1
                if remaining[target] == 0:
                    following.append(target)
        level = sorted(following)
    return torch.tensor(order), sizes


# --- GHN-3 --------------------------------------------------------------------------------------------------


class _EdgeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, width)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))
        if edges:
            self.edge_embed = _EdgeEmbedding(width)
            self.proj_e = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, heads))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)[:, None]
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[0]
        return self.to_out(heard.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]

    def edge_bias(self, d: Tensor) -> Tensor:
        """Return b (1, heads, N, N), b_ij = proj([T[d_ij + 2]; T[d_ji + 2]]).

        In an acyclic graph one of d_ij, d_ji is 0: the pairs are as few as the signed distances.
        """
        signed = torch.arange(-CUTOFF, CUTOFF + 1)
        table = self.edge_embed.embed.weight
        pairs = torch.cat([table[signed.clamp(min=0) + 2], table[(-signed).clamp(min=0) + 2]], 1)
        values = self.proj_e(pairs).T
        index = (d - d.T + CUTOFF).flatten()
        bias: Tensor = values.index_select(1, index).view(1, self.heads, *d.shape)
        return bias


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, first: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads, edges=first)
        self.ln2 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)
        if first:
            self.centrality_embed_in = nn.Embedding(101, width)
            self.centrality_embed_out = nn.Embedding(101, width)
            self.input_dist_embed = nn.Embedding(1001, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x), bias)
        out: Tensor = x + self.ff(self.ln2(x))
        return out

    def place(self, x: Tensor, d: Tensor) -> Tensor:
        """Add the embeddings of in-degree, out-degree and distance from the first node."""
        near = d == 1
        degree_in, degree_out = near.sum(0).clamp(max=100), near.sum(1).clamp(max=100)
        out: Tensor = (
            x
            + self.centrality_embed_in(degree_in)
            + self.centrality_embed_out(degree_out)
            + self.input_dist_embed(d[0])
        )
        return out


class GraphTransformer(nn.Sequential):
    """Transformer over all nodes, attention biased by the distances between them."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__(*(_Layer(width, heads, first=layer == 0) for layer in range(layers)))

    def forward(self, x: Tensor, d: Tensor) -> Tensor:  # type: ignore[override]
        """Return the embeddings (N, width) of the states ``x`` (N, width) and distances ``d`` (N, N)."""
        first: _Layer = self[0]  # type: ignore[assignment]
        x = first.place(x, d)
        bias = first.attn.edge_bias(d)
        for layer in self:
            x = layer(x, bias)
        return x
