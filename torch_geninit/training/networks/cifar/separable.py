"""Networks of shuffled, ghost and separable convolutions for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.cifar.joined import head
from torch_geninit.training.networks.cifar.mobile import depthwise
from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import Activation, SqueezeExcite, conv_norm
from torch_geninit.training.networks.shufflenet import shuffle


class ShuffleV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; where it strides, the averaged input is joined."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if inputs == 24 else groups  # behind the stem there are too few channels
        new = outputs - inputs if stride > 1 else outputs
        narrow = outputs // 4
        self.reduce = conv_norm(inputs, narrow, 1, groups=self.groups)
        self.spatial = depthwise(narrow, 3, stride, None)
        self.expand = conv_norm(narrow, new, 1, groups=groups, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        new = self.expand(self.spatial(shuffle(self.reduce(x), self.groups)))
        if self.stride > 1:
            return F.relu(torch.cat([new, F.avg_pool2d(x, 3, 2, 1)], 1))
        return F.relu(new + x)


def shufflenet_v1(groups: int, widths: Sequence[int], classes: int) -> nn.Module:
    """Build ShuffleNet behind a 3x3 stem of 24 channels at full resolution."""
    layers: list[nn.Module] = [conv_norm(3, 24, 3)]
    channels = 24
    for width, blocks in zip(widths, (4, 8, 4), strict=True):
        for index in range(blocks):
            layers.append(ShuffleV1(channels, width, 1 if index else 2, groups))
            channels = width
    return nn.Sequential(*layers, *head(channels, classes))


class ShuffleV2(nn.Module):
    """One half passes by; where it strides, both branches read everything."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = (
            nn.Sequential(depthwise(inputs, 3, 2, None), conv_norm(inputs, half, 1)) if stride > 1 else None
        )
        self.right = nn.Sequential(
            conv_norm(inputs if stride > 1 else half, half, 1),
            depthwise(half, 3, stride, None),
            conv_norm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            left, right = x.chunk(2, 1)
            return shuffle(torch.cat([left, self.right(right)], 1), 2)
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def shufflenet_v2(widths: Sequence[int], classes: int) -> nn.Module:
    """Build ShuffleNetV2 behind a 3x3 stem of 24 channels at full resolution."""
    layers: list[nn.Module] = [conv_norm(3, 24, 3)]
    channels = 24
    for width, blocks in zip(widths, (4, 8, 4), strict=True):
        for index in range(blocks):
            layers.append(ShuffleV2(channels, width, 1 if index else 2))
            channels = width
    return nn.Sequential(*layers, conv_norm(channels, 1024, 1), *head(1024, classes))


class Ghost(nn.Module):
    """Half of the channels by a 1x1 convolution, the other half by a depthwise one of these."""

    def __init__(self, inputs: int, outputs: int, activate: bool) -> None:
        super().__init__()
        activation: Activation | None = "relu" if activate else None
        self.primary = conv_norm(inputs, outputs // 2, 1, activation=activation)
        self.cheap = depthwise(outputs // 2, 3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)


class GhostBlock(nn.Module):
    """Ghost up, depthwise where it strides, gates, ghost down."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, gated: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            Ghost(inputs, hidden, True),
            *([depthwise(hidden, kernel, stride, None)] if stride > 1 else []),
            *([SqueezeExcite(hidden, hidden // 4, nn.ReLU(), nn.Hardsigmoid())] if gated else []),
            Ghost(hidden, outputs, False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                depthwise(inputs, kernel, stride, None), conv_norm(inputs, outputs, 1, activation=None)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def ghostnet(classes: int) -> nn.Module:
    """Build GhostNet, its stem and first stage at full resolution."""
    plan = (
        *((16, 16, 3, 1, False), (48, 24, 3, 1, False), (72, 24, 3, 1, False)),
        *((72, 40, 5, 2, True), (120, 40, 5, 1, True), (240, 80, 3, 2, False), (200, 80, 3, 1, False)),
        *((184, 80, 3, 1, False), (480, 112, 3, 1, True), (672, 112, 3, 1, True), (672, 160, 5, 2, True)),
        *((960, 160, 5, 1, False), (960, 160, 5, 1, True)),
    )
    layers: list[nn.Module] = [conv_norm(3, 16, 3)]
    channels = 16
    for hidden, outputs, kernel, stride, gated in plan:
        layers.append(GhostBlock(channels, hidden, outputs, kernel, stride, gated))
        channels = outputs
    return nn.Sequential(*layers, conv_norm(channels, 960, 1), *head(960, classes))


class Separable(nn.Sequential):
    """ReLU, depthwise 3x3, 1x1, norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        spatial = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        super().__init__(nn.ReLU(), spatial, conv_norm(inputs, outputs, 1, activation=None))


class XceptionBlock(nn.Module):
    """Separable convolutions around an identity, or, pooled, around a strided 1x1 convolution."""

    def __init__(self, widths: Sequence[int], pooled: bool) -> None:
        super().__init__()
        layers = [Separable(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.branch = nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if pooled else []))
        self.shortcut = conv_norm(widths[0], widths[-1], 1, 2, activation=None) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def xception(classes: int, width: int = 32) -> nn.Module:
    """Build Xception at a quarter of its width with four middle blocks, strides for 32x32 images."""
    w = width
    return nn.Sequential(
        conv_norm(3, w // 2, 3),
        conv_norm(w // 2, w, 3, activation=None),
        XceptionBlock((w, 2 * w, 2 * w), True),
        XceptionBlock((2 * w, 4 * w, 4 * w), True),
        *(XceptionBlock((4 * w,) * 4, False) for _ in range(4)),
        XceptionBlock((4 * w, 4 * w, 6 * w), True),
        *(Separable(6 * w, 8 * w), nn.ReLU(), *head(8 * w, classes)),
    )


class Cell(nn.Module):
    """PNASNet's simplest cell: a separable 7x7 convolution plus max-pooling."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.separable = nn.Sequential(
            nn.Conv2d(inputs, outputs, 7, stride, 3, groups=inputs, bias=False), nn.BatchNorm2d(outputs)
        )
        self.pool = nn.MaxPool2d(3, stride, 1)
        changes = inputs != outputs
        self.project = conv_norm(inputs, outputs, 1, activation=None) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.separable(x) + self.project(self.pool(x)))


def pnasnet(classes: int) -> nn.Module:
    """Build a small PNASNet: cells of 44 to 176 channels, three a stage."""
    layers: list[nn.Module] = [conv_norm(3, 44, 3)]
    channels = 44
    for stage in range(3):
        for index in range(4 if stage else 3):
            width = 44 << stage
            layers.append(Cell(channels, width, 2 if stage and not index else 1))
            channels = width
    return nn.Sequential(*layers, *head(channels, classes))


NETWORKS: dict[str, Published] = {
    "shufflenet_g2": Published(
        lambda c: shufflenet_v1(2, (200, 400, 800), c), "2 groups", "Zhang et al. 2018"
    ),
    "shufflenet_g3": Published(
        lambda c: shufflenet_v1(3, (240, 480, 960), c), "3 groups", "Zhang et al. 2018"
    ),
    "shufflenet_v2_x0_5": Published(
        lambda c: shufflenet_v2((48, 96, 192), c), "half of its channels pass by", "Ma et al. 2018"
    ),
    "shufflenet_v2_x1": Published(
        lambda c: shufflenet_v2((116, 232, 464), c), "half of its channels pass by", "Ma et al. 2018"
    ),
    "ghostnet": Published(ghostnet, "half of its channels are cheap", "Han et al. 2020"),
    "xception": Published(xception, "separable convolutions around identities", "Chollet 2017"),
    "pnasnet": Published(pnasnet, "one searched cell", "Liu et al. 2018"),
}
