"""Whatever a forward pass does to what its code names in classes and modules, and to constants: it stays."""

from __future__ import annotations

import functools
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tracing import Net, X, check
from torch_geninit.graph.tracer.trace import TraceError, trace

LOGGER = logging.getLogger(__name__)

# Tables that outlive the clone.


def make_table(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / n


CACHE: dict[Any, Any] = {}
LAST: Any = None
ENCODER = nn.BatchNorm1d(4).train()
GENERATOR = torch.Generator().manual_seed(3)
COUNTER = torch.zeros((), dtype=torch.int64)


@functools.lru_cache(maxsize=4)
def cached(n: int) -> Tensor:
    return make_table(n)


def remembered(n: int, store: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    if n not in store:
        store[n] = make_table(n)
    return store[n]


def memoised(function: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    known: dict[int, Tensor] = {}

    @functools.wraps(function)
    def wrapper(n: int) -> Tensor:
        if n not in known:
            known[n] = function(n)
        return known[n]

    wrapper.known = known  # type: ignore[attr-defined]
    return wrapper


closed = memoised(make_table)


class Store:
    tables: dict[int, Tensor] = {}
    last: Tensor | None = None


class Outside(Net):
    shared: dict[int, Tensor] = {}
    table: Tensor | None = None

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def method(self, n: int) -> Tensor:
        return make_table(n)

    @staticmethod
    @functools.cache
    def static(n: int) -> Tensor:
        return make_table(n)

    @classmethod
    def of_class(cls, n: int) -> Tensor:
        if cls.table is None:
            cls.table = make_table(n)
        return cls.table

    def forward(self, x: Tensor) -> Any:
        global LAST
        n = x.shape[-1]
        tables = [cached(n), remembered(n), closed(n), self.method(n), self.static(n), self.of_class(n)]
        CACHE[n] = self.shared[n] = Store.tables[n] = make_table(n)
        Store.last = LAST = x
        make_table.last = x  # type: ignore[attr-defined]
        COUNTER.add_(1)
        x = ENCODER(x.expand(2, 4)) + torch.rand((), generator=GENERATOR)
        return super().forward(x + sum(tables).to(x.dtype))


def outside() -> list[Any]:
    state = [GENERATOR.get_state(), COUNTER, *ENCODER.state_dict().values()]
    names = sorted(set(globals()) | set(vars(Outside)) | set(vars(Store)) | set(vars(make_table)))
    caches = [cached, Outside.method, Outside.static]
    stores = [CACHE, Outside.shared, Store.tables, remembered.__defaults__, closed.known]  # type: ignore[attr-defined]
    return [
        [value.tolist() for value in state],
        names,
        [(id(cache), cache.cache_info()) for cache in caches],  # type: ignore[attr-defined]
        [(id(store), repr(store)) for store in stores],
        [Outside.table, Store.last, LAST, vars(make_table)],
        [id(value) for value in vars(sys.modules[__name__]).values()],
    ]


@pytest.mark.parametrize("filled", [False, True])
def test_what_code_names_in_classes_and_modules_stays_as_it_was(filled: bool) -> None:
    model = Outside()
    calls: list[str] = []
    hook = ENCODER.register_forward_hook(lambda *_: calls.append("forward"))
    if filled:
        model(torch.zeros(1, 4))
        calls.clear()
    before = outside()
    try:
        check(model, X)
        check(model.double(), X.double())
        with pytest.raises(TraceError):
            trace(model, torch.zeros(1, 7))
    finally:
        hook.remove()
    assert outside() == before and calls == []
    model.float()(torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.complex128, torch.bool])
def test_tables_in_hidden_places_hold_what_the_models_own_forward_would_put_there(dtype: torch.dtype) -> None:
    """Reached by no name: through a dictionary of all modules."""
    hidden = types.ModuleType("hidden_tables")
    sys.modules["hidden_tables"] = hidden
    hidden.tables = {}  # type: ignore[attr-defined]

    def forward(self: Any, x: Tensor) -> Any:
        tables = getattr(sys.modules["hidden" + "_tables"], "tab" + "les")
        table = torch.linspace(0, 1, x.shape[-1]).to(dtype)
        tables["a"] = torch.cat([table, table.clone()]) if dtype == torch.bool else table * 2 + table
        tables["b"] = torch.ones_like(x).to(dtype), x.new_full((2,), 3.0)
        return self.second(self.first(x + tables["a"][:4].real.to(x.dtype)))

    try:
        model = Net(forward)
        check(model, X)
        found = dict(hidden.tables)  # type: ignore[attr-defined]
        model(X)
        expected = hidden.tables  # type: ignore[attr-defined]
    finally:
        del sys.modules["hidden_tables"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_buffers_and_plain_tensors_are_constants_with_values_also_on_meta() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)
            self.register_buffer("steps", torch.tensor([2, 3], device="cpu"))
            self.plain = [torch.tensor([True, False, True, True], device="cpu")]

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            for _ in range(int(self.steps[0]) * 2 - 5):
                x = self.layer(x)[:, :4] * self.plain[0]
            return x[:, self.plain[0]]

    with torch.device("meta"):
        model = Asks()
    assert check(model, X).nodes[-1].shape == (1, 3)
    assert model.steps.tolist() == [2, 3]  # type: ignore[operator]


@pytest.mark.parametrize(
    "value",
    [
        lambda: (torch.linspace(0, 1, 4) * 2)[1],
        lambda: torch.cat([torch.ones(1), torch.zeros(1)]).exp().neg()[0],
        lambda: torch.eye(3).mm(torch.full((3, 3), 2.0))[0, 0],
        lambda: torch.nn.functional.pad(torch.ones(2), (1, 1))[1].sqrt(),
        lambda: torch.tensor([1.0, 4.0]).div_(2).add_(1)[1],
        lambda: torch.roll(torch.arange(3.0), 1)[0].clamp(max=1),
    ],
)
def test_arithmetic_on_constants_has_values_on_meta(
    value: Callable[[], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        model = Net(lambda self, x: LOGGER.warning("%s", value().item()) or self.second(self.first(x)))
    check(model, X)
    assert caplog.messages == [str(value().item())]


def test_a_constant_that_takes_in_data_has_no_values_any_more() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        scale = torch.ones(6)
        scale.copy_(self.first.bias)
        return self.second(self.first(x) * scale[0].item())

    with torch.device("meta"):
        model = Net(forward)
    with pytest.raises(TraceError, match="Net could not be run"):
        trace(model, X)
