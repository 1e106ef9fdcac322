"""Corrupted images, "CIFAR-10-C style": kinds of Hendrycks and Dietterich (2019), seeded, of our own make.

Strengths are ours, so figures measured with them compare with each other, not with CIFAR-10-C.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_geninit.generators.rng import noise_stream
from torch_geninit.training.data.images import Split

SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""(N, 3, H, W) images in [0, 1], index of the severity from 0, random source -> images, to be clamped."""


def corrupt(images: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupt uint8 images (N, 3, H, W); the same name, severity and seed give the same images.

    Raises:
        ValueError: for a name that is not among :data:`CORRUPTIONS`, or a severity outside 1 to 5.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption: expected one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity: expected 1 to 5, got {severity!r}")
    stream = noise_stream(seed, f"{name} {severity}")
    values = CORRUPTIONS[name](images.float() / 255, severity - 1, stream)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def corrupted(data: Split, name: str, severity: int, *, seed: int = 0) -> Split:
    """Return a split with its images corrupted."""
    images = corrupt(data.images.cpu(), name, severity, seed=seed)
    return Split(images, data.labels, data.mean, data.std, data.classes)


def gaussian_noise(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    return x + (0.03, 0.05, 0.07, 0.09, 0.12)[level] * torch.randn(x.shape, generator=stream)


def speckle_noise(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    return x + x * (0.06, 0.10, 0.14, 0.18, 0.25)[level] * torch.randn(x.shape, generator=stream)


def shot_noise(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    photons = (400, 200, 100, 60, 35)[level]
    return torch.poisson(x * photons, generator=stream) / photons


def impulse_noise(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    share = (0.01, 0.02, 0.04, 0.06, 0.09)[level]
    chance = torch.rand(x.shape, generator=stream)
    return torch.where(chance < share / 2, 0.0, torch.where(chance < share, 1.0, x))


def gaussian_blur(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    sigma = (0.4, 0.6, 0.8, 1.0, 1.4)[level]
    radius = math.ceil(3 * sigma)
    places = torch.arange(-radius, radius + 1.0)
    bell = torch.exp(-(places**2) / (2 * sigma**2))
    return _filter(x, bell[:, None] * bell[None, :])


def defocus_blur(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    radius = (0.8, 1.1, 1.4, 1.8, 2.3)[level]
    size = math.ceil(radius)
    places = torch.arange(-size, size + 1.0)
    distance = (places[:, None] ** 2 + places[None, :] ** 2).sqrt()
    return _filter(x, (radius + 0.5 - distance).clamp(0, 1))  # a disc with a soft edge


def motion_blur(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    length = (1.5, 2.5, 3.5, 4.5, 6.0)[level]
    angles = math.pi * torch.rand(len(x), generator=stream)
    steps = torch.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1)
    moved = [_shift(x, step * torch.cos(angles), step * torch.sin(angles)) for step in steps.tolist()]
    return torch.stack(moved).mean(0)


def zoom_blur(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    furthest = (0.06, 0.10, 0.14, 0.19, 0.25)[level]
    zooms = torch.linspace(0, furthest, 6).tolist()
    return torch.stack([_sample(x, _grid(x) / (1 + zoom)) for zoom in zooms]).mean(0)


def fog(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    density = (0.2, 0.35, 0.5, 0.65, 0.85)[level]
    haze = _plasma(x, stream)
    lightest = x.amax((1, 2, 3), keepdim=True)
    return (x + density * haze) * lightest / (lightest + density)


def brightness(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    return x + (0.05, 0.1, 0.15, 0.2, 0.3)[level]


def contrast(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * (0.75, 0.55, 0.4, 0.3, 0.18)[level]


def saturation(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    grey = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return grey + (x - grey) * (0.5, 0.25, 1.8, 2.5, 4.0)[level]


def elastic(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    strength = (0.5, 0.75, 1.0, 1.3, 1.7)[level]
    coarse = torch.randn((len(x), 2, 8, 8), generator=stream)
    moves = F.interpolate(coarse, x.shape[-2:], mode="bicubic", align_corners=False)
    size = x.new_tensor([x.shape[-1], x.shape[-2]])
    return _sample(x, _grid(x) + 2 * strength * moves.permute(0, 2, 3, 1) / size)


def pixelate(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    extent = round(x.shape[-1] * (0.9, 0.78, 0.69, 0.56, 0.44)[level])
    small = F.interpolate(x, (extent, extent), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, x.shape[-2:], mode="nearest-exact")


def jpeg(x: Tensor, level: int, stream: torch.Generator) -> Tensor:
    from PIL import Image

    quality = (60, 40, 28, 18, 10)[level]
    out = torch.empty_like(x)
    for index, image in enumerate((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1)):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
        pixels = bytearray(Image.open(file).convert("RGB").tobytes())
        out[index] = torch.frombuffer(pixels, dtype=torch.uint8).view(image.shape).permute(2, 0, 1) / 255
    return out


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        speckle_noise,
        shot_noise,
        impulse_noise,
        gaussian_blur,
        defocus_blur,
        motion_blur,
        zoom_blur,
        fog,
        brightness,
        contrast,
        saturation,
        elastic,
        pixelate,
        jpeg,
    )
}


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, *kernel.shape)
    margin = kernel.shape[-1] // 2
    return F.conv2d(F.pad(x, (margin,) * 4, mode="reflect"), kernel, groups=x.shape[1])


def _grid(x: Tensor) -> Tensor:
    """Return the places of the pixels, (1, H, W, 2), as grid_sample counts them."""
    height, width = x.shape[-2:]
    rows = (2 * torch.arange(height) + 1) / height - 1
    columns = (2 * torch.arange(width) + 1) / width - 1
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="reflection", align_corners=False)


def _shift(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Move each image by its own number of pixels."""
    moves = torch.stack([2 * right / x.shape[-1], 2 * down / x.shape[-2]], -1)
    return _sample(x, _grid(x) + moves[:, None, None])


def _plasma(x: Tensor, stream: torch.Generator) -> Tensor:
    """Return clouds in [0, 1], (N, 1, H, W): noise at halving scales, each half as strong."""
    cells, strength = 2, 1.0
    total = x.new_zeros(len(x), 1, *x.shape[-2:])
    while cells <= x.shape[-1]:
        noise = torch.rand((len(x), 1, cells, cells), generator=stream)
        total += strength * F.interpolate(noise, x.shape[-2:], mode="bilinear", align_corners=False)
        cells, strength = 2 * cells, strength / 2
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low)
