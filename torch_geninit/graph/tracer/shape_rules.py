"""What common operations return on meta tensors, without asking ATen.

ATen computes many of these shapes in Python, at a hundred times the cost: batch norm alone is half the time
of tracing a residual network. A shortcut returns None where it is not sure; ATen then answers, or raises its
error.
Why not ``FakeTensorMode``: docs/decisions/stand-ins.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]
Shortcut = Callable[[Arguments], Any]

_META = torch.device("meta")


def like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty meta tensor of the size of ``x``, dense, its dimensions in the same order in memory."""
    dtype = dtype or x.dtype
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=dtype, device=_META)
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda d: -strides[d])
    return torch.empty_permuted(x.shape, order, dtype=dtype, device=_META)


def _empty(size: Iterable[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(tuple(size), dtype=dtype, device=_META)


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
    return _empty(size, x.dtype)


def _batch_norm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor] | None:
    x, weight = arguments["input"], arguments.get("weight")
    if x.ndim < 2 or (weight is not None and weight.shape[0] != x.shape[1]):
        return None
    if arguments["training"] and x.numel() == x.shape[1]:
        return None
    size = x.shape[1:2] if arguments["training"] else (0,)
    return like(x), _empty(size), _empty(size)


def _layer_norm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor] | None:
    x, normalised = arguments["input"], tuple(arguments["normalized_shape"])
    kept = x.ndim - len(normalised)
    if kept < 0 or tuple(x.shape[kept:]) != normalised:
        return None
    size = (*x.shape[:kept], *[1] * len(normalised))
    return _empty(x.shape, x.dtype), _empty(size), _empty(size)


def _group_norm(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor] | None:
    x, groups, weight = arguments["input"], arguments["group"], arguments.get("weight")
    channels = x.shape[1] if x.ndim > 1 else 0
    if channels == 0 or channels % groups or (weight is not None and weight.shape[0] != channels):
        return None
    size = (x.shape[0], groups)
    return _empty(x.shape, x.dtype), _empty(size), _empty(size)


def _unary(arguments: Arguments) -> Tensor | None:
    x = arguments["self"]
    return like(x) if x.is_floating_point() else None


def _copy(arguments: Arguments) -> Tensor | None:
    x, layout = arguments["self"], arguments.get("memory_format")
    dtype = arguments.get("dtype") or x.dtype
    if layout is None or layout is torch.preserve_format:
        return like(x, dtype)
    return _empty(x.shape, dtype) if layout is torch.contiguous_format else None


def _itself(arguments: Arguments) -> Any:
    return arguments["self"]


def _covers(a: Tensor, b: Any) -> bool:
    """Whether an elementwise operation on a and b has the shape and type of a."""
    if isinstance(b, int | float):
        return a.is_floating_point()
    if not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    if a.shape == b.shape:
        return True
    missing = a.ndim - b.ndim
    return missing >= 0 and all(n in (1, m) for n, m in zip(b.shape, a.shape[missing:], strict=True))


def _binary(arguments: Arguments) -> Tensor | None:
    a, b = arguments["self"], arguments["other"]
    if _covers(a, b):
        return like(a)
    return like(b) if isinstance(b, Tensor) and _covers(b, a) else None


def _binary_in_place(arguments: Arguments) -> Any:
    return arguments["self"] if _covers(arguments["self"], arguments["other"]) else None


def _division(arguments: Arguments) -> Tensor | None:
    floats = arguments["self"].is_floating_point() and arguments.get("rounding_mode") is None
    return _binary(arguments) if floats else None


def _product(arguments: Arguments) -> Tensor | None:
    a = arguments.get("mat1", arguments.get("self"))
    b = arguments["mat2"]
    if a.ndim != b.ndim or a.dtype != b.dtype or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return None
    out = _empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    return out if "mat1" not in arguments or _covers(out, arguments["self"]) else None


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
    return _empty((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype)


def _pad(arguments: Arguments) -> Tensor | None:
    x, pad = arguments["self"], arguments["pad"]
    if len(pad) % 2 or len(pad) > 2 * x.ndim or min(pad, default=0) < 0 or not x.is_contiguous():
        return None
    size = list(x.shape)
    for axis in range(len(pad) // 2):
        size[-1 - axis] += pad[2 * axis] + pad[2 * axis + 1]
    return _empty(size, x.dtype)


_UNARY = """relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu exp sqrt rsqrt neg clamp
    softplus mish"""
_BINARY = "add sub mul"

SHORTCUTS: Mapping[str, Shortcut] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("addmm", "mm", "bmm"), _product),
    "cat": _cat,
    "constant_pad_nd": _pad,
    "clone": _copy,
    "_to_copy": _copy,
    "roll": _unary,
    "div": _division,
    **dict.fromkeys(_UNARY.split(), _unary),
    **{f"{name}_": _itself for name in _UNARY.split()},
    **dict.fromkeys(_BINARY.split(), _binary),
    **{f"{name}_": _binary_in_place for name in (*_BINARY.split(), "div")},
}
"""ATen operation name -> its shortcut."""
