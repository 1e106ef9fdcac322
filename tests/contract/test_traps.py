"""What breaks GHN-2 and GHN-3, row by row, held against ghn_.

Each row is a model; filling it must keep the contract: every parameter is generated or kept for a reason, the
plan says which, nothing else about the model or the process changes, and nothing is printed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torch_geninit as geninit
from tests.conftest import ghn_config
from torch_geninit.generators.entry import Route
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.planning.plan import Plan

Row = tuple[nn.Module, Any]
FILLED = (Route.GENERATED, Route.TIED)


@pytest.fixture(scope="module")
def ghn() -> GraphHyperNetwork:
    """A small hypernetwork with every part, that says it knows every common kind of parameter."""
    config = ghn_config()
    config["sizes"].update(linear_rank=4, depthwise_rank=4, basis=2)
    layers = ("linear", "batch_norm", "layer_norm", "group_norm", "rms_norm", "scale", "bias", "attention")
    kinds = [f"{layer} {role}" for layer in layers for role in ("weight", "bias")]
    kinds += [f"{k}x{k} {sort}convolution" for k in (1, 3, 5) for sort in ("", "depthwise ", "grouped ")]
    config["trained"]["kinds"] = [*kinds, "conv bias", "token weight"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphHyperNetwork(config).eval().requires_grad_(False)


def image(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 12, 12, generator=torch.Generator().manual_seed(0))


def convnet(channels: int = 3, classes: int = 10, **head: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes, **head),
    )


def with_layer(layer: nn.Module, *after: nn.Module) -> nn.Module:
    """A convolutional network with a layer of 12 channels in its middle."""
    parts = list(convnet())
    return nn.Sequential(*parts[:3], layer, *after, *parts[3:])


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(names) and not name.startswith(names))
    return model


class Subclass(nn.Conv2d):
    pass


class Function(nn.Module):
    """Named layers, and a forward pass given as a function."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self._function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor) -> Any:
        return self._function(self, *args)


def tied() -> nn.Module:
    model = convnet()
    model.append(nn.Linear(10, 10)).append(nn.Linear(10, 10))
    model[-1].weight = model[-2].weight
    return model


def reused() -> nn.Module:
    layer = nn.Conv2d(12, 12, 3, padding=1)
    return with_layer(layer, nn.ReLU(), layer)


def volume(layer: nn.Module, space: int) -> Row:
    x = torch.zeros(2, 4, *[8] * space)
    flat = Function(lambda self, x: self.head(self.layer(x).flatten(2).mean(2)), layer=layer)
    flat.head = nn.Linear(12, 10)
    return flat, x


def attends() -> Row:
    layers = {"attention": nn.MultiheadAttention(12, 3, batch_first=True), "head": nn.Linear(12, 10)}
    return Function(lambda s, x: s.head(s.attention(x, x, x)[0].mean(1)), **layers), torch.zeros(2, 5, 12)


def remembers(kind: type[nn.RNNBase]) -> Row:
    layers = {"memory": kind(12, 12, batch_first=True), "head": nn.Linear(12, 10)}
    return Function(lambda s, x: s.head(s.memory(x)[0][:, -1]), **layers), torch.zeros(2, 5, 12)


def reads() -> Row:
    layers = {"words": nn.Embedding(30, 12), "head": nn.Linear(12, 10)}
    return Function(lambda s, x: s.head(s.words(x).mean(1)), **layers), None


def heads(put: Callable[[Tensor, Tensor], Any]) -> Row:
    layers = {"body": convnet(classes=12), "one": nn.Linear(12, 10), "two": nn.Linear(12, 10)}
    return Function(lambda s, x: put(s.one(h := s.body(x)), s.two(h)), **layers), image()


def two_inputs() -> Row:
    layers = {"a": convnet(), "b": convnet(1)}
    return Function(lambda s, x, y: s.a(x) + s.b(y), **layers), (image(), image(1))


def odd_names() -> Row:
    def forward(self: Any, x: Tensor) -> Any:
        return self.module(self.system(self.cells(self.stem(x))).mean((2, 3)))

    names = {"stem": nn.Conv2d(3, 12, 3), "cells": nn.Conv2d(12, 12, 3), "system": nn.BatchNorm2d(12)}
    return Function(forward, **names, module=nn.Linear(12, 10)), image()


