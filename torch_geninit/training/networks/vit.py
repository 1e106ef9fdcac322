"""Vision transformers: ViT (Dosovitskiy et al. 2021) as torchvision and as others write it, and DeiT."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, conv_norm
from torch_geninit.training.networks.specification import Specification, seen, unseen

Attention = Literal["module", "packed", "separate"]
Positions = Literal["table", "table of patches", "sines", "none"]
Pool = Literal["class token", "mean", "distilled", "map"]


@dataclass(frozen=True)
class ViT(Specification):
    """A vision transformer.

    Attributes:
        patch: side of a patch in pixels.
        attention: torch's ``nn.MultiheadAttention``, one linear layer for queries, keys and values, or three.
        pool: what the head reads: the class token, the mean over tokens, class and distillation token with a
            head each (DeiT, Touvron et al. 2021), or one learned query's attention over tokens.
        positions: a learned table for all tokens or for the patches alone, fixed sines, or none.
        stem: one convolution of patches, or 3x3 convolutions at stride 2 (Xiao et al. 2021).
        norm_first: whether norms stand before attention and MLP, or behind them.
        layer_scale: initial value of a factor for each channel of a branch (CaiT); 0: there is none.
        query_norm: whether queries and keys are normalised.
    """

    family: ClassVar[str] = "vit"
    depth: int
    width: int
    heads: int
    patch: int = 16
    expansion: float = 4.0
    attention: Attention = "module"
    pool: Pool = "class token"
    positions: Positions = "table"
    stem: Literal["patches", "convolutions"] = "patches"
    norm_first: bool = True
    layer_scale: float = 0.0
    query_norm: bool = False
    bias: bool = True
    activation: Activation = "gelu"
    eps: float = 1e-6

    @property
    def reserved(self) -> bool:
        """Any ViT of 12 blocks, whatever its width."""
        return self.depth == 12

    @property
    def needs_full_size(self) -> bool:
        return True

    @property
    def extra_tokens(self) -> int:
        return {"class token": 1, "distilled": 2}.get(self.pool, 0)

    def build(self, classes: int, size: int) -> nn.Module:
        return VisionTransformer(self, classes, size)


class SelfAttention(nn.Module):
    """Softmax attention of tokens among each other."""

    def __init__(self, spec: ViT) -> None:
        super().__init__()
        width, self.heads = spec.width, spec.heads
        self.packed = spec.attention == "packed"
        if self.packed:
            self.qkv = nn.Linear(width, 3 * width, spec.bias)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width, spec.bias) for _ in range(3))
        each = width // spec.heads
        self.query_norm = nn.LayerNorm(each, spec.eps) if spec.query_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(each, spec.eps) if spec.query_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.packed:
            qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
        else:
            query, key, value = (
                layer(x).view(n, t, self.heads, c // self.heads).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
        mixed = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        return self.out(mixed.transpose(1, 2).reshape(n, t, c))


class MultiheadSelfAttention(nn.Module):
    """torch's own attention, of tokens among each other."""

    def __init__(self, spec: ViT) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(spec.width, spec.heads, bias=spec.bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class ChannelScale(nn.Module):
    """A factor for each channel of (N, T, C)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """Attention and MLP, each around an identity."""

    def __init__(self, spec: ViT) -> None:
        super().__init__()
        width, hidden = spec.width, int(spec.width * spec.expansion)
        self.norm_first = spec.norm_first
        self.attention_norm = nn.LayerNorm(width, spec.eps)
        self.attention = MultiheadSelfAttention(spec) if spec.attention == "module" else SelfAttention(spec)
        self.attention_scale = ChannelScale(width, spec.layer_scale) if spec.layer_scale else nn.Identity()
        self.mlp_norm = nn.LayerNorm(width, spec.eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), ACTIVATIONS[spec.activation](), nn.Linear(hidden, width)
        )
        self.mlp_scale = ChannelScale(width, spec.layer_scale) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attention_scale(self.attention(self.attention_norm(x)))
            return x + self.mlp_scale(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + self.attention_scale(self.attention(x)))
        return self.mlp_norm(x + self.mlp_scale(self.mlp(x)))


class Encoder(nn.Module):
    """Positions, transformer blocks, norm."""

    def __init__(self, spec: ViT, grid: int) -> None:
        super().__init__()
        self.extra = spec.extra_tokens
        self.all = spec.positions != "table of patches"
        tokens = grid**2 + (self.extra if self.all else 0)
        self.positions: Tensor | None
        if spec.positions == "table" or not self.all:
            self.positions = nn.Parameter(torch.empty(1, tokens, spec.width).normal_(std=0.02))
        else:
            fixed = sines(grid, self.extra, spec.width) if spec.positions == "sines" else None
            self.register_buffer("positions", fixed, persistent=False)
        self.blocks = nn.Sequential(*(TransformerBlock(spec) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, spec.eps) if spec.norm_first else nn.Identity()

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Return the encoded (N, T, C) of extra ``tokens`` and of ``patches``."""
        if self.positions is not None and not self.all:
            patches = patches + self.positions
        x = torch.cat([tokens, patches], 1) if self.extra else patches
        if self.positions is not None and self.all:
            x = x + self.positions
        return self.norm(self.blocks(x))


def sines(grid: int, extra: int, width: int) -> Tensor:
    """Return fixed positions (1, extra + grid^2, width): sine and cosine of row and column; extra are 0."""
    frequency = 1 / 10_000 ** (torch.arange(width // 4) / max(width // 4 - 1, 1))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (row, column)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
    return F.pad(table, (0, width - table.shape[1], extra, 0))[None]


class AttentionPool(nn.Module):
    """One learned query's attention over tokens (CCT, Hassani et al. 2021: sequence pooling)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1)
        return (weights.transpose(1, 2) @ x).squeeze(1)


class VisionTransformer(nn.Module):
    """Patches as tokens, encoder, head; built for one image size."""

    def __init__(self, spec: ViT, classes: int, size: int) -> None:
        super().__init__()
        width, self.pool = spec.width, spec.pool
        if size % spec.patch:
            raise ValueError(f"images of {size} pixels can't be cut into patches of {spec.patch}")
        tokens = torch.zeros(1, spec.extra_tokens, width)
        self.extra_tokens = nn.Parameter(tokens) if spec.extra_tokens else None
        self.patches = _stem(spec)
        self.encoder = Encoder(spec, size // spec.patch)
        self.query = AttentionPool(width) if spec.pool == "map" else None
        self.head = nn.Linear(width, classes)
        self.second_head = nn.Linear(width, classes) if spec.pool == "distilled" else None

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = patches if self.extra_tokens is None else self.extra_tokens.expand(x.shape[0], -1, -1)
        x = self.encoder(tokens, patches)
        if self.second_head is not None:
            return (self.head(x[:, 0]) + self.second_head(x[:, 1])) / 2
        if self.query is not None:
            return self.head(self.query(x))
        return self.head(x[:, 0] if self.pool == "class token" else x.mean(1))


def _stem(spec: ViT) -> nn.Module:
    if spec.stem == "patches":
        return nn.Conv2d(3, spec.width, spec.patch, spec.patch)
    halvings = int(math.log2(spec.patch))
    widths = [max(16, spec.width >> (halvings - index - 1)) for index in range(halvings)]
    layers = [conv_norm(a, b, 3, 2) for a, b in zip([3, *widths], widths, strict=False)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], spec.width, 1))


def vit_width_192(classes: int, size: int, patch: int = 8) -> nn.Module:
    """Build torchvision's VisionTransformer of 12 blocks, width 192 and 3 heads, the size of DeiT-Ti."""
    return ViT(12, 192, 3, patch).build(classes, size)


def sample(r: random.Random) -> ViT:
    """Draw a ViT that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> ViT:
    """Draw a ViT that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> ViT:
    return _usual(r) if r.random() < 0.5 else _varied(r)


def _usual(r: random.Random) -> ViT:
    heads = r.choice((2, 3, 3, 4, 6))
    attention: Attention = r.choice(("module", "packed", "packed", "separate"))
    pool: Pool = r.choice(("class token", "class token", "mean", "distilled"))
    depth = r.choice((4, 6, 6, 7, 8, 8, 9, 10, 12))
    patch = r.choice((4, 4, 8, 8, 8, 16)) if heads <= 3 else r.choice((8, 16))
    return ViT(depth, 64 * heads, heads, patch, attention=attention, pool=pool)


def _varied(r: random.Random) -> ViT:
    heads = r.choice((1, 2, 3, 4, 6, 8))
    width = heads * r.choice((16, 24, 32, 40, 48, 64))
    while not 64 <= width <= 384:
        width = heads * r.choice((16, 24, 32, 40, 48, 64))
    attention: Attention = r.choice(("module", "packed", "separate"))
    pool: Pool = r.choice(("class token", "class token", "mean", "mean", "distilled", "map"))
    norm_first = r.random() < 0.85
    return ViT(
        r.randint(2, 14 if width <= 192 else 8),
        width,
        heads,
        r.choice((4, 8, 8, 16)) if width <= 192 else r.choice((8, 16)),
        r.choice((1.0, 2.0, 3.0, 4.0)),
        attention,
        pool,
        r.choice(("table", "table", "table of patches", "sines", "none")),
        r.choice(("patches", "patches", "patches", "convolutions")),
        norm_first,
        r.choice((0.0, 0.0, 1e-4, 0.1)) if norm_first else 0.0,
        query_norm=attention != "module" and r.random() < 0.2,
        bias=r.random() < 0.8,
        activation=r.choice(("gelu", "gelu", "relu", "silu")),
        eps=r.choice((1e-6, 1e-5)),
    )
