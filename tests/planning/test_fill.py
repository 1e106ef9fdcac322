"""The steps of an initialiser, each taken once, and warnings that point to who called."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from torch import nn

import torch_geninit as geninit
from tests.support.plans import net
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.parameters import named
from torch_geninit.planning import prediction

Generators = Callable[[str], WeightGenerator]
METHODS = {
    "vae": lambda model, tiny, **options: geninit.vae_(model, pretrained=tiny("vae"), seed=0, **options),
    "ghn": lambda model, tiny, **options: geninit.ghn_(model, pretrained=tiny("ghn"), **options),
    "noise_ghn": lambda model, tiny, **options: geninit.noise_ghn_(
        model, 0, pretrained=tiny("noise-ghn"), **options
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_surveyed_once(method: str, tiny: Generators, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    walk = named._parameters
    monkeypatch.setattr(named, "_parameters", lambda *a: (calls.append(a), walk(*a))[1])
    METHODS[method](net(), tiny)
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["initialiser", "plan", "prediction"])
def test_unfilled_is_checked_once(way: str, tiny: Generators, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    check = prediction.refuse_unfilled
    for module in ("planning.prediction", "planning.plan", "planning.fill"):
        monkeypatch.setattr(
            f"torch_geninit.{module}.refuse_unfilled", lambda *a: (calls.append(a), check(*a))[1]
        )
    model = net()
    if way == "initialiser":
        geninit.ghn_(model, pretrained=tiny("ghn"))
    else:
        plan = geninit.plan(model, pretrained=tiny("ghn"))
        (plan if way == "plan" else plan.predict()).write_(model)
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["initialiser", "plan", "prediction"])
def test_warnings_point_to_the_line_that_called(way: str, tiny: Generators) -> None:
    class Buffered(nn.Module):
        """A buffer that no reset_parameters() sets."""

        def __init__(self) -> None:
            super().__init__()
            self.body = net()
            self.register_buffer("scale", self.body[0].weight.detach().clone())

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.body(x)

    model = Buffered()
    plan = geninit.plan(model, pretrained=tiny("ghn"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if way == "initialiser":
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        else:
            (plan if way == "plan" else plan.predict()).write_(model, unfilled="reset")
    assert [(w.filename, "buffers as they are" in str(w.message)) for w in caught] == [(__file__, True)]
