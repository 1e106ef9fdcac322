"""What there is to know about an ATen overload: its rule, its arguments, what it writes, its shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torch_geninit.graph.tracer.shape_rules import SHORTCUTS, Shortcut
from torch_geninit.graph.vocabulary import RULES


class Operation(NamedTuple):
    """What there is to know about an ATen overload, once."""

    name: str
    rule: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    shortcut: Shortcut | None
    composite: bool


OPERATIONS: dict[Any, Operation] = {}


def describe(func: Any) -> Operation:
    """Say what there is to know about an overload, and remember it."""
    schema = func._schema
    name = schema.name.rpartition("::")[2]
    if name not in RULES:
        name = name.removesuffix("_")
    base = name.removesuffix("_copy")
    rule = "move" if base != name and RULES.get(base) == "view" else RULES.get(name, "other")
    operation = Operation(
        name,
        rule,
        tuple(argument.name for argument in schema.arguments),
        tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write),
        SHORTCUTS.get(schema.name.rpartition("::")[2]),
        _is_composite(func),
    )
    OPERATIONS[func] = operation
    return operation


def _is_composite(func: Any) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))
    except RuntimeError:  # sym_size and the like are in no registry
        return False
