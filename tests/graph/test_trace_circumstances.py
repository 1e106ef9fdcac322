"""The same network gives the same graph in all circumstances and under every wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tracing import Net, check, image, operations, seen
from torch_geninit.graph.tracer.trace import trace


class Various(nn.Module):
    """Layers that torch runs by other kernels in other circumstances."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.BatchNorm2d(16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(16, 8, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = x + torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
        x, _ = self.recurrent(self.encoder(x))
        return self.head(x.mean(1))


class _DefaultDtype(AbstractContextManager[None]):
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def inference_built(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return type(model)()


SURROUNDINGS: list[Callable[[], AbstractContextManager[Any]]] = [
    torch.no_grad,
    torch.inference_mode,
    functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    functools.partial(torch.device, "meta"),
    _DefaultDtype,
]
CHANGES: list[Callable[[nn.Module], nn.Module]] = [
    nn.Module.train,
    nn.Module.bfloat16,
    nn.Module.half,
    nn.Module.double,
    frozen,
    inference_built,
    lambda model: model.to("meta"),
    lambda model: model.to(memory_format=torch.channels_last),
]


@pytest.mark.parametrize(
    ("surroundings", "change"),
    [
        *[(nullcontext, change) for change in CHANGES],
        *[(surroundings, nn.Module.eval) for surroundings in SURROUNDINGS],
        *[(surroundings, nn.Module.bfloat16) for surroundings in SURROUNDINGS],
    ],
)
def test_the_graph_is_the_same_in_all_circumstances(
    surroundings: Callable[[], AbstractContextManager[Any]], change: Callable[[nn.Module], nn.Module]
) -> None:
    expected = trace(Various(), torch.zeros(1, 3, 16, 16))
    model = change(Various())
    with surroundings():
        found = trace(model, torch.zeros(1, 3, 16, 16, dtype=torch.float16))
    assert found == expected and found.fingerprint == expected.fingerprint
    assert "attention" in operations(found) and operations(found).count("recurrent") == 1


def test_a_real_run_gives_the_same_graph() -> None:
    """Models that ask for values run with data; that must not change what is seen."""

    class Asks(Various):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.sum().item() >= 0 else 2.0)

    expected, found = trace(Various(), image(size=16)), trace(Asks(), image(size=16))
    assert found.nodes == expected.nodes and found.edges == expected.edges


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_may_switch_gradients_off(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    class Frozen(Various):
        def forward(self, x: Tensor) -> Tensor:
            with mode():
                return super().forward(x)

    expected, found = trace(Various(), image(size=16)), trace(Frozen(), image(size=16))
    assert found.nodes == expected.nodes and found.edges == expected.edges


# Wrappers and names.


def test_data_parallel_is_unwrapped_and_names_are_the_models() -> None:
    inner = Net()
    plain, wrapped = check(inner), check(nn.DataParallel(inner))
    assert seen(wrapped) == {f"module.{name}" for name in seen(plain)}
    assert wrapped.fingerprint == plain.fingerprint
    check(nn.Sequential(nn.DataParallel(inner), nn.ReLU()), torch.zeros(1, 4))


def test_an_attribute_called_module_is_no_wrapper() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.stem, self.system, self.cells = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(self.system(self.cells(self.module(x))))

    assert operations(check(Named())).count("linear") == 4


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_not_compiled_again() -> None:
    compilations: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(1)
        return graph.forward

    inner = Net()
    expected = check(inner, torch.zeros(1, 4))
    assert check(torch.compile(inner, backend=backend), torch.zeros(1, 4)).fingerprint == expected.fingerprint
    check(nn.Sequential(torch.compile(Net(), backend=backend)), torch.zeros(1, 4))
    inner.compile(backend=backend)
    check(inner, torch.zeros(1, 4))
    decorated = Net(torch.compile(lambda self, x: self.second(self.first(x)), backend=backend))
    check(decorated, torch.zeros(1, 4))
    assert compilations == []


def test_tied_parameters_keep_their_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    architecture = check(Tied())
    assert [[use.name for use in node.parameters] for node in architecture.nodes[1:3]] == [
        ["embed.weight"]
    ] * 2
    assert operations(architecture) == ["input", "embedding", "linear", "output"]


def test_a_reused_module_is_one_node_for_each_use() -> None:
    layer = nn.Linear(4, 4)
    architecture = check(nn.Sequential(layer, nn.ReLU(), layer))
    assert operations(architecture) == ["input", "linear", "relu", "linear", "output"]


def test_a_parameter_outside_of_every_module_is_a_constant() -> None:
    model = Net(lambda self, x: self.second(self.first(x)) @ self.loose[0])
    model.loose = [nn.Parameter(torch.ones(5, 5))]  # type: ignore[assignment]
    assert operations(check(model)) == ["input", "linear", "linear", "matmul", "output"]
