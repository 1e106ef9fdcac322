"""Folding a trained decoder: the same weights from fewer numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import ghn_config
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.loops.fold import folded, narrowed, trimmed
from torch_geninit.training.loops.warm_start import sizes_from, warm_start_

WIDE = {"rank": 40, "linear_rank": 30, "depthwise_rank": 20}


class EveryBank(nn.Sequential):
    """A dense, a depthwise and a linear layer; the head has a decoder of its own."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 9),
            nn.ReLU(),
            nn.Linear(9, 10),
        )


def generator(**sizes: int) -> GraphHyperNetwork:
    config = ghn_config()
    config["sizes"] |= sizes
    torch.manual_seed(0)
    return GraphHyperNetwork(config).requires_grad_(False)


@pytest.mark.parametrize("mix", [8, 19])
def test_a_folded_generator_makes_the_same_weights(mix: int) -> None:
    whole = generator(**WIDE, mix=mix)
    short = folded(whole)
    assert [short.config["sizes"][name] for name in WIDE] == [mix + 1] * 3
    model = EveryBank()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    names = [name for name, _ in model.named_parameters()]
    expected, got = whole(graph, names), short(graph, names)
    for name in names:
        torch.testing.assert_close(got[name].repeat(), expected[name].repeat(), rtol=1e-4, atol=1e-6)


def test_templates_have_unit_mean_square() -> None:
    for bank in folded(generator(**WIDE)).decoder.banks.values():
        mean_square = bank.templates.square().flatten(1).mean(1)
        torch.testing.assert_close(mean_square, torch.ones_like(mean_square))


def test_a_bank_of_few_templates_stays_as_it_is() -> None:
    whole = generator(**WIDE | {"rank": 9})  # as many as mix + 1
    short = folded(whole)
    assert short.config["sizes"]["rank"] == 9
    assert torch.equal(short.decoder.banks["conv"].templates, whole.decoder.banks["conv"].templates)


def test_folding_leaves_the_original_alone() -> None:
    whole = generator(**WIDE)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    folded(whole)
    assert whole.config["sizes"]["rank"] == WIDE["rank"]
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_a_trimmed_generator_makes_the_same_weights_without_what_was_never_asked_for() -> None:
    whole = generator(**WIDE, kernel=7)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 12, (1, 5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    short = trimmed(whole, [graph])
    sizes = short.config["sizes"]
    assert (sizes["kernel"], sizes["linear_rank"], sizes["depthwise_rank"], sizes["basis"]) == (5, 0, 0, 0)
    assert sizes["rank"] == WIDE["rank"]
    names = [name for name, _ in model.named_parameters()]
    expected, got = whole(graph, names), short(graph, names)
    for name in names:
        torch.testing.assert_close(got[name].repeat(), expected[name].repeat(), rtol=1e-4, atol=1e-6)


def test_nothing_is_trimmed_that_some_network_asks_for() -> None:
    whole = generator(**WIDE, kernel=3)
    short = trimmed(whole, [trace(EveryBank(), torch.zeros(1, 3, 8, 8))])
    assert short.config["sizes"] == {**whole.config["sizes"], "basis": 0}


@torch.no_grad()
def errors(whole: GraphHyperNetwork, short: GraphHyperNetwork) -> list[float]:
    """Relative error of every kernel of :class:`EveryBank`."""
    model = EveryBank()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    names = [name for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("7")]
    expected, got = whole(graph, names), short(graph, names)
    assert len(names) == 3
    return [float((got[n].values - expected[n].values).norm() / expected[n].values.norm()) for n in names]


def test_a_narrowed_generator_makes_nearly_the_same_weights() -> None:
    whole = generator(**WIDE, hidden=24, mix=20)
    seen = [trace(EveryBank(), torch.zeros(1, 3, 8, 8))]
    short = narrowed(whole, seen, rank=8)
    assert short.config["sizes"]["narrow"] == 8
    assert short.decoder.positions.weight.shape == (20 * 9, 8)
    fewer = narrowed(whole, seen, rank=2)
    assert max(errors(whole, short)) < 0.02
    assert max(errors(whole, fewer)) > 2 * max(errors(whole, short))


def test_what_is_narrow_enough_or_small_stays_as_it_is() -> None:
    whole = generator(**WIDE, hidden=24, mix=20)
    seen = [trace(EveryBank(), torch.zeros(1, 3, 8, 8))]
    assert narrowed(whole, seen, rank=24) is whole  # two matrices of that rank are larger than one
    short = narrowed(whole, seen, rank=8)
    assert narrowed(short, seen, rank=8) is short


def test_training_goes_on_from_a_narrowed_generator() -> None:
    whole = generator(**WIDE, hidden=24, mix=20)
    short = narrowed(whole, [trace(EveryBank(), torch.zeros(1, 3, 8, 8))], rank=8)
    again = GraphHyperNetwork({**ghn_config(), "sizes": {**sizes_from(short, {}), "kernel": 3}})
    assert "narrow" not in again.config["sizes"]
    warm_start_(again, short)
    assert max(errors(short, again)) < 1e-4
