"""GoogLeNet (Szegedy et al. 2015) with norms: four branches whose channels are joined."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, Norm, conv_norm
from torch_geninit.training.networks.specification import Specification, divisible, seen, unseen


@dataclass(frozen=True)
class Branches:
    """One inception module: channels of its branches, as in table 1 of the paper."""

    ones: int
    reduce_threes: int
    threes: int
    reduce_fives: int
    fives: int
    pooled: int

    @property
    def channels(self) -> int:
        return self.ones + self.threes + self.fives + self.pooled


PAPER: tuple[tuple[Branches, ...], ...] = (
    (Branches(64, 96, 128, 16, 32, 32), Branches(128, 128, 192, 32, 96, 64)),
    (
        Branches(192, 96, 208, 16, 48, 64),
        Branches(160, 112, 224, 24, 64, 64),
        Branches(128, 128, 256, 24, 64, 64),
        Branches(112, 144, 288, 32, 64, 64),
        Branches(256, 160, 320, 32, 128, 128),
    ),
    (Branches(256, 160, 320, 32, 128, 128), Branches(384, 192, 384, 48, 128, 128)),
)
"""Table 1: modules of the stages; pooling stands between stages."""


@dataclass(frozen=True)
class GoogLeNet(Specification):
    """A GoogLeNet.

    Attributes:
        stages: inception modules; pooling stands between stages.
        stem: 7x7 at stride 2 with pooling and two more convolutions, or a single 3x3.
        fives: the third branch: one 5x5 (the paper), one 3x3 (torchvision) or two 3x3 (Inception v2).
    """

    family: ClassVar[str] = "googlenet"
    stages: tuple[tuple[Branches, ...], ...]
    stem_width: int
    stem: Literal["7x7 pooled", "3x3"] = "7x7 pooled"
    fives: Literal["5x5", "3x3", "3x3 twice"] = "3x3"
    norm: Norm = "batch"
    activation: Activation = "relu"
    eps: float = 1e-3

    @property
    def reserved(self) -> bool:
        """Any network of the paper's modules."""
        return self.stages == PAPER

    @property
    def needs_full_size(self) -> bool:
        return self.stem == "7x7 pooled"

    def build(self, classes: int, size: int) -> nn.Module:
        return GoogLeNetwork(self, classes)


class Inception(nn.Module):
    """Branches of 1x1, 3x3, 5x5 and pooled 1x1 convolutions, joined."""

    def __init__(self, in_channels: int, module: Branches, spec: GoogLeNet) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
            return conv_norm(
                inputs, outputs, kernel, norm=spec.norm, eps=spec.eps, activation=spec.activation
            )

        fives = [conv(module.reduce_fives, module.fives, 5 if spec.fives == "5x5" else 3)]
        if spec.fives == "3x3 twice":
            fives.append(conv(module.fives, module.fives, 3))
        self.branches = nn.ModuleList(
            [
                conv(in_channels, module.ones, 1),
                nn.Sequential(
                    conv(in_channels, module.reduce_threes, 1), conv(module.reduce_threes, module.threes, 3)
                ),
                nn.Sequential(conv(in_channels, module.reduce_fives, 1), *fives),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(in_channels, module.pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNetwork(nn.Module):
    """Stem, stages of inception modules, global average, classifier."""

    def __init__(self, spec: GoogLeNet, classes: int) -> None:
        super().__init__()
        width = spec.stem_width

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
            return conv_norm(
                inputs, outputs, kernel, stride, norm=spec.norm, eps=spec.eps, activation=spec.activation
            )

        channels = 3 * width
        features: list[nn.Module]
        if spec.stem == "3x3":
            features = [conv(3, channels, 3)]
        else:
            features = [
                conv(3, width, 7, 2),
                nn.MaxPool2d(3, 2, ceil_mode=True),
                conv(width, width, 1),
                conv(width, channels, 3),
                nn.MaxPool2d(3, 2, ceil_mode=True),
            ]
        for index, stage in enumerate(spec.stages):
            if index:
                # The last one over 2x2, as in torchvision; the paper pools over 3x3 everywhere.
                last = index == len(spec.stages) - 1
                features.append(nn.MaxPool2d(2 if last else 3, 2, ceil_mode=True))
            for module in stage:
                features.append(Inception(channels, module, spec))
                channels = module.channels
        self.features = nn.Sequential(*features)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def sample(r: random.Random) -> GoogLeNet:
    """Draw a GoogLeNet that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> GoogLeNet:
    """Draw a GoogLeNet that training never sees."""
    return unseen(_draw, r)


def _scaled(module: Branches, width: float) -> Branches:
    parts = (
        module.ones,
        module.reduce_threes,
        module.threes,
        module.reduce_fives,
        module.fives,
        module.pooled,
    )
    return Branches(*(divisible(part * width) for part in parts))


def _draw(r: random.Random) -> GoogLeNet:
    fives: Literal["5x5", "3x3", "3x3 twice"] = r.choice(("5x5", "3x3", "3x3 twice"))
    stem: Literal["7x7 pooled", "3x3"] = r.choice(("7x7 pooled", "3x3"))
    if r.random() < 0.5:  # the paper's modules, some left out, at another width
        width = r.choice((0.25, 0.375, 0.5) if stem == "3x3" else (0.25, 0.375, 0.5, 0.75, 1.0, 1.25))
        stages = tuple(
            tuple(
                _scaled(module, width)
                for module in stage[-r.choice((len(stage), r.randint(1, len(stage)))) :]
            )
            for stage in PAPER
        )
        return GoogLeNet(stages, divisible(64 * width), stem, fives)
    count = r.choice((2, 3, 3, 4)) if stem == "3x3" else r.choice((2, 3))
    total = r.choice((64, 96, 128) if stem == "3x3" else (64, 96, 128, 192, 256))
    growth = r.choice((1.25, 1.5, 2.0))
    stages = tuple(
        (_random_branches(r, min(1024, total * growth**stage)),) * r.randint(1, 4) for stage in range(count)
    )
    return GoogLeNet(
        stages,
        r.choice((16, 24, 32, 48)),
        stem,
        fives,
        r.choice(("batch", "batch", "batch", "group", "layer", "none")),
        r.choice([*ACTIVATIONS]),
        r.choice((1e-3, 1e-5)),
    )


def _random_branches(r: random.Random, channels: float) -> Branches:
    shares = [r.uniform(0.5, 2.0) * usual for usual in (0.25, 0.5, 0.125, 0.125)]
    ones, threes, fives, pooled = (divisible(channels * share / sum(shares)) for share in shares)
    return Branches(
        ones, divisible(threes * r.uniform(0.4, 1.0)), threes, divisible(fives / 2), fives, pooled
    )
