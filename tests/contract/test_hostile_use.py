"""Arguments that make no sense and networks that misbehave: a clear error or the same weights, no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.conftest import tiny_generator
from tests.support.contract import random_state, same, settings_of_torch, state, values

GENERATOR = tiny_generator("noise-ghn")
INPUTS = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def fresh(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind()


def fill(model: nn.Module, seed: Any = 7, **options: Any) -> nn.Module:
    options = {"pretrained": GENERATOR, "untrusted": "generate", "example_inputs": INPUTS, **options}
    return geninit.noise_ghn_(model, seed, **options)


def surroundings() -> list[Any]:
    return [*settings_of_torch(), str(random_state()), torch.is_grad_enabled()]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seed": 1.5}, TypeError, "seed: expected an integer, got 1.5"),
        ({"seed": "1"}, TypeError, "seed: expected an integer"),
        ({"seed": None}, TypeError, "seed="),
        *(
            ({"noise_scale": v}, ValueError, "noise_scale")
            for v in (float("nan"), float("inf"), "1", 10**400)
        ),
        ({"include": 5}, TypeError, "include: expected"),
        ({"include": b"a"}, TypeError, "include: expected"),
        ({"exclude": ["*", None]}, TypeError, "exclude: expected"),
        ({"include": "["}, ValueError, "no parameter matches"),
        ({"pretrained": 5}, TypeError, "pretrained: expected .* got int"),
        ({"pretrained": nn.Linear(1, 1)}, TypeError, "pretrained: expected .* got Linear"),
        ({"pretrained": "a\0b.safetensors"}, geninit.GeneratorFileError, "no file can have that name"),
        ({"pretrained": "\ud800.safetensors"}, geninit.GeneratorFileError, "no file can have that name"),
        ({"pretrained": "a" * 5000}, geninit.HubError, "no pretrained generator"),
        (
            {"pretrained": "noise-ghn-cifar10", "cache_dir": 5},
            TypeError,
            "cache_dir: expected a folder, got 5",
        ),
        ({"pretrained": "someone/net", "revision": 5}, ValueError, "revision: expected a commit"),
        ({"graph": "resnet20"}, TypeError, "graph: expected what trace"),
        ({"graph": {}}, TypeError, "graph: expected what trace"),
        ({"example_inputs": {1: INPUTS}}, geninit.TraceError, "example_inputs"),
        ({"example_inputs": (i for i in [INPUTS])}, geninit.TraceError, "example_inputs"),
        ({"example_inputs": ()}, geninit.TraceError, "example_inputs"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], said: str) -> None:
    model = fresh()
    before, untouched, around = values(model), state(model), surroundings()
    with pytest.raises(error, match=said):
        fill(model, **options)
    assert same(values(model), before)
    assert state(model) == untouched and surroundings() == around


@pytest.mark.parametrize("seed", [-1, 2**70, np.int64(3), torch.tensor(3)])
def test_integers_of_every_kind_are_seeds(seed: Any) -> None:
    assert same(values(fill(fresh(), seed)), values(fill(fresh(), int(seed))))


class Unlocked(Net):
    """Attributes that nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.numbers = (i for i in range(3))
        self.large = torch.zeros(1).expand(10**12)

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no pickles")

    @property
    def weight(self) -> Any:
        raise RuntimeError("nothing")


class Meddling(Net):
    """A forward pass that changes all that it can reach."""

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - it is the global state that must survive
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        with torch.no_grad():
            self.conv.weight.mul_(2)
        self.more = nn.Linear(3, 3)
        self.register_parameter("bias", nn.Parameter(torch.ones(1)))
        del self.norm
        return y


class Asking(Net):
    def forward(self, x: Any) -> Any:
        return super().forward(torch.from_numpy(x.detach().numpy()))


class Threaded(Net):
    def forward(self, x: Any) -> Any:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(super(Threaded, self).forward(x)))
        thread.start()
        thread.join()
        return found[0]


class Nested(Net):
    def forward(self, x: Any) -> Any:
        fill(Net())
        return super().forward(x)


class Backward(Net):
    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        y.sum().backward(retain_graph=True)
        return y


class Guarded(nn.Parameter):
    """Refuses to be written, by method and by operation."""

    def copy_(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("copy_ of Guarded")

    def as_subclass(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("as_subclass of Guarded")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.copy_, Tensor.as_subclass):
            raise RuntimeError(f"{func.__name__} of Guarded")
        return super().__torch_function__(func, types, args, kwargs or {})


class Guarding(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm.weight = Guarded(self.norm.weight.detach())


@pytest.mark.parametrize("kind", [Unlocked, Meddling, Nested, Guarding])
def test_networks_that_differ_in_nothing_but_manners(kind: type[Net]) -> None:
    assert same(traceless(kind), values(fill(fresh())))


def test_guarded_parts_of_a_weight_norm_are_written() -> None:
    def normed(guarded: bool) -> Net:
        model = fresh()
        nn.utils.parametrizations.weight_norm(model.conv)
        parts: Any = model.conv.parametrizations["weight"]  # type: ignore[index]
        for name in ("original0", "original1") if guarded else ():
            setattr(parts, name, Guarded(getattr(parts, name).detach()))
        return model

    assert same(values(fill(normed(True))), values(fill(normed(False))))


@pytest.mark.parametrize("kind", [Asking, Threaded, Backward])
@pytest.mark.filterwarnings("ignore::torch_geninit.GenInitWarning")
def test_networks_that_show_another_graph_or_none(kind: type[Net]) -> None:
    """Out of numpy nothing leads back, other threads are not recorded, gradients are operations, too."""
    assert all(torch.isfinite(value).all() for value in traceless(kind).values())


def traceless(kind: type[Net]) -> dict[str, Tensor]:
    """Fill a network and expect that nothing but values changed."""
    model = fresh(kind)
    untouched, around = state(model), surroundings()
    fill(model)
    assert state(model) == untouched and surroundings() == around
    return values(model)


def recursion(self: Net, x: Any) -> Any:
    return self.forward(x)


def nothing(self: Net, x: Any) -> Any:
    raise ValueError


def stop(self: Net, x: Any) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("forward", "error"), [(recursion, geninit.TraceError), (nothing, geninit.TraceError), (stop, SystemExit)]
)
def test_networks_that_do_not_run(forward: Callable[..., Any], error: type[BaseException]) -> None:
    model = fresh(type("Broken", (Net,), {"forward": forward}))
    before, untouched, around = values(model), state(model), surroundings()
    with pytest.raises(error):
        fill(model)
    assert same(values(model), before)
    assert state(model) == untouched and surroundings() == around
