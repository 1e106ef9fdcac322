"""Blocks with control flow or shapes of their own, of which random networks are made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Branches(nn.Module):
    """Bodies side by side, added, joined or the first gated by the second."""

    def __init__(self, how: str, dim: int, *bodies: nn.Module) -> None:
        super().__init__()
        self.how, self.dim = how, dim
        self.names = [f"branch{index}" for index in range(len(bodies))]
        for name, body in zip(self.names, bodies, strict=True):
            self.add_module(name, body)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.get_submodule(name)(x) for name in self.names]
        if self.how == "join":
            return torch.cat(outputs, self.dim)
        if self.how == "gate":
            return outputs[0] * torch.sigmoid(outputs[1])
        return sum(outputs[1:], outputs[0])


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of (N, C, ...)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return out


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.heads = heads
        if packed:
            self.whole = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.out = nn.Linear(width, width)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            attended: Tensor = self.whole(x, x, x, need_weights=False)[0]
            return attended
        parts = [
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*parts)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


class Positions(nn.Module):
    """A parameter of its own, added to every sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[:, : x.shape[1]]


class Patches(nn.Module):
    """(N, C, ...) to (N, positions, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """Average of every dimension but batch and ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        channels = x.movedim(self.dim, 1)
        return channels.flatten(2).mean(2) if channels.ndim > 2 else channels
