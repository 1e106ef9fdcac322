"""The well-known networks for 32x32 images: all can be traced, they run, and have the published sizes."""

from __future__ import annotations

import random

import pytest
import torch

from torch_geninit import trace
from torch_geninit.training.networks.cifar import registry
from torch_geninit.training.networks.cifar.registry import CIFAR_NETWORKS
from torch_geninit.training.networks.popular import SAMPLERS

SOME = random.Random(1).sample(sorted(CIFAR_NETWORKS), 6)

MILLIONS = {
    # He et al. 2016, table 6
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    # Zagoruyko & Komodakis 2016, table 4
    "wrn40_2": 2.2,
    # Huang et al. 2017, table 2
    "densenet40_k12": 1.0,
    "densenet_bc100_k12": 0.8,
    # Xie et al. 2017, table 7
    "resnext29_8x64d": 34.4,
    # Han et al. 2017, table 4
    "pyramidnet110_a48": 1.7,
    # Gastaldi 2017, table 1: 26 2x32d
    "shake_shake26_2x32d": 2.9,
    # Hassani et al. 2021, table 1
    "cct_7_3x1": 3.76,
    "cct_2_3x2": 0.28,
    # Springenberg et al. 2015, section 3: about 1.3 or 1.4 million
    "all_cnn_c": 1.4,
}
"""Parameters in millions, as the papers have them."""


def test_names_are_unique_and_every_network_is_described() -> None:
    assert sum(len(kind.NETWORKS) for kind in registry._KINDS) == len(CIFAR_NETWORKS) >= 60
    assert all(network.description and network.paper for network in CIFAR_NETWORKS.values())


@pytest.mark.parametrize("name", CIFAR_NETWORKS)
def test_every_parameter_is_reached(name: str) -> None:
    with torch.device("meta"):
        model = CIFAR_NETWORKS[name].build(7)
    architecture = trace(model, torch.empty(1, 3, 32, 32))
    reached = {use.name for node in architecture.nodes for use in node.parameters}
    assert reached == {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MILLIONS)
def test_networks_are_as_large_as_published(name: str) -> None:
    with torch.device("meta"):
        model = CIFAR_NETWORKS[name].build(10)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    decimals = len(str(MILLIONS[name]).split(".")[1])
    assert abs(count - MILLIONS[name]) <= 0.6 * 10**-decimals


@pytest.mark.parametrize("name", SOME)
def test_some_networks_run_on_images(name: str) -> None:
    runs_on_images(name)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(CIFAR_NETWORKS) - set(SOME)))
def test_all_networks_run_on_images(name: str) -> None:
    runs_on_images(name)


def runs_on_images(name: str) -> None:
    model = CIFAR_NETWORKS[name].build(7)
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    logits.square().sum().backward()
    assert logits.shape == (2, 7) and logits.isfinite().all()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        assert model.eval()(images[:1]).shape == (1, 7)


@pytest.mark.full
def test_no_draw_of_the_training_space_is_one_of_them() -> None:
    with torch.device("meta"):
        networks = {name: network.build(10) for name, network in CIFAR_NETWORKS.items()}
        known = {sizes(network): name for name, network in networks.items()}
        for family, (sample, _) in SAMPLERS.items():
            for seed in range(40):
                spec = sample(random.Random(f"outside/{family}/{seed}"))
                assert sizes(spec.build(10, 32)) not in known, spec


def sizes(model: torch.nn.Module) -> tuple[tuple[int, ...], ...]:
    return tuple(sorted(tuple(parameter.shape) for parameter in model.parameters()))
