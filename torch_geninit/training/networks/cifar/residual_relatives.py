"""Networks around residual blocks of other kinds, for 32x32 images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.blocks import PadChannels
from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import SqueezeExcite, conv_norm

MakeBlock = Callable[[int, int, int], nn.Module]
"""Input channels, output channels, stride -> a block."""


def stages(
    block: MakeBlock, stem: int, counts: Sequence[int], widths: Sequence[int], classes: int
) -> nn.Module:
    """Build a 3x3 stem, stages of blocks at halving resolutions, global average and classifier."""
    layers: list[nn.Module] = [conv_norm(3, stem, 3)]
    channels = stem
    for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
        for index in range(count):
            layers.append(block(channels, width, 2 if stage and not index else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Build the shortcut of a block: identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv_norm(inputs, outputs, 1, stride, activation=None)


class Grouped(nn.Module):
    """1x1, grouped 3x3, 1x1 (ResNeXt; RegNet, there with gates in Y)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, width: int, groups: int, gated: bool = False
    ) -> None:
        super().__init__()
        gates = [SqueezeExcite(width, inputs // 4, nn.ReLU(), nn.Sigmoid())] if gated else []
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 1),
            conv_norm(width, width, 3, stride, groups=groups),
            *gates,
            conv_norm(width, outputs, 1, activation=None),
        )
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def resnext29(cardinality: int, classes: int) -> nn.Module:
    """Build ResNeXt-29 of ``cardinality`` groups of 64 channels, 256 to 1,024 outside of the branches."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return Grouped(inputs, outputs, stride, outputs // 256 * 64 * cardinality, cardinality)

    return stages(block, 64, (3, 3, 3), (256, 512, 1024), classes)


def regnet(counts: Sequence[int], widths: Sequence[int], group: int, gated: bool, classes: int) -> nn.Module:
    """Build a RegNet with a stem of 64 channels and groups of ``group`` channels."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return Grouped(inputs, outputs, stride, outputs, outputs // group, gated)

    return stages(block, 64, counts, widths, classes)


