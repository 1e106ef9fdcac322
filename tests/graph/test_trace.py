"""What a graph says about networks whose structure is known otherwise."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import TraceError, trace
from torch_geninit.training.networks.resnet import ResNet, resnet20

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


STEPS = ("conv", "norm", "relu", "relu_", "sigmoid", "add", "mul", "cat", "half", "turn", "pool")


class RandomNetwork(nn.Module):
    """Steps on earlier values, drawn at random, and the graph that they must give, kept while drawing.

    ``graph`` has (operation, sources) for each node; what only moves data adds none.
    """

    def __init__(self, seed: int, steps: int = 25) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, list[int]]] = []
        self.graph: list[tuple[str, list[int]]] = [("input", [])]
        value_of = [0]
        for step in range(steps):
            kind = draw.choice(STEPS)
            count = 2 if kind in ("add", "mul", "cat") else 1
            chosen = draw.sample(range(len(value_of)), min(count, len(value_of)))
            chosen += chosen[:1] * (count - len(chosen))
            nodes = [value_of[index] for index in chosen]
            self.steps.append((kind, chosen))
            if kind in ("conv", "norm"):
                self.layers[str(step)] = nn.Conv2d(4, 4, 1) if kind == "conv" else nn.BatchNorm2d(4)
            op = {
                "conv": "conv",
                "norm": "batch_norm",
                "relu": "relu",
                "relu_": "relu",
                "sigmoid": "sigmoid",
            }.get(kind)
            if op is not None:
                value_of.append(self._node(op, nodes))
            elif kind == "pool":
                value_of.append(self._node("avg_pool", nodes))
            elif kind == "cat":
                value_of.append(self._node("concat", nodes))
            elif kind in ("half", "turn"):
                value_of.append(nodes[0])
            elif nodes[0] == nodes[1]:
                same = kind == "add"
                value_of.append(nodes[0] if same else self._node("activation", nodes))
            else:
                value_of.append(self._node(kind, nodes))
        self.outputs = value_of[-2:]
        self._node("output", self.outputs)

    def _node(self, op: str, sources: list[int]) -> int:
        self.graph.append((op, sorted(set(sources))))
        return len(self.graph) - 1

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = [x]
        for step, (kind, chosen) in enumerate(self.steps):
            a, b = values[chosen[0]], values[chosen[-1]]
            if kind in ("conv", "norm"):
                y = self.layers[str(step)](a)
            elif kind == "relu_":
                y = F.relu_(a.clone())
            elif kind == "half":
                y = a[:, :2].repeat(1, 2, 1, 1)
            elif kind == "turn":
                y = (
                    a.permute(0, 2, 3, 1).contiguous().view(-1, 4).t().reshape(4, 1, 4, 4).transpose(0, 1)
                    * 0.5
                )
            elif kind == "pool":
                y = F.avg_pool2d(a, 3, 1, 1)
            elif kind == "cat":
                y = torch.cat([a[:, :2], b[:, 2:]], 1)
            elif kind == "relu":
                y = a.relu()
            elif kind == "sigmoid":
                y = torch.sigmoid(a)
            else:
                y = a + b if kind == "add" else a * b
            values.append(y)
        return values[-2:]

    def expected(self) -> tuple[list[str], set[tuple[int, int]]]:
        """Return operations and edges of what an output or a layer with parameters depends on."""
        alive = {i for i, (op, _) in enumerate(self.graph) if op in ("conv", "batch_norm", "input", "output")}
        for index in range(len(self.graph) - 1, -1, -1):
            if index in alive:
                alive.update(self.graph[index][1])
        place = {index: place for place, index in enumerate(sorted(alive))}
        return (
            [self.graph[index][0] for index in sorted(alive)],
            {(place[source], place[index]) for index in alive for source in self.graph[index][1]},
        )


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_give_the_graph_they_were_drawn_from(seed: int) -> None:
    model = RandomNetwork(seed)
    architecture = trace(model, torch.zeros(1, 4, 4, 4))
    names, edges = model.expected()
    assert operations(architecture) == names
    assert set(architecture.edges) == edges
    layers = [node for node in architecture.nodes if node.parameters]
    assert [node.parameters[0].name.rpartition(".")[0] for node in layers] == [
        f"layers.{key}" for key in model.layers
    ]


@pytest.mark.parametrize("seed", range(40, 60))
def test_the_output_depends_on_what_has_a_gradient(seed: int) -> None:
    model = RandomNetwork(seed).eval()
    architecture = trace(model, torch.zeros(1, 4, 4, 4))
    before: dict[int, list[int]] = {}
    for source, target in architecture.edges:
        before.setdefault(target, []).append(source)
    stack, reached = [len(architecture.nodes) - 1], set()
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend(before.get(node, []))
    outputs = model(torch.randn(1, 4, 4, 4, requires_grad=True))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(y.sum() for y in outputs), parameters, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        assert (architecture.uses[name][0] in reached) == (gradient is not None), name


def test_json_round_trip() -> None:
    architecture = trace(resnet20())
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture and again.fingerprint == architecture.fingerprint
