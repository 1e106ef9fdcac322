"""Covariance initialisation: the sample covariance is the law, tapered, smooth, wider with depth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from torch_geninit.training.controls.covariance import covariance_, filter_covariance
from torch_geninit.training.networks.mixers import ConvMixer
from torch_geninit.training.networks.resnet import resnet20


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law(size: int, sigma: float) -> np.ndarray:
    """The covariance written out entry by entry, scaled to trace 2."""
    places = [(y - (size - 1) / 2, x - (size - 1) / 2) for y in range(size) for x in range(size)]

    def g(y: float, x: float) -> float:
        return math.exp(-(y * y + x * x) / (2 * sigma * sigma))

    found = np.array(
        [[g(*p) * g(*q) * (g(p[0] - q[0], p[1] - q[1]) - g(*p) * g(*q) / 2) for q in places] for p in places]
    )
    return 2 * found / np.trace(found)


@pytest.mark.parametrize(("size", "sigma"), [(3, 1.0), (5, 1.5)])
def test_sample_covariance_is_the_law(size: int, sigma: float) -> None:
    layer = nn.Conv2d(40_000, 40_000, size, groups=40_000)
    covariance_(layer, generator=stream(), schedule=(sigma, 0.0, 0.0))
    sample = np.cov(layer.weight.detach().flatten(1).double().numpy().T, bias=True)
    expected = law(size, sigma)
    assert np.abs(sample - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_the_law_is_a_covariance_largest_in_the_middle(sigma: float) -> None:
    covariance = filter_covariance(7, 7, sigma)
    assert torch.equal(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12
    assert covariance.diagonal().argmax() == 24
    assert covariance.diagonal()[[0, 6, 42, 48]].max() < covariance.diagonal()[24]


def test_filters_are_wider_in_deeper_layers_and_each_of_He_s_size() -> None:
    model = nn.Sequential(*(nn.Conv2d(2000, 2000, 7, groups=2000) for _ in range(3)))
    covariance_(model, generator=stream(), schedule=(0.5, 0.0, 3.0))
    squares = [layer.weight.detach().square().mean((0, 1)) for layer in model]
    border = [(one.sum() - one[1:-1, 1:-1].sum()).item() for one in squares]
    assert border[0] < border[1] < border[2]
    assert [one.sum().item() for one in squares] == pytest.approx([2.0] * 3, rel=0.1)


def test_only_depthwise_filters_are_drawn_and_the_generator_decides() -> None:
    def built(seed: int | None) -> nn.Module:
        torch.manual_seed(0)
        model = ConvMixer(3, 32, 4, 5).build(10, 32)
        return model if seed is None else covariance_(model, generator=stream(seed))

    plain, one, again, other = (built(seed) for seed in (None, 0, 0, 1))
    drawn = 0
    for name, value in plain.named_parameters():
        depthwise = value.dim() == 4 and value.shape[1:] == (1, 5, 5)
        assert torch.equal(value, one.get_parameter(name)) is not depthwise, name
        assert torch.equal(one.get_parameter(name), again.get_parameter(name))
        assert torch.equal(one.get_parameter(name), other.get_parameter(name)) is not depthwise
        drawn += depthwise
    assert drawn == 3


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="ResNet: expected depthwise convolutions larger than 1x1"):
        covariance_(resnet20(), generator=stream())
    layer = nn.Conv2d(4, 4, 3, groups=4)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="schedule .*expected positive widths at every depth, got -1"):
        covariance_(
            nn.Sequential(layer, layer, nn.Conv2d(4, 4, 3, groups=4)),
            generator=stream(),
            schedule=(1.0, -2.0, 0.0),
        )
    assert torch.equal(layer.weight, before)
