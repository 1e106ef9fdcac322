"""All or nothing: whatever fails, in a generator, a model or by Ctrl-C, leaves a model as it was or whole."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_geninit as geninit
from tests.support.contract import Broken, Net, Verb, fresh, same, settings_of_torch, state, values
from torch_geninit.generators.compact import Compact, Tile


def last(tiles: dict[str, Compact]) -> str:
    return list(tiles)[-1]


def dense(compact: Compact, factor: float = 1.0, shift: float = 0.0, **rule: Any) -> Tile:
    """The same prediction as one block of all its values, times a factor, plus a shift."""
    return Tile(compact.expand() * factor + shift, compact.shape, **rule)


def _nan(tiles: dict[str, Compact]) -> None:
    broken = dense(tiles[last(tiles)])
    broken.values.view(-1)[-1] = torch.nan
    tiles[last(tiles)] = broken


def _missing(tiles: dict[str, Compact]) -> None:
    del tiles[last(tiles)]


def _infinite_scale(tiles: dict[str, Compact]) -> None:
    tiles[last(tiles)] = dense(tiles[last(tiles)], scale=float("inf"))


def _other_shape(tiles: dict[str, Compact]) -> None:
    tiles[last(tiles)] = Tile(torch.zeros(2, 2, 5, 5), (2, 2, 5, 5))


def _other_block(tiles: dict[str, Compact]) -> None:
    shape = tiles[last(tiles)].shape
    tiles[last(tiles)] = Tile(torch.zeros(3, 3, 3, 3, 3), shape)


def _raise(tiles: dict[str, Compact]) -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (_nan, RuntimeError, "not finite"),
        (_infinite_scale, RuntimeError, "not finite"),
        (_missing, RuntimeError, "made no prediction"),
        (_other_shape, RuntimeError, "another shape"),
        (_other_block, RuntimeError, "another shape"),
        (_raise, MemoryError, "no room"),
    ],
)
def test_a_broken_generator_changes_nothing(
    verb: Verb, spoil: Callable[[dict[str, Compact]], Any], error: type[Exception], message: str
) -> None:
    model = fresh()
    before, untouched = values(model), state(model)
    with pytest.raises(error, match=message):
        verb(model, pretrained=Broken(verb.generator(verb.kind), spoil))
    assert same(values(model), before)
    assert state(model) == untouched


def test_float16_overflow_is_found_before_the_first_write(verb: Verb) -> None:
    def huge(tiles: dict[str, Compact]) -> None:
        tiles[last(tiles)] = dense(tiles[last(tiles)], 1e6, 1e6)

    model = fresh().half()
    before = values(model)
    with pytest.raises(ValueError, match="doesn't fit its float16"):
        verb(model, pretrained=Broken(verb.generator(verb.kind), huge))
    assert same(values(model), before)


def test_interrupt_during_the_writes_waits_for_the_last(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = values(verb(fresh()))
    model = fresh()
    write_to, calls = Compact.write_to, [0]

    def interrupted(compact: Compact, out: Tensor, start: int = 0) -> None:
        calls[0] += 1
        signal.raise_signal(signal.SIGINT)
        write_to(compact, out, start)

    monkeypatch.setattr(Compact, "write_to", interrupted)
    before = settings_of_torch()
    with pytest.raises(KeyboardInterrupt):
        verb(model)
    assert calls[0] > 1
    assert same(values(model), expected)
    assert settings_of_torch() == before


def test_interrupt_before_the_writes_changes_nothing(verb: Verb) -> None:
    model = fresh()
    before = values(model)
    with pytest.raises(KeyboardInterrupt):
        verb(
            model,
            pretrained=Broken(verb.generator(verb.kind), lambda tiles: signal.raise_signal(signal.SIGINT)),
        )
    assert same(values(model), before)


def test_a_signal_handler_of_the_users_own_is_called_once(
    verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to = Compact.write_to
    raised, handled = [], []

    def interrupted(compact: Compact, out: Tensor, start: int = 0) -> None:
        if not raised:
            raised.append(1)
            signal.raise_signal(signal.SIGINT)
            assert not handled, "deferred until the last write"
        write_to(compact, out, start)

    monkeypatch.setattr(Compact, "write_to", interrupted)
    before = signal.signal(signal.SIGINT, lambda *_: handled.append(1))
    try:
        verb(fresh())
    finally:
        signal.signal(signal.SIGINT, before)
    assert handled == [1]


def test_a_forward_that_caches_tensors_keeps_none_of_ours(verb: Verb) -> None:
    class Caching(Net):
        cache: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.cache = self.stem(x)
            self.seen = [x]
            return super().forward(x)

    torch.manual_seed(1)
    model = Caching()
    before = state(model)
    verb(model)
    assert state(model) == before
    assert model.cache is None and not hasattr(model, "seen")


def test_an_exception_in_the_forward_changes_nothing(verb: Verb) -> None:
    class Failing(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("on purpose")

    model = Failing()
    before, untouched = values(model), state(model)
    if verb.name == "vae":
        verb(model)  # has no need of the graph
    else:
        with pytest.raises(geninit.TraceError, match="on purpose"):
            verb(model)
        assert same(before, values(model))
    assert state(model) == untouched
