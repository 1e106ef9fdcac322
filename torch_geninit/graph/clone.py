"""A structural clone: the modules of a model, and none of its tensors."""

from __future__ import annotations

import copy
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode

StandIn = Callable[[Tensor], Tensor]

_HOOKS = frozenset(
    {
        "_backward_pre_hooks",
        "_backward_hooks",
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)
_ATOMS = (int, float, bool, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that a compiled or data-parallel wrapper calls; any other module as it is."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in module._modules and type(module).__name__ == "OptimizedModule":
            module = module._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return module


def clone_structure(model: nn.Module, stand_in: StandIn) -> tuple[nn.Module, dict[int, Tensor]]:
    """Copy the modules of ``model`` with ``stand_in(tensor)`` in the place of every tensor.

    Hooks, compiled implementations and wrappers are left out, except the hooks of ``torch.nn.utils`` that compute a
    weight (weight_norm, spectral_norm, pruning). The clone is in eval mode.

    Returns:
        The clone, and id of tensor -> its stand-in, for every registered parameter and buffer.
    """
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    tensors: dict[int, Tensor] = {}
    for module in modules:
        for group in (module._parameters, module._buffers):
            for tensor in group.values():
                if tensor is not None and id(tensor) not in tensors:
                    memo[id(tensor)] = tensors[id(tensor)] = stand_in(tensor)
    plain = []
    for module in modules:
        if unwrap(module) is not module or id(module) in memo:
            continue
        if _copies_itself(module):
            continue
        memo[id(module)] = type(module).__new__(type(module))
        plain.append(module)
    with _StandInCopies(stand_in):
        for module in modules:
            if id(module) not in memo and unwrap(module) is module:
                memo[id(module)] = copy.deepcopy(module, memo)
        for module in modules:
            if unwrap(module) is not module:
                memo[id(module)] = memo[id(unwrap(module))]
        for module in plain:
            state = memo[id(module)].__dict__
            for key, value in module.__dict__.items():
                state[key] = _copy_attribute(key, value, memo)
            state["training"] = False
            if "_compiled_call_impl" in state:
                state["_compiled_call_impl"] = None
    return memo[id(unwrap(model))], tensors


def _copies_itself(module: nn.Module) -> bool:
    """Whether a class (a scripted module, an fx graph module) says how its objects are copied."""
    kind = type(module)
    if any("__deepcopy__" in base.__dict__ for base in kind.__mro__):
        return not any(base.__name__ == "FSDPModule" for base in kind.__mro__)
    return kind.__reduce_ex__ is not object.__reduce_ex__


def _copy_attribute(key: str, value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _ATOMS):
        return value
    if key in ("_modules", "_parameters", "_buffers"):
        return type(value)((name, None if item is None else memo[id(item)]) for name, item in value.items())
    if key in _HOOKS:
        if key != "_forward_pre_hooks" or not value:
            return OrderedDict()
        kept = [(n, h) for n, h in value.items() if type(h).__module__.startswith("torch.nn.utils")]
        return OrderedDict((name, copy.deepcopy(hook, memo)) for name, hook in kept)
    if isinstance(value, weakref.ref):
        target = value()
        return weakref.ref(memo[id(target)]) if id(target) in memo else value
    if isinstance(value, types.FunctionType) and value.__closure__:
        return _rebind(value, memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        # Locks, process groups, open files: nothing that a forward pass would leave a tensor on.
        return value


def _rebind(function: types.FunctionType, memo: Mapping[int, Any]) -> types.FunctionType:
    """Copy a closure so that it sees the clone where it saw the model."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # an empty cell
            cells.append(cell)
            continue
        if id(content) in memo:
            cells.append(types.CellType(memo[id(content)]))
        elif isinstance(content, types.MethodType) and id(content.__self__) in memo:
            cells.append(types.CellType(types.MethodType(content.__func__, memo[id(content.__self__)])))
        else:
            cells.append(cell)
    rebound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    return rebound


class _StandInCopies(TorchFunctionMode):
    """Make ``copy.deepcopy`` of a tensor that is no parameter or buffer return its stand-in."""

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
        if getattr(func, "__name__", "") == "clone" and args[0].device.type != "meta":
            return self.stand_in(args[0])  # a Parameter that is not registered copies itself by clone
        return func(*args, **(kwargs or {}))


def tensors_in(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Yield the tensors of nested containers, dataclasses and plain objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, _ATOMS) or depth == 0 or isinstance(value, nn.Module):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif hasattr(value, "__dict__"):
        for item in vars(value).values():
            yield from tensors_in(item, depth - 1)
