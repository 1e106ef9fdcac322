"""Ambient state of torch that would change computed values, fixed inside a block and put back afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from torch_geninit._utils.interrupts import never_while_switching
from torch_geninit._utils.surroundings import undisturbed

# Default dtype and matmul precision belong to the process: two threads that save and restore them at once
# would leave one thread's setting behind.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def fixed() -> Iterator[None]:
    """Compute in float32 on one CPU thread, without autograd, inference mode, autocast or reduced precision.

    The thread count matters: matrix products and reductions of the same numbers by one and by two threads
    differ in their last bits. Everything is as before when the block is left.
    """
    with ExitStack() as stack:
        stack.enter_context(never_while_switching())
        stack.enter_context(_lock)
        stack.enter_context(undisturbed())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_default_dtype())
        stack.enter_context(fastest_algorithms())
        mkldnn: Any = torch.backends.mkldnn
        for operation in (mkldnn.matmul, mkldnn.conv):
            stack.enter_context(_full_precision(operation))
        stack.enter_context(_one_thread())
        stack.enter_context(_denormals())
        stack.enter_context(_onednn())
        yield


@contextmanager
def fastest_algorithms() -> Iterator[None]:
    """Leave deterministic mode, whose algorithms are other ones: on one CPU thread all are deterministic."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _full_precision(operation: Any) -> Iterator[None]:
    before = operation.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    inherited = getattr(torch.backends.mkldnn, "fp32_precision", None) == before
    operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        operation.fp32_precision = "none" if inherited else before


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread; ``torch.set_num_threads`` also sets the default of threads yet to start."""
    here = torch.get_num_threads()
    if here == 1:
        yield
        return
    default: list[int] = []
    _in_new_thread(lambda: default.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(1)
        _in_new_thread(lambda: torch.set_num_threads(default[0]))
        yield
    finally:
        torch.set_num_threads(here)
        if default[0] != here:
            _in_new_thread(lambda: torch.set_num_threads(default[0]))


@contextmanager
def _denormals() -> Iterator[None]:
    """Compute with the numbers nearest to zero; torch can't say whether ``set_flush_denormal`` was called."""
    if float(torch.full((1,), 1e-38) * 0.1):
        yield
        return
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)


@contextmanager
def _onednn() -> Iterator[None]:
    """Compute with the library that rounds as it does by default, where there is one."""
    mkldnn: Any = torch.backends.mkldnn
    if mkldnn.enabled or not mkldnn.is_available():
        yield
        return
    mkldnn.enabled = True
    try:
        yield
    finally:
        mkldnn.enabled = False


def _in_new_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
