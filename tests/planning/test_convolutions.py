"""Convolutions of vae_: those that scripting left legible are filled, what may be another is warned about."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator

Generators = Callable[[str], WeightGenerator]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 9, 3),
    )
    return nn.Sequential(*layers)


def images() -> Tensor:
    return torch.zeros(2, 3, 9, 9)


def convolutions(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("part", [slice(None), slice(3, 4), slice(0, 1)])
def test_scripted_convolutions_get_the_weights_of_the_model_they_were(tiny: Generators, part: slice) -> None:
    expected = convolutions(geninit.vae_(net(), pretrained=tiny("vae"), seed=0))
    model = net()
    if part == slice(None):
        scripted = torch.jit.script(model)
    else:
        scripted = nn.Sequential(*(torch.jit.script(x) if x in model[part] else x for x in model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", geninit.GenInitWarning)
        geninit.vae_(scripted, pretrained=tiny("vae"), seed=0)
    for name, weight in convolutions(scripted).items():
        assert torch.equal(weight, expected[name]), name


def _traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model.eval(), images())


def _exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model.eval(), (images(),)).module()


def _scripted_subclass(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(torch.jit.script(Halved(x)) if type(x) is nn.Conv2d else x for x in model))


class Halved(nn.Conv2d):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, groups=conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, self.bias, groups=self.groups)


def _of_their_own(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(OwnConv2d(*x.weight.shape) if type(x) is nn.Conv2d else x for x in model))


class OwnConv2d(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=x.shape[1] // self.weight.shape[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [_traced, _exported, _scripted_subclass, _of_their_own])
@pytest.mark.parametrize("beside", [False, True])
def test_what_may_be_a_convolution_is_left_with_a_warning(
    tiny: Generators, make: Callable[[nn.Module], nn.Module], beside: bool
) -> None:
    model = nn.ModuleDict({"other": make(net())} | ({"known": nn.Conv2d(3, 4, 3)} if beside else {}))
    before = convolutions(model)
    with pytest.warns(
        geninit.GenInitWarning, match=f"leaves 3 of {len(list(model.parameters()))} "
    ) as caught:
        geninit.vae_(model, pretrained=tiny("vae"), seed=0)
    assert len([w for w in caught if w.category is geninit.GenInitWarning]) == 1
    after = convolutions(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["known.weight"] * beside


def test_a_convolution_with_its_weight_in_another_shape_is_left_with_a_warning(tiny: Generators) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = nn.Parameter(torch.zeros(8, 8, 9))
    with pytest.warns(geninit.GenInitWarning, match="keeps its weight in another shape"):
        geninit.vae_(model, pretrained=tiny("vae"), seed=0)


def test_tables_of_other_layers_are_no_convolutions(tiny: Generators) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.layer_scale, self.bilinear = nn.Parameter(torch.ones(8, 1, 1)), nn.Bilinear(3, 3, 3)
            self.position = nn.Parameter(torch.zeros(1, 8, 4, 4))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        geninit.vae_(Block(), pretrained=tiny("vae"), seed=0, strict=True)
