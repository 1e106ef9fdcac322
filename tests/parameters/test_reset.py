"""Resets by methods that replace what they should fill: every object stays, with the new values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.parameters.reset import reset


class Replacing(nn.Module):
    """Gives its tensors new values in a way of its own."""

    def __init__(self, how: Callable[[Replacing], None]) -> None:
        super().__init__()
        self.how = how
        self.weight, self.scale = nn.Parameter(torch.zeros(10, 16)), nn.Parameter(torch.zeros(10))
        self.child = nn.Linear(10, 10)
        self.register_buffer("count", torch.zeros(3))
        nn.init.zeros_(self.child.weight)
        nn.init.zeros_(self.child.bias)

    def reset_parameters(self) -> None:
        self.how(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(F.linear(x, self.weight) * self.scale)


def new_parameters(module: Replacing) -> None:
    module.weight, module.scale = nn.Parameter(torch.ones(10, 16)), nn.Parameter(torch.ones(10))
    module.child.weight, module.child.bias = nn.Parameter(torch.ones(10, 10)), nn.Parameter(torch.ones(10))
    module.count = torch.ones(3)


def registered(module: Replacing) -> None:
    module.register_parameter("weight", nn.Parameter(torch.ones(10, 16)))
    module.register_parameter("scale", nn.Parameter(torch.ones(10, dtype=torch.float64)))
    del module.count
    module.register_buffer("count", torch.ones(3))
    nn.init.ones_(module.child.weight)
    nn.init.ones_(module.child.bias)


def new_data(module: Replacing) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.ones_like(tensor)


def new_child(module: Replacing) -> None:
    module.child = nn.Linear(10, 10)
    for tensor in (*module.parameters(), *module.buffers()):
        nn.init.ones_(tensor)


def in_place(module: Replacing) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        nn.init.ones_(tensor)


WAYS = [new_parameters, registered, new_data, new_child, in_place]


def objects(module: nn.Module) -> dict[str, tuple[int, int, torch.dtype]]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: (id(t), t.data_ptr(), t.dtype) for name, t in named} | {
        name: (id(part), 0, torch.bool) for name, part in module.named_modules()
    }


@pytest.mark.parametrize("how", WAYS)
def test_new_values_come_into_the_old_tensors(how: Callable[[Replacing], None]) -> None:
    module = Replacing(how)
    before = objects(module)
    reset([module])
    assert objects(module) == before
    assert all(bool((t == 1).all()) for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("how", WAYS)
def test_what_replaces_and_then_fails_is_undone(how: Callable[[Replacing], None]) -> None:
    def fails(module: Replacing) -> None:
        how(module)
        module.register_buffer("another", torch.ones(1))
        raise ZeroDivisionError

    module = Replacing(fails)
    before = objects(module)
    with pytest.raises(RuntimeError, match=r"reset_parameters\(\) of a Replacing failed"):
        reset([module])
    assert objects(module) == before
    assert all(bool((t == 0).all()) for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m: setattr(m, "weight", nn.Parameter(torch.ones(9, 16))), r"got shape \(9, 16\)"),
        (lambda m: delattr(m, "scale"), "it replaces 'scale'.*got nothing"),
        (lambda m: setattr(m, "child", nn.Identity()), "it replaces 'child.weight'.*got nothing"),
    ],
)
def test_another_shape_is_refused_and_undone(how: Callable[[Replacing], None], message: str) -> None:
    module = Replacing(how)
    before = objects(module)
    with pytest.raises(RuntimeError, match=message):
        reset([module])
    assert objects(module) == before


def test_a_tied_parameter_stays_tied() -> None:
    module, other = Replacing(new_parameters), nn.Module()
    other.weight = module.weight
    reset([module])
    assert other.weight is module.weight and bool((other.weight == 1).all())


def test_a_recurrent_layer_computes_with_what_it_has() -> None:
    class Replaces(nn.GRU):
        def reset_parameters(self) -> None:
            if hasattr(self, "weight_hh_l0"):
                self.weight_hh_l0 = nn.Parameter(torch.ones(12, 4))

    layer = Replaces(3, 4)
    for parameter in layer.parameters():  # the others would hold whatever was in memory
        nn.init.constant_(parameter, 0.1)
    x = torch.ones(2, 1, 3)
    reset([layer])
    out = layer(x)[0]
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    assert not torch.equal(layer(x)[0], out)


@pytest.mark.parametrize("how", WAYS)
def test_what_is_generated_reaches_the_model(
    tiny: Callable[[str], WeightGenerator], how: Callable[[Replacing], None]
) -> None:
    def model() -> nn.Sequential:
        stem = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*stem, Replacing(how))

    options = {
        "pretrained": tiny("ghn"),
        "untrusted": "generate",
        "example_inputs": torch.zeros(2, 3, 32, 32),
        "exclude": ["5.child.*", "5.scale"],
    }
    expected, filled = geninit.ghn_(model(), **options), model()
    before = objects(filled)
    geninit.ghn_(filled, **options, unfilled="reset")
    assert objects(filled) == before
    generated = [e.name for e in geninit.plan(model(), **options).generated]
    assert "5.weight" in generated
    for name in generated:
        assert torch.equal(filled.get_parameter(name), expected.get_parameter(name)), name
    assert bool((filled[5].child.weight == 1).all())
