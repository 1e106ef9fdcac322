"""The loss of a training step, against the same written out."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from tests.conftest import ghn_config
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training.loops.ghn_loss import (
    Diversity,
    Objective,
    distance_from_standard,
    predicted_parameters,
)
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.search_space import Sample, Space

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> Sample:
    return Space(10, IMAGE).get(Spec("plain", (1, 1), (8, 16)))


@pytest.fixture(scope="module")
def generator() -> GraphHyperNetwork:
    torch.manual_seed(0)
    return GraphHyperNetwork(ghn_config(noise=0))


def test_the_distance_counts_gains_from_one_and_other_vectors_and_the_classifier_from_zero(
    network: Sample,
) -> None:
    model = network.spec.build(10)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in parameters.items():
        if p.ndim == 1:
            p.fill_(1.0 if name.endswith("1.weight") else 0.0)  # every block is convolution, norm, activation
    parameters["head.weight"].zero_()
    assert distance_from_standard(parameters, network) == 0
    parameters["stages.0.0.1.weight"][3] = 3.0
    parameters["head.bias"][0] = -2.0
    parameters["head.weight"][2, 5] = 3.0
    parameters["stages.0.0.0.weight"].mul_(100)
    assert distance_from_standard(parameters, network) == 4 + 4 + 9


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


def test_draws_are_apart_by_the_cosine_of_what_was_asked_for() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    cosine = lambda x, y: (x * y).sum() / (x.norm() * y.norm())  # noqa: E731
    torch.testing.assert_close(Diversity().similarity(a, b), cosine(a, b))
    found = Diversity(on="probabilities").similarity(a, b)
    torch.testing.assert_close(found, cosine(a.softmax(1), b.softmax(1)))


@pytest.mark.parametrize("shared", [False, True])
def test_noise_is_each_node_s_own_or_shared(shared: bool) -> None:
    drawn = Diversity(shared=shared).noise(5, 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 5, 3)
    assert len(drawn[0].unique(dim=0)) == (1 if shared else 5)
    assert not torch.equal(drawn[0], drawn[1])


def test_the_loss_of_two_draws_stops_pulling_at_the_floor(network: Sample) -> None:
    torch.manual_seed(0)
    noisy = GraphHyperNetwork(ghn_config(noise=4))
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    z = Diversity().noise(len(network.architecture.nodes), 4, torch.Generator().manual_seed(1))
    losses = {}
    for floor in (-1.0, 1.0):
        objective = Objective(noisy, clip=1e9, diversity=Diversity(weight=2.0, floor=floor))
        losses[floor], parts = objective([network], [images], [labels], [z])
        expected = parts["cross_entropy"][0] + 2 * max(parts["cosine"][0].item(), floor)
        torch.testing.assert_close(losses[floor], expected)
