"""ShuffleNetV2 (Ma et al. 2018): half of the channels pass by, then all are shuffled."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, Norm, conv_norm
from torch_geninit.training.networks.specification import Specification, divisible, seen, unseen

PAPER = {
    0.5: (24, (48, 96, 192), 1024),
    1.0: (24, (116, 232, 464), 1024),
    1.5: (24, (176, 352, 704), 1024),
    2.0: (24, (244, 488, 976), 2048),
}
"""Table 5 of the paper: channels of stem, stages and last convolution, by complexity."""
PAPER_BLOCKS = (4, 8, 4)


@dataclass(frozen=True)
class ShuffleNetV2(Specification):
    """A ShuffleNetV2.

    Attributes:
        blocks: of each stage; each halves the resolution.
        widths: channels of each stage, even.
        last: channels of the 1x1 convolution behind the stages.
        pooled_stem: whether the stem strides and max-pools, as for large images.
    """

    family: ClassVar[str] = "shufflenet_v2"
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int
    last: int
    pooled_stem: bool = True
    kernel: int = 3
    norm: Norm = "batch"
    activation: Activation = "relu"

    @property
    def reserved(self) -> bool:
        """The paper's networks."""
        return self.blocks == PAPER_BLOCKS and any(self.widths == widths for _, widths, _ in PAPER.values())

    @property
    def needs_full_size(self) -> bool:
        return self.pooled_stem

    def build(self, classes: int, size: int) -> nn.Module:
        return ShuffleNetwork(self, classes)


class ShuffleUnit(nn.Module):
    """1x1, depthwise, 1x1 on one half of the channels, or on all of them twice where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, spec: ShuffleNetV2) -> None:
        super().__init__()
        half = out_channels // 2

        def conv(
            inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False
        ) -> nn.Sequential:
            return conv_norm(
                inputs,
                outputs,
                kernel,
                stride,
                groups=inputs if depthwise else 1,
                norm=spec.norm,
                activation=None if depthwise else spec.activation,
            )

        changes = stride > 1 or in_channels != out_channels
        self.shortcut = (
            nn.Sequential(
                conv(in_channels, in_channels, spec.kernel, stride, depthwise=True),
                conv(in_channels, half, 1),
            )
            if changes
            else None
        )
        self.branch = nn.Sequential(
            conv(in_channels if changes else half, half, 1),
            conv(half, half, spec.kernel, stride, depthwise=True),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            joined = torch.cat([self.shortcut(x), self.branch(x)], 1)
        else:
            passing, changed = x.chunk(2, 1)
            joined = torch.cat([passing, self.branch(changed)], 1)
        return shuffle(joined, 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNetwork(nn.Module):
    """Stem, stages of units, 1x1 convolution, mean, classifier."""

    def __init__(self, spec: ShuffleNetV2, classes: int) -> None:
        super().__init__()
        channels = spec.stem_width
        stem_stride = 2 if spec.pooled_stem else 1
        features: list[nn.Module] = [
            conv_norm(3, channels, 3, stem_stride, norm=spec.norm, activation=spec.activation)
        ]
        if spec.pooled_stem:
            features.append(nn.MaxPool2d(3, 2, 1))
        for count, width in zip(spec.blocks, spec.widths, strict=True):
            for index in range(count):
                features.append(ShuffleUnit(channels, width, 1 if index else 2, spec))
                channels = width
        last = conv_norm(channels, spec.last, 1, norm=spec.norm, activation=spec.activation)
        self.features = nn.Sequential(*features, last)
        self.classifier = nn.Linear(spec.last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def sample(r: random.Random) -> ShuffleNetV2:
    """Draw a ShuffleNetV2 that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> ShuffleNetV2:
    """Draw a ShuffleNetV2 that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> ShuffleNetV2:
    if r.random() < 0.5:
        widths: tuple[int, ...]
        stem, widths, last = r.choice([*PAPER.values()])
        if r.random() < 0.5:
            first = divisible(widths[0] * r.choice((0.75, 1.0, 1.25)))
            widths = (first, 2 * first, 4 * first)
        blocks = PAPER_BLOCKS if r.random() < 0.5 else r.choice(((3, 7, 3), (2, 4, 2), (4, 6, 4), (3, 6, 3)))
        return ShuffleNetV2(blocks, widths, stem, last, r.random() < 0.4)
    stages = r.choice((2, 3, 3, 4))
    base, growth = r.choice((32, 48, 64, 96, 128)), r.choice((1.5, 2.0, 2.0))
    widths = tuple(min(1024, divisible(base * growth**stage)) for stage in range(stages))
    return ShuffleNetV2(
        tuple(r.randint(2, 8) for _ in range(stages)),
        widths,
        r.choice((16, 24, 32, 48)),
        r.choice((256, 512, 1024)),
        stages < 4 and r.random() < 0.4,
        r.choice((3, 3, 5, 7)),
        r.choice(("batch", "batch", "batch", "group", "layer")),
        r.choice([*ACTIVATIONS]),
    )
