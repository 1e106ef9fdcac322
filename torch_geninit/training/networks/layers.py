"""Layers that several families of the training space share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.blocks import ChannelNorm

Norm = Literal["batch", "group", "layer", "none"]
Activation = Literal["relu", "relu6", "gelu", "silu", "leaky_relu", "elu", "mish", "hardswish"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}


class Permute(nn.Module):
    """Reorder dimensions."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Residual(nn.Module):
    """y = x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class SqueezeExcite(nn.Module):
    """Channel gates from the globally averaged features, by two 1x1 convolutions (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.expand(self.activation(self.reduce(mean)))) * x


def normalise(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """Build a norm over ``channels``."""
    if norm == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if norm == "group":
        # Two channels a group at least: at one position a single one is always normalised to 0.
        return nn.GroupNorm(math.gcd(channels, min(8, channels // 2)), channels, eps=eps)
    return ChannelNorm(channels, eps=eps) if norm == "layer" else nn.Identity()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    norm: Norm = "batch",
    eps: float = 1e-5,
    activation: Activation | None = "relu",
) -> nn.Sequential:
    """Build a convolution, its norm and its activation; the convolution has a bias if there is no norm."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=norm == "none"
    )
    layers: list[nn.Module] = [conv] if norm == "none" else [conv, normalise(norm, out_channels, eps)]
    if activation is not None:
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)
