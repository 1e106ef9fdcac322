"""Residual networks as people build them: ResNet, ResNeXt, SE-ResNet, pre-activation ResNet, WRN."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.specification import Specification, seen, unseen

Block = Literal["basic", "bottleneck", "preactivation"]
Stem = Literal["cifar", "imagenet", "deep"]
Shortcut = Literal["convolution", "pool", "pad"]
Activation = Literal["relu", "silu", "gelu", "leaky_relu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
}
EXPANSION = 4
"""Channels of a bottleneck block's output over those of its stage."""


@dataclass(frozen=True)
class ResidualSpec(Specification):
    """A residual network, enough to build it.

    Attributes:
        block: two 3x3 convolutions (``"basic"``), norms before them (``"preactivation"``), or 1x1, 3x3, 1x1.
        blocks: blocks of each stage.
        widths: channels of each stage, before a bottleneck's expansion by four.
        stem: 3x3; 7x7 with stride 2 and max-pool; or three 3x3 and max-pool (ResNet-D).
        groups: of the 3x3 convolutions in bottlenecks (ResNeXt).
        inner: channels of a bottleneck's 3x3 convolution over those of its stage; 2 in ResNeXt 32x4d.
        squeeze_excite: channel gates at the end of each branch.
        shortcut: where the shape changes: 1x1 convolution; average pool and 1x1 convolution (ResNet-D); or
            zero-padding (option A).
    """

    block: Block
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Stem = "imagenet"
    groups: int = 1
    inner: float = 1.0
    squeeze_excite: bool = False
    shortcut: Shortcut = "convolution"
    activation: Activation = "relu"
    kernel: int = 3

    family: ClassVar[str] = "residual"

    @property
    def reserved(self) -> bool:
        """Whether it has the blocks of ResNet-18, 20, 50, 56 or WRN-16, at any width."""
        if self.block == "bottleneck":
            return self.blocks == (3, 4, 6, 3)
        return self.blocks in {(2, 2, 2, 2), (2, 2, 2), (3, 3, 3), (9, 9, 9)}

    def build(self, classes: int, size: int = 64) -> nn.Module:
        """Build the network for ``classes``; it reads images of any size."""
        return ResidualNetwork(self, classes)

    def activate(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()


STEMS: tuple[Stem, ...] = ("imagenet", "imagenet", "imagenet", "deep", "cifar")


def sample(r: random.Random) -> ResidualSpec:
    """Draw a network that training may see: half are what people build, half vary everything."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> ResidualSpec:
    """Draw a network that training never sees."""
    return unseen(_draw, r)


def sample_small(r: random.Random) -> ResidualSpec:
    """Draw one for images of 32 pixels, which training may see: its stem keeps their resolution."""
    return seen(_draw_small, r)


def sample_unseen_small(r: random.Random) -> ResidualSpec:
    """Draw one for images of 32 pixels, which training never sees."""
    return unseen(_draw_small, r)


def _draw_small(r: random.Random) -> ResidualSpec:
    return _draw(r, ("cifar",))


def _draw(r: random.Random, stems: tuple[Stem, ...] = STEMS) -> ResidualSpec:
    usual = r.random() < 0.5
    stem = r.choice(stems)
    stages = 3 if stem == "cifar" and r.random() < 0.5 else 4
    block: Block = r.choice(("basic", "basic", "basic", "bottleneck", "bottleneck", "preactivation"))
    most = 4 if block != "bottleneck" else 5
    blocks = tuple(r.randint(1, most) for _ in range(stages))
    if r.random() < 0.1:
        blocks = tuple(r.randint(2, 2 * most) for _ in range(stages))
    if block == "bottleneck":
        base = r.choice((16, 24, 32, 32, 48, 64))
    else:
        base = r.choice((24, 32, 32, 48, 48, 64, 64))
    growth = 2.0 if usual else r.choice((1.5, 1.75, 2.0, 2.0))
    widths = tuple(max(8, round(base * growth**stage / 8) * 8) for stage in range(stages))
    groups, inner = 1, 1.0
    if block == "bottleneck" and r.random() < 0.3:
        groups, inner = r.choice(((8, 1.0), (16, 2.0), (32, 2.0), (4, 1.0)))
        groups = math.gcd(groups, *(int(width * inner) for width in widths))
    return ResidualSpec(
        block,
        blocks,
        widths,
        stem,
        groups,
        inner,
        squeeze_excite=r.random() < (0.1 if usual else 0.25),
        shortcut="convolution" if usual else r.choice(("convolution", "convolution", "pool", "pad")),
        activation="relu" if usual else r.choice(("relu", "relu", "silu", "gelu", "leaky_relu")),
        kernel=3 if usual or r.random() < 0.85 else 5,
    )


class ResidualNetwork(nn.Module):
    """Stem, stages of residual blocks at halving resolutions, global average, classifier."""

    def __init__(self, spec: ResidualSpec, classes: int) -> None:
        super().__init__()
        self.preactivation = spec.block == "preactivation"
        channels = spec.widths[0]
        self.stem = _stem(spec, channels)
        block = BLOCKS[spec.block]
        stages = []
        for index, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
            layers = []
            for number in range(count):
                stride = 2 if index and number == 0 else 1
                layers.append(block(channels, width, stride, spec))
                channels = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.last = (
            nn.Sequential(nn.BatchNorm2d(channels), spec.activate()) if self.preactivation else nn.Identity()
        )
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _stem(spec: ResidualSpec, channels: int) -> nn.Sequential:
    late = spec.block == "preactivation"
    if spec.stem == "cifar":
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1, bias=False)]
        return nn.Sequential(*layers, *([] if late else [nn.BatchNorm2d(channels), spec.activate()]))
    if spec.stem == "deep":
        half = max(8, channels // 2)
        layers = [
            nn.Conv2d(3, half, 3, 2, 1, bias=False),
            nn.BatchNorm2d(half),
            spec.activate(),
            nn.Conv2d(half, half, 3, 1, 1, bias=False),
            nn.BatchNorm2d(half),
            spec.activate(),
            nn.Conv2d(half, channels, 3, 1, 1, bias=False),
        ]
    else:
        layers = [nn.Conv2d(3, channels, 7, 2, 3, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), spec.activate(), nn.MaxPool2d(3, 2, 1))


class Shape(nn.Module):
    """The shortcut of a block, where a residual keeps its shape the identity."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, spec: ResidualSpec) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, 0, 0)
        self.stride = 1
        self.layers: nn.Module = nn.Identity()
        if stride == 1 and in_channels == out_channels:
            return
        if spec.shortcut == "pad" and out_channels >= in_channels:
            missing = out_channels - in_channels
            self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
            self.stride = stride
            return
        layers: list[nn.Module] = []
        if spec.shortcut == "pool" and stride > 1:
            layers.append(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False))
            stride = 1
        layers.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
        if spec.block != "preactivation":
            layers.append(nn.BatchNorm2d(out_channels))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)
        return self.layers(x)


