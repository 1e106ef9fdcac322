"""MobileNets and networks of inverted residuals for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torch_geninit.training.networks.cifar.joined import head
from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import Activation, SqueezeExcite, conv_norm


def depthwise(
    channels: int, kernel: int, stride: int = 1, activation: Activation | None = "relu"
) -> nn.Sequential:
    """Build a depthwise convolution, norm, and activation."""
    return conv_norm(channels, channels, kernel, stride, groups=channels, activation=activation)


def mobilenet_v1(classes: int, width: float = 1.0) -> nn.Module:
    """Build MobileNet: a 3x3 stem, then pairs of depthwise and 1x1 convolutions."""
    plan = (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *(((512, 1),) * 5),
        (1024, 2),
        (1024, 1),
    )
    channels = int(32 * width)
    layers: list[nn.Module] = [conv_norm(3, channels, 3)]
    for outputs, stride in plan:
        outputs = int(outputs * width)
        layers += [depthwise(channels, 3, stride), conv_norm(channels, outputs, 1)]
        channels = outputs
    return nn.Sequential(*layers, *head(channels, classes))


class Inverted(nn.Module):
    """1x1 up, depthwise, gates, 1x1 down; ``projected`` shortcuts convolve where the width alone changes."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        kernel: int = 3,
        activation: Activation = "relu",
        squeezed: int = 0,
        projected: bool = False,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        gate_activation = nn.SiLU() if activation == "silu" else nn.ReLU()
        self.branch = nn.Sequential(
            *([conv_norm(inputs, hidden, 1, activation=activation)] if expansion > 1 else []),
            depthwise(hidden, kernel, stride, activation),
            *([SqueezeExcite(hidden, squeezed, gate_activation, nn.Sigmoid())] if squeezed else []),
            conv_norm(hidden, outputs, 1, activation=None),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif stride == 1 and projected:
            self.shortcut = conv_norm(inputs, outputs, 1, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) if self.shortcut is None else self.branch(x) + self.shortcut(x)


Plan = Sequence[tuple[int, int, int, int, int]]
"""Expansion, channels, blocks, stride, kernel of each row."""


def inverted(
    plan: Plan,
    classes: int,
    activation: Activation,
    *,
    last: int,
    gated: bool = False,
    projected: bool = False,
) -> nn.Module:
    """Build a network of inverted residuals behind a 3x3 stem of 32 channels."""
    channels = 32
    layers: list[nn.Module] = [conv_norm(3, channels, 3, activation=activation)]
    for expansion, width, blocks, stride, kernel in plan:
        for index in range(blocks):
            squeezed = channels // 4 if gated else 0
            step = 1 if index else stride
            layers.append(Inverted(channels, width, expansion, step, kernel, activation, squeezed, projected))
            channels = width
    if last:
        layers.append(conv_norm(channels, last, 1, activation=activation))
        channels = last
    return nn.Sequential(*layers, *head(channels, classes))


MOBILENET_V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 1, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 1, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
MNASNET_B1 = (
    (1, 16, 1, 1, 3),
    (3, 24, 3, 1, 3),
    (3, 40, 3, 2, 5),
    (6, 80, 3, 2, 5),
    (6, 96, 2, 1, 3),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""The papers' tables; the second stride is 1 here, for 32x32 images."""


NETWORKS: dict[str, Published] = {
    "mobilenet_v1": Published(mobilenet_v1, "depthwise and 1x1 in turn", "Howard et al. 2017"),
    "mobilenet_v1_half": Published(lambda c: mobilenet_v1(c, 0.5), "half as wide", "Howard et al. 2017"),
    "mobilenet_v2": Published(
        lambda c: inverted(MOBILENET_V2, c, "relu6", last=1280), "inverted residuals", "Sandler et al. 2018"
    ),
    "mobilenet_v2_projected": Published(
        lambda c: inverted(MOBILENET_V2, c, "relu", last=1280, projected=True),
        "ReLU, 1x1 shortcuts where the width changes",
        "Sandler et al. 2018",
    ),
    "efficientnet_b0": Published(
        lambda c: inverted(EFFICIENTNET_B0, c, "silu", last=0, gated=True), "gates, SiLU", "Tan & Le 2019"
    ),
    "mnasnet": Published(
        lambda c: inverted(MNASNET_B1, c, "relu", last=1280), "searched by latency", "Tan et al. 2019"
    ),
}
