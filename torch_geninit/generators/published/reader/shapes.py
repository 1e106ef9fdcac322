"""Elementwise operations and norms on meta tensors that leave the same autograd functions, only sooner.

torch computes the shapes of these operations in Python, up to a millisecond and a half an operation, which
is most of the time of a walk. Here each leaves one autograd function of the same name over the same inputs;
everything that is not plain (views changed in place, mixed types) goes to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Shape(torch.autograd.Function):
    """Output of the first argument's shape; ``in_place`` returns that argument itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, in_place: bool, shape: torch.Size | None, *others: Any) -> Tensor:
        if in_place:
            ctx.mark_dirty(x)
            return x
        return torch.empty_like(x) if shape is None else x.new_empty(shape)


def _function(name: str) -> Any:
    # autograd calls a function's node by the name of its class, with Backward after it
    return type(name, (_Shape,), {}).apply  # type: ignore[attr-defined]


_RELU, _HARDTANH, _ADD, _MUL = map(_function, ("Relu", "Hardtanh", "Add", "Mul"))
_BATCH_NORM, _LAYER_NORM = map(_function, ("NativeBatchNorm", "NativeLayerNorm"))
_UNARY = {
    F.relu: _RELU,
    torch.relu: _RELU,
    Tensor.relu: _RELU,
    F.relu6: _HARDTANH,
    F.silu: _function("Silu"),
    F.gelu: _function("Gelu"),
    F.hardswish: _function("Hardswish"),
    F.hardsigmoid: _function("Hardsigmoid"),
}
_BINARY = {
    torch.add: (_ADD, False),
    Tensor.add: (_ADD, False),
    Tensor.add_: (_ADD, True),
    torch.mul: (_MUL, False),
    Tensor.mul: (_MUL, False),
    Tensor.mul_: (_MUL, True),
}


class ShapesOnly(TorchFunctionMode):
    """Run a forward pass on meta tensors for its autograd graph alone."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _UNARY:
            x = args[0] if args else kwargs.get("input")
            in_place = func in (F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid) and bool(
                kwargs.get("inplace", args[1] if len(args) > 1 else False)
            )
            if isinstance(x, Tensor) and _plain(x) and not (in_place and x._is_view()):
                return _UNARY[func](x, in_place, None)
        elif func in _BINARY and len(args) == 2 and not kwargs:
            function, in_place = _BINARY[func]
            out = _binary(function, in_place, *args)
            if out is not None:
                return out
        elif func is F.batch_norm and _plain(args[0]):
            weight, bias = _arguments(args, kwargs, {"weight": 3, "bias": 4})
            return _BATCH_NORM(args[0], False, None, weight, bias)
        elif func is F.layer_norm and _plain(args[0]):
            weight, bias = _arguments(args, kwargs, {"weight": 2, "bias": 3})
            return _LAYER_NORM(args[0], False, None, weight, bias)
        return func(*args, **kwargs)


def _binary(function: Any, in_place: bool, x: Any, y: Any) -> Tensor | None:
    if not _plain(x):
        return None
    if isinstance(y, int | float):
        shape = x.shape
    elif _plain(y):
        shape = x.shape if x.shape == y.shape else _broadcast(x.shape, y.shape)
    else:
        return None
    if in_place and (x._is_view() or shape != x.shape):
        return None
    out: Tensor = function(x, in_place, None if shape == x.shape else shape, y)
    return out


def _broadcast(*shapes: torch.Size) -> torch.Size:
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-any-return, no-untyped-call]


def _plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta and x.dtype == torch.float32


def _arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], places: Mapping[str, int]
) -> tuple[Any, ...]:
    return tuple(args[i] if i < len(args) else kwargs.get(name) for name, i in places.items())
