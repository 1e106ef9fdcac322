"""Verbs under one name for all, a network, what must not change, and states of torch."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Compact
from torch_geninit.generators.request import Request
from torch_geninit.planning.plan import Plan


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(x)))


class Net(nn.Module):
    """Wider than the tiny generators' tiles, so that writing repeats them."""

    def __init__(self, classes: int = 10, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(self.drop(x.mean((2, 3))))


@dataclass(frozen=True)
class Verb:
    """A verb with everything chosen that makes it deterministic."""

    name: str
    kind: str
    generator: Callable[[str], WeightGenerator]
    file: Callable[[str], Path]

    def __call__(self, model: nn.Module, **options: Any) -> Any:
        options.setdefault("pretrained", self.generator(self.kind))
        if self.name == "vae":
            options.setdefault("seed", 7)
            return geninit.vae_(model, **options)
        if self.name == "ghn":
            return geninit.ghn_(model, **options)
        return geninit.noise_ghn_(model, options.pop("seed", 7), **options)

    def plan(self, model: nn.Module, **options: Any) -> Plan:
        options.setdefault("pretrained", self.generator(self.kind))
        return geninit.plan(model, self.name, **options)  # type: ignore[arg-type]

    @property
    def seed(self) -> int | None:
        return None if self.name == "ghn" else 7


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def fresh(**options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options)


def state(model: nn.Module) -> list[Any]:
    """Everything a verb must leave alone, as comparable values."""
    modules = []
    for name, module in model.named_modules():
        attributes = {
            key: _comparable(value)
            for key, value in vars(module).items()
            if key not in ("_modules", "_parameters", "_buffers")
        }
        modules.append((name, id(module), sorted(attributes.items(), key=lambda item: item[0])))
    buffers = [(name, id(b), b.tolist()) for name, b in model.named_buffers()]
    parameters = [
        (n, id(p), p.data_ptr(), p.dtype, p.shape, p.stride(), p.device, p.requires_grad, id(p.grad))
        for n, p in model.named_parameters(remove_duplicate=False)
    ]
    return [modules, buffers, parameters, *random_state(), *settings_of_torch()]


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value)
    if isinstance(value, list | tuple):  # as the weights that recurrent layers list
        return [_comparable(item) for item in value]
    return repr(value)


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def settings_of_torch() -> list[Any]:
    default_threads: list[int] = []
    thread = threading.Thread(target=lambda: default_threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        default_threads,
        signal.getsignal(signal.SIGINT),
    ]


class Broken(WeightGenerator):
    """A generator that fails in a chosen way; everything else is a real one's."""

    def __init__(self, inner: WeightGenerator, spoil: Callable[[dict[str, Compact]], Any]) -> None:
        super().__init__(inner.config)
        self.inner, self.spoil = inner, spoil
        self.taken_on_trust = inner.taken_on_trust  # type: ignore[misc]

    def refusal(self, entry: Any, architecture: Any) -> str | None:
        return self.inner.refusal(entry, architecture)

    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> dict[str, Compact]:
        tiles = self.inner.predict(request, seed=seed, noise_scale=noise_scale)
        self.spoil(tiles)
        return tiles


@contextlib.contextmanager
def ambient(name: str) -> Iterator[None]:
    """A state of torch that a caller may be in."""
    with contextlib.ExitStack() as stack:
        if name == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        elif name == "float64":
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, torch.float32)
        elif name == "bfloat16":
            torch.set_default_dtype(torch.bfloat16)
            stack.callback(torch.set_default_dtype, torch.float32)
        elif name == "meta device":
            stack.enter_context(torch.device("meta"))
        elif name == "no_grad":
            stack.enter_context(torch.no_grad())
        elif name == "inference_mode":
            stack.enter_context(torch.inference_mode())
        elif name == "matmul precision":
            torch.set_float32_matmul_precision("medium")
            stack.callback(torch.set_float32_matmul_precision, "highest")
        elif name == "threads":
            torch.set_num_threads(4)
            stack.callback(torch.set_num_threads, 1)
        elif name == "deterministic":
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        yield


AMBIENT = [
    "autocast",
    "float64",
    "bfloat16",
    "meta device",
    "no_grad",
    "inference_mode",
    "matmul precision",
    "threads",
    "deterministic",
]
