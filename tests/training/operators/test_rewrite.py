"""A rewritten network computes what the network does, from the same parameters."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from torch_geninit.training.networks.families import FAMILIES
from torch_geninit.training.networks.search_space import sample
from torch_geninit.training.operators.rewrite import rewritten


def on_batch_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return model


def assert_same(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """Compare logits and gradients in float32; return what was made."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    made = rewritten(model)
    assert isinstance(made, fx.GraphModule)
    assert dict(made.named_parameters()).keys() == parameters.keys()
    results = []
    for network in (model, made):
        logits = functional_call(network, parameters, (images,))
        gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()), allow_unused=True)
        results.append((logits.detach(), *gradients))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return made


def calls(network: fx.GraphModule) -> list[str]:
    return [node.name for node in network.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_family(family: str, seed: int) -> None:
    torch.manual_seed(seed)
    spec = sample(random.Random(seed), {family: 1.0})
    assert_same(on_batch_statistics(spec.build(10)), torch.randn(4, 3, 32, 32))


class Written(nn.Module):
    """A residual block as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.first(x)), inplace=True)
        out = self.other(self.second(out))
        out += x
        return out.relu()


def test_addition_and_relu_join_the_normalisation_before() -> None:
    made = assert_same(on_batch_statistics(Written()), torch.randn(8, 4, 6, 6))
    assert calls(made) == ["first", "batch_normalise", "second", "batch_normalise_1"]


class Read(nn.Module):
    """Normalisations that are read twice, added to themselves, and shifted by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = F.relu(y) + y
        y = self.b(y)
        y = y + y
        return F.relu(self.c(y) + 1)


def test_what_else_is_read_stays() -> None:
    made = assert_same(on_batch_statistics(Read()), torch.randn(8, 4, 6, 6))
    assert calls(made).count("relu") == 1 and len(calls(made)) == 8


def test_running_statistics_are_left_to_torch() -> None:
    assert calls(rewritten(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))) == ["_0", "_1"]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_returned() -> None:
    model = Branching()
    assert rewritten(model) is model
