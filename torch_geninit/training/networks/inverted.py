"""Networks of inverted residuals: what MobileNetV2, V3, MNASNet and EfficientNet have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    SqueezeExcite,
    conv_norm,
)
from torch_geninit.training.networks.specification import Specification, divisible


@dataclass(frozen=True)
class Row:
    """Blocks in a row, as in the tables of the papers; the stride is the first block's.

    Attributes:
        fused: a full convolution instead of 1x1 up and depthwise (EfficientNetV2).
    """

    expansion: float
    width: int
    blocks: int
    stride: int
    kernel: int = 3
    squeeze_excite: bool = False
    activation: Activation = "relu6"
    fused: bool = False


@dataclass(frozen=True)
class InvertedResiduals(Specification):
    """A network of inverted residuals; each family is a subclass.

    Attributes:
        named: blocks and widths of the papers' networks at width 1.
        stem_width: channels of the 3x3 stem.
        last: channels of the 1x1 convolution behind the blocks; 0: there is none.
        hidden: width of a hidden layer of the classifier; 0: there is none.
        activation: of stem, last convolution and classifier.
        stem_kernel: kernel of the stem.
    """

    named: ClassVar[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = ()
    stem_width: int
    stem_stride: int
    rows: tuple[Row, ...]
    last: int
    hidden: int = 0
    activation: Activation = "relu6"
    norm: Norm = "batch"
    eps: float = 1e-5
    stem_kernel: int = 3
    dropout: float = 0.0

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(row.blocks for row in self.rows)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(row.width for row in self.rows)

    @property
    def channels(self) -> int:
        """Channels of what the classifier reads."""
        return self.last or self.rows[-1].width

    @property
    def reserved(self) -> bool:
        """Any network with MobileNetV2's blocks whatever its widths, and the papers' others at their own."""
        return self.blocks == MOBILENET_V2_BLOCKS or (self.blocks, self.widths) in self.named

    @property
    def needs_full_size(self) -> bool:
        halvings = self.stem_stride // 2 + sum(row.stride // 2 for row in self.rows)
        return halvings > 4

    def gates(self, in_channels: int, hidden: int) -> SqueezeExcite:
        """Build the gates of a block's hidden channels: a quarter as wide as the block's input."""
        return SqueezeExcite(hidden, max(1, in_channels // 4), nn.ReLU(), nn.Sigmoid())

    def build(self, classes: int, size: int) -> nn.Module:
        return InvertedNetwork(self, classes)


MOBILENET_V2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise convolution, gates, 1x1 down without activation (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, row: Row, stride: int, spec: InvertedResiduals) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == row.width
        hidden = divisible(in_channels * row.expansion)
        build = partial(conv_norm, norm=spec.norm, eps=spec.eps)
        conv = partial(build, activation=row.activation)
        layers: list[nn.Module] = []
        if row.fused and hidden == in_channels:  # nothing to expand: one convolution does both
            self.layers = nn.Sequential(conv(in_channels, row.width, row.kernel, stride))
            return
        if row.fused:
            layers.append(conv(in_channels, hidden, row.kernel, stride))
        else:
            if hidden != in_channels:
                layers.append(conv(in_channels, hidden, 1))
            layers.append(conv(hidden, hidden, row.kernel, stride, groups=hidden))
        if row.squeeze_excite:
            layers.append(spec.gates(in_channels, hidden))
        self.layers = nn.Sequential(*layers, build(hidden, row.width, 1, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class InvertedNetwork(nn.Module):
    """Stem, rows of inverted residuals, 1x1 convolution, global average, classifier."""

    def __init__(self, spec: InvertedResiduals, classes: int) -> None:
        super().__init__()
        conv = partial(conv_norm, norm=spec.norm, eps=spec.eps, activation=spec.activation)
        channels = spec.stem_width
        features: list[nn.Module] = [conv(3, channels, spec.stem_kernel, spec.stem_stride)]
        for row in spec.rows:
            for index in range(row.blocks):
                features.append(InvertedResidual(channels, row, 1 if index else row.stride, spec))
                channels = row.width
        if spec.last:
            features.append(conv(channels, spec.last, 1))
            channels = spec.last
        self.features = nn.Sequential(*features)
        classifier: list[nn.Module] = []
        if spec.hidden:
            classifier += [nn.Linear(channels, spec.hidden), ACTIVATIONS[spec.activation]()]
        if spec.dropout:
            classifier.append(nn.Dropout(spec.dropout))
        self.classifier = nn.Sequential(*classifier, nn.Linear(spec.hidden or channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
