"""What a graph says about networks whose structure is known otherwise."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.trace import TraceError, trace
from torch_geninit.training.networks import ResNet, resnet20

BLOCK = ["conv", "batch_norm", "relu", "conv", "batch_norm", "add", "relu"]


def operations(architecture: Architecture) -> list[str]:
    return [node.op for node in architecture.nodes]


def test_resnet20_is_what_the_paper_draws() -> None:
    architecture = trace(resnet20(shortcut="B"))
    first_stage = ["input", "conv", "batch_norm", "relu", *BLOCK * 3]
    assert operations(architecture)[: len(first_stage)] == first_stage
    assert Counter(operations(architecture)) == {
        "input": 1,
        "conv": 21,
        "batch_norm": 21,
        "relu": 19,
        "add": 9,
        "global_avg_pool": 1,
        "linear": 1,
        "output": 1,
    }
    assert architecture.nodes[-2].shape == (1, 10)
    assert architecture.nodes[1].attribute("kernel_size") == (3, 3)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_every_parameter_is_in_the_node_of_its_module(shortcut: str) -> None:
    model = ResNet((1, 2, 1), (8, 12, 16), 7, shortcut)  # type: ignore[arg-type]
    architecture = trace(model)
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "batch_norm", nn.Linear: "linear"}
    for name, parameter in model.named_parameters():
        index, use = architecture.uses[name]
        owner, _, role = name.rpartition(".")
        assert architecture.nodes[index].op == kinds[type(model.get_submodule(owner))]
        assert (use.role, use.shape) == (role, tuple(parameter.shape))


def test_edges_go_forward_and_everything_hangs_together() -> None:
    architecture = trace(resnet20())
    assert architecture.nodes[0].op == "input" and architecture.nodes[-1].op == "output"
    assert all(source < target for source, target in architecture.edges)
    assert list(architecture.edges) == sorted(set(architecture.edges))
    targets = {target for _, target in architecture.edges}
    sources = {source for source, _ in architecture.edges}
    count = len(architecture.nodes)
    assert targets == set(range(1, count)) and sources == set(range(count - 1))


def test_a_wrong_guess_says_what_was_guessed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + y

    with pytest.raises(TraceError, match=r"(?s)\(1, 3, 32, 32\).*guess.*example_inputs="):
        trace(Two())
    assert "add" in operations(trace(Two(), (torch.empty(1, 3, 8, 8), torch.empty(1))))
