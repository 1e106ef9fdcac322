"""Networks for 32x32 images whose branches or layers are joined: dense, inception, aggregation, fractal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.cifar.resnets import Block
from torch_geninit.training.networks.layers import conv_norm


def head(channels: int, classes: int) -> list[nn.Module]:
    """Build global average and classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def norm_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """Build norm, ReLU, convolution."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), convolution]


class Dense(nn.Module):
    """Joins its new channels to what it reads, in front of it; BC layers have a bottleneck."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        narrow = 4 * growth
        layers = (
            [*norm_conv(inputs, narrow, 1), *norm_conv(narrow, growth, 3)]
            if bottleneck
            else norm_conv(inputs, growth, 3)
        )
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers(x), x], 1)


def densenet(
    layers: Sequence[int], growth: int, stem: int, classes: int, compressed: bool = True
) -> nn.Module:
    """Build a DenseNet; ``compressed``: with bottlenecks and transitions of half the channels (BC)."""
    modules: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
    channels = stem
    for index, count in enumerate(layers):
        if index:
            narrow = channels // 2 if compressed else channels
            modules += [*norm_conv(channels, narrow, 1), nn.AvgPool2d(2)]
            channels = narrow
        for _ in range(count):
            modules.append(Dense(channels, growth, compressed))
            channels += growth
    return nn.Sequential(*modules, nn.BatchNorm2d(channels), nn.ReLU(), *head(channels, classes))


