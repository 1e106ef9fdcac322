"""How far a network is from those of training: what patterns and measures tell apart, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torch_geninit.generators.trust.domain import Profile, distance, profile, summarise
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.blocks import Style
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.resnet import ResNet


def test_training_networks_are_at_distance_zero_and_others_are_not() -> None:
    networks = [ResNet(blocks, (8, 16), 10) for blocks in ((1, 1), (2, 1), (2, 3))]
    trained = summarise(profile(trace(network, torch.zeros(1, 3, 32, 32))) for network in networks)
    inside, reason = distance(profile(trace(ResNet((1, 1), (8, 16)), torch.zeros(1, 3, 32, 32))), trained)
    assert inside == 0 and "inside" in reason
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    outside, reason = distance(profile(trace(plain, torch.zeros(1, 3, 32, 32))), trained)
    assert outside > 0 and "trained on" in reason


def test_a_network_deeper_in_linear_layers_alone_is_farther() -> None:
    def transformer(blocks: int) -> Architecture:
        spec = Spec("transformer", (blocks,), (32,), Style(norm="layer"), 8, heads=2, positions="table")
        return trace(spec.build(10), torch.zeros(1, 3, 32, 32))

    trained = summarise(profile(transformer(blocks)) for blocks in (1, 2))
    assert distance(profile(transformer(2)), trained)[0] == 0
    away, reason = distance(profile(transformer(9)), trained)
    # 9 blocks of four linear layers and a head, against two.
    assert away >= math.log2(38) - math.log2(10) - 1e-3 and "linear layers" in reason


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"dilation": 2, "padding": 2}, "dilated conv"),
        ({"groups": 2}, "grouped conv"),
        ({"groups": 8}, "depthwise conv"),
    ],
)
def test_convolutions_are_told_apart_by_what_they_see(change: dict[str, int], pattern: str) -> None:
    def network(**options: int) -> nn.Module:
        model = ResNet((1, 1), (8, 16))
        model.layer1[0].conv1 = nn.Conv2d(8, 8, 3, bias=False, **{"padding": 1, **options})
        return model

    image = torch.zeros(1, 3, 32, 32)
    trained = summarise([profile(trace(network(), image))])
    away, reason = distance(profile(trace(network(**change), image)), trained)
    assert away > 0.1 and pattern in reason


def test_where_a_block_strides_tells_it_apart() -> None:
    def network(*strides: int) -> nn.Module:
        model = ResNet((1, 1), (8, 16))
        model.layer2[0].conv1.stride, model.layer2[0].conv2.stride = ((s, s) for s in strides)
        return model

    image = torch.zeros(1, 3, 32, 32)
    trained = summarise([profile(trace(network(2, 1), image))])
    assert distance(profile(trace(network(1, 2), image)), trained)[0] > 0.1


@pytest.mark.parametrize("size", [4, 8])
def test_how_far_a_stem_strides_does_not(size: int) -> None:
    def network(patch: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, patch, patch), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))

    profiles = []
    for patch in (2, size):
        model, image = network(patch), torch.zeros(1, 3, 16 * patch, 16 * patch)
        model(image)
        profiles.append(profile(trace(model, image)))
    assert profiles[0].patterns == profiles[1].patterns


def test_attention_without_positions_is_of_another_kind() -> None:
    def transformer(positions: str) -> Profile:
        style = Style(norm="layer")
        spec = Spec("transformer", (2,), (32,), style, 8, heads=2, positions=positions)  # type: ignore[arg-type]
        return profile(trace(spec.build(10), torch.zeros(1, 3, 32, 32)))

    # A mixer has no positions either, so the pattern around its first block does not tell.
    mixer = profile(
        trace(Spec("mixer", (2,), (32,), Style(norm="layer"), 8).build(10), torch.zeros(1, 3, 32, 32))
    )
    trained = summarise([transformer("table"), transformer("relative"), mixer])
    away, reason = distance(transformer("none"), trained)
    assert away > 0.1 and "placeless attention" in reason


def test_norms_without_parameters_are_of_another_kind() -> None:
    image = torch.zeros(1, 3, 32, 32)

    def network(affine: bool) -> nn.Module:
        model = ResNet((1, 1), (8, 16))
        model.bn1 = nn.BatchNorm2d(8, affine=affine)
        return model

    trained = summarise([profile(trace(network(True), image))])
    away, reason = distance(profile(trace(network(False), image)), trained)
    assert away > 0.1 and "bare batch_norm" in reason


def test_reasons_are_told_in_numbers_of_layers_and_channels() -> None:
    image = torch.zeros(1, 3, 32, 32)
    trained = summarise(profile(trace(ResNet((1, 1), widths), image)) for widths in ((8, 16), (8, 24)))
    assert distance(profile(trace(ResNet((1, 1), (8, 64)), image)), trained)[1] == (
        "widest convolution: 64, trained on 16 to 24"
    )
    assert (
        "convolutions: 17, trained on 5 to 5"
        in distance(profile(trace(ResNet((4, 4), (8, 16)), image)), trained)[1]
    )
