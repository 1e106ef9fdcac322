"""Residual attention networks (Wang et al. 2017) for 32x32 images: a trunk and a mask beside it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.cifar.residual_relatives import projection
from torch_geninit.training.networks.layers import conv_norm


class Bottleneck(nn.Module):
    """Norm and ReLU before 1x1, 3x3 and 1x1 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // 4
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv_norm(inputs, width, 1),
            conv_norm(width, width, 3, stride),
            nn.Conv2d(width, outputs, 1, bias=False),
        )
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class Mask(nn.Module):
    """Pools, goes deeper ``levels`` times, comes back by interpolation, adding what it met on the way."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.down, self.up = Bottleneck(width, width), Bottleneck(width, width)
        self.skip = Bottleneck(width, width) if levels > 1 else None
        self.inner = Mask(width, levels - 1) if levels > 1 else Bottleneck(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(F.max_pool2d(x, 3, 2, 1))
        inner = self.inner(low)
        if self.skip is not None:
            inner = inner + self.skip(low)
        return F.interpolate(self.up(inner), size=x.shape[-2:], mode="bilinear", align_corners=False)


class AttentionModule(nn.Module):
    """y = (1 + sigmoid(mask(x))) * trunk(x)."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.before, self.after = Bottleneck(width, width), Bottleneck(width, width)
        self.trunk = nn.Sequential(Bottleneck(width, width), Bottleneck(width, width))
        self.mask = nn.Sequential(
            Mask(width, levels), *conv_norm(width, width, 1), nn.Conv2d(width, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after((1 + self.mask(x)) * self.trunk(x))


def attention56(classes: int, base: int = 128) -> nn.Module:
    """Build Attention-56 at half of its width: one attention module a stage."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3)]
    channels = 32
    for stage, levels in enumerate((3, 2, 1)):
        width = base << stage
        layers += [Bottleneck(channels, width, 2 if stage else 1), AttentionModule(width, levels)]
        channels = width
    layers.append(Bottleneck(channels, 2 * channels, 2))
    channels *= 2
    layers += [Bottleneck(channels, channels), Bottleneck(channels, channels)]
    last = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *last, nn.Linear(channels, classes))


NETWORKS: dict[str, Published] = {
    "attention56": Published(attention56, "a mask beside the trunk", "Wang et al. 2017"),
}