class Joined(nn.Module):
    """Branches side by side, their channels joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(inputs: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], pooled: int) -> Joined:
    """Build a module of GoogLeNet, its 5x5 as two 3x3."""
    return Joined(
        conv_norm(inputs, ones, 1),
        nn.Sequential(conv_norm(inputs, threes[0], 1), conv_norm(*threes, 3)),
        nn.Sequential(conv_norm(inputs, fives[0], 1), conv_norm(*fives, 3), conv_norm(fives[1], fives[1], 3)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(inputs, pooled, 1)),
    )


def googlenet(classes: int) -> nn.Module:
    """Build GoogLeNet with a single 3x3 convolution before its modules."""
    return nn.Sequential(
        conv_norm(3, 192, 3),
        inception(192, 64, (96, 128), (16, 32), 32),
        inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, 2, 1),
        inception(480, 192, (96, 208), (16, 48), 64),
        inception(512, 160, (112, 224), (24, 64), 64),
        inception(512, 128, (128, 256), (24, 64), 64),
        inception(512, 112, (144, 288), (32, 64), 64),
        inception(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool2d(3, 2, 1),
        inception(832, 256, (160, 320), (32, 128), 128),
        inception(832, 384, (192, 384), (48, 128), 128),
        *head(1024, classes),
    )


def asymmetric(inputs: int, outputs: int, *kernels: tuple[int, int]) -> nn.Sequential:
    """Build convolutions of the given kernels, each with norm and ReLU; the first changes the channels."""
    layers: list[nn.Module] = []
    for height, width in kernels:
        convolution = nn.Conv2d(
            inputs, outputs, (height, width), padding=(height // 2, width // 2), bias=False
        )
        layers += [convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)


def inception_v3(classes: int, base: int = 32) -> nn.Module:
    """Build Inception-v3 at reduced depth and width: a module of each of its five kinds."""
    conv = partial(conv_norm, eps=1e-3)
    b = base
    a_out, b_out, c_out = 7 * b, 7 * b + 8 * b, 16 * b
    module_a = Joined(
        conv(2 * b, 2 * b, 1),
        nn.Sequential(conv(2 * b, b, 1), conv(b, 2 * b, 5)),
        nn.Sequential(conv(2 * b, b, 1), conv(b, 2 * b, 3), conv(2 * b, 2 * b, 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(2 * b, b, 1)),
    )
    reduction_a = Joined(
        conv(a_out, 4 * b, 3, 2),
        nn.Sequential(conv(a_out, 2 * b, 1), conv(2 * b, 3 * b, 3), conv(3 * b, 4 * b, 3, 2)),
        nn.MaxPool2d(3, 2, 1),
    )
    module_b = Joined(
        conv(b_out, 4 * b, 1),
        nn.Sequential(conv(b_out, 3 * b, 1), asymmetric(3 * b, 4 * b, (1, 7), (7, 1))),
        nn.Sequential(conv(b_out, 3 * b, 1), asymmetric(3 * b, 4 * b, (7, 1), (1, 7), (7, 1), (1, 7))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(b_out, 4 * b, 1)),
    )
    reduction_b = Joined(
        nn.Sequential(conv(c_out, 3 * b, 1), conv(3 * b, 5 * b, 3, 2)),
        nn.Sequential(
            conv(c_out, 3 * b, 1), asymmetric(3 * b, 3 * b, (1, 7), (7, 1)), conv(3 * b, 3 * b, 3, 2)
        ),
        nn.MaxPool2d(3, 2, 1),
    )
    last = 24 * b
    fork = (asymmetric(6 * b, 6 * b, (1, 3)), asymmetric(6 * b, 6 * b, (3, 1)))
    second = (asymmetric(6 * b, 6 * b, (1, 3)), asymmetric(6 * b, 6 * b, (3, 1)))
    module_c = Joined(
        conv(last, 5 * b, 1),
        nn.Sequential(conv(last, 6 * b, 1), Joined(*fork)),
        nn.Sequential(conv(last, 6 * b, 1), conv(6 * b, 6 * b, 3), Joined(*second)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(last, 3 * b, 1)),
    )
    return nn.Sequential(
        conv(3, b, 3),
        conv(b, 2 * b, 3),
        *(module_a, reduction_a, module_b, reduction_b, module_c),
        *head(32 * b, classes),
    )


class Aggregate(nn.Module):
    """A root of deep layer aggregation: what it is given, joined and convolved by 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv_norm(inputs, outputs, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.conv(torch.cat(parts, 1))


class SimpleTree(nn.Module):
    """Two subtrees, or two blocks, one behind the other, and a root over both."""

    def __init__(self, inputs: int, outputs: int, level: int, stride: int) -> None:
        super().__init__()
        self.root = Aggregate(2 * outputs, outputs)
        self.left, self.right = (
            Block(a, outputs, s) if level == 1 else SimpleTree(a, outputs, level - 1, s)
            for a, s in ((inputs, stride), (outputs, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return self.root(left, self.right(left))


class Tree(nn.Module):
    """Like :class:`SimpleTree`, but the root also reads each left subtree on the way and the tree's input."""

    def __init__(self, inputs: int, outputs: int, level: int, stride: int) -> None:
        super().__init__()
        self.root = Aggregate((level + 2) * outputs if level > 1 else 2 * outputs, outputs)
        self.first = Block(inputs, outputs, stride) if level > 1 else None
        self.lefts = nn.ModuleList(
            Tree(inputs if index == 0 else outputs, outputs, depth, stride if index == 0 else 1)
            for index, depth in enumerate(range(level - 1, 0, -1))
        )
        start = outputs if level > 1 else inputs
        self.last = nn.ModuleList([Block(start, outputs, 1 if level > 1 else stride)])
        self.last.append(Block(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = [] if self.first is None else [self.first(x)]
        for left in self.lefts:
            x = left(x)
            parts.append(x)
        for block in self.last:
            x = block(x)
            parts.append(x)
        return self.root(*parts)


def aggregation(tree: type[SimpleTree] | type[Tree], classes: int) -> nn.Module:
    """Build a DLA: three thin layers, then trees of 64 to 512 channels."""
    return nn.Sequential(
        conv_norm(3, 16, 3),
        conv_norm(16, 16, 3),
        conv_norm(16, 32, 3),
        *(tree(32, 64, 1, 1), tree(64, 128, 2, 2), tree(128, 256, 2, 2), tree(256, 512, 1, 2)),
        *head(512, classes),
    )


class DualPath(nn.Module):
    """A bottleneck whose outputs are added in part, joined in part (Chen et al. 2017)."""

    def __init__(self, inputs: int, width: int, added: int, joined: int, stride: int, first: bool) -> None:
        super().__init__()
        self.added = added
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 1),
            conv_norm(width, width, 3, stride, groups=32),
            conv_norm(width, added + joined, 1, activation=None),
        )
        self.shortcut = (
            conv_norm(inputs, added + joined, 1, stride, activation=None) if first else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        x, new = self.shortcut(x), self.branch(x)
        d = self.added
        return F.relu(torch.cat([x[:, :d] + new[:, :d], x[:, d:], new[:, d:]], 1))


def dual_path(classes: int) -> nn.Module:
    """Build DPN-26: two blocks in each of four stages."""
    layers: list[nn.Module] = [conv_norm(3, 64, 3)]
    channels = 64
    for stage, (width, added, joined) in enumerate(
        ((96, 256, 16), (192, 512, 32), (384, 1024, 24), (768, 2048, 128))
    ):
        for index in range(2):
            stride = 2 if stage and not index else 1
            layers.append(DualPath(channels, width, added, joined, stride, not index))
            channels = added + (2 + index) * joined
    return nn.Sequential(*layers, *head(channels, classes))


class Fractal(nn.Module):
    """f_1 = convolution; f_C = mean of a convolution and of f_(C-1) twice (Larsson et al. 2017)."""

    def __init__(self, inputs: int, outputs: int, columns: int) -> None:
        super().__init__()
        self.convolution = conv_norm(inputs, outputs, 3)
        self.deeper = (
            nn.Sequential(Fractal(inputs, outputs, columns - 1), Fractal(outputs, outputs, columns - 1))
            if columns > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.convolution(x)
        return shallow if self.deeper is None else (shallow + self.deeper(x)) / 2


def fractalnet(columns: int, classes: int) -> nn.Module:
    """Build a FractalNet of four blocks of 32 to 256 channels, each closed by max-pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128, 256):
        layers += [Fractal(channels, width, columns), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, *head(channels, classes))


HUANG = "Huang et al. 2017"

NETWORKS: dict[str, Published] = {
    "densenet40_k12": Published(
        lambda c: densenet((12, 12, 12), 12, 16, c, compressed=False), "growth 12, no bottlenecks", HUANG
    ),
    "densenet_bc40_k12": Published(lambda c: densenet((6, 6, 6), 12, 24, c), "growth 12", HUANG),
    "densenet_bc100_k12": Published(lambda c: densenet((16, 16, 16), 12, 24, c), "growth 12", HUANG),
    "densenet121_k12": Published(
        lambda c: densenet((6, 12, 24, 16), 12, 24, c), "growth 12, 3x3 stem", HUANG
    ),
    "densenet121": Published(lambda c: densenet((6, 12, 24, 16), 32, 64, c), "growth 32, 3x3 stem", HUANG),
    "googlenet": Published(googlenet, "norms, 3x3 stem", "Szegedy et al. 2015"),
    "inception_v3": Published(inception_v3, "one module of each kind", "Szegedy et al. 2016"),
    "dla_simple": Published(
        lambda c: aggregation(SimpleTree, c), "trees whose roots read two", "Yu et al. 2018"
    ),
    "dla": Published(lambda c: aggregation(Tree, c), "trees whose roots read all", "Yu et al. 2018"),
    "dpn26": Published(dual_path, "adds and joins", "Chen et al. 2017"),
    "fractalnet": Published(lambda c: fractalnet(3, c), "three columns", "Larsson et al. 2017"),
}
