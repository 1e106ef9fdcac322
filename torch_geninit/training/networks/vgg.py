"""VGG (Simonyan & Zisserman 2015) with norms: stages of convolutions, each closed by pooling."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, Norm, normalise
from torch_geninit.training.networks.specification import Specification, divisible, seen, unseen

TABLE_1: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage in the paper's networks A, B, D and E, by number of layers."""
PAPER_WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class VGG(Specification):
    """A VGG.

    Attributes:
        convolutions: of each stage.
        widths: channels of each stage.
        order: whether the norm precedes the activation or follows it.
        downsample: how a stage ends: pooling, or a stride in its last convolution.
        grid: the classifier reads an average over grid x grid cells; 0: it reads every position.
        hidden: widths of the classifier's hidden layers.
    """

    family: ClassVar[str] = "vgg"
    convolutions: tuple[int, ...]
    widths: tuple[int, ...]
    kernel: int = 3
    norm: Norm = "batch"
    activation: Activation = "relu"
    order: Literal["norm first", "activation first"] = "norm first"
    downsample: Literal["max", "average", "stride"] = "max"
    grid: int = 1
    hidden: tuple[int, ...] = ()
    bias: bool = True
    dropout: float = 0.0

    @property
    def reserved(self) -> bool:
        """Any VGG-11 whatever its width, and the paper's other networks at their own."""
        named = self.convolutions in TABLE_1.values() and self.widths == PAPER_WIDTHS
        return self.convolutions == TABLE_1[11] or named

    @property
    def needs_full_size(self) -> bool:
        return self.grid == 0 or len(self.convolutions) > 4

    def build(self, classes: int, size: int) -> nn.Module:
        return VGGNetwork(self, classes, size)


class VGGNetwork(nn.Sequential):
    """Features, pooling to a grid, classifier."""

    def __init__(self, spec: VGG, classes: int, size: int) -> None:
        grid = spec.grid or size // 2 ** len(spec.convolutions)
        pool = [nn.AdaptiveAvgPool2d(spec.grid)] if spec.grid else []
        classifier: list[nn.Module] = []
        inputs = spec.widths[-1] * grid**2
        for hidden in spec.hidden:
            dropout = [nn.Dropout(spec.dropout)] if spec.dropout else []
            classifier += [nn.Linear(inputs, hidden), ACTIVATIONS[spec.activation](), *dropout]
            inputs = hidden
        super().__init__(_features(spec), *pool, nn.Flatten(), *classifier, nn.Linear(inputs, classes))


def _features(spec: VGG) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for count, width in zip(spec.convolutions, spec.widths, strict=True):
        for index in range(count):
            stride = 2 if spec.downsample == "stride" and index == count - 1 else 1
            layers.append(nn.Conv2d(channels, width, spec.kernel, stride, spec.kernel // 2, bias=spec.bias))
            pair = [normalise(spec.norm, width), ACTIVATIONS[spec.activation]()]
            layers += pair if spec.order == "norm first" else pair[::-1]
            channels = width
        if spec.downsample != "stride":
            layers.append(nn.MaxPool2d(2) if spec.downsample == "max" else nn.AvgPool2d(2))
    return nn.Sequential(*layers)


def vgg11_bn(classes: int, size: int) -> nn.Module:
    """Build torchvision's vgg11_bn: 7x7 grid, two hidden layers of 4,096."""
    spec = VGG(TABLE_1[11], PAPER_WIDTHS, grid=7, hidden=(4096, 4096), dropout=0.5)
    return spec.build(classes, size)


def sample(r: random.Random) -> VGG:
    """Draw a VGG that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> VGG:
    """Draw a VGG that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> VGG:
    return _usual(r) if r.random() < 0.5 else _varied(r)


def _usual(r: random.Random) -> VGG:
    base = r.choice((16, 24, 32, 40, 48, 64, 80))
    widths = tuple(base * width // 64 for width in PAPER_WIDTHS)
    classifier = r.choice(("single", "single", "narrow", "wide"))
    hidden: tuple[int, ...] = ()
    if classifier == "narrow":  # as wide as the last stage, what people take for small images
        hidden = (widths[-1],) * r.choice((1, 2))
    elif classifier == "wide" and base <= 24:  # torchvision's, 4,096 of 512 channels
        return VGG(r.choice([*TABLE_1.values()]), widths, grid=7, hidden=(widths[-1] * 8,) * 2)
    return VGG(r.choice([*TABLE_1.values()]), widths, grid=1, hidden=hidden, bias=r.random() < 0.7)


def _varied(r: random.Random) -> VGG:
    stages = r.choice((3, 4, 4, 5))
    base, growth = r.choice((16, 24, 32, 48, 64)), r.choice((1.25, 1.5, 2.0, 2.0))
    widths = tuple(min(1024, divisible(base * growth**stage)) for stage in range(stages))
    kernel = r.choice((3, 3, 3, 3, 5, 7, 1))
    if max(widths) < 64:
        widths = (*widths[:-1], 64)
    norm: Norm = r.choice(("batch", "batch", "batch", "group", "layer", "none"))
    grid = r.choice((1, 1, 2, 4, 0))
    width = r.choice((64, 128, 256, 512))
    return VGG(
        tuple(r.randint(1, 4 if kernel == 3 else 2) for _ in range(stages)),
        widths,
        kernel,
        norm,
        r.choice([*ACTIVATIONS]),
        r.choice(("norm first", "norm first", "norm first", "activation first")),
        r.choice(("max", "max", "average", "stride")),
        grid,
        (width,) * r.choice((0, 0, 1, 2)),
        bias=norm == "none" or r.random() < 0.5,
    )
