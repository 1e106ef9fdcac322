"""Building blocks of CIFAR-sized networks: convolutional, mixing and attention blocks over any norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group", "layer", "none"]
Activation = Literal["relu", "gelu", "silu", "leaky_relu", "hardswish"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "hardswish": nn.Hardswish,
}


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common."""

    norm: Norm = "batch"
    activation: Activation = "relu"
    kernel: int = 3
    expansion: int = 4
    groups: int = 1
    squeeze_excite: bool = False
    shortcut: Literal["A", "B"] = "B"
    layer_scale: bool = False

    def normalise(self, channels: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(channels)
        if self.norm == "group":
            # Two channels a group at least: at one position a single one is always normalised to 0.
            return nn.GroupNorm(math.gcd(channels, min(8, channels // 2)), channels)
        return ChannelNorm(channels) if self.norm == "layer" else nn.Identity()

    def activate(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def conv(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> nn.Conv2d:
        """Build a convolution that keeps the resolution but for its stride; with a bias if nothing shifts."""
        return nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            kernel // 2,
            groups=math.gcd(groups, in_channels, out_channels),
            bias=self.norm == "none",
        )

    def conv_norm(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        activate: bool = True,
    ) -> nn.Sequential:
        layers = [
            self.conv(in_channels, out_channels, kernel, stride, groups),
            self.normalise(out_channels),
        ]
        return nn.Sequential(*layers, *([self.activate()] if activate else []))

    def scale(self, channels: int) -> nn.Module:
        return LayerScale(channels) if self.layer_scale else nn.Identity()

    def project(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Build the shortcut around a block: identity, zero-padding (option A) or 1x1 convolution (B)."""
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        if self.shortcut == "A" and out_channels >= in_channels:
            return PadChannels(out_channels - in_channels, stride)
        return self.conv_norm(in_channels, out_channels, 1, stride, activate=False)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A factor for each channel of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class PadChannels(nn.Module):
    """Shortcut without parameters: subsample, pad with zero channels on both sides."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class SqueezeExcite(nn.Module):
    """Channel gates from the globally averaged features (Hu et al. 2018)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        squeezed = max(4, channels // 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = style.activate()
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.expand(self.activation(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * gates.sigmoid()


def gate(channels: int, style: Style) -> nn.Module:
    return SqueezeExcite(channels, style) if style.squeeze_excite else nn.Identity()


class Plain(nn.Sequential):
    """One convolution with its norm and activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        super().__init__(*style.conv_norm(in_channels, out_channels, style.kernel, stride, style.groups))


class Residual(nn.Module):
    """y = act(shortcut(x) + scale(branch(x))); the last activation is optional."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module, scale: nn.Module, activation: nn.Module
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.scale, self.activation = branch, shortcut, scale, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.scale(self.branch(x)))


class Basic(Residual):
    """Two convolutions around an identity (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        branch = nn.Sequential(
            style.conv_norm(in_channels, out_channels, style.kernel, stride),
            style.conv_norm(out_channels, out_channels, style.kernel, groups=style.groups, activate=False),
            gate(out_channels, style),
        )
        shortcut = style.project(in_channels, out_channels, stride)
        super().__init__(branch, shortcut, style.scale(out_channels), style.activate())


class Bottleneck(Residual):
    """1x1 down, convolution (grouped in ResNeXt), 1x1 up (He et al. 2016; Xie et al. 2017)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        narrow = max(8, out_channels // style.expansion)
        branch = nn.Sequential(
            style.conv_norm(in_channels, narrow, 1),
            style.conv_norm(narrow, narrow, style.kernel, stride, style.groups),
            style.conv_norm(narrow, out_channels, 1, activate=False),
            gate(out_channels, style),
        )
        shortcut = style.project(in_channels, out_channels, stride)
        super().__init__(branch, shortcut, style.scale(out_channels), style.activate())


class PreActivation(Residual):
    """Norm and activation before each of two convolutions (He et al. 2016, Identity Mappings)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        branch = nn.Sequential(
            style.normalise(in_channels),
            style.activate(),
            style.conv(in_channels, out_channels, style.kernel, stride),
            style.normalise(out_channels),
            style.activate(),
            style.conv(out_channels, out_channels, style.kernel, groups=style.groups),
            gate(out_channels, style),
        )
        shortcut = style.project(in_channels, out_channels, stride)
        super().__init__(branch, shortcut, style.scale(out_channels), nn.Identity())


class Inverted(nn.Module):
    """1x1 up, depthwise convolution, 1x1 down without activation (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        super().__init__()
        wide = in_channels * style.expansion
        expand = [style.conv_norm(in_channels, wide, 1)] if style.expansion > 1 else []
        self.branch = nn.Sequential(
            *expand,
            style.conv_norm(wide, wide, style.kernel, stride, groups=wide),
            gate(wide, style),
            style.conv_norm(wide, out_channels, 1, activate=False),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class ConvNeXt(Residual):
    """Depthwise convolution, norm, 1x1 up, activation, 1x1 down (Liu et al. 2022)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        wide = out_channels * style.expansion
        depthwise = nn.Conv2d(
            in_channels,
            out_channels,
            style.kernel,
            stride,
            style.kernel // 2,
            groups=math.gcd(in_channels, out_channels),
        )
        branch = nn.Sequential(
            depthwise,
            style.normalise(out_channels),
            nn.Conv2d(out_channels, wide, 1),
            style.activate(),
            nn.Conv2d(wide, out_channels, 1),
        )
        shortcut = style.project(in_channels, out_channels, stride)
        super().__init__(branch, shortcut, style.scale(out_channels), nn.Identity())


class Inception(nn.Module):
    """Branches of 1x1, kxk, factorised kx1 and 1xk, and pooled 1x1 convolutions, concatenated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        super().__init__()
        part = out_channels // 4
        k = style.kernel
        biased = style.norm == "none"
        self.branches = nn.ModuleList(
            [
                style.conv_norm(in_channels, out_channels - 3 * part, 1, stride),
                nn.Sequential(style.conv_norm(in_channels, part, 1), style.conv_norm(part, part, k, stride)),
                nn.Sequential(
                    style.conv_norm(in_channels, part, 1, stride),
                    nn.Conv2d(part, part, (1, k), padding=(0, k // 2), bias=biased),
                    nn.Conv2d(part, part, (k, 1), padding=(k // 2, 0), bias=biased),
                    style.normalise(part),
                    style.activate(),
                ),
                nn.Sequential(nn.MaxPool2d(3, stride, 1), style.conv_norm(in_channels, part, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Dense(nn.Module):
    """Norm, activation, convolution; its new channels join all earlier ones (Huang et al. 2017).

    A block with a stride is a transition: 1x1 convolution to ``out_channels``, then average pooling.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: Style) -> None:
        super().__init__()
        self.transition = stride > 1
        kernel = 1 if self.transition else style.kernel
        self.layers = nn.Sequential(
            style.normalise(in_channels),
            style.activate(),
            style.conv(in_channels, out_channels if self.transition else out_channels - in_channels, kernel),
        )

    def forward(self, x: Tensor) -> Tensor:
        new = self.layers(x)
        return F.avg_pool2d(new, 2) if self.transition else torch.cat([x, new], 1)


class MLP(nn.Sequential):
    """Linear up, activation, linear down, over the last dimension."""

    def __init__(self, width: int, hidden: int, style: Style) -> None:
        super().__init__(nn.Linear(width, hidden), style.activate(), nn.Linear(hidden, width))


class Mixer(nn.Module):
    """Mixing over tokens, then over channels, of (N, T, C) (Tolstikhin et al. 2021)."""

    def __init__(self, tokens: int, width: int, style: Style) -> None:
        super().__init__()
        self.token_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mlp = MLP(tokens, width // 2, style)
        self.mlp = MLP(width, width * style.expansion, style)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    """Self-attention and MLP of (N, T, C), norms first (Dosovitskiy et al. 2021).

    ``grid`` > 0 adds a learned table of relative position biases, one for each offset on the grid and head.
    """

    def __init__(self, width: int, heads: int, grid: int, style: Style) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = MLP(width, width * style.expansion, style)
        self.relative = nn.Parameter(torch.zeros((2 * grid - 1) ** 2, heads)) if grid else None

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(x))
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm(x))

    def _bias(self, x: Tensor) -> Tensor | None:
        if self.relative is None:
            return None
        position = torch.arange(self.grid**2, device=x.device)
        row, column = position // self.grid, position % self.grid
        offset = self.grid - 1
        index = (row[:, None] - row + offset) * (2 * self.grid - 1) + column[:, None] - column + offset
        return self.relative[index].permute(2, 0, 1)[None]
