"""Copies by torch itself, ``copy.deepcopy``, in which stand-ins take the place of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

StandIn = Callable[[Tensor], Tensor]


class StandInCopies(TorchFunctionMode):
    """Make ``copy.deepcopy`` of a tensor return its stand-in."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.stand_in(tensor)
            return memo[id(tensor)]
        if func is Tensor.clone:  # how a Parameter copies itself
            return self.stand_in(args[0])
        return func(*args, **(kwargs or {}))
