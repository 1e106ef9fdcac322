"""Whatever code reaches other than by a plain name: the originals stay as they are, too."""

from __future__ import annotations

import contextvars
import enum
import io
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tracing import Net, check
from torch_geninit.graph.tracer.trace import TraceError, trace

X = torch.zeros(1, 4)
CACHE: dict[Any, Any] = {}


def run(forward: Callable[..., Any], **attributes: Any) -> None:
    """Trace a network of two layers whose forward pass begins with ``forward``."""
    model = Net(lambda self, x: self.second(self.first(x + 0 * (forward(self, x) or 0))))
    for name, value in attributes.items():
        setattr(model, name, value)
    check(model, X)


def make_table(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / n


def numbers() -> Iterator[int]:
    yield from range(9)


class Interned:
    """Its objects are made once for each size."""

    made: dict[int, Interned] = {}
    table: Tensor

    def __new__(cls, n: int) -> Interned:
        if n not in cls.made:
            cls.made[n] = super().__new__(cls)
            cls.made[n].table = make_table(n)
        return cls.made[n]


class Once(type):
    made: dict[type, Any] = {}

    def __call__(cls) -> Any:
        if cls not in Once.made:
            Once.made[cls] = super().__call__()
        return Once.made[cls]


class Registry(metaclass=Once):
    seen: list[Any] = []


class Phase(enum.Enum):
    FIRST = "first"

    def __init__(self, _: str) -> None:
        self.log: list[Any] = []


VARIABLE: contextvars.ContextVar[list[Any]] = contextvars.ContextVar("VARIABLE")
NUMBERS = iter(range(0))
ERROR = ValueError("kept")
BUFFER = io.StringIO()


def reads_by_constructors(self: Any, x: Tensor) -> None:
    Interned(x.shape[-1]).table.sum()


def reads_by_metaclass(self: Any, x: Tensor) -> None:
    Registry().last = x


def imports_inside(self: Any, x: Tensor) -> None:
    import tests.graph.test_trace_reach as here
    from tests.graph.test_trace_reach import CACHE as cache

    here.CACHE["here"] = cache["inside"] = x


def reads_classes_and_modules_it_holds(self: Any, x: Tensor) -> None:
    self.kind.seen.append(x)
    self.module.CACHE["held"] = x


def changes_members_and_exceptions(self: Any, x: Tensor) -> None:
    self.phase.log.append(x)
    self.phase.last = x
    ERROR.seen = x  # type: ignore[attr-defined]


def sets_variables(self: Any, x: Tensor) -> None:
    VARIABLE.get().append(x)
    self.variable.set([x])


def writes_to_memory(self: Any, x: Tensor) -> None:
    BUFFER.write("x")


@pytest.mark.parametrize(
    "forward",
    [
        reads_by_constructors,
        reads_by_metaclass,
        imports_inside,
        reads_classes_and_modules_it_holds,
        changes_members_and_exceptions,
        sets_variables,
        writes_to_memory,
    ],
)
def test_what_code_reaches_by_other_ways_stays_as_it_was(forward: Callable[..., Any]) -> None:
    own: list[Any] = [0]

    def state() -> list[Any]:
        phase, error = dict(vars(Phase.FIRST)), dict(vars(ERROR))
        stores = [Interned.made, Once.made, Registry.seen, CACHE, Phase.FIRST.log, VARIABLE.get(), own]
        return [repr(stores), VARIABLE.get() is own, phase, error, BUFFER.getvalue()]

    token = VARIABLE.set(own)
    before = state()
    try:
        here = sys.modules[__name__]
        run(forward, kind=Registry, module=here, phase=Phase.FIRST, variable=VARIABLE)
        assert state() == before
    finally:
        VARIABLE.reset(token)


def test_what_cannot_be_copied_is_refused_wherever_it_is_named() -> None:
    global NUMBERS
    NUMBERS = numbers()
    with pytest.raises(TraceError, match="generator.*can't be copied"):
        run(lambda self, x: next(NUMBERS) and None)
    assert next(NUMBERS) == 0


def test_modules_that_watch_their_attributes_see_nothing() -> None:
    class Watching(Net):
        def __setattr__(self, name: str, value: Any) -> None:
            LOG.append(name)
            super().__setattr__(name, value)

    LOG.clear()
    model = Watching()
    LOG.clear()
    trace(model, X)
    assert LOG == []


LOG: list[str] = []


@dataclass
class Answer(OrderedDict[str, Tensor]):
    """An output that counts its own fields, as those of transformers do."""

    logits: Tensor

    def __post_init__(self) -> None:
        (only,) = fields(self)
        assert only.default_factory is MISSING
        self["logits"] = self.logits


def test_what_a_library_tells_by_identity_stays_itself() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.missing = MISSING

        def forward(self, x: Tensor) -> Answer:
            assert self.missing is MISSING
            return Answer(self.first(x))

    assert [node.op for node in trace(Owner(), X).nodes] == ["input", "linear", "output"]
