"""DenseNet (Huang et al. 2017): layers whose new channels join all earlier ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, Norm, normalise
from torch_geninit.training.networks.specification import Specification, divisible, seen, unseen

Stem = Literal["7x7 pooled", "3x3", "3x3 alone"]

DENSENET_121 = (6, 12, 24, 16)
NAMED: dict[tuple[int, ...], tuple[int, int]] = {
    (6, 12, 32, 32): (32, 64),
    (6, 12, 48, 32): (32, 64),
    (6, 12, 36, 24): (48, 96),
}
"""The paper's other ImageNet networks, 169, 201 and 161: layers of each block -> growth, stem width."""


@dataclass(frozen=True)
class DenseNet(Specification):
    """A DenseNet.

    Attributes:
        layers: of each block.
        growth: channels that each layer adds.
        stem_width: channels of the stem.
        stem: 7x7 at stride 2 with max-pooling, a 3x3, or the 3x3 alone without norm and activation.
        bottleneck: width of a layer's 1x1 convolution over its growth; 0: the layer has none.
        compression: channels behind a transition over those before it.
    """

    family: ClassVar[str] = "densenet"
    layers: tuple[int, ...]
    growth: int
    stem_width: int
    stem: Stem = "7x7 pooled"
    bottleneck: int = 4
    compression: float = 0.5
    kernel: int = 3
    norm: Norm = "batch"
    activation: Activation = "relu"

    @property
    def channels(self) -> int:
        """Channels behind the last block."""
        channels = self.stem_width
        for index, count in enumerate(self.layers):
            channels = (int(channels * self.compression) if index else channels) + count * self.growth
        return channels

    @property
    def reserved(self) -> bool:
        """Any DenseNet-121 whatever its growth, the paper's others, and its CIFAR networks of 3 even blocks.

        The latter are DenseNet-BC-100 with growth 12 (16 layers a block) and its like.
        """
        named = NAMED.get(self.layers) == (self.growth, self.stem_width)
        cifar = self.layers in ((16, 16, 16), (6, 6, 6)) and self.growth == 12
        return self.layers == DENSENET_121 or named or cifar

    @property
    def needs_full_size(self) -> bool:
        return self.stem == "7x7 pooled"

    def build(self, classes: int, size: int) -> nn.Module:
        return DenseNetwork(self, classes)


class DenseLayer(nn.Module):
    """Norm, activation, convolution, once or, with a bottleneck, twice; reads a list of features."""

    def __init__(self, in_channels: int, spec: DenseNet) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if spec.bottleneck:
            narrow = spec.bottleneck * spec.growth
            layers += [*_norm_conv(in_channels, narrow, 1, spec)]
            in_channels = narrow
        self.layers = nn.Sequential(*layers, *_norm_conv(in_channels, spec.growth, spec.kernel, spec))

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.layers(torch.cat(features, 1))


class DenseBlock(nn.ModuleList):
    """Layers that each read everything before them."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNetwork(nn.Module):
    """Stem, dense blocks with transitions between them, norm, activation, global average, classifier."""

    def __init__(self, spec: DenseNet, classes: int) -> None:
        super().__init__()
        channels = spec.stem_width
        large = spec.stem == "7x7 pooled"
        features: list[nn.Module] = [
            nn.Conv2d(3, channels, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        ]
        if spec.stem != "3x3 alone":
            features += [normalise(spec.norm, channels), ACTIVATIONS[spec.activation]()]
        if large:
            features.append(nn.MaxPool2d(3, 2, 1))
        for index, count in enumerate(spec.layers):
            features.append(
                DenseBlock(DenseLayer(channels + number * spec.growth, spec) for number in range(count))
            )
            channels += count * spec.growth
            if index + 1 < len(spec.layers):
                narrow = int(channels * spec.compression)
                features += [*_norm_conv(channels, narrow, 1, spec), nn.AvgPool2d(2)]
                channels = narrow
        self.features = nn.Sequential(
            *features, normalise(spec.norm, channels), ACTIVATIONS[spec.activation]()
        )
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _norm_conv(in_channels: int, out_channels: int, kernel: int, spec: DenseNet) -> list[nn.Module]:
    return [
        normalise(spec.norm, in_channels),
        ACTIVATIONS[spec.activation](),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=spec.norm == "none"),
    ]


def densenet121(classes: int, size: int) -> nn.Module:
    """Build torchvision's densenet121: growth 32 behind a stem of 64 channels."""
    return DenseNet(DENSENET_121, 32, 64).build(classes, size)


def sample(r: random.Random) -> DenseNet:
    """Draw a DenseNet that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> DenseNet:
    """Draw a DenseNet that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> DenseNet:
    propose = _usual if r.random() < 0.5 else _varied
    while not 64 <= (spec := propose(r)).channels <= 2048:
        pass
    return spec


def _usual(r: random.Random) -> DenseNet:
    if r.random() < 0.6:  # the ImageNet networks: of their depth, a half and a third of it
        paper = r.choice([DENSENET_121, *NAMED])
        part = r.choice((1, 2, 2, 3, 3))
        growth = r.choice((8, 12, 16, 24, 32) if part == 1 else (16, 24, 32, 40, 48))
        layers = tuple(max(2, count // part) for count in paper)
        stem: Stem = "3x3" if growth <= 24 and r.random() < 0.5 else "7x7 pooled"
        return DenseNet(layers, growth, 2 * growth, stem)
    # The CIFAR networks: three even blocks, with bottlenecks and compression (BC) or without both.
    if r.random() < 0.3:
        growth = r.choice((12, 16, 24))
        layers = (r.randint(4, 144 // growth),) * 3
        return DenseNet(layers, growth, 16, "3x3 alone", bottleneck=0, compression=1.0)
    growth = r.choice((12, 16, 24, 32, 40))
    return DenseNet((r.randint(3, 192 // growth),) * 3, growth, 2 * growth, "3x3 alone")


def _varied(r: random.Random) -> DenseNet:
    blocks = r.choice((2, 3, 3, 4, 4))
    stem: Stem = r.choice(("7x7 pooled", "3x3", "3x3 alone"))
    growth = r.choice((8, 12, 16, 20, 24, 32, 48, 64) if stem == "7x7 pooled" else (8, 12, 16, 20, 24, 32))
    most = 10 if growth <= 16 else 6
    layers = tuple(r.randint(2, most + index) for index in range(blocks))
    bottleneck, compression = r.choice((0, 1, 2, 3, 4, 4)), r.choice((0.5, 0.5, 0.75, 1.0))
    norm: Norm = r.choice(("batch", "batch", "batch", "batch", "group", "layer"))
    return DenseNet(
        layers,
        growth,
        divisible(growth * r.choice((1, 1.5, 2, 3, 4))),
        stem,
        bottleneck,
        compression,
        r.choice((3, 3, 3, 5)) if bottleneck or growth <= 24 else 3,
        norm,
        r.choice([*ACTIVATIONS]),
    )
