"""What common operations return on meta tensors, without asking ATen.

ATen computes many of these shapes in Python, at a hundred times the cost: batch norm alone is half the time
of tracing a residual network. The first of them in a process also imports sympy and torch's compiler, which
takes more than a second. A shortcut returns None where it is not sure; ATen then answers, or raises its
error.
Why not ``FakeTensorMode``: docs/decisions/stand-ins.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
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
    if arguments["transposed"]:
        return _transposed_convolution(arguments)
    if x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * groups:
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


def _transposed_convolution(arguments: Arguments) -> Tensor | None:
    x, weight = arguments["input"], arguments["weight"]
    if x.ndim != weight.ndim or x.shape[1] != weight.shape[0]:
        return None
    names = ("stride", "padding", "dilation", "output_padding")
    size = [x.shape[0], weight.shape[1] * arguments["groups"]]
    for axis, (stride, padding, dilation, added) in enumerate(
        zip(*(_sizes(arguments[name], weight.ndim - 2) for name in names), strict=True), 2
    ):
        extent = (x.shape[axis] - 1) * stride - 2 * padding + dilation * (weight.shape[axis] - 1) + added + 1
        if extent < 1 or stride < 1 or added >= max(stride, dilation):
            return None
        size.append(extent)
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
    if not isinstance(b, Tensor) or a.dtype != b.dtype:
        return None
    if _covers(b, a):
        return like(b)
    if a.ndim != b.ndim or not (a.is_contiguous() and b.is_contiguous()):
        return None
    # Each is repeated along dimensions of the other.
    pairs = list(zip(a.shape, b.shape, strict=True))
    return (
        _empty(map(max, pairs), a.dtype) if all(n == m or 1 in (n, m) and n * m for n, m in pairs) else None
    )


def _binary_in_place(arguments: Arguments) -> Any:
    return arguments["self"] if _covers(arguments["self"], arguments["other"]) else None


def _division(arguments: Arguments) -> Tensor | None:
    floats = arguments["self"].is_floating_point() and arguments.get("rounding_mode") is None
    return _binary(arguments) if floats else None


def _masked_fill(arguments: Arguments) -> Tensor | None:
    x, mask, value = arguments["self"], arguments["mask"], arguments["value"]
    plain = x.is_floating_point() and mask.dtype == torch.bool and isinstance(value, int | float)
    missing = x.ndim - mask.ndim
    covered = missing >= 0 and all(n in (1, m) for n, m in zip(mask.shape, x.shape[missing:], strict=True))
    return like(x) if plain and covered else None


def _reduction(arguments: Arguments) -> Tensor | None:
    x, dims = arguments["self"], arguments.get("dim")
    if not x.is_floating_point() or arguments.get("dtype") not in (None, x.dtype) or not x.ndim:
        return None
    given = [dims] if isinstance(dims, int) else dims or range(x.ndim)
    if not all(-x.ndim <= dim < x.ndim for dim in given):
        return None
    reduced = {dim % x.ndim for dim in given}
    if len(reduced) < len(given) or not x.numel():
        return None
    size = [1 if dim in reduced else extent for dim, extent in enumerate(x.shape)]
    steps = [step for step, extent in zip(x.stride(), size, strict=True) if extent > 1]
    if not all(a > b for a, b in zip(steps, steps[1:], strict=False)):
        return None  # what is left keeps its order in memory
    if not arguments.get("keepdim"):
        size = [extent for dim, extent in enumerate(size) if dim not in reduced]
    return _empty(size, x.dtype)


def _pooled(arguments: Arguments, space: int) -> list[int] | None:
    """Return the size after pooling, None where it can't be, or is not laid out plainly."""
    x = arguments["self"]
    if x.ndim - space not in (1, 2) or not x.is_contiguous() or not x.numel():
        return None
    kernel = _sizes(arguments["kernel_size"], space)
    stride = _sizes(arguments.get("stride") or kernel, space)
    padding, dilation = (_sizes(arguments.get(n, (d,)), space) for n, d in (("padding", 0), ("dilation", 1)))
    ceil = arguments.get("ceil_mode", False)
    size = list(x.shape[:-space])
    for n, k, s, p, d in zip(x.shape[-space:], kernel, stride, padding, dilation, strict=True):
        if min(k, s, d) < 1 or not 0 <= 2 * p <= k:
            return None
        extent = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil else 0)) // s + 1
        if ceil and (extent - 1) * s >= n + p:
            extent -= 1  # a window must not start in the padding
        if extent < 1:
            return None
        size.append(extent)
    return size


