"""Transformers for 32x32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import Permute, Residual


def mlp(width: int, hidden: int, dropout: float = 0.0) -> list[nn.Module]:
    """Build linear up, GELU, linear down."""
    return [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)]


class Attention(nn.Module):
    """Softmax attention written out: one layer without bias for queries, keys and values."""

    def __init__(self, width: int, heads: int, each: int, talking: bool = False) -> None:
        super().__init__()
        self.heads, self.factor = heads, each**-0.5
        self.qkv = nn.Linear(width, 3 * heads * each, bias=False)
        self.out = nn.Linear(heads * each, width)
        self.before = nn.Linear(heads, heads) if talking else None
        self.after = nn.Linear(heads, heads) if talking else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * self.factor
        if self.before is not None:  # the heads mix before and behind the softmax
            scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = scores.softmax(-1)
        if self.after is not None:
            weights = self.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Scaled(nn.Module):
    """A branch times a small factor for each channel."""

    def __init__(self, width: int, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.branch(x)


class CutPatches(nn.Module):
    """(N, C, H, W) to (N, patches, pixels of each), by reshaping alone."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        p = self.side
        return x.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)


class SmallViT(nn.Module):
    """A ViT whose patches are cut by reshaping and read by a linear layer between two norms."""

    def __init__(self, classes: int, width: int, depth: int, heads: int, hidden: int, mean: bool) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            CutPatches(4), nn.LayerNorm(48), nn.Linear(48, width), nn.LayerNorm(width)
        )
        self.token = None if mean else nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 64 if mean else 65, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(nn.LayerNorm(width), Attention(width, heads, width // heads)),
                    Residual(nn.LayerNorm(width), *mlp(width, hidden, 0.1)),
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x + self.positions)
        return self.head(x.mean(1) if self.token is None else x[:, 0])


class CCT(nn.Module):
    """Convolutions with pooling as tokenizer, torch's encoder layers, attention over tokens at the end."""

    def __init__(
        self, classes: int, convolutions: int, kernel: int, width: int, depth: int, heads: int, ratio: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index in range(convolutions):
            outputs = width if index == convolutions - 1 else 64
            convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            channels = outputs
        self.tokenizer = nn.Sequential(*layers)
        tokens = (32 >> convolutions) ** 2
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.2)
        layer = nn.TransformerEncoderLayer(
            width, heads, ratio * width, 0.1, F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.pool = nn.LayerNorm(width), nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokenizer(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(self.encoder(x))
        weights = self.pool(x).softmax(1).transpose(1, 2)
        return self.head((weights @ x).squeeze(1))


class ClassAttention(nn.Module):
    """The class token's attention over itself and all patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.query, x[:, :1]), (self.key, x), (self.value, x))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CaiT(nn.Module):
    """Talking heads and scaled branches over patches; then the class token alone reads them twice."""

    def __init__(self, classes: int, width: int = 192, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            attention = Attention(width, heads, width // heads, talking=True)
            blocks += [
                Residual(Scaled(width, nn.LayerNorm(width), attention)),
                Residual(Scaled(width, nn.LayerNorm(width), *mlp(width, 4 * width))),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.attentions = nn.ModuleList(
            Scaled(width, nn.LayerNorm(width), ClassAttention(width, heads)) for _ in range(2)
        )
        self.mlps = nn.ModuleList(
            Scaled(width, nn.LayerNorm(width), *mlp(width, 4 * width)) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.positions)
        token = self.token.expand(len(patches), -1, -1)
        for attention, mix in zip(self.attentions, self.mlps, strict=True):
            token = token + attention(torch.cat([token, patches], 1))
            token = token + mix(token)
        return self.head(self.norm(token[:, 0]))


class Windows(nn.Module):
    """Attention within windows of 4x4 positions, shifted by half of one or not; shifted ones wrap around."""

    index: Tensor

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift, self.heads = shift, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.offsets = nn.Parameter(torch.zeros(7 * 7, heads))
        position = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        away = position[:, :, None] - position[:, None] + 3
        self.register_buffer("index", away[0] * 7 + away[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        q, k, v = self.qkv(windows).view(-1, 16, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.offsets[self.index].permute(2, 0, 1)[None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(-1, 16, c)
        x = self.out(mixed).view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class Merge(nn.Module):
    """Four neighbours' channels joined, a norm, and a linear layer to half of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class ChannelMean(nn.Module):
    """Mean over the positions of (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


def swin(classes: int, width: int = 96) -> nn.Module:
    """Build a Swin transformer of patches of 2x2: 16x16, 8x8 and 4x4 positions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 2, 2), Permute(0, 2, 3, 1), nn.LayerNorm(width)]
    for stage, blocks in enumerate((2, 4, 2)):
        channels = width << stage
        if stage:
            layers.append(Merge(channels // 2))
        for index in range(blocks):
            shift = 2 if index % 2 and stage < 2 else 0  # the last stage is a single window
            attention = Windows(channels, channels // 32, shift)
            layers += [
                Residual(nn.LayerNorm(channels), attention),
                Residual(nn.LayerNorm(channels), *mlp(channels, 4 * channels)),
            ]
    return nn.Sequential(*layers, nn.LayerNorm(4 * width), ChannelMean(), nn.Linear(4 * width, classes))


NETWORKS: dict[str, Published] = {
    "vit_small": Published(
        lambda c: SmallViT(c, 192, 9, 3, 384, mean=False),
        "class token, patches of 4",
        "Dosovitskiy et al. 2021",
    ),
    "vit_mean": Published(
        lambda c: SmallViT(c, 256, 6, 8, 512, mean=True), "mean of tokens", "Dosovitskiy et al. 2021"
    ),
    "cct_7_3x1": Published(
        lambda c: CCT(c, 1, 3, 256, 7, 4, 2), "convolutional tokens", "Hassani et al. 2021"
    ),
    "cct_2_3x2": Published(
        lambda c: CCT(c, 2, 3, 128, 2, 2, 1), "two convolutions for tokens", "Hassani et al. 2021"
    ),
    "cait": Published(CaiT, "talking heads, class attention", "Touvron et al. 2021, going deeper"),
    "swin": Published(swin, "shifted windows", "Liu et al. 2021"),
}
