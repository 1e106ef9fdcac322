"""The loss of a training step, against the same written out."""

from __future__ import annotations

import pytest
import torch
from conftest import ghn_card
from torch.func import functional_call
from torch.nn import functional as F

from torch_geninit.generators.ghn import GraphHyperNetwork
from torch_geninit.training.architectures import Sample, Space
from torch_geninit.training.families import Spec
from torch_geninit.training.through import Objective, distance_from_standard, predicted_parameters

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> Sample:
    return Space(10, IMAGE).get(Spec("plain", (1, 1), (8, 16)))


@pytest.fixture(scope="module")
def generator() -> GraphHyperNetwork:
    torch.manual_seed(0)
    return GraphHyperNetwork(ghn_card(noise=0))


def test_the_distance_counts_gains_from_one_and_other_vectors_from_zero(network: Sample) -> None:
    model = network.spec.build(10)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in parameters.items():
        if p.ndim == 1:
            p.fill_(1.0 if name.endswith("1.weight") else 0.0)  # every block is convolution, norm, activation
    assert distance_from_standard(parameters, network) == 0
    parameters["stages.0.0.1.weight"][3] = 3.0
    parameters["head.bias"][0] = -2.0
    parameters["stages.0.0.0.weight"].mul_(100)
    assert distance_from_standard(parameters, network) == 4 + 4


def test_the_loss_is_cross_entropy_and_decay(generator: GraphHyperNetwork, network: Sample) -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    parameters = predicted_parameters(generator, network)
    logits = functional_call(network.model, parameters, (images,))
    expected = F.cross_entropy(logits, labels) + 0.5 * distance_from_standard(parameters, network)
    loss, parts = Objective(generator, clip=1e9, decay=0.5)([network], [images], [labels])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["cross_entropy"][0], F.cross_entropy(logits, labels))


def test_decay_pulls_a_large_bias_back(generator: GraphHyperNetwork, network: Sample) -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    generator.zero_grad()
    Objective(generator, clip=1e-12, decay=1.0)([network], [images], [labels])[0].backward()
    before = distance_from_standard(predicted_parameters(generator, network), network)
    with torch.no_grad():
        for p in generator.parameters():
            if p.grad is not None:
                p -= 1e-4 * p.grad
    after = distance_from_standard(predicted_parameters(generator, network), network)
    assert after < before
