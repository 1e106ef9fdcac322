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
_OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
_LARGE = 1 << 20


def normalised(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Compute in float32 on the CPU, whatever the code asks for: the graph depends on neither."""
    changed = dict(kwargs)
    if changed.get("dtype") in _OTHER_FLOATS:
        changed["dtype"] = torch.float32
    device = changed.get("device")
    if device is not None and device.type != "meta":
        changed["device"] = CPU
    if changed.get("pin_memory"):
        changed["pin_memory"] = False
    return changed


def on_meta_if_large(args: Arguments, kwargs: Keywords) -> Keywords:
    """Make a large constant, such as the causal mask of a long sequence, without data."""
    size = args[0] if args and type(args[0]) is list else ()
    if all(isinstance(extent, int) for extent in size) and prod(size) > _LARGE:
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
            if item.is_meta:
                return item
            if id(item) not in new:
                new[id(item)] = like(item)
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


def _indices(index: Any, constant_mask: Callable[[Any], bool]) -> tuple[Any, ...]:
    return index.nonzero().unbind(1) if constant_mask(index) else (index,)


def restored(result: Any, originals: Mapping[int, Tensor]) -> Any:
    """Return the tensors that an in-place operation was called on, not their stand-ins."""
    if isinstance(result, Tensor):
        return originals.get(id(result), result)
    if type(result) in (list, tuple):
        return type(result)(restored(item, originals) for item in result)
    return result
