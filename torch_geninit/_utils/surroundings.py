"""What other code has switched on around a call, set aside while the call computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx import _symbolic_trace
from torch.utils import _python_dispatch

from torch_geninit._utils.interrupts import never_while_switching

_STACK: Any = torch._C


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute without the modes of others: ``TorchFunctionMode``, ``TorchDispatchMode``, default devices.

    A mode that counts, logs, fakes or moves the user's tensors would do the same to ours. All is as before
    when the block is left; other threads never notice.

    Raises:
        RuntimeError: inside a function that torch compiles, traces or transforms.
    """
    refuse_inside_transforms()
    with ExitStack() as stack:
        stack.enter_context(never_while_switching())
        if _python_dispatch._get_current_dispatch_mode_stack():
            stack.enter_context(_python_dispatch._disable_current_modes())
        stack.enter_context(_no_function_modes())
        yield


@contextmanager
def _no_function_modes() -> Iterator[None]:
    modes = [_STACK._pop_torch_function_stack() for _ in range(_STACK._len_torch_function_stack())]
    try:
        yield
    finally:
        for _ in range(_STACK._len_torch_function_stack()):  # which foreign code has left
            _STACK._pop_torch_function_stack()
        for mode in reversed(modes):
            _STACK._push_on_torch_function_stack(mode)


def _traced_by_fx() -> bool:
    asked: Callable[[], bool] | None = getattr(_symbolic_trace, "is_fx_symbolic_tracing", None)
    if asked is not None:
        return asked()
    return bool(getattr(_symbolic_trace, "_is_fx_tracing_flag", False))  # what older versions of torch have


def refuse_inside_transforms() -> None:
    """Refuse to run where each operation is recorded, compiled or mapped: ours would be, too.

    Raises:
        RuntimeError: what goes on, and that the model is to be initialised before.
    """
    callback = getattr(_STACK._dynamo.eval_frame, "get_eval_frame_callback", lambda: None)
    interpreter = getattr(_STACK._functorch, "peek_interpreter_stack", lambda: None)
    if torch.compiler.is_compiling() or callback() not in (None, False):
        refused = "torch.compile compiles: initialise before, and compile the initialised model"
    elif interpreter() is not None:
        refused = "torch.func transforms, as vmap and grad do: initialise before"
    elif _STACK._get_tracing_state() is not None:
        refused = "torch.jit.trace traces: initialise before, and trace the initialised model"
    elif _traced_by_fx():
        refused = "torch.fx traces: initialise before, and trace the initialised model"
    else:
        return
    raise RuntimeError(f"torch-geninit can't run inside of a function that {refused}")
