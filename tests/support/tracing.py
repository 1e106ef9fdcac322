"""What the tests of the tracer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import trace


def seen(architecture: Architecture) -> set[str]:
    return set(architecture.uses)


def operations(architecture: Architecture) -> list[str]:
    return [node.op for node in architecture.nodes]


def check(model: nn.Module, example_inputs: Any = None) -> Architecture:
    architecture = trace(model, example_inputs)
    assert seen(architecture) == {name for name, _ in model.named_parameters()}
    return architecture


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.zeros(1, channels, size, size)


class Net(nn.Module):
    """Two layers, and a forward pass given as a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.forward_function = forward

    def forward(self, x: Tensor) -> Any:
        if self.forward_function is not None:
            return self.forward_function(self, x)
        return self.second(self.first(x).relu())


X = torch.zeros(1, 4)


def run(forward: Callable[..., Any], **attributes: Any) -> Net:
    """Trace a network of two layers whose forward pass ends in them, and return it."""
    model = Net(lambda self, x: self.second(self.first(x + 0 * (forward(self, x) or 0))))
    for name, value in attributes.items():
        setattr(model, name, value)
    check(model, X)
    return model
