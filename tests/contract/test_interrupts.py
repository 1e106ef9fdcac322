"""Ctrl-C at any instant: a model is as it was, or, once the writes have begun, as it would be without."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.contract import same, state, values
from tests.support.interruptions import (
    At,
    Call,
    fresh,
    interrupt,
    places,
    process,
    profiled,
)
from torch_geninit._utils import determinism
from torch_geninit._utils.interrupts import deferred, never_while_switching


class TestInterrupts:
    """Ctrl-C at any instant."""

    @pytest.mark.parametrize("count", [12, pytest.param(4000, marks=pytest.mark.full)])
    def test_all_or_nothing_and_no_trace(self, initialise: Call, count: int) -> None:
        torch.set_num_threads(2)  # so that there is something to put back
        try:
            initialise(fresh())  # the first call imports and caches
            expected = values(initialise(fresh()))
            with profiled(At(0, interrupt)) as counted:
                initialise(fresh())
            chosen = [*places(counted.count, count), counted.last_write]
            results = [self.one(initialise, n, expected) for n in chosen]
        finally:
            torch.set_num_threads(1)
        assert {"old", "new"} <= set(results), "the test would prove nothing"

    @staticmethod
    def one(initialise: Call, n: int, expected: dict[str, Tensor]) -> str:
        model = fresh()
        before, untouched, clean = values(model), state(model), process()
        at = At(n, interrupt)
        with contextlib.suppress(KeyboardInterrupt), profiled(at):
            initialise(model)
            sys.setprofile(None)
            if at.where:
                time.sleep(1)  # what had to wait for the end of an __exit__ arrives here
                pytest.fail(f"not interrupted: {at.where}")
        after = values(model)
        assert state(model) == untouched, at.where
        assert process() == clean, at.where
        assert same(after, before) or same(after, expected), at.where
        return "old" if same(after, before) else "new"

    def test_a_state_is_put_back_however_the_block_is_left(self) -> None:
        """Each place in the machinery of ``with`` alone, none left out."""
        torch.set_num_threads(2)
        try:
            for n in itertools.count(1):
                before = torch.get_num_threads(), signal.getsignal(signal.SIGINT), process()
                at = At(n, interrupt)
                with contextlib.suppress(KeyboardInterrupt), profiled(at):
                    with determinism.fixed():
                        pass
                    sys.setprofile(None)
                    if not at.where:
                        break
                    time.sleep(1)
                    pytest.fail(f"not interrupted: {at.where}")
                after = torch.get_num_threads(), signal.getsignal(signal.SIGINT), process()
                assert after == before, at.where
            assert n > 100
        finally:
            torch.set_num_threads(1)

    def test_the_body_is_interrupted_at_once(self) -> None:
        """Also when the block stands inside somebody's ``__enter__``, and inside another such block."""

        class Outer:
            def __enter__(self) -> None:
                with never_while_switching(), never_while_switching():
                    interrupt()
                    pytest.fail("not interrupted")

            def __exit__(self, *_: object) -> None:
                pass

        with pytest.raises(KeyboardInterrupt), Outer():
            pass

    def test_deferred_once_however_often(self) -> None:
        calls = []
        with pytest.raises(KeyboardInterrupt), deferred():
            for _ in range(3):
                interrupt()
                calls.append(1)
        assert len(calls) == 3

    def test_other_threads_are_left_alone(self) -> None:
        handlers: list[Any] = []

        def work() -> None:
            with deferred(), never_while_switching():
                handlers.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert handlers == [signal.getsignal(signal.SIGINT)]

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_handlers_that_are_no_functions(self, initialise: Call, handler: Any) -> None:
        before = signal.signal(signal.SIGINT, handler)
        try:
            initialise(fresh())
            assert signal.getsignal(signal.SIGINT) == handler
        finally:
            signal.signal(signal.SIGINT, before)
