"""Layers on their own, as ``model.apply`` hands them out: the obvious call is right, or says what is."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torch_geninit as geninit
from tests.support.contract import Verb, fresh, same, values
from torch_geninit.generators.base import WeightGenerator

Generators = Callable[[str], WeightGenerator]
GHNS = ["ghn", "noise_ghn"]


class Standardised(nn.Conv2d):
    pass


@pytest.mark.parametrize("method", GHNS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(64, 10),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(3),
        nn.Embedding(4, 3),
        nn.LSTM(3, 3),
        Standardised(3, 4, 3),
        weight_norm(nn.Linear(3, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_hypernetwork_wants_the_whole_network(tiny: Generators, method: str, layer: nn.Module) -> None:
    before = values(layer)
    with pytest.raises(ValueError, match=f"(?s){method}_ wants the whole network.*vae_.*write_"):
        if method == "ghn":
            geninit.ghn_(layer, pretrained=tiny("ghn"))
        else:
            geninit.noise_ghn_(layer, 0, pretrained=tiny("noise-ghn"))
    assert same(values(layer), before)
    with pytest.raises(ValueError, match="wants the whole network"):
        geninit.plan(layer, method, pretrained=tiny(method.replace("_", "-")))  # type: ignore[arg-type]


def test_a_hypernetwork_in_apply_is_refused_at_the_first_layer(tiny: Generators) -> None:
    model = fresh()
    before = values(model)
    with pytest.raises(ValueError, match=r"Instead of model.apply\(ghn_\), call ghn_\(model\) once"):
        model.apply(partial(geninit.ghn_, pretrained=tiny("ghn")))
    assert same(values(model), before)


def test_the_call_that_is_shown_for_parts_fills_them(tiny: Generators) -> None:
    model = fresh()
    prediction = geninit.plan(model, "ghn", pretrained=tiny("ghn")).predict()
    prediction.write_(model.blocks)
    expected = values(geninit.ghn_(fresh(), pretrained=tiny("ghn")))
    assert all(torch.equal(p, expected[f"blocks.{n}"]) for n, p in model.blocks.named_parameters())


def test_a_network_of_parameters_alone_is_a_network(tiny: Generators) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight)

    made = geninit.plan(Net(), pretrained=tiny("ghn"), example_inputs=torch.zeros(2, 3))
    assert [entry.name for entry in made.entries] == ["weight"]


def by_isinstance(model: nn.Module, **options: Any) -> None:
    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            geninit.vae_(module, **options)

    model.apply(initialise)


def test_layers_with_the_same_seed_and_no_name_are_warned_about(tiny: Generators) -> None:
    model = fresh()
    with pytest.warns(
        geninit.GenInitWarning, match=r"(?s)the very weights of another.*vae_\(model, seed=0\)"
    ):
        by_isinstance(model, pretrained=tiny("vae"), seed=0)
    assert torch.equal(model.blocks[0].conv.weight, model.blocks[1].conv.weight), "and that is so"


def test_the_warning_comes_before_anything_is_written(tiny: Generators) -> None:
    model = fresh()
    before = values(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(geninit.GenInitWarning, match="the very weights"):
            by_isinstance(model, pretrained=tiny("vae"), seed=1)
    assert torch.equal(values(model)["blocks.1.conv.weight"], before["blocks.1.conv.weight"])


@pytest.mark.filterwarnings("error")
def test_other_draws_are_not_warned_about(tiny: Generators) -> None:
    def conv(channels: int = 12) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3)

    layers = [conv(), conv(), conv(), conv(), conv(), conv(16)]
    for seed, layer in enumerate(layers[:2], start=10):
        geninit.vae_(layer, pretrained=tiny("vae"), seed=seed)
    for name, layer in zip("ab", layers[2:4], strict=True):
        geninit.vae_(layer, pretrained=tiny("vae"), seed=10, name=name)
    geninit.vae_(layers[4], pretrained=tiny("vae"))
    geninit.vae_(layers[5], pretrained=tiny("vae"), seed=10)
    geninit.vae_(layers[0], pretrained=tiny("vae"), seed=10)  # the same again
    by_isinstance(fresh(), pretrained=tiny("vae"), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # two equal models are made on purpose
        geninit.vae_(fresh(), pretrained=tiny("vae"), seed=10)


@pytest.mark.filterwarnings("error")
def test_layers_that_are_gone_are_forgotten(tiny: Generators) -> None:
    for _ in range(2):
        layer = nn.Conv2d(12, 12, 3)
        geninit.vae_(layer, pretrained=tiny("vae"), seed=20)
        del layer
        gc.collect()


TRUTHS = [True, False, np.True_, torch.tensor(True)]


@pytest.mark.parametrize("seed", [*TRUTHS, 0.5, "1", [1]])
def test_what_is_no_whole_number_is_no_seed(verb: Verb, seed: Any) -> None:
    if verb.name == "ghn":
        return
    model = fresh()
    before = values(model)
    with pytest.raises(TypeError, match="seed: expected an integer, got"):
        verb(model, seed=seed)
    with pytest.raises(TypeError, match="seed: expected an integer, got"):
        verb.plan(model).predict(seed=seed)
    assert same(values(model), before)


@pytest.mark.parametrize("seed", [7, np.int64(7), torch.tensor(7)])
def test_whole_numbers_of_other_libraries_are_seeds(verb: Verb, seed: Any) -> None:
    if verb.name != "ghn":
        assert same(values(verb(fresh(), seed=seed)), values(verb(fresh(), seed=7)))


@pytest.mark.parametrize("scale", [True, "1", float("nan")])
def test_what_is_no_number_is_no_noise_scale(tiny: Generators, scale: Any) -> None:
    with pytest.raises(ValueError, match="noise_scale: expected a number"):
        geninit.noise_ghn_(fresh(), 0, pretrained=tiny("noise-ghn"), noise_scale=scale)
