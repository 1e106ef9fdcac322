"""Faults at any place of a call: errors and interrupts raised where Python itself would look for them."""

from __future__ import annotations

import contextlib
import gc
import inspect
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import torch_geninit as geninit
from tests.support.contract import Net
from torch_geninit._utils import determinism

VERBS = {"vae": "vae", "ghn": "ghn", "noise_ghn": "noise-ghn"}
PACKAGE = str(Path(geninit.__file__).parent)

File = Callable[[str], Path]
Call = Callable[..., nn.Module]


def calling(name: str, path: Path) -> Call:
    """Return the initialiser of that name, by default with the generator in ``path``."""

    def call(model: nn.Module, pretrained: Any = path, **options: Any) -> nn.Module:
        if name == "vae":
            return geninit.vae_(model, pretrained=pretrained, seed=7, **options)
        if name == "ghn":
            return geninit.ghn_(model, pretrained=pretrained, **options)
        return geninit.noise_ghn_(model, 7, pretrained=pretrained, **options)

    return call


def fresh() -> Net:
    torch.manual_seed(1)
    return Net()


def process() -> list[Any]:
    """What a failure must not leave behind in the process, besides the states in ``state``."""
    return [
        [type(mode) for mode in _get_current_function_mode_stack()],
        [type(mode) for mode in _get_current_dispatch_mode_stack()],
        lock_is_free(),
    ]


def lock_is_free() -> bool:
    """Whether another thread can take the lock on the state of the process."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(determinism._lock.acquire(timeout=5))
        if taken[0]:
            determinism._lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


class At:
    """Call ``fault`` when a function of the package is entered, or a call into C returns, for the n-th time.

    That is where Python itself looks for signals. Whatever else runs below a verb counts too: torch, the
    standard library.
    """

    def __init__(self, n: int, fault: Callable[[], None], *, package_only: bool = False) -> None:
        self.n, self.fault, self.package_only = n, fault, package_only
        self.count, self.where, self.last_write = 0, "", 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        # A generator is entered once more to be closed, where Python ignores errors.
        entered = event == "call" and not code.co_flags & inspect.CO_GENERATOR
        if self.package_only:
            if not entered or not code.co_filename.startswith(PACKAGE):
                return
        elif not (entered or event == "c_return"):
            return
        self.count += 1
        if code.co_name == "write_to":
            self.last_write = self.count
        if self.count == self.n:
            self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
            self.fault()


@contextlib.contextmanager
def profiled(at: At) -> Iterator[At]:
    gc.disable()  # Python ignores errors in callbacks of the collector, such as hypothesis has
    sys.setprofile(at)
    try:
        yield at
    finally:
        sys.setprofile(None)
        gc.enable()


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def no_memory() -> None:
    raise MemoryError("on purpose")


def places(total: int, count: int) -> list[int]:
    """Choose ``count`` of the events 1 ... total, spread over all, a different lot for each total."""
    return sorted(random.Random(total).sample(range(1, total + 1), min(count, total)))
