"""Networks that mix positions and channels in turn: MLP-Mixer (Tolstikhin et al. 2021), ResMLP (Touvron et
al. 2021) and ConvMixer (Trockman & Kolter 2023)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from torch_geninit.training.networks.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    Permute,
    Residual,
    normalise,
)
from torch_geninit.training.networks.specification import Specification, seen, unseen


@dataclass(frozen=True)
class MLPMixer(Specification):
    """An MLP-Mixer or a ResMLP.

    Attributes:
        token_hidden: hidden width of the MLP over tokens; 0: it is a single linear layer, as in ResMLP.
        affine: factors and offsets for each channel instead of norms, and factors behind each branch.
    """

    family: ClassVar[str] = "mixer-imagenet"
    depth: int
    width: int
    patch: int
    token_hidden: int
    expansion: float = 4.0
    affine: bool = False
    activation: Activation = "gelu"
    eps: float = 1e-6

    @property
    def reserved(self) -> bool:
        """The paper's S and B networks: 8 blocks of width 512, 12 of width 768."""
        return (self.depth, self.width) in ((8, 512), (12, 768))

    @property
    def needs_full_size(self) -> bool:
        return True

    def build(self, classes: int, size: int) -> nn.Module:
        return MixerNetwork(self, classes, size)


class Affine(nn.Module):
    """y = gamma * x + beta over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x + self.beta


class BranchScale(nn.Module):
    """y = gamma * x over the last dimension, small at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class MixerNetwork(nn.Module):
    """Patches as tokens, blocks that mix tokens and then channels, norm, mean, classifier."""

    def __init__(self, spec: MLPMixer, classes: int, size: int) -> None:
        super().__init__()
        if size % spec.patch:
            raise ValueError(f"images of {size} pixels can't be cut into patches of {spec.patch}")
        width, tokens = spec.width, (size // spec.patch) ** 2
        self.patches = nn.Conv2d(3, width, spec.patch, spec.patch)

        def norm() -> nn.Module:
            return Affine(width) if spec.affine else nn.LayerNorm(width, spec.eps)

        def mlp(inputs: int, hidden: int) -> list[nn.Module]:
            if not hidden:
                return [nn.Linear(inputs, inputs)]
            return [nn.Linear(inputs, hidden), ACTIVATIONS[spec.activation](), nn.Linear(hidden, inputs)]

        blocks: list[nn.Module] = []
        for _ in range(spec.depth):
            scale = [BranchScale(width)] if spec.affine else []
            turned = [Permute(0, 2, 1), *mlp(tokens, spec.token_hidden), Permute(0, 2, 1)]
            blocks.append(Residual(norm(), *turned, *scale))
            scale = [BranchScale(width)] if spec.affine else []
            blocks.append(Residual(norm(), *mlp(width, int(width * spec.expansion)), *scale))
        self.blocks = nn.Sequential(*blocks, norm())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@dataclass(frozen=True)
class ConvMixer(Specification):
    """A ConvMixer."""

    family: ClassVar[str] = "convmixer"
    depth: int
    width: int
    patch: int
    kernel: int
    activation: Activation = "gelu"
    norm: Norm = "batch"

    @property
    def reserved(self) -> bool:
        """ConvMixer-256/8 whatever its patch and kernel, and the paper's networks for larger images."""
        return (self.width, self.depth) in ((256, 8), (256, 16), (768, 32), (1024, 20), (1536, 20))

    @property
    def needs_full_size(self) -> bool:
        return self.patch > 1

    def build(self, classes: int, size: int) -> nn.Module:
        width = self.width

        def after() -> list[nn.Module]:
            return [ACTIVATIONS[self.activation](), normalise(self.norm, width)]

        blocks: list[nn.Module] = []
        for _ in range(self.depth):
            depthwise = nn.Conv2d(width, width, self.kernel, padding=self.kernel // 2, groups=width)
            blocks += [Residual(depthwise, *after()), nn.Conv2d(width, width, 1), *after()]
        stem = [nn.Conv2d(3, width, self.patch, self.patch), *after()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(*stem, *blocks, *head)


def sample(r: random.Random) -> MLPMixer:
    """Draw an MLP-Mixer that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> MLPMixer:
    """Draw an MLP-Mixer that training never sees."""
    return unseen(_draw, r)


def sample_convmixer(r: random.Random) -> ConvMixer:
    """Draw a ConvMixer that training may see."""
    return seen(_draw_convmixer, r)


def sample_unseen_convmixer(r: random.Random) -> ConvMixer:
    """Draw a ConvMixer that training never sees."""
    return unseen(_draw_convmixer, r)


def _draw(r: random.Random) -> MLPMixer:
    width = r.choice((96, 128, 192, 256, 384, 512))
    patch = r.choice((4, 4, 8, 8, 16)) if width <= 192 else r.choice((8, 8, 16))
    if r.random() < 0.5:  # the paper's shape: tokens' MLP half as wide as the channels, channels' 4 times
        return MLPMixer(
            r.choice((4, 6, 8, 8, 10, 12) if width <= 256 else (4, 6, 8)), width, patch, width // 2
        )
    affine = r.random() < 0.3
    return MLPMixer(
        r.randint(2, 14 if width <= 192 else 8),
        width,
        patch,
        0 if affine else r.choice((0, 32, 64, 128, 256)),
        r.choice((1.0, 2.0, 3.0, 4.0)),
        affine,
        r.choice(("gelu", "relu", "silu")),
        r.choice((1e-6, 1e-5)),
    )


def _draw_convmixer(r: random.Random) -> ConvMixer:
    if r.random() < 0.5:
        width = r.choice((64, 96, 128, 192, 256, 320, 384, 512))
        patch = r.choice((2, 4, 4)) if width <= 128 else r.choice((4, 4, 8))
        return ConvMixer(
            r.choice((4, 6, 8, 8, 12, 16) if width <= 256 else (4, 6, 8)), width, patch, r.choice((5, 7, 9))
        )
    width = r.choice((64, 80, 96, 128, 160, 192, 256, 384))
    return ConvMixer(
        r.randint(2, 16 if width <= 128 else 8),
        width,
        r.choice((2, 4)) if width <= 128 else r.choice((4, 8)),
        r.choice((3, 5, 7, 9, 11)),
        r.choice([*ACTIVATIONS]),
        r.choice(("batch", "batch", "group", "layer")),
    )
