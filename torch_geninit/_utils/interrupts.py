"""Ctrl-C that waits: for the last write, and while state of the process is being changed or put back.

Why it looks at the stack: docs/decisions/interrupts.md.
"""

from __future__ import annotations

import _thread
import contextlib
import inspect
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

RETRY_SECONDS = 0.001
"""Between two attempts to deliver an interrupt; to set or put back state takes less."""

_MACHINERY = (contextlib.__file__, __file__)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold Ctrl-C back until the block is left. Python runs signal handlers on the main thread only."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def never_while_switching() -> Iterator[None]:
    """Let Ctrl-C through anywhere in the block, but not inside the ``__enter__`` or ``__exit__`` of anything.

    An exception there would skip what is left to put back: a thread count, a random state, a lock that no
    other thread could ever take again. Such an interrupt is tried again until it arrives elsewhere.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caller = _caller()

    def handle(number: int, frame: FrameType | None) -> None:
        if _switching(frame, caller):
            # Not threading.Thread: the code interrupted may hold the locks that starting one takes.
            _thread.start_new_thread(_again, ())
        else:
            handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _again() -> None:
    time.sleep(RETRY_SECONDS)
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # a true signal ends a sleep, too
    else:
        _thread.interrupt_main()


def _manages(code: CodeType) -> bool:
    if code.co_filename in _MACHINERY:
        return code.co_name != "inner"  # that is a function decorated with a context manager
    return code.co_name in ("__enter__", "__exit__")


def _switching(frame: FrameType | None, caller: CodeType | None) -> bool:
    while frame is not None and frame.f_code is not caller:
        if _manages(frame.f_code):
            return True
        frame = frame.f_back
    return False


def _caller() -> CodeType | None:
    """Return the code of the function whose ``with`` statement is being entered."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename not in _MACHINERY and not code.co_flags & inspect.CO_GENERATOR:
            return code
        frame = frame.f_back
    return None
