"""Call an operation on tensors without data where some of its operands have data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from torch_geninit.graph.tracer.shape_rules import like

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any] | None

CPU = torch.device("cpu")
META = torch.device("meta")
LARGE = 1 << 20
"""Constants of more values are without data: the causal mask of a long sequence."""
_MET: dict[torch.dtype, torch.dtype] = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float64), torch.float32),
    **dict.fromkeys((torch.complex32, torch.complex128), torch.complex64),
}


def met(dtype: torch.dtype) -> torch.dtype:
    """Return the type that a tensor has where it meets data: the graph depends on no type of real numbers."""
    return _MET.get(dtype, dtype)


def normalised(kwargs: Mapping[str, Any], *, constant: bool) -> dict[str, Any]:
    """Compute on the CPU whatever the code asks for, and data in float32: the graph depends on neither."""
    changed = dict(kwargs)
    dtype = changed.get("dtype")
    if dtype in _MET and not constant:
        changed["dtype"] = _MET[dtype]
    device = changed.get("device")
    if device is not None and device.type != "meta":
        changed["device"] = CPU
    if changed.get("pin_memory"):
        changed["pin_memory"] = False
    return changed


def on_meta_if_large(args: Arguments, kwargs: Keywords) -> Keywords:
    """Make a large constant without data."""
    size = args[0] if args and type(args[0]) is list else ()
    if all(isinstance(extent, int) for extent in size) and prod(size) > LARGE:
        return {**(kwargs or {}), "device": META}
    return kwargs


def without_data(
    args: Arguments, kwargs: Keywords, constant_mask: Callable[[Any], bool]
) -> tuple[Arguments, Keywords, Mapping[int, Tensor]]:
    """Replace operands that have data by meta tensors.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        constant_mask: tells boolean masks whose values are known; they become index tensors.

    Returns:
        The new arguments, and id of a new tensor -> the one that it stands for.
    """
    new: dict[int, Tensor] = {}
    originals: dict[int, Tensor] = {}

    def swap(item: Any) -> Any:
        if isinstance(item, Tensor):
            dtype = met(item.dtype)
            if item.is_meta and dtype is item.dtype:
                return item
            if id(item) not in new:
                new[id(item)] = like(item, dtype)
                originals[id(new[id(item)])] = item
            return new[id(item)]
        if type(item) in (list, tuple):
            if any(map(constant_mask, item)):
                item = [part for index in item for part in _indices(index, constant_mask)]
            return type(item)(swap(part) for part in item)
        return item

    args = tuple(swap(item) for item in args)
    if kwargs:
        kwargs = {name: swap(item) for name, item in kwargs.items()}
        if kwargs.get("device") is not None:
            kwargs["device"] = META
    return args, kwargs, originals


def as_float32(args: Arguments, written: Callable[[Any], bool]) -> Arguments:
    """Convert the operands of other types of real numbers that are only read."""

    def swap(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item if item.dtype not in _MET or written(item) else item.to(met(item.dtype))
        return type(item)(map(swap, item)) if type(item) in (list, tuple) else item

    return tuple(map(swap, args))


def _indices(index: Any, constant_mask: Callable[[Any], bool]) -> tuple[Any, ...]:
    return index.nonzero().unbind(1) if constant_mask(index) else (index,)


def restored(result: Any, originals: Mapping[int, Tensor]) -> Any:
    """Return the tensors that an in-place operation was called on, not their stand-ins."""
    if isinstance(result, Tensor):
        return originals.get(id(result), result)
    if type(result) in (list, tuple):
        return type(result)(restored(item, originals) for item in result)
    return result
