"""The writing half of a graph hypernetwork: node embeddings to parameter tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.graph.architecture import Node, ParameterUse, Shape

SECTIONS = 3
"""Most matrices packed into one weight: query, key and value."""


class Piece(NamedTuple):
    """Which part of the decoder makes a parameter, and the tile it is asked for.

    Attributes:
        part: ``"conv"``, ``"linear"``, ``"depthwise"``, ``"head"``, ``"head_bias"``, ``"scale"`` (factors
            around 1), ``"shift"`` (terms around 0) or ``"table"``.
        shape: of the tile of one section: (rows, columns, *kernel), (rows,), or (positions, channels).
        sections: matrices packed into one weight along its rows, each with a tile of its own.
    """

    part: str
    shape: Shape
    sections: int = 1


def _normal(*size: int, std: float) -> nn.Parameter:
    # By an initialiser, which is skipped where a generator is built without values; a product is not.
    return nn.Parameter(nn.init.normal_(torch.empty(size), std=std))


class TemplateBank(nn.Module):
    """Learned channel templates T_r (rank, rows, columns) and the coefficients to combine them."""

    def __init__(self, mix: int, rank: int, rows: int, columns: int) -> None:
        super().__init__()
        self.coefficients = nn.Linear(mix, rank)
        self.templates = _normal(rank, rows, columns, std=rank**-0.5)

    def forward(self, mixed: Tensor, rows: int, columns: int) -> Tensor:
        """Decode (..., mix) to (..., rows, columns)."""
        templates = self.templates[:, :rows, :columns]
        combined = self.coefficients(mixed) @ templates.flatten(1)
        decoded: Tensor = combined.view(*mixed.shape[:-1], *templates.shape[1:])
        return decoded


class FactoredBank(nn.Module):
    """Learned channel templates T_r = A_r B_r^T of low rank, and the coefficients to combine them.

    A_r is (rows, factors) and B_r (columns, factors), so files grow with the channels, not with their
    square, and reach wide layers without repeating a tile. A combination of rank x factors templates has
    full rank all the same where that is no less than the channels.
    """

    def __init__(self, mix: int, rank: int, rows: int, columns: int, factors: int) -> None:
        super().__init__()
        self.coefficients = nn.Linear(mix, rank)
        self.left = _normal(rank, rows, factors, std=rank**-0.5)
        self.right = _normal(rank, columns, factors, std=factors**-0.5)

    def forward(self, mixed: Tensor, rows: int, columns: int) -> Tensor:
        """Decode (..., mix) to (..., rows, columns)."""
        templates = self.left[:, :rows] @ self.right[:, :columns].transpose(1, 2)
        combined = self.coefficients(mixed) @ templates.flatten(1)
        decoded: Tensor = combined.view(*mixed.shape[:-1], rows, columns)
        return decoded


class Decoder(nn.Module):
    """Node embeddings (and noise) to parameter tiles.

    A weight is a combination of learned channel templates T_r, its coefficients a function of the embedding
    x at each kernel position s, with the root mean square of the tile taken out::

        V[:, :, s] = sum_r c_r(x, s) T_r        W = gain(x) sqrt(2 / fan_in) V / rms(V)

    Convolutions, linear layers and depthwise convolutions have templates of their own. Only the channels and
    kernel positions asked for are computed. Kernels larger than the decoder's are resampled from it.

    A table over positions n is a combination of cosines b_k on the grid of positions: sum_k b_k(n) V_k(x).

    Args:
        sizes: of the config: ``width``, ``noise``, ``hidden``, ``mix`` (channels in which the kernel
            positions of a layer are told apart), ``rank``, ``head_rank``, ``channels``, ``kernel``;
            ``factors``, the rank of templates that are products of channel factors, 0 for whole ones; the
            optional parts are left out where ``linear_rank``, ``depthwise_rank`` or ``basis`` is 0;
            ``narrow``, if there is one, is the rank that an export has left of the matrix
            which tells positions apart.
        classes: of the head.
    """

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__()
        hidden, mix, rank, channels = (sizes[name] for name in ("hidden", "mix", "rank", "channels"))
        self.channels, self.kernel, self.classes = channels, sizes["kernel"], classes
        self.mix = mix
        self.basis = sizes["basis"]
        self.trunk = nn.Sequential(nn.Linear(sizes["width"] + sizes["noise"], hidden), nn.GELU())
        narrow = sizes.get("narrow", 0)
        self.narrow = nn.Linear(hidden, narrow, bias=False) if narrow else nn.Identity()
        self.positions = nn.Linear(narrow or hidden, mix * self.kernel**2)
        self.factors = factors = sizes.get("factors", 0)

        def bank(rank: int) -> nn.Module:
            if factors:
                return FactoredBank(mix, rank, channels, channels, factors)
            return TemplateBank(mix, rank, channels, channels)

        self.banks = nn.ModuleDict({"conv": bank(rank)})
        if sizes["linear_rank"]:
            self.banks["linear"] = bank(sizes["linear_rank"])
            self.section = nn.Embedding(SECTIONS, hidden)
        if sizes["depthwise_rank"]:
            self.banks["depthwise"] = TemplateBank(mix, sizes["depthwise_rank"], channels, 1)
        self.gain = nn.Linear(hidden, 1)
        self.scale = nn.Linear(hidden, channels)
        self.shift = nn.Linear(hidden, channels)
        head_rank = sizes["head_rank"]
        self.head_coefficients = nn.Linear(hidden, head_rank)
        self.head_templates = _normal(head_rank, classes, channels, std=head_rank**-0.5)
        self.head_bias = nn.Linear(hidden, classes)
        quiet = [self.gain, self.scale, self.shift, self.head_bias]
        if self.basis:
            self.table = nn.Linear(hidden, (1 + self.basis**2) * channels)
            quiet.append(self.table)
        for layer in quiet:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def piece(self, node: Node, use: ParameterUse, *, head: bool, sections: int = 1) -> Piece | None:
        """Say how a parameter is decoded, None if it can't be."""
        shape, limit = use.shape, self.channels
        sections = sections if "linear" in self.banks else 1
        if head and shape and shape[0] == self.classes:
            if use.role == "bias" and len(shape) == 1:
                return Piece("head_bias", shape)
            if len(shape) == 2:
                return Piece("head", (self.classes, min(shape[1], limit)))
        if use.role not in ("weight", "bias") or not shape:
            return None
        if node.op in ("conv", "linear") and use.role == "weight" and len(shape) in (2, 4):
            return self._matrix(node, shape, sections)
        if node.op in ("token", "bias", "attention") and len(shape) > 1:
            return Piece("table", (math.prod(shape[:-1]), shape[-1])) if self.basis else None
        if math.prod(shape) == max(shape):
            rows = max(shape) // sections
            return Piece("scale" if use.role == "weight" else "shift", (min(rows, limit),), sections)
        return None

    def _matrix(self, node: Node, shape: Shape, sections: int) -> Piece:
        kernel = shape[2:] if len(shape) == 4 else (1, 1)
        part = "linear" if node.op == "linear" and "linear" in self.banks else "conv"
        if shape[1] == 1 and node.attribute("groups", 1) > 1 and "depthwise" in self.banks:
            part = "depthwise"
        rows = min(shape[0] // sections, self.channels)
        return Piece(part, (rows, min(shape[1], self.channels), *kernel), sections)

    def forward(self, piece: Piece, u: Tensor) -> Tensor:
        """Decode hidden states (L, hidden) to (L, sections * rows, ...), weights with unit mean square."""
        part, shape, sections = piece
        if part == "head_bias":
            return self.head_bias(u)  # type: ignore[no-any-return]
        if part == "head":
            return self._head(u, shape[1])
        if part == "table":
            return self._table(u, *shape)
        if sections > 1:
            u = (u[:, None] + self.section.weight[:sections]).flatten(0, 1)
        if part == "scale":
            tiles = 2 * torch.sigmoid(self.scale(u)[:, : shape[0]])
        elif part == "shift":
            tiles = self.shift(u)[:, : shape[0]]
        else:
            tiles = self._kernels(part, u, shape)
        return tiles.reshape(-1, sections * shape[0], *shape[1:])

    def _kernels(self, part: str, u: Tensor, shape: Shape) -> Tensor:
        rows, columns, height, width = shape
        h, w = min(height, self.kernel), min(width, self.kernel)
        grid = torch.arange(self.kernel**2, device=u.device).view(self.kernel, self.kernel)
        top, left = (self.kernel - h) // 2, (self.kernel - w) // 2
        chosen = grid[top : top + h, left : left + w].reshape(-1)
        u = self.narrow(u)
        weight = self.positions.weight.view(-1, self.mix, u.shape[1])[chosen].flatten(0, 1)
        bias = self.positions.bias.view(-1, self.mix)[chosen].flatten()
        mixed = F.gelu(F.linear(u, weight, bias).view(len(u), len(chosen), self.mix))
        values: Tensor = self.banks[part](mixed, rows, columns)
        tiles = values.view(len(u), h, w, rows, columns).permute(0, 3, 4, 1, 2)
        if (h, w) != (height, width):
            tiles = F.interpolate(tiles.flatten(1, 2), (height, width), mode="bilinear", align_corners=True)
            tiles = tiles.view(len(u), rows, columns, height, width)
        # The scale of a kernel that only norms read is hidden from the loss, so training would let it
        # drift; elsewhere the gain alone is to set it.
        rms = tiles.square().flatten(1).mean(1).clamp(min=1e-12).sqrt()
        return tiles / rms.view(-1, 1, 1, 1, 1)

    def _head(self, u: Tensor, columns: int) -> Tensor:
        templates = self.head_templates[:, :, :columns].flatten(1)
        tiles: Tensor = self.head_coefficients(u) @ templates
        return tiles.view(len(u), self.classes, columns)

    def _table(self, u: Tensor, positions: int, channels: int) -> Tensor:
        vectors = self.table(u).view(len(u), -1, self.channels)
        vectors = vectors[..., torch.arange(channels, device=u.device) % self.channels]
        rows: Tensor = cosines(positions, self.basis).to(vectors) @ vectors
        return rows


def cosines(positions: int, basis: int) -> Tensor:
    """Return (positions, 1 + basis^2) values of cosine products on the grid of positions.

    b_(j,k)(y, x) = cos(pi j (y + 1/2) / g) cos(pi k (x + 1/2) / g), j, k < basis, on a g x g grid. Where
    one more position than a square is asked for, the first is a token of its own, with the first column to
    itself; where positions form no square they are one row.
    """
    values = torch.zeros(positions, 1 + basis**2)
    own = 1 if positions > 1 and math.isqrt(positions - 1) ** 2 == positions - 1 else 0
    if positions == 1:
        own = 1
    values[:own, 0] = 1.0
    count = positions - own
    side = math.isqrt(count)
    frequencies = torch.arange(basis)

    def wave(extent: int) -> Tensor:
        places = (torch.arange(extent) + 0.5) / max(extent, 1)
        return torch.cos(math.pi * places[:, None] * frequencies)

    if side**2 == count:
        rows, columns = wave(side), wave(side)
        grid = rows[:, None, :, None] * columns[None, :, None, :]
    else:
        places = (torch.arange(count) + 0.5) / count
        grid = torch.cos(math.pi * places[:, None] * torch.arange(basis**2))
    values[own:, 1:] = grid.reshape(count, basis**2)
    return values
