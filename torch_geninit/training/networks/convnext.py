"""ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from torch_geninit.training.networks.blocks import ChannelNorm
from torch_geninit.training.networks.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    Permute,
    normalise,
)
from torch_geninit.training.networks.specification import Specification, divisible, seen, unseen

TINY = (3, 3, 9, 3)
NAMED: dict[tuple[int, ...], tuple[int, ...]] = {
    (3, 3, 27, 3): (96, 128, 192),
    (2, 2, 6, 2): (40, 48, 64),
    (2, 2, 8, 2): (80,),
}
"""Blocks of the papers' other networks, and their widths in the first stage."""


@dataclass(frozen=True)
class ConvNeXt(Specification):
    """A ConvNeXt.

    Attributes:
        blocks: of each stage.
        widths: channels of each stage.
        patch: kernel and stride of the stem; 1: a 3x3 convolution at stride 1.
        layer_scale: initial value of a factor for each channel of a branch; 0: there is none.
        response_norm: whether the hidden channels are normalised by their responses, as in V2.
        pointwise: whether blocks mix channels by linear layers or by 1x1 convolutions.
    """

    family: ClassVar[str] = "convnext-imagenet"
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    patch: int = 4
    kernel: int = 7
    expansion: int = 4
    layer_scale: float = 1e-6
    response_norm: bool = False
    pointwise: Literal["linear", "convolution"] = "linear"
    norm: Norm = "layer"
    activation: Activation = "gelu"

    @property
    def reserved(self) -> bool:
        """Any network with ConvNeXt-T's blocks whatever its widths, and the papers' others at their own."""
        return self.blocks == TINY or self.widths[0] in NAMED.get(self.blocks, ())

    @property
    def needs_full_size(self) -> bool:
        return self.patch > 1

    def build(self, classes: int, size: int) -> nn.Module:
        return ConvNeXtNetwork(self, classes)


class GlobalResponseNorm(nn.Module):
    """y = x + gamma * x * n / mean(n) + beta, n the norm of each channel over positions; channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(dim=(1, 2), keepdim=True)
        return x + self.gamma * (x * (norms / (norms.mean(-1, keepdim=True) + 1e-6))) + self.beta


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, linear up, activation, linear down, around an identity."""

    def __init__(self, width: int, spec: ConvNeXt) -> None:
        super().__init__()
        # First, as in torchvision: then the parameters of both come in one order.
        scale = torch.full((width, 1, 1), spec.layer_scale)
        self.layer_scale = nn.Parameter(scale) if spec.layer_scale else None
        hidden = width * spec.expansion
        depthwise = nn.Conv2d(width, width, spec.kernel, padding=spec.kernel // 2, groups=width)
        activation = ACTIVATIONS[spec.activation]()
        if spec.pointwise == "convolution":
            self.branch = nn.Sequential(
                depthwise,
                normalise(spec.norm, width, 1e-6),
                nn.Conv2d(width, hidden, 1),
                activation,
                nn.Conv2d(hidden, width, 1),
            )
        else:
            to_last = Permute(0, 2, 3, 1)
            norm = (
                [to_last, nn.LayerNorm(width, 1e-6)]
                if spec.norm == "layer"
                else [normalise(spec.norm, width), to_last]
            )
            response = [GlobalResponseNorm(hidden)] if spec.response_norm else []
            self.branch = nn.Sequential(
                depthwise,
                *norm,
                nn.Linear(width, hidden),
                activation,
                *response,
                nn.Linear(hidden, width),
                Permute(0, 3, 1, 2),
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return x + (branch if self.layer_scale is None else self.layer_scale * branch)


class ConvNeXtNetwork(nn.Module):
    """Patches, stages with a norm and a 2x2 convolution between them, global average, norm, classifier."""

    def __init__(self, spec: ConvNeXt, classes: int) -> None:
        super().__init__()
        channels = spec.widths[0]
        stem = (
            nn.Conv2d(3, channels, spec.patch, spec.patch)
            if spec.patch > 1
            else nn.Conv2d(3, channels, 3, padding=1)
        )
        features: list[nn.Module] = [stem, normalise(spec.norm, channels, 1e-6)]
        for index, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
            if index:
                features += [normalise(spec.norm, channels, 1e-6), nn.Conv2d(channels, width, 2, 2)]
            features += [ConvNeXtBlock(width, spec) for _ in range(count)]
            channels = width
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            ChannelNorm(channels, 1e-6), nn.Flatten(1), nn.Linear(channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)))


def convnext_tiny(classes: int, size: int) -> nn.Module:
    """Build torchvision's convnext_tiny: widths 96 to 768."""
    return ConvNeXt(TINY, (96, 192, 384, 768)).build(classes, size)


def sample(r: random.Random) -> ConvNeXt:
    """Draw a ConvNeXt that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> ConvNeXt:
    """Draw a ConvNeXt that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> ConvNeXt:
    return _usual(r) if r.random() < 0.5 else _varied(r)


def _usual(r: random.Random) -> ConvNeXt:
    base = r.choice((16, 24, 32, 40, 48, 56, 64, 80, 96, 112))
    deep = [(3, 3, 27, 3), (3, 3, 15, 3)] if base <= 48 else []
    blocks = r.choice([TINY, (2, 2, 6, 2), (2, 2, 8, 2), (3, 3, 6, 3), (2, 2, 4, 2), (1, 1, 3, 1), *deep])
    v2 = r.random() < 0.2
    return ConvNeXt(
        blocks,
        tuple(base * 2**stage for stage in range(4)),
        r.choice((4, 4, 2, 2)),
        layer_scale=0.0 if v2 else 1e-6,
        response_norm=v2,
        pointwise="linear" if v2 or r.random() < 0.8 else "convolution",
    )


def _varied(r: random.Random) -> ConvNeXt:
    stages = r.choice((2, 3, 3, 4, 4))
    base, growth = r.choice((24, 32, 48, 64, 96)), r.choice((1.5, 2.0, 2.0))
    widths = [min(1024, divisible(base * growth**stage)) for stage in range(stages)]
    widths[-1] = max(64, widths[-1])
    pointwise: Literal["linear", "convolution"] = r.choice(("linear", "linear", "convolution"))
    patch = r.choice((1, 2, 2, 4)) if base <= 32 else r.choice((2, 4))
    return ConvNeXt(
        tuple(r.randint(1, 6 if stages < 4 else 4) for _ in range(stages)),
        tuple(widths),
        patch,
        r.choice((3, 5, 7, 7, 9, 11)),
        r.choice((2, 3, 4, 4)),
        r.choice((0.0, 1e-6, 0.1, 1.0)),
        pointwise == "linear" and r.random() < 0.2,
        pointwise,
        r.choice(("layer", "layer", "batch", "group")),
        r.choice([*ACTIVATIONS]),
    )