def _max_pool(arguments: Arguments, space: int) -> tuple[Tensor, Tensor] | None:
    size = _pooled(arguments, space)
    return None if size is None else (_empty(size, arguments["self"].dtype), _empty(size, torch.int64))


def _avg_pool(arguments: Arguments, space: int) -> Tensor | None:
    size = _pooled(arguments, space)
    return None if size is None else _empty(size, arguments["self"].dtype)


def _resized(arguments: Arguments, space: int) -> Tensor | None:
    x, size = arguments["self"], arguments.get("output_size")
    plain = x.is_floating_point() and x.is_contiguous() and x.numel() and x.ndim == space + 2
    if not plain or size is None or len(size) != space or min(size) < 1:
        return None
    return _empty((*x.shape[:-space], *size), x.dtype)


def _embedding(arguments: Arguments) -> Tensor | None:
    weight, indices = arguments["weight"], arguments["indices"]
    if weight.ndim != 2 or indices.dtype not in (torch.int64, torch.int32):
        return None
    return _empty((*indices.shape, weight.shape[1]), weight.dtype)


def _rows(arguments: Arguments) -> Tensor | None:
    """Return the rows of a table that one tensor of numbers picks."""
    x, indices = arguments["self"], arguments["indices"]
    index = indices[0] if len(indices) == 1 else None
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or not (x.ndim and x.is_contiguous()):
        return None
    return _empty((*index.shape, *x.shape[1:]), x.dtype)


def _softmax(arguments: Arguments) -> Tensor | None:
    x = arguments["self"]
    plain = x.is_floating_point() and x.is_contiguous() and -x.ndim <= arguments["dim"] < x.ndim
    as_is = arguments.get("dtype") in (None, x.dtype) and not arguments.get("half_to_float")
    return _empty(x.shape, x.dtype) if plain and as_is else None


def _product(arguments: Arguments) -> Tensor | None:
    a = arguments.get("mat1", arguments.get("self"))
    b = arguments["mat2"]
    if a.ndim != b.ndim or a.dtype != b.dtype or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return None
    out = _empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    return out if "mat1" not in arguments or _covers(out, arguments["self"]) else None


def _in_order(x: Tensor) -> bool:
    """Whether the dimensions follow each other in memory, with or without gaps."""
    if x.is_contiguous():
        return True
    strides = x.stride()
    return min(x.shape) > 1 and all(a > b for a, b in zip(strides, strides[1:], strict=False))


def _cat(arguments: Arguments) -> Tensor | None:
    tensors = arguments["tensors"]
    first = tensors[0]
    dim = arguments.get("dim", 0) % max(first.ndim, 1)
    total = 0
    for tensor in tensors:
        if tensor.ndim != first.ndim or tensor.dtype != first.dtype or not _in_order(tensor):
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
    softplus mish clamp_min"""
_REDUCTIONS = "mean sum amax amin linalg_vector_norm"
_BINARY = "add sub mul"

SHORTCUTS: Mapping[str, Shortcut] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("addmm", "mm", "bmm"), _product),
    "cat": _cat,
    "constant_pad_nd": _pad,
    "masked_fill": _masked_fill,
    "embedding": _embedding,
    "index": _rows,
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    **{f"avg_pool{n}d": partial(_avg_pool, space=n) for n in (2, 3)},
    **{f"max_pool{n}d_with_indices": partial(_max_pool, space=n) for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d": partial(_resized, space=n) for n in (2, 3)},
    **{f"upsample_{kind}2d": partial(_resized, space=2) for kind in ("nearest", "bilinear")},
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