def low_rank() -> Row:
    layers = {
        "base": convnet(classes=12).requires_grad_(False),
        "down": nn.Linear(12, 2, bias=False),
        "up": nn.Linear(2, 12, bias=False),
        "head": nn.Linear(12, 10),
    }
    return Function(lambda s, x: s.head((h := s.base(x)) + s.up(s.down(h))), **layers), image()


def scripted() -> Row:
    model = convnet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[3] = torch.jit.script(model[3])
    return model, image()


ROWS: dict[str, Callable[[], Row]] = {
    "BatchNorm in train mode": lambda: (convnet().train(), image()),
    "BatchNorm in eval mode": lambda: (convnet().eval(), image()),
    "channels_last": lambda: (convnet().to(memory_format=torch.channels_last), image()),
    "bfloat16": lambda: (convnet().bfloat16(), image().bfloat16()),
    "float16": lambda: (convnet().half(), image().half()),
    "float64": lambda: (convnet().double(), image().double()),
    "all frozen": lambda: (frozen(convnet()), image()),
    "partly frozen": lambda: (frozen(convnet(), "0.", "1."), image()),
    "tied": lambda: (tied(), image()),
    "reused": lambda: (reused(), image()),
    "ConvTranspose2d": lambda: (with_layer(nn.ConvTranspose2d(12, 12, 3)), image()),
    "Conv1d": lambda: volume(nn.Conv1d(4, 12, 3), 1),
    "Conv3d": lambda: volume(nn.Conv3d(4, 12, 3), 3),
    "GroupNorm": lambda: (with_layer(nn.GroupNorm(3, 12)), image()),
    "RMSNorm": lambda: (with_layer(nn.RMSNorm((12, 12, 12))), image()),
    "SyncBatchNorm": lambda: (with_layer(nn.SyncBatchNorm(12)).eval(), image()),
    "subclass": lambda: (with_layer(Subclass(12, 12, 3)), image()),
    "weight_norm": lambda: (with_layer(parametrizations.weight_norm(nn.Conv2d(12, 12, 3))), image()),
    "spectral_norm": lambda: (with_layer(parametrizations.spectral_norm(nn.Conv2d(12, 12, 3))), image()),
    "torch.compile": lambda: (torch.compile(convnet(), backend="aot_eager"), image()),
    "DataParallel": lambda: (nn.DataParallel(convnet()), image()),
    "odd names": odd_names,
    "one channel, guessed": lambda: (convnet(1), None),
    "two inputs": two_inputs,
    "MultiheadAttention": attends,
    "LSTM": lambda: remembers(nn.LSTM),
    "GRU": lambda: remembers(nn.GRU),
    "Embedding, guessed": reads,
    "LayerNorm without bias": lambda: (with_layer(nn.LayerNorm((12, 12, 12), bias=False)), image()),
    "head without bias": lambda: (convnet(bias=False), image()),
    "two heads": lambda: heads(lambda one, two: (one, two)),
    "dict output": lambda: heads(lambda one, two: {"one": one, "two": two}),
    "low-rank update of a frozen tree": low_rank,
    "scripted submodule": scripted,
}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}


