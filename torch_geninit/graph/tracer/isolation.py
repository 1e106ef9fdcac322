"""Run foreign code so that nothing it depends on changes its graph, and nothing it does outlives it."""

from __future__ import annotations

import random  # noqa: TID251 - its state is saved, and put back
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from torch_geninit._utils import determinism
from torch_geninit._utils.interrupts import never_while_switching
from torch_geninit._utils.surroundings import undisturbed


@contextmanager
def isolated() -> Iterator[None]:
    """Fix gradient mode, inference mode, autocast, default type and device, and every random state.

    Code that draws random numbers to decide what to run decides the same each time; afterwards the states of
    torch (CPU, and CUDA where it is in use), ``random`` and numpy are what they were. What is compiled runs
    uncompiled.
    """
    with ExitStack() as stack:
        stack.enter_context(never_while_switching())
        # Two threads that save and restore the state of the process at once would leave one's behind.
        stack.enter_context(determinism._lock)
        stack.enter_context(undisturbed())
        _keep_random_states(stack)
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.callback(_set_threads, torch.get_num_threads())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(determinism.fastest_algorithms())
        if _top_saved_tensors_hooks(False) is not None:  # of others, who would see our tensors
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # Otherwise nothing is compiled, and importing the compiler takes a second.
        if {"torch._dynamo", "torch.nn.attention.flex_attention"} & sys.modules.keys():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put back the settings of the process that foreign code may change: what runs next is ours."""
    before = [read() for read, _ in _SETTINGS]
    device = getattr(_default_device, "device_context", None)
    try:
        yield
    finally:
        if getattr(_default_device, "device_context", None) is not device:
            torch.set_default_device(None)  # leaves the stack of modes as it was
            _default_device.device_context = device
        for (read, write), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                write(value)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


_default_device: Any = torch._GLOBAL_DEVICE_CONTEXT
_backends: Any = torch.backends
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (_deterministic, _set_deterministic),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *(_attribute(_backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    _attribute(_backends.mkldnn, "enabled"),
    *(
        _attribute(operation, "fp32_precision")
        for operation in (_backends.mkldnn.matmul, _backends.mkldnn.conv, _backends.cuda.matmul)
    ),
)

_top_saved_tensors_hooks: Any = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore: None
)


def _itself(value: Any) -> Any:
    return value


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _keep_random_states(stack: ExitStack) -> None:
    generator = torch.default_generator
    stack.callback(generator.set_state, generator.get_state())
    generator.manual_seed(0)
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        stack.callback(cuda.set_rng_state_all, cuda.get_rng_state_all())
    stack.callback(random.setstate, random.getstate())
    random.seed(0)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        stack.callback(numpy.random.set_state, numpy.random.get_state())
        numpy.random.seed(0)
