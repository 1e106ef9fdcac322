"""Networks for 32x32 images that mix positions and channels in turn, without attention."""

from __future__ import annotations

from torch import Tensor, nn

from torch_geninit.training.networks.blocks import ChannelNorm
from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.cifar.transformers import Scaled, mlp
from torch_geninit.training.networks.layers import Permute, Residual


class Tokens(nn.Module):
    """(N, C, H, W) to (N, T, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class TokenMean(nn.Module):
    """Mean over the tokens of (N, T, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mixer(classes: int, width: int = 128, depth: int = 8) -> nn.Module:
    """Build an MLP-Mixer over 64 patches of 4x4."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks += [
            Residual(nn.LayerNorm(width), Permute(0, 2, 1), *mlp(64, 64), Permute(0, 2, 1)),
            Residual(nn.LayerNorm(width), *mlp(width, 4 * width)),
        ]
    stem = [nn.Conv2d(3, width, 4, 4), Tokens()]
    return nn.Sequential(*stem, *blocks, nn.LayerNorm(width), TokenMean(), nn.Linear(width, classes))


def convmixer(classes: int, width: int = 256, depth: int = 8, kernel: int = 5, patch: int = 2) -> nn.Module:
    """Build a ConvMixer: depthwise around an identity, then 1x1; GELU before each norm."""

    def after() -> list[nn.Module]:
        return [nn.GELU(), nn.BatchNorm2d(width)]

    layers: list[nn.Module] = [nn.Conv2d(3, width, patch, patch), *after()]
    for _ in range(depth):
        spatial = nn.Conv2d(width, width, kernel, groups=width, padding="same")
        layers += [Residual(spatial, *after()), nn.Conv2d(width, width, 1), *after()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def convnext(classes: int, base: int = 64) -> nn.Module:
    """Build a ConvNeXt for 32x32 images: patches of 2, three stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, base, 2, 2), ChannelNorm(base, eps=1e-6)]
    for stage, blocks in enumerate((3, 3, 3)):
        width = base << stage
        if stage:
            layers += [ChannelNorm(width // 2, eps=1e-6), nn.Conv2d(width // 2, width, 2, 2)]
        for _ in range(blocks):
            branch = (
                nn.Conv2d(width, width, 7, padding=3, groups=width),
                Permute(0, 2, 3, 1),
                nn.LayerNorm(width, eps=1e-6),
                Scaled(width, *mlp(width, 4 * width)),
                Permute(0, 3, 1, 2),
            )
            layers.append(Residual(*branch))
    last = base << 2
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(last, eps=1e-6), nn.Linear(last, classes)
    )


NETWORKS: dict[str, Published] = {
    "mlp_mixer": Published(mixer, "patches of 4", "Tolstikhin et al. 2021"),
    "convmixer_256_8": Published(convmixer, "patches of 2, kernel 5", "Trockman & Kolter 2023"),
    "convnext_small_images": Published(convnext, "patches of 2", "Liu et al. 2022"),
}