class Gate(nn.Module):
    """Channel gates from the globally averaged features (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(4, channels // 16)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


def _gate(channels: int, spec: ResidualSpec) -> nn.Module:
    return Gate(channels) if spec.squeeze_excite else nn.Identity()


class Basic(nn.Module):
    """Two convolutions around an identity (He et al. 2016)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResidualSpec) -> None:
        super().__init__()
        k = spec.kernel
        self.conv1 = nn.Conv2d(in_channels, width, k, stride, k // 2, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(width), spec.activate()
        self.conv2 = nn.Conv2d(width, width, k, 1, k // 2, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(width), spec.activate()
        self.gate = _gate(width, spec)
        self.shortcut = Shape(in_channels, width, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.gate(self.bn2(self.conv2(out)))
        return self.act2(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, kxk with the stride, 1x1 to four times the channels (He et al. 2016; Xie et al. 2017)."""

    expansion = EXPANSION

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResidualSpec) -> None:
        super().__init__()
        inner, wide, k = int(width * spec.inner), width * EXPANSION, spec.kernel
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(inner), spec.activate()
        self.conv2 = nn.Conv2d(inner, inner, k, stride, k // 2, groups=spec.groups, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(inner), spec.activate()
        self.conv3 = nn.Conv2d(inner, wide, 1, bias=False)
        self.bn3, self.act3 = nn.BatchNorm2d(wide), spec.activate()
        self.gate = _gate(wide, spec)
        self.shortcut = Shape(in_channels, wide, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.gate(self.bn3(self.conv3(out)))
        return self.act3(out + self.shortcut(x))


class PreActivation(nn.Module):
    """Norm and activation before each of two convolutions (He et al. 2016, Identity Mappings; WRN).

    The shortcut of a block that changes shape reads the activated input.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResidualSpec) -> None:
        super().__init__()
        k = spec.kernel
        self.bn1, self.act1 = nn.BatchNorm2d(in_channels), spec.activate()
        self.conv1 = nn.Conv2d(in_channels, width, k, stride, k // 2, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(width), spec.activate()
        self.conv2 = nn.Conv2d(width, width, k, 1, k // 2, bias=False)
        self.gate = _gate(width, spec)
        self.changes = stride != 1 or in_channels != width
        self.shortcut = Shape(in_channels, width, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        short = self.shortcut(out if self.changes else x)
        out = self.conv2(self.act2(self.bn2(self.conv1(out))))
        return self.gate(out) + short


BLOCKS: Mapping[str, type[Basic] | type[Bottleneck] | type[PreActivation]] = {
    "basic": Basic,
    "bottleneck": Bottleneck,
    "preactivation": PreActivation,
}


def resnet18(base: int = 64, stem: Stem = "imagenet") -> ResidualSpec:
    """Return torchvision's ResNet-18, its channels times ``base`` / 64."""
    return ResidualSpec("basic", (2, 2, 2, 2), tuple(base * 2**stage for stage in range(4)), stem)


def resnet50(base: int = 64) -> ResidualSpec:
    """Return torchvision's ResNet-50, its channels times ``base`` / 64."""
    return ResidualSpec("bottleneck", (3, 4, 6, 3), tuple(base * 2**stage for stage in range(4)))
