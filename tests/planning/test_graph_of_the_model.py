"""A graph that was read off the model is never doubted, and no message speaks of one that nobody passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Route

Generators = Callable[[str], WeightGenerator]
X = torch.zeros(2, 3, 32, 32)


class Folded(nn.Module):
    """BatchNorm folded into the kernel, as in quantisation-aware training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        kernel = self.conv.weight * gain[:, None, None, None]
        return self.head(F.conv2d(x, kernel, self.bn.bias).relu().mean((2, 3)))


class Synthesis(nn.Module):
    """A convolution's weight in a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.dictionary, self.head = nn.Conv2d(16, 3, 3, bias=False), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv_transpose2d(x, self.dictionary.weight).relu().mean((2, 3)))


class GroupNormed(nn.Module):
    """A BatchNorm's and a LayerNorm's parameters in group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.ln = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.group_norm(self.conv(x), 4, self.bn.weight, self.bn.bias)
        return self.head(F.group_norm(x, 4, self.ln.weight, self.ln.bias).mean((2, 3)))


@pytest.mark.parametrize("make", [Folded, Synthesis, GroupNormed])
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.filterwarnings("ignore::torch_geninit.GenInitWarning")
def test_layers_may_be_read_by_other_operations_than_their_own(
    make: Callable[[], nn.Module], passed: bool, tiny: Generators
) -> None:
    model = make()
    graph = geninit.trace(model, X) if passed else None
    plan = geninit.plan(model, pretrained=tiny("ghn"), example_inputs=X, graph=graph)
    assert {entry.name for entry in plan} == {name for name, _ in model.named_parameters()}
    assert plan.architecture is not None and set(plan.architecture.uses) == set(
        dict(model.named_parameters())
    )


def test_a_graph_of_another_model_with_the_same_names_and_shapes_is_refused(tiny: Generators) -> None:
    def model(norm: nn.Module) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        )

    graph = geninit.trace(model(nn.GroupNorm(4, 16)), X)
    with pytest.raises(ValueError, match=r"(?s)not of this Sequential: .*'1\.weight' differs.*group_norm"):
        geninit.plan(model(nn.BatchNorm2d(16)), pretrained=tiny("ghn"), example_inputs=X, graph=graph)


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.spare, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("passed", [False, True])
def test_a_graph_is_said_to_have_been_passed_exactly_if_it_was(passed: bool) -> None:
    options: dict[str, Any] = {"graph": geninit.trace(Spare())} if passed else {}
    for pretrained in ("auto", "ghn-cifar10"):
        entry = geninit.plan(Spare(), pretrained=pretrained, untrusted="generate", **options)["spare.weight"]
        assert entry.route is Route.SKIPPED and ("passed" in entry.reason) is passed


class Renames(nn.Module):
    """Strips a wrapper's prefix, as models that wrap others do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.removeprefix("net."), parameter


class Hides(Renames):
    """Shows an optimizer a part only."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.net[4].parameters(recurse)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield "", self

    def modules(self) -> Iterator[nn.Module]:
        yield self

    def children(self) -> Iterator[nn.Module]:
        return iter(())


@pytest.mark.parametrize("make", [Renames, Hides])
@pytest.mark.parametrize("pretrained", ["ghn", "noise-ghn"])
def test_a_class_may_show_its_parameters_as_it_likes(
    make: Callable[[], Renames], pretrained: str, tiny: Generators
) -> None:
    model, plain = make(), nn.ModuleDict({"net": Renames().net})
    names = [name for name, _ in nn.Module.named_parameters(plain)]
    weights = tiny(pretrained)
    plan = geninit.plan(model, pretrained=weights, untrusted="generate")
    assert [entry.name for entry in plan] == names
    assert {entry.route for entry in plan} <= {Route.GENERATED, Route.SKIPPED}
    filled = geninit.ghn_(make(), pretrained=weights, untrusted="generate", exclude=["*.bias"])
    expected = geninit.ghn_(Renames(), pretrained=weights, untrusted="generate", exclude=["*.bias"])
    assert torch.equal(filled.net[0].weight, expected.net[0].weight)
    assert not torch.equal(filled.net[0].weight, model.net[0].weight)
