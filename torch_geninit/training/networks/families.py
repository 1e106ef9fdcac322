"""Whole CIFAR-sized networks from a specification: staged convolutional ones and networks over tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.blocks import (
    Basic,
    Bottleneck,
    ConvNeXt,
    Dense,
    Inception,
    Inverted,
    Mixer,
    Plain,
    PreActivation,
    Style,
    Transformer,
)
from torch_geninit.training.networks.specification import Specification

STAGED: dict[str, type[nn.Module]] = {
    "plain": Plain,
    "basic": Basic,
    "bottleneck": Bottleneck,
    "preactivation": PreActivation,
    "dense": Dense,
    "inception": Inception,
    "inverted": Inverted,
    "convnext": ConvNeXt,
}
OVER_TOKENS = ("mixer", "transformer")
FAMILIES = (*STAGED, *OVER_TOKENS)
Positions = Literal["table", "relative", "none"]
TWO_CONVOLUTION_BLOCKS = ("basic", "preactivation")
REFERENCE_BLOCKS = ((3, 3, 3), (9, 9, 9))
"""Blocks of ResNet-20 and ResNet-56."""


@dataclass(frozen=True)
class Spec(Specification):
    """A network of the space, enough to build it.

    Attributes:
        family: one of :data:`FAMILIES`.
        blocks: blocks of each stage; networks over tokens have one stage.
        widths: channels of each stage; of a dense network, those of the stem alone matter.
        stem: kernel of the first convolution; even ones are patches, their stride is the kernel.
        downsample: where a later stage halves the resolution: in its first convolution, or by max pooling.
        head_hidden: width of a hidden layer in the head, 0 for none.
        heads: attention heads.
        positions: of a transformer: a table for the tokens, one for their offsets, or none.
        class_token: whether the head reads a token of its own instead of the mean.
    """

    family: str  # type: ignore[misc]  # one class builds many families
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    style: Style = field(default_factory=Style)
    stem: int = 3
    downsample: Literal["stride", "max"] = "stride"
    head_hidden: int = 0
    heads: int = 1
    positions: Positions = "none"
    class_token: bool = False

    @property
    def reserved(self) -> bool:
        """Whether it is a ResNet-20 or ResNet-56, whatever its width, shortcut or norm."""
        return self.family in TWO_CONVOLUTION_BLOCKS and self.blocks in REFERENCE_BLOCKS

    @property
    def needs_full_size(self) -> bool:
        """Whether it is built for one image size, or patches would leave too little of smaller images."""
        return self.family in OVER_TOKENS or self.stem % 2 == 0

    def build(self, classes: int, size: int = 32) -> nn.Module:
        """Build the network for ``classes`` and square images of ``size`` pixels."""
        if self.family in OVER_TOKENS:
            return TokenNetwork(self, classes, size)
        return StagedNetwork(self, classes)


class StagedNetwork(nn.Module):
    """Stem, stages of blocks at halving resolutions, global average, classifier."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        style, channels = spec.style, spec.widths[0]
        patch = spec.stem % 2 == 0
        late_norm = spec.family in ("preactivation", "dense")
        stem = nn.Conv2d(
            3,
            channels,
            spec.stem,
            stride=spec.stem if patch else 1,
            padding=0 if patch else spec.stem // 2,
            bias=style.norm == "none" or spec.family == "convnext",
        )
        if late_norm:
            self.stem = nn.Sequential(stem)
        elif spec.family == "convnext":
            self.stem = nn.Sequential(stem, style.normalise(channels))
        else:
            self.stem = nn.Sequential(stem, style.normalise(channels), style.activate())
        stages = []
        for index, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
            layers, channels = self._stage(spec, index, count, channels, width)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.last = (
            nn.Sequential(style.normalise(channels), style.activate())
            if late_norm
            else style.normalise(channels)
            if spec.family == "convnext"
            else nn.Identity()
        )
        self.head = _head(channels, spec, classes)

    @staticmethod
    def _stage(spec: Spec, index: int, count: int, channels: int, width: int) -> tuple[list[nn.Module], int]:
        style = spec.style
        layers: list[nn.Module] = []
        block = STAGED[spec.family]
        if spec.family == "dense":
            growth = max(8, spec.widths[0] // 2)
            if index:
                layers.append(Dense(channels, channels // 2, 2, style))
                channels //= 2
            for _ in range(count):
                layers.append(Dense(channels, channels + growth, 1, style))
                channels += growth
            return layers, channels
        stride = 2 if index else 1
        if index and spec.family == "convnext":
            layers += [style.normalise(channels), nn.Conv2d(channels, width, 2, 2)]
            channels, stride = width, 1
        elif index and spec.downsample == "max":
            layers.append(nn.MaxPool2d(2))
            stride = 1
        for number in range(count):
            layers.append(block(channels, width, 1 if number else stride, style))
            channels = width
        return layers, channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TokenNetwork(nn.Module):
    """Patches of the image as tokens, mixed by MLPs or attention; built for one image size."""

    def __init__(self, spec: Spec, classes: int, size: int) -> None:
        super().__init__()
        width, grid = spec.widths[0], size // spec.stem
        self.patches = nn.Conv2d(3, width, spec.stem, spec.stem)
        tokens = grid**2
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if spec.class_token else None
        table = tokens + spec.class_token
        self.positions = nn.Parameter(torch.zeros(1, table, width)) if spec.positions == "table" else None
        relative = grid if spec.positions == "relative" else 0
        self.blocks = nn.Sequential(
            *(
                Mixer(tokens, width, spec.style)
                if spec.family == "mixer"
                else Transformer(width, spec.heads, relative, spec.style)
                for _ in range(spec.blocks[0])
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = _head(width, spec, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        if self.positions is not None:
            x = x + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.class_token is not None else x.mean(1))


def _head(channels: int, spec: Spec, classes: int) -> nn.Module:
    if not spec.head_hidden:
        return nn.Linear(channels, classes)
    return nn.Sequential(
        nn.Linear(channels, spec.head_hidden), spec.style.activate(), nn.Linear(spec.head_hidden, classes)
    )
