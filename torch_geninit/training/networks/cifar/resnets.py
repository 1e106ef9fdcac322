"""Residual networks of He et al. 2016 for 32x32 images, and what people put around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.blocks import PadChannels
from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import conv_norm
from torch_geninit.training.networks.resnet import ResNet


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 to ``expansion`` times the width, around a shortcut."""

    def __init__(
        self, inputs: int, width: int, stride: int, expansion: int = 1, pooled: bool = False
    ) -> None:
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            self.branch = nn.Sequential(
                conv_norm(inputs, width, 3, stride), conv_norm(width, outputs, 3, activation=None)
            )
        else:
            self.branch = nn.Sequential(
                conv_norm(inputs, width, 1),
                conv_norm(width, width, 3, stride),
                conv_norm(width, outputs, 1, activation=None),
            )
        self.shortcut: nn.Module = nn.Identity()
        if pooled and stride > 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2, stride), conv_norm(inputs, outputs, 1, activation=None)
            )
        elif stride > 1 or inputs != outputs:
            self.shortcut = conv_norm(inputs, outputs, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class FourStages(nn.Module):
    """A 3x3 stem and stages of 64 to 512 channels, as the ImageNet networks are cut for 32x32 images."""

    def __init__(
        self,
        blocks: Sequence[int],
        classes: int,
        expansion: int = 1,
        base: int = 64,
        pooled: bool = False,
        average: Literal["window", "adaptive", "mean"] = "adaptive",
    ) -> None:
        super().__init__()
        self.stem = conv_norm(3, base, 3)
        self.average = average
        layers: list[nn.Module] = []
        channels = base
        for stage, count in enumerate(blocks):
            width = base << stage
            for index in range(count):
                layers.append(Block(channels, width, 2 if stage and not index else 1, expansion, pooled))
                channels = width * expansion
        self.stages = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        if self.average == "window":
            x = F.avg_pool2d(x, 4)
            return self.fc(x.view(x.size(0), -1))
        if self.average == "mean":
            return self.fc(x.mean((2, 3)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActivationBlock(nn.Module):
    """Norm and ReLU before each convolution; the shortcut branches off behind the first of them."""

    def __init__(self, inputs: int, width: int, stride: int, squeeze: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride > 1 or inputs != width
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if changes else None
        self.gates = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(width, width // 16, 1),
                nn.ReLU(),
                nn.Conv2d(width // 16, width, 1),
                nn.Sigmoid(),
            )
            if squeeze
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.norm2(self.conv1(out))))
        if self.gates is not None:
            out = out * self.gates(out)
        return out + shortcut


class PreActivation(nn.Module):
    """Stages of pre-activation blocks; a last norm and ReLU are optional, as implementations differ."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int,
        stem: int,
        squeeze: bool = False,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
        channels = stem
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for index in range(count):
                layers.append(PreActivationBlock(channels, width, 2 if stage and not index else 1, squeeze))
                channels = width
        if last_norm:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def wide(depth: int, factor: int, classes: int) -> nn.Module:
    """Build a WRN: three stages of (depth - 4) / 6 blocks."""
    return PreActivation(((depth - 4) // 6,) * 3, (16 * factor, 32 * factor, 64 * factor), classes, stem=16)


class InputNorm(nn.Module):
    """Standardise pixels in [0, 1] by the data set's mean and deviation, inside of the network."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def thin(depth: int, classes: int, shortcut: Literal["A", "B"] = "A") -> ResNet:
    """Build ResNet-20, 32, 44, 56 or 110: three stages of (depth - 2) / 6 blocks, 16 to 64 channels."""
    return ResNet(((depth - 2) // 6,) * 3, num_classes=classes, shortcut=shortcut)


class StochasticBlock(nn.Module):
    """A basic block that is skipped with a probability while training, and scaled by it otherwise."""

    def __init__(self, inputs: int, width: int, stride: int, survival: float) -> None:
        super().__init__()
        self.survival = survival
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 3, stride), conv_norm(width, width, 3, activation=None)
        )
        changes = stride > 1 or inputs != width
        self.shortcut = PadChannels(width - inputs, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if not self.training:
            return F.relu(shortcut + self.survival * self.branch(x))
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) < self.survival
        return F.relu(shortcut + self.branch(x) * kept)


def stochastic_depth(blocks: int, classes: int) -> nn.Module:
    """Build a thin ResNet whose blocks survive with probabilities from 1 down to a half."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3)]
    channels = 16
    for index in range(3 * blocks):
        stage, first = divmod(index, blocks)
        survival = 1 - 0.5 * (index + 1) / (3 * blocks)
        layers.append(StochasticBlock(channels, 16 << stage, 2 if stage and not first else 1, survival))
        channels = 16 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class ReZeroBlock(nn.Module):
    """y = x + alpha * branch(x), alpha a learned number; there are no norms."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.alpha = nn.Parameter(torch.zeros(1))
        changes = stride > 1 or inputs != width
        self.shortcut = nn.Conv2d(inputs, width, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.alpha * F.relu(self.conv2(F.relu(self.conv1(x))))


def rezero(blocks: int, classes: int) -> nn.Module:
    """Build a residual network without norms, its branches scaled by one number each."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    channels = 16
    for index in range(3 * blocks):
        stage, first = divmod(index, blocks)
        layers.append(ReZeroBlock(channels, 16 << stage, 2 if stage and not first else 1))
        channels = 16 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


HE, IDENTITY, WRN = "He et al. 2016", "He et al. 2016, identity mappings", "Zagoruyko & Komodakis 2016"

NETWORKS: dict[str, Published] = {
    "resnet18": Published(lambda c: FourStages((2, 2, 2, 2), c), "3x3 stem, 64 to 512 channels", HE),
    "resnet18_window": Published(
        lambda c: FourStages((2, 2, 2, 2), c, average="window"), "the same, averaged over windows of 4", HE
    ),
    "resnet18_narrow": Published(lambda c: FourStages((2, 2, 2, 2), c, base=32), "half as wide", HE),
    "resnet34": Published(lambda c: FourStages((3, 4, 6, 3), c), "3x3 stem, 64 to 512 channels", HE),
    "resnet50": Published(lambda c: FourStages((3, 4, 6, 3), c, 4), "bottlenecks, 3x3 stem", HE),
    "resnet26_d": Published(
        lambda c: FourStages((2, 2, 2, 2), c, 4, base=32, pooled=True, average="mean"),
        "bottlenecks whose shortcuts average before they project",
        "He, T. et al. 2019, bag of tricks",
    ),
    "preact_resnet18": Published(
        lambda c: PreActivation((2, 2, 2, 2), (64, 128, 256, 512), c, 64, last_norm=False),
        "norms first, none at the end",
        IDENTITY,
    ),
    "preact_resnet56": Published(lambda c: PreActivation((9, 9, 9), (16, 32, 64), c, 16), "thin", IDENTITY),
    "senet18": Published(
        lambda c: PreActivation((2, 2, 2, 2), (64, 128, 256, 512), c, 64, True, False),
        "pre-activation blocks with gates of a 16th of the channels",
        "Hu et al. 2018",
    ),
    "wrn16_2": Published(lambda c: wide(16, 2, c), "twice as wide", WRN),
    "wrn16_4": Published(lambda c: wide(16, 4, c), "four times as wide", WRN),
    "wrn28_4": Published(lambda c: wide(28, 4, c), "four times as wide", WRN),
    "wrn40_2": Published(lambda c: wide(40, 2, c), "twice as wide", WRN),
    "resnet20": Published(lambda c: thin(20, c), "16 to 64 channels, padded shortcuts", HE),
    "resnet32": Published(lambda c: thin(32, c), "16 to 64 channels, padded shortcuts", HE),
    "resnet44": Published(lambda c: thin(44, c), "16 to 64 channels, padded shortcuts", HE),
    "resnet56": Published(lambda c: thin(56, c), "16 to 64 channels, padded shortcuts", HE),
    "resnet110": Published(lambda c: thin(110, c), "16 to 64 channels, padded shortcuts", HE),
    "resnet20_b": Published(lambda c: thin(20, c, "B"), "shortcuts by 1x1 convolutions", HE),
    "resnet56_b": Published(lambda c: thin(56, c, "B"), "shortcuts by 1x1 convolutions", HE),
    "resnet20_logsoftmax": Published(
        lambda c: nn.Sequential(thin(20, c), nn.LogSoftmax(1)), "returns log-probabilities", HE
    ),
    "resnet20_input_norm": Published(
        lambda c: nn.Sequential(InputNorm(), thin(20, c)), "standardises its pixels itself", HE
    ),
    "resnet56_input_norm_logsoftmax": Published(
        lambda c: nn.Sequential(InputNorm(), thin(56, c), nn.LogSoftmax(1)), "both", HE
    ),
    "stochastic_depth_resnet38": Published(
        lambda c: stochastic_depth(6, c), "blocks skipped at random while training", "Huang et al. 2016"
    ),
    "rezero_resnet32": Published(
        lambda c: rezero(5, c), "no norms, a learned factor for each branch", "Bachlechner et al. 2021"
    ),
}
