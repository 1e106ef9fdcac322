"""Warm starts: a larger generator makes what its start makes, and learns from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.conftest import ghn_config
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training.loops.fold import folded
from torch_geninit.training.loops.ghn_loss import predicted_parameters
from torch_geninit.training.loops.warm_start import NOISE_START, SIZES, sizes_from, warm_start_
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.search_space import Sample, Space

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> Sample:
    return Space(10, IMAGE).get(Spec("inverted", (1, 1), (8, 16)))


@pytest.fixture(scope="module")
def start() -> GraphHyperNetwork:
    """A folded generator, as files have them."""
    torch.manual_seed(0)
    config = ghn_config(noise=0)
    sizes = {**config["sizes"], "mix": 4, "rank": 40, "depthwise_rank": 40, "linear_rank": 40}
    return folded(GraphHyperNetwork({**config, "sizes": sizes}))


def larger(start: GraphHyperNetwork, **sizes: int) -> GraphHyperNetwork:
    torch.manual_seed(1)
    config: Mapping[str, Any] = {**start.config, "sizes": {**start.config["sizes"], **sizes}}
    return GraphHyperNetwork(config)


@pytest.mark.parametrize(
    "sizes", [{"rank": 40, "depthwise_rank": 17}, {"mix": 9, "rank": 40}, {"mix": 6}, {"kernel": 7}]
)
def test_a_larger_generator_makes_the_same_network(
    start: GraphHyperNetwork, network: Sample, sizes: dict[str, int]
) -> None:
    generator = larger(start, **sizes)
    warm_start_(generator, start)
    made, expected = predicted_parameters(generator, network), predicted_parameters(start, network)
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_unfolded_templates_have_the_scale_of_fresh_ones(start: GraphHyperNetwork) -> None:
    generator = larger(start, rank=64)
    fresh = generator.decoder.banks["conv"].templates.std().item()
    warm_start_(generator, start)
    assert generator.decoder.banks["conv"].templates.std().item() == pytest.approx(fresh, rel=0.1)


def test_channels_that_the_start_lacks_learn(start: GraphHyperNetwork, network: Sample) -> None:
    generator = larger(start, mix=9, rank=40)
    warm_start_(generator, start)
    sum(p.square().sum() for p in predicted_parameters(generator, network).values()).backward()
    gradient = generator.decoder.banks["conv"].coefficients.weight.grad
    assert (gradient[:, 4:] != 0).any(0).all()


def test_what_has_no_place_is_refused(start: GraphHyperNetwork) -> None:
    other = larger(start, width=start.config["sizes"]["width"] * 2)
    with pytest.raises(ValueError, match=r"the start's encoder.* expected .*the same sizes"):
        warm_start_(other, start)
    with pytest.raises(ValueError, match="--mix 3: the start has 4 mixed channels"):
        sizes_from(start, {"mix": 3})
    with pytest.raises(ValueError, match="--noise 2: the start has 4 noise values"):
        sizes_from(larger(start, noise=4), {"noise": 2})


def test_a_folded_start_gets_the_usual_ranks_back(start: GraphHyperNetwork) -> None:
    sizes = sizes_from(start, {"noise": 2, "mix": 6})
    assert (sizes["mix"], sizes["noise"], sizes["width"]) == (6, 2, start.config["sizes"]["width"])
    assert all(sizes[n] == SIZES[n] for n in ("rank", "linear_rank", "depthwise_rank", "kernel"))


@pytest.mark.parametrize("noise", [4, 64])
def test_new_noise_is_equally_loud_however_many_values_it_has(start: GraphHyperNetwork, noise: int) -> None:
    generator = larger(start, noise=noise)
    warm_start_(generator, start)
    weight = generator.decoder.trunk[0].weight[:, -noise:]
    # The variance that standard normal noise adds to a hidden unit, over all of them.
    assert weight.square().sum(1).mean().sqrt().item() == pytest.approx(NOISE_START, rel=0.2)


def test_of_other_classes_all_but_the_classifier_is_taken_over(start: GraphHyperNetwork) -> None:
    classes = [f"another {index}" for index in range(start.classes + 1)]
    generator = GraphHyperNetwork({**start.config, "classes": classes})
    fresh = generator.decoder.head_templates.clone()
    warm_start_(generator, start)
    own, trained = generator.state_dict(), start.state_dict()
    assert own["decoder.head_templates"].equal(fresh)
    assert all(own[name].equal(trained[name]) for name in own if "head" not in name)
