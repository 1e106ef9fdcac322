"""Functions of torch that tracing overrides: what tells of the device, and what ATen would take apart."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_geninit.graph.architecture import ParameterUse
from torch_geninit.graph.tracer.clone import tensors_in
from torch_geninit.graph.tracer.mixed_meta import CPU
from torch_geninit.graph.tracer.operation import Operation
from torch_geninit.graph.tracer.recorder import Call, Recorder
from torch_geninit.graph.tracer.rules import attention

_ROLES = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")


class FunctionOverrides(TorchFunctionMode):
    """Let a network on meta tensors believe that it runs on a CPU, and note calls before ATen sees them.

    A recurrent layer becomes hundreds of operations, attention a different set on each backend.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            if getattr(func, "_name", None) != "flex_attention":
                return func(*args, **kwargs) if kwargs else func(*args)
            handler = _flex_attention
        return handler(self.recorder, func, args, dict(kwargs or {}))


Handler = Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any]], Any]


def _device(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return CPU if recorder.meta else func(*args, **kwargs)


def _is_meta(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return False if recorder.meta else func(*args, **kwargs)


def _unrecorded(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    muted, recorder.muted = recorder.muted, True
    try:
        return func(*args, **kwargs)
    finally:
        recorder.muted = muted


def _recurrent(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs or recorder.muted:
        return func(*args, **kwargs)
    if func.__name__.endswith("_cell"):  # (input, state, weights ...)
        data, weights, directions = args[:2], args[2:], 1
    else:  # (input, state, weights, ...) or (data, batch sizes, state, weights, ...)
        place = 3 if isinstance(args[3], list | tuple) else 2
        data, weights, directions = args[:place], args[place], 1 + bool(args[place + 5])
    result = _recurrent_shapes(func, data, weights[0], directions) if recorder.meta else None
    if result is None:
        result = _unrecorded(recorder, func, recorder.without_data(args) if recorder.meta else args, kwargs)
    uses = []
    for tensor in tensors_in(weights):
        value = recorder.value(tensor)
        for name in value if isinstance(value, tuple) else ():
            role = re.sub(r"(_l\d+)?(_reverse)?$", "", name.rpartition(".")[2])
            if role not in _ROLES:
                role = "weight" if tensor.ndim > 1 else "bias"
            uses.append(ParameterUse(name, role, recorder.shapes[name]))
    sources = recorder.data(("data", tensor, recorder.value(tensor)) for tensor in tensors_in(data))
    outputs = list(tensors_in(result))
    node = recorder.add("recurrent", tuple(outputs[0].shape), sources, uses, None, func.__name__)
    recorder.assign(outputs, node)
    return result


def _recurrent_shapes(func: Any, data: tuple[Any, ...], weight: Tensor, directions: int) -> Any:
    """Return what a recurrent layer returns on meta tensors, without its hundreds of time steps."""
    x, states = data[0], data[-1] if isinstance(data[-1], list | tuple) else [data[-1]]
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return None
    last = [torch.empty(state.shape, device="meta") for state in states]
    if func.__name__.endswith("_cell"):
        return tuple(last) if len(last) > 1 else last[0]
    return torch.empty((*x.shape[:-1], directions * states[0].shape[-1]), device="meta"), *last


def _attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _unrecorded(recorder, func, args, kwargs)
    if recorder.muted:
        return result
    named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
    operands = [(n, t, recorder.value(t)) for n, t in named.items() if isinstance(t, Tensor)]
    operation = Operation(func.__name__, "attention", (), (), None, False)
    recorder.assign([result], attention(recorder, Call(operation, operands, named, [result])))
    return result


def _flex_attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note flex_attention's kernel; what its ``score_mod`` adds is a mask, which may be a parameter."""
    query, key, value, score_mod, _, scale, *_ = args
    extents = (*query.shape[:-1], key.shape[-2])
    grid = [
        torch.arange(n).view([-1 if axis == own else 1 for axis in range(4)]) for own, n in enumerate(extents)
    ]
    scores = torch.zeros(extents, device=query.device)
    mask = score_mod(scores, *grid)
    result = _unrecorded(
        recorder,
        torch.nn.functional.scaled_dot_product_attention,
        (query, key, value),
        {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]},
    )
    operands = [
        (n, t, recorder.value(t))
        for n, t in zip(("query", "key", "value", "attn_mask"), (query, key, value, mask), strict=True)
    ]
    operation = Operation("flex_attention", "attention", (), (), None, False)
    recorder.assign([result], attention(recorder, Call(operation, operands, {}, [result])))
    statistic = scores.new_zeros(extents[:-1])
    return result, statistic, statistic


def _requires_grad(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # On a CPU flex_attention refuses to run where a gradient might be asked for; none will be.
    caller = sys._getframe(2)
    refuses = caller.f_code.co_name == "_validate_device" and "flex_attention" in caller.f_code.co_filename
    return False if refuses else func(*args, **kwargs)


_RECURRENT = (
    torch.lstm,
    torch.gru,
    torch.rnn_tanh,
    torch.rnn_relu,
    torch.lstm_cell,
    torch.gru_cell,
    torch.rnn_tanh_cell,
    torch.rnn_relu_cell,
)
_HANDLERS: dict[Any, Handler] = {
    Tensor.device.__get__: _device,
    Tensor.is_meta.__get__: _is_meta,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    torch.nn.functional.scaled_dot_product_attention: _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
