"""Corrupted images: seeded, stronger with severity, and each does what its name says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_geninit.training.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth random images with an edge."""
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand((6, 3, 5, 5), generator=stream)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    smooth[:, :, 8:20, 10:22] = 1 - smooth[:, :, 8:20, 10:22]
    return (smooth * 255).to(torch.uint8)


def distance(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).square().mean().sqrt().item()


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_seeded_and_stronger_with_severity(images: Tensor, name: str) -> None:
    results = [corrupt(images, name, severity) for severity in SEVERITIES]
    assert all(r.shape == images.shape and r.dtype == torch.uint8 for r in results)
    assert torch.equal(results[2], corrupt(images, name, 3))
    distances = [distance(r, images) for r in results]
    assert min(distances) > 0.5
    # Saturation goes two ways: less colour, then more.
    runs = [distances[:2], distances[2:]] if name == "saturation" else [distances]
    assert all(run == sorted(run) for run in runs), distances


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "motion_blur", "fog", "elastic"])
def test_seeds_differ(images: Tensor, name: str) -> None:
    assert not torch.equal(corrupt(images, name, 3, seed=0), corrupt(images, name, 3, seed=1))


def test_noise_has_the_strength_stated() -> None:
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, sigma in zip(SEVERITIES, (0.03, 0.05, 0.07, 0.09, 0.12), strict=True):
        spread = corrupt(grey, "gaussian_noise", severity).float().std() / 255
        assert spread == pytest.approx(sigma, rel=0.03)
    share = (corrupt(grey, "impulse_noise", 5) != 128).float().mean()
    assert share == pytest.approx(0.09, rel=0.05)


def test_contrast_and_brightness_by_hand() -> None:
    image = torch.tensor([100, 200], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    found = corrupt(image, "contrast", 2)[0, 0, 0].tolist()
    assert found == pytest.approx([150 - 50 * 0.55, 150 + 50 * 0.55], abs=0.6)
    assert corrupt(image, "brightness", 4)[0, 0, 0].tolist() == [151, 251]


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"])
def test_blurs_leave_flat_images_alone_and_smooth_others(images: Tensor, name: str) -> None:
    flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert (corrupt(flat, name, 5).int() - 77).abs().max() <= 1
    sharp, soft = (x.float().diff(dim=-1).square().mean() for x in (images, corrupt(images, name, 5)))
    assert soft < 0.8 * sharp


def test_what_is_asked_for_is_checked(images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected one of gaussian_noise.*got 'rain'"):
        corrupt(images, "rain", 1)
    with pytest.raises(ValueError, match="severity: expected 1 to 5, got 0"):
        corrupt(images, "fog", 0)