def everything_else(model: nn.Module) -> list[Any]:
    """All that filling must leave alone, as comparable values."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [
        [(n, b.tolist(), b.dtype) for n, b in model.named_buffers()],
        [(n, type(m), m.training) for n, m in model.named_modules()],
        [(n, id(p), p.requires_grad, p.dtype, p.stride()) for n, p in model.named_parameters()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        (keys.tolist(), rest),
    ]


def fill(model: nn.Module, inputs: Any, ghn: GraphHyperNetwork) -> Plan:
    """Fill a model, check the contract, and return the plan."""
    options: dict[str, Any] = {"pretrained": ghn, "example_inputs": inputs, "untrusted": "generate"}
    plan = geninit.plan(model, **options)
    before, rest = parameters(model), everything_else(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        assert geninit.ghn_(model, **options) is model
    assert everything_else(model) == rest
    after = parameters(model)
    assert [entry.name for entry in plan.entries] == list(after)
    for entry in plan.entries:
        new, old = after[entry.name], before[entry.name]
        if entry.route in FILLED:
            assert torch.isfinite(new).all() and not (new.ndim > 1 and torch.equal(new, old)), entry
        else:
            assert torch.equal(new, old) and entry.reason, entry
    return plan


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_row_keeps_the_contract(
    row: str, ghn: GraphHyperNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, inputs = ROWS[row]()
    plan = fill(model, inputs, ghn)
    assert capsys.readouterr() == ("", "")
    unread = [entry.name for entry in plan.entries if entry.reason == ghn.unread]
    assert not unread, "the forward pass reaches every parameter of these models"
    if inputs is not None:
        outputs = model.eval()(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
        for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
            assert torch.isfinite(output).all()


GENERATED = (
    "BatchNorm in train mode",
    "channels_last",
    "bfloat16",
    "reused",
    "GroupNorm",
    "subclass",
    "tied",
    "weight_norm",
    "torch.compile",
    "DataParallel",
    "odd names",
    "one channel, guessed",
    "two inputs",
    "MultiheadAttention",
    "head without bias",
    "two heads",
    "dict output",
    "scripted submodule",
)


@pytest.mark.parametrize("row", GENERATED)
def test_every_parameter_of_known_kinds_is_generated(row: str, ghn: GraphHyperNetwork) -> None:
    model, inputs = ROWS[row]()
    kept = [(e.name, e.reason) for e in fill(model, inputs, ghn).entries if e.route not in FILLED]
    assert not kept


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("ConvTranspose2d", "never trained on a 3x3 transposed convolution"),
        ("Conv1d", "never trained on a 3 convolution"),
        ("Conv3d", "never trained on a 3x3x3 convolution"),
        ("spectral_norm", "parametrized by SpectralNorm, which can't be assigned without side effects"),
        ("LSTM", "never trained on a recurrent weight_ih"),
        ("Embedding, guessed", "never trained on an embedding weight"),
        ("low-rank update of a frozen tree", "frozen (requires_grad=False)"),
        ("partly frozen", "frozen (requires_grad=False)"),
    ],
)
def test_what_is_kept_is_kept_for_the_true_reason(row: str, reason: str, ghn: GraphHyperNetwork) -> None:
    model, inputs = ROWS[row]()
    assert reason in {entry.reason for entry in fill(model, inputs, ghn).entries}


@pytest.mark.parametrize("surroundings", [nullcontext, torch.no_grad, torch.inference_mode])
def test_gradient_modes_change_no_value(
    surroundings: Callable[[], AbstractContextManager[Any]], ghn: GraphHyperNetwork
) -> None:
    model, expected = convnet(), convnet()
    geninit.ghn_(expected, pretrained=ghn, untrusted="generate")
    with surroundings():
        geninit.ghn_(model, pretrained=ghn, untrusted="generate")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_meta_is_planned_and_refused_by_name(ghn: GraphHyperNetwork) -> None:
    with torch.device("meta"):
        model = convnet()
    assert len(geninit.plan(model, pretrained=ghn).generated) == 7
    with pytest.raises(ValueError, match=r"(?s)'0\.weight'.*meta.*to_empty"):
        geninit.ghn_(model, pretrained=ghn)


def test_a_head_replaced_after_the_first_call_is_filled_by_the_second(ghn: GraphHyperNetwork) -> None:
    model = convnet(classes=7)
    first = fill(model, image(), ghn)
    assert [entry.name for entry in first.entries if entry.route is Route.KEPT] == ["6.weight", "6.bias"]
    model[6] = nn.Linear(12, 10)
    with torch.no_grad():
        # The body may get its weights again to the last bit, and fill wants to see a change.
        model[0].weight.zero_()
        model[3].weight.zero_()
    assert {"6.weight", "6.bias"} <= {entry.name for entry in fill(model, image(), ghn).generated}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [32, 224])
def test_images_of_one_to_four_channels_are_guessed(channels: int, size: int) -> None:
    stem = nn.Conv2d(channels, 12, 3, padding=1) if size == 32 else nn.Conv2d(channels, 12, 7, 2, 3)
    model = nn.Sequential(stem, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    graph = geninit.trace(model)
    assert graph.nodes[0].shape == (1, channels, size, size)
    assert graph.notes == (f"inputs guessed: float32 tensor of shape (1, {channels}, {size}, {size})",)
    assert set(graph.uses) == {name for name, _ in model.named_parameters()}
