"""Whatever a forward pass does to the objects that its model owns: the originals stay as they are."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import functools
import itertools
import logging
import queue
import random
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tracing import Net, X, check, run, seen
from torch_geninit.graph.tracer.trace import TraceError, trace

LOGGER = logging.getLogger(__name__)


# Objects.


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("__private", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__private = [value]

    def grow(self) -> None:
        self.__private.append(self.value)
        self.value += 1

    def __len__(self) -> int:
        return len(self.__private)


class Single(Plain):
    """Says that it is its own copy."""

    def __deepcopy__(self, memo: Any) -> Single:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("not to be copied")


@dataclasses.dataclass
class Record:
    calls: int = 0
    seen: list[Any] = dataclasses.field(default_factory=list)


class Log(list[Any]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Table(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        self[key] = torch.ones(())
        return self[key]


def test_plain_objects_are_copied_whatever_their_classes_say_of_copies() -> None:
    def forward(self: Any, x: Tensor) -> None:
        for item in (self.plain, self.single):
            item.calls += 1
            item.last = x
        self.slotted.grow()
        self.record.calls += 1
        self.record.seen.append(x)
        self.log.append(x)
        assert self.log.name == "log" and self.plain is self.plain.itself

    plain = Plain(calls=0)
    plain.itself = plain
    model: Any = run(
        forward,
        plain=plain,
        single=Single(calls=0),
        slotted=Slotted(1),
        record=Record(),
        log=Log("log"),
    )
    assert vars(model.plain) == {"calls": 0, "itself": plain} and vars(model.single) == {"calls": 0}
    assert (model.slotted.value, len(model.slotted)) == (1, 1)
    assert model.record == Record() and model.log == []


def test_slots_of_modules_and_their_parents_are_in_the_clone() -> None:
    class Parent(nn.Module):
        __slots__ = ("gain",)

    class Child(Parent):
        __slots__ = ("__hidden", "unset")

        def __init__(self) -> None:
            super().__init__()
            self.gain, self.__hidden, self.conv = 2.0, [3.0], nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.__hidden.append(1.0)
            return self.conv(x) * self.gain * self.__hidden[0]

        def count(self) -> int:
            return len(self.__hidden)

    model = Child()
    check(model, X)
    assert model.count() == 1 and not hasattr(model, "unset")


CONTAINERS: dict[str, tuple[Any, Callable[[Any, Tensor], Any]]] = {
    "list": ([1], lambda c, x: c.append(x)),
    "dict": ({"a": 1}, lambda c, x: c.update(b=x)),
    "set": ({1}, lambda c, x: c.add(2)),
    "deque": (collections.deque([1], maxlen=3), lambda c, x: c.extend([x, x, x])),
    "ordered": (collections.OrderedDict(a=1), lambda c, x: c.move_to_end("a") or c.update(b=x)),
    "default": (collections.defaultdict(list, a=[1]), lambda c, x: c["b"].append(x)),
    "counter": (collections.Counter("a"), lambda c, x: c.update("ab")),
    "missing": (Table(a=1), lambda c, x: c["b"]),
    "array": (array.array("f", [1.0]), lambda c, x: c.append(2.0)),
    "bytes": (bytearray(b"a"), lambda c, x: c.extend(b"b")),
    "nested": ({"a": ([1], {"b": [2]})}, lambda c, x: c["a"][1]["b"].append(x)),
    "namespace": (types.SimpleNamespace(a=[1]), lambda c, x: c.a.append(x)),
    "view": (types.MappingProxyType({"a": [1]}), lambda c, x: c["a"].append(x)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_are_copied(kind: str) -> None:
    value, change = CONTAINERS[kind]
    before = repr(value)
    model: Any = run(lambda self, x: change(self.value, x) and None, value=value)
    assert model.value is value and repr(value) == before


def test_iterators_and_sources_of_random_numbers_do_not_move() -> None:
    import numpy as np

    def forward(self: Any, x: Tensor) -> Any:
        next(self.count), next(self.items), self.python.random(), self.numpy.random()
        torch.rand(2, generator=self.torch)
        return torch.rand((), generator=self.torch)

    model: Any = run(
        forward,
        count=itertools.count(3),
        items=iter([1, 2, 3]),
        python=random.Random(1),
        numpy=np.random.default_rng(1),
        torch=torch.Generator().manual_seed(3),
    )
    assert (next(model.count), next(model.items)) == (3, 1)
    assert model.python.random() == random.Random(1).random()
    assert model.numpy.random() == np.random.default_rng(1).random()
    assert torch.equal(model.torch.get_state(), torch.Generator().manual_seed(3).get_state())


def test_the_copy_of_a_generator_goes_on_where_the_original_is(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    expected = torch.rand((), generator=torch.Generator().set_state(generator.get_state())).item()
    model: Any = run(
        lambda self, x: LOGGER.warning("%s", torch.rand((), generator=self.source).item()), source=generator
    )
    assert {float(message) for message in caplog.messages} == {expected}
    assert torch.rand((), generator=model.source).item() == expected


def test_locks_queues_events_and_thread_locals_are_the_clones_own() -> None:
    def forward(self: Any, x: Tensor) -> None:
        with self.lock, self.again, self.again, self.condition:
            self.queue.put(x)
            self.event.set()
            self.local.value = self.local.value + [x]
            self.condition.notify_all()

    local = threading.local()
    local.value = [1]
    attributes = {
        "lock": threading.Lock(),
        "again": threading.RLock(),
        "condition": threading.Condition(),
        "queue": queue.Queue(),
        "event": threading.Event(),
        "local": local,
    }
    attributes["lock"].acquire()  # held by another part of the program: no reason to wait
    try:
        model: Any = run(forward, **attributes)
    finally:
        attributes["lock"].release()
    assert model.queue.empty() and not model.event.is_set() and model.local.value == [1]


def numbers() -> Iterator[int]:
    yield from range(9)


@pytest.mark.parametrize("make", [numbers, lambda: open(__file__)])
def test_what_cannot_be_copied_is_refused_by_name_where_it_is_used_and_only_there(
    make: Callable[[], Any],
) -> None:
    value = make()
    run(lambda self, x: None, value=value)
    name = type(value).__name__
    with pytest.raises(TraceError, match=f"Net can't be followed: .*{name}.*can't be copied"):
        run(lambda self, x: next(self.value) and None, value=value)
    assert next(value) in (0, __doc__ and f'"""{__doc__}"""\n')
    getattr(value, "close", int)()


# Modules behind plain attributes.


def holders(module: nn.Module) -> Iterator[tuple[str, Any, Callable[[Any], nn.Module]]]:
    def closure(x: Tensor) -> Any:
        return module(x)

    def default(x: Tensor, layer: nn.Module = module) -> Any:
        return layer(x)

    def attribute(x: Tensor) -> Any:
        return None

    attribute.layer = module  # type: ignore[attr-defined]
    yield "list", [module], lambda h: h[0]
    yield "tuple", (module,), lambda h: h[0]
    yield "dict", {"a": [module]}, lambda h: h["a"][0]
    yield "deque", collections.deque([module]), lambda h: h[0]
    yield "key", {module: 1}, lambda h: next(iter(h))
    yield "object", Plain(net=module), lambda h: h.net
    yield "singleton", Single(net=module), lambda h: h.net
    yield "slots", Slotted(module), lambda h: h.value
    yield "dataclass", Record(seen=[module]), lambda h: h.seen[0]
    yield "weakref", weakref.ref(module), lambda h: h()
    yield "proxy", weakref.proxy(module), lambda h: h
    yield "weak key", weakref.WeakKeyDictionary({module: 1}), lambda h: next(iter(h))
    yield "weak value", weakref.WeakValueDictionary(a=module), lambda h: h["a"]
    yield "weak set", weakref.WeakSet([module]), lambda h: next(iter(h))
    yield "partial", functools.partial(module), lambda h: h
    yield "method", module.forward, lambda h: h
    yield "call", module.__call__, lambda h: h
    yield "closure", closure, lambda h: h
    yield "default", default, lambda h: h
    yield "function attribute", attribute, lambda h: h.layer
    yield "builtin method", [module].__getitem__, lambda h: h(0)


class Watched(nn.BatchNorm1d):
    """Says who was called where no copy can hide it."""

    def __init__(self) -> None:
        super().__init__(4)
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        LOGGER.warning("%s", id(self))
        return super().forward(self.inner(x))


@pytest.mark.parametrize("kind", [name for name, _, _ in holders(nn.ReLU())])
def test_modules_behind_anything_are_copied_without_their_hooks(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Watched().train()
    for part in (module, module.inner):
        part.register_forward_hook(lambda *_: LOGGER.warning("hook"))
        part.register_forward_pre_hook(lambda *_: LOGGER.warning("hook"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: LOGGER.warning("hook"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = Net(lambda self, x: self.second(self.first(self.get(self.holder)(x.expand(2, 4)))))
    model.holder, model.get = next((h, g) for name, h, g in holders(module) if name == kind)  # type: ignore[assignment]
    try:
        assert seen(trace(model, X)) == {name for name, _ in model.named_parameters()}
    finally:
        everywhere.remove()
    assert len(caplog.messages) == 1 and not {str(id(module)), "hook"} & set(caplog.messages)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Colour(enum.Enum):
    RED = 1


NOTHING = object()


def test_what_is_told_by_identity_keeps_it() -> None:
    class Marker:
        pass

    marker = Marker()

    def forward(self: Any, x: Tensor, default: Any = marker) -> None:
        assert self.colour is Colour.RED and self.nothing is NOTHING and self.act is torch.relu
        assert self.marker is default is marker and self.kind is Marker

    run(forward, colour=Colour.RED, nothing=NOTHING, act=torch.relu, marker=marker, kind=Marker)


def test_a_long_chain_of_objects_is_no_obstacle() -> None:
    chain: Any = None
    for _ in range(5000):
        chain = Plain(next=chain)
    run(lambda self, x: self.chain.next and None, chain=chain)


def test_what_frees_something_at_its_end_is_not_copied() -> None:
    class Handle(Plain):
        def __del__(self) -> None:
            LOGGER.warning("freed")

    handle = Handle(open=True)
    run(lambda self, x: None, handle=handle)
    with pytest.raises(TraceError, match="Handle.*can't be copied .*__del__"):
        run(lambda self, x: self.handle.open and None, handle=handle)
    assert handle.open
