"""What common operations return on meta tensors, without asking ATen.

ATen computes many of these shapes in Python, at a hundred times the cost: batch norm alone is half the time of tracing
a residual network. A shortcut returns None where it is not sure; ATen then answers, or raises its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]
Shortcut = Callable[[Arguments], Any]

_META = torch.device("meta")


def _sizes(given: Any, space: int) -> tuple[int, ...]:
    return tuple(given) * space if len(given) == 1 else tuple(given)


def _convolution(arguments: Arguments) -> Tensor | None:
    x, weight = arguments["input"], arguments["weight"]
    space = weight.ndim - 2
    groups = arguments["groups"]
    if arguments["transposed"] or x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * groups:
        return None
    size = [x.shape[0], weight.shape[0]]
    for axis, (stride, padding, dilation) in enumerate(
        zip(*(_sizes(arguments[name], space) for name in ("stride", "padding", "dilation")), strict=True), 2
    ):
        extent = x.shape[axis] + 2 * padding - dilation * (weight.shape[axis] - 1) - 1
        if extent < 0 or stride < 1:
            return None
        size.append(extent // stride + 1)
    return torch.empty(size, dtype=x.dtype, device=_META)


def _batch_norm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor] | None:
    x, weight = arguments["input"], arguments.get("weight")
    if x.ndim < 2 or (weight is not None and weight.shape[0] != x.shape[1]):
        return None
    statistics = torch.empty(x.shape[1] if arguments["training"] else 0, device=_META)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _layer_norm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor] | None:
    x, normalised = arguments["input"], tuple(arguments["normalized_shape"])
    kept = x.ndim - len(normalised)
    if kept < 0 or tuple(x.shape[kept:]) != normalised:
        return None
    statistics = torch.empty((*x.shape[:kept], *[1] * len(normalised)), device=_META)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _same(arguments: Arguments) -> Tensor | None:
    x = arguments["self"]
    return torch.empty_like(x) if x.is_floating_point() else None


def _itself(arguments: Arguments) -> Any:
    return arguments["self"]


def _joined(arguments: Arguments) -> Tensor | None:
    a, b = arguments["self"], arguments["other"]
    if isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride():
        return torch.empty_like(a)
    return None


def _joined_in_place(arguments: Arguments) -> Any:
    a, b = arguments["self"], arguments["other"]
    if isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype:
        return a
    return None


def _cat(arguments: Arguments) -> Tensor | None:
    tensors = arguments["tensors"]
    first = tensors[0]
    dim = arguments.get("dim", 0) % max(first.ndim, 1)
    total = 0
    for tensor in tensors:
        if tensor.ndim != first.ndim or tensor.dtype != first.dtype or not tensor.is_contiguous():
            return None
        if tensor.shape[:dim] != first.shape[:dim] or tensor.shape[dim + 1 :] != first.shape[dim + 1 :]:
            return None
        total += tensor.shape[dim]
    size = (*first.shape[:dim], total, *first.shape[dim + 1 :])
    return torch.empty(size, dtype=first.dtype, device=_META)


_ELEMENTWISE = "relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu"

SHORTCUTS: Mapping[str, Shortcut] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "cat": _cat,
    "mul": _joined,
    "mul_": _joined_in_place,
    "add": _joined,
    "add_": _joined_in_place,
    **dict.fromkeys(_ELEMENTWISE.split(), _same),
    **{f"{name}_": _itself for name in _ELEMENTWISE.split()},
}
"""ATen operation name -> its shortcut."""