class Pyramid(nn.Module):
    """Norm, 3x3, norm, ReLU, 3x3, norm; the shortcut pads channels that the block adds (Han et al. 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            conv_norm(inputs, outputs, 3, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.pool = nn.AvgPool2d(2) if stride > 1 else nn.Identity()
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.missing))


def pyramidnet(depth: int, alpha: float, classes: int) -> nn.Module:
    """Build a PyramidNet: its width grows by ``alpha`` in all, by the same step in each block."""
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [conv_norm(3, 16, 3, activation=None)]
    channels = 16
    for index in range(3 * blocks):
        width = int(16 + alpha * (index + 1) / (3 * blocks))
        layers.append(Pyramid(channels, width, 2 if index in (blocks, 2 * blocks) else 1))
        channels = width
    last = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *last, nn.Linear(channels, classes))


class ShakeShake(nn.Module):
    """Two branches whose sum is weighted at random while training, by halves otherwise (Gastaldi 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                conv_norm(inputs, outputs, 3, stride),
                conv_norm(outputs, outputs, 3, activation=None),
            )
            for _ in range(2)
        )
        paths = 2 if stride > 1 or inputs != outputs else 0  # the second is shifted by a pixel
        self.halves = nn.ModuleList(nn.Conv2d(inputs, outputs // 2, 1, bias=False) for _ in range(paths))
        self.norm = nn.BatchNorm2d(outputs) if len(self.halves) else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        first, second = (branch(x) for branch in self.branches)
        share = torch.rand(len(x), 1, 1, 1, device=x.device) if self.training else 0.5
        return share * first + (1 - share) * second + self._shortcut(x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        x = F.relu(x)
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        paths = [F.avg_pool2d(path, 1, self.stride) for path in (x, shifted)]
        return self.norm(torch.cat([conv(path) for conv, path in zip(self.halves, paths, strict=True)], 1))


class Res2Net(nn.Module):
    """A bottleneck whose channels are convolved part by part, each part adding the one before it."""

    def __init__(self, inputs: int, outputs: int, stride: int, parts: int = 4) -> None:
        super().__init__()
        width = outputs // 4
        self.reduce = conv_norm(inputs, width * parts, 1)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.convolutions = nn.ModuleList(conv_norm(width, width, 3, stride) for _ in range(parts - 1))
        self.expand = conv_norm(width * parts, outputs, 1, activation=None)
        self.shortcut = projection(inputs, outputs, stride)
        self.chained = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = self.reduce(x).chunk(len(self.convolutions) + 1, 1)
        done: list[Tensor] = []
        for part, convolution in zip(parts, self.convolutions, strict=True):
            done.append(convolution(part + done[-1] if done and self.chained else part))
        joined = torch.cat([*done, self.pool(last)], 1)
        return F.relu(self.expand(joined) + self.shortcut(x))


class SelectiveKernel(nn.Module):
    """Two convolutions of different reach whose channels are chosen by a softmax (SKNet, Li et al. 2019)."""

    def __init__(self, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, stride, reach, reach, groups, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for reach in (1, 2)
        )
        hidden = max(width // 16, 32)
        self.reduce = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
        self.choose = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.stack([path(x) for path in self.paths], 1)
        hidden = self.reduce(features.sum(1).mean((2, 3)))
        weights = torch.stack([choose(hidden) for choose in self.choose], 1).softmax(1)
        return (features * weights[..., None, None]).sum(1)


class SKBlock(nn.Module):
    """1x1, selective kernels, 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 2
        self.reduce = conv_norm(inputs, width, 1)
        self.select = SelectiveKernel(width, stride, 16)
        self.expand = conv_norm(width, outputs, 1, activation=None)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.select(self.reduce(x))) + self.shortcut(x))


class Highway(nn.Module):
    """y = t * h(x) + (1 - t) * x, the gate t a sigmoid of a convolution (Srivastava et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.change = (
            conv_norm(inputs, outputs, 3, stride) if stride > 1 or inputs != outputs else nn.Identity()
        )
        self.candidate = conv_norm(outputs, outputs, 3)
        self.gate = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)
        gate = self.gate(x).sigmoid()
        return gate * self.candidate(x) + (1 - gate) * x


class GroupNormBlock(nn.Module):
    """Two 3x3 convolutions with a norm of groups, around a padded identity."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(inputs, outputs, 3, stride, norm="group"),
            conv_norm(outputs, outputs, 3, norm="group", activation=None),
        )
        changes = stride > 1 or inputs != outputs
        self.shortcut = PadChannels(outputs - inputs, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


XNEXT, REGNET = "Xie et al. 2017", "Radosavovic et al. 2020"

NETWORKS: dict[str, Published] = {
    "resnext29_2x64d": Published(lambda c: resnext29(2, c), "2 groups of 64", XNEXT),
    "resnext29_4x64d": Published(lambda c: resnext29(4, c), "4 groups of 64", XNEXT),
    "resnext29_8x64d": Published(lambda c: resnext29(8, c), "8 groups of 64", XNEXT),
    "regnetx_200mf": Published(
        lambda c: regnet((1, 1, 4, 7), (24, 56, 152, 368), 8, False, c), "groups of 8", REGNET
    ),
    "regnetx_400mf": Published(
        lambda c: regnet((1, 2, 7, 12), (32, 64, 160, 384), 16, False, c), "groups of 16", REGNET
    ),
    "regnety_200mf": Published(
        lambda c: regnet((1, 1, 4, 7), (24, 56, 152, 368), 8, True, c), "groups of 8, gates", REGNET
    ),
    "regnety_400mf": Published(
        lambda c: regnet((1, 3, 6, 6), (48, 104, 208, 440), 8, True, c), "groups of 8, gates", REGNET
    ),
    "pyramidnet110_a48": Published(lambda c: pyramidnet(110, 48, c), "width grows by 48", "Han et al. 2017"),
    "pyramidnet38_a84": Published(lambda c: pyramidnet(38, 84, c), "width grows by 84", "Han et al. 2017"),
    "shake_shake26_2x32d": Published(
        lambda c: stages(ShakeShake, 16, (4, 4, 4), (32, 64, 128), c), "two towers", "Gastaldi 2017"
    ),
    "res2net": Published(
        lambda c: stages(Res2Net, 64, (2, 2, 2), (128, 256, 512), c), "four parts a block", "Gao et al. 2021"
    ),
    "sknet": Published(
        lambda c: stages(SKBlock, 64, (2, 2, 2), (128, 256, 512), c), "chooses kernels", "Li et al. 2019"
    ),
    "highway18": Published(
        lambda c: stages(Highway, 32, (3, 3, 3), (32, 64, 128), c), "gated sums", "Srivastava et al. 2015"
    ),
    "resnet20_groupnorm": Published(
        lambda c: stages(GroupNormBlock, 16, (3, 3, 3), (16, 32, 64), c), "GroupNorm", "Wu & He 2018"
    ),
}
