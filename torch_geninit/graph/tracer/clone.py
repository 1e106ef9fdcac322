"""A structural clone: the modules of a model, and none of its tensors."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode

StandIn = Callable[[Tensor], Tensor]
Memo = dict[int, Any]

_HOOKS = frozenset(
    {
        "_backward_pre_hooks",
        "_backward_hooks",
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)
_RECURRENT = frozenset(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))
_ATOMS = frozenset((int, float, bool, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size))
# What may lead from a closure to a module.
_LEADING_ON = (
    nn.Module,
    Tensor,
    types.FunctionType,
    types.MethodType,
    functools.partial,
    weakref.ref,
    list,
    tuple,
    dict,
)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that compiled or data-parallel wrappers call in the end."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        else:
            return module


def clone_structure(model: nn.Module, stand_in: StandIn) -> tuple[nn.Module, dict[int, Tensor]]:
    """Copy the modules of ``model`` with ``stand_in(tensor)`` in the place of every tensor.

    Hooks, compiled implementations and wrappers are left out, but not the hooks of ``torch.nn.utils`` that
    compute a weight (weight_norm, spectral_norm, pruning). The clone is in eval mode.

    Returns:
        The clone, and id of tensor -> its stand-in, for every registered parameter and buffer.
    """
    modules = list(model.modules())
    inner = {id(module): unwrap(module) for module in modules}
    own = [module for module in modules if inner[id(module)] is module]
    plain = [module for module in own if not isinstance(module, torch.jit.ScriptModule)]
    memo: Memo = {}
    tensors: dict[int, Tensor] = {}
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
        for group in (module._parameters, module._buffers):
            for tensor in group.values():
                if tensor is not None and id(tensor) not in tensors:
                    memo[id(tensor)] = tensors[id(tensor)] = stand_in(tensor)
    with _StandInCopies(stand_in):
        for module in own:
            if id(module) not in memo:
                _refuse_recurrent(module)
                memo[id(module)] = copied = copy.deepcopy(module, memo)
                # Stand-ins are float32, so what a script reads must be.
                for tensor in (*copied.parameters(), *copied.buffers()):
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.float()
                parts = dict(copied.named_modules())
                for (name, old), new in zip(module.named_parameters(), copied.parameters(), strict=True):
                    path, _, attribute = name.rpartition(".")
                    if id(old) in tensors:  # tied to a layer outside
                        setattr(parts[path], attribute, tensors[id(old)])
                    else:
                        tensors[id(old)] = new
        memo.update((identity, memo[id(module)]) for identity, module in inner.items())
        for module in plain:
            _fill(memo[id(module)].__dict__, module.__dict__, memo)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and tensor.__dict__:
                    memo[id(tensor)].__dict__.update(_copy_value(tensor.__dict__, memo))
    clone: nn.Module = memo[id(inner[id(model)])]
    set_training(clone, False)
    if _torch_module._global_forward_hooks or _torch_module._global_forward_pre_hooks:
        _bypass_hooks(clone)
    return clone, tensors


def _refuse_recurrent(script: nn.Module) -> None:
    """TorchScript runs a recurrent layer time step by time step, of which each looks like linear layers."""
    for name, part in script.named_modules():
        if getattr(part, "original_name", "") in _RECURRENT:
            raise NotImplementedError(
                f"TorchScript took over the {part.original_name} {name!r} of a {type(script).__name__}, and "
                "its time steps can't be told from linear layers. Initialise before torch.jit.script, or "
                "trace before and pass graph="
            )


def copy_values(value: Any, stand_in: StandIn) -> Any:
    """Copy nested containers and objects with ``stand_in(tensor)`` in the place of every tensor."""
    with _StandInCopies(stand_in):
        return copy.deepcopy(value)


def set_training(clone: nn.Module, mode: bool) -> None:
    """Set the mode of every module, whatever their own ``train`` methods do."""
    for module in clone.modules():
        module.training = mode


def _fill(state: dict[str, Any], original: Mapping[str, Any], memo: Memo) -> None:
    for key, value in original.items():
        if type(value) in _ATOMS:
            state[key] = value
        elif key in ("_modules", "_parameters", "_buffers"):
            state[key] = type(value)((k, _copy_value(v, memo)) for k, v in value.items())
        elif key in _HOOKS:
            state[key] = OrderedDict()
        elif key == "_forward_pre_hooks":
            state[key] = OrderedDict(
                (k, copy.deepcopy(hook, memo))
                for k, hook in value.items()
                if type(hook).__module__.startswith("torch.nn.utils")
            )
        elif key == "_compiled_call_impl":
            state[key] = None
        else:
            state[key] = _copy_value(value, memo)


def _copy_value(value: Any, memo: Memo) -> Any:
    """Copy deeply; unlike ``copy.deepcopy`` follow closures and weak references to the model."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_copy_value(item, memo) for item in value)
        return items
    if kind is dict:
        pairs: dict[Any, Any] = {}
        memo[id(value)] = pairs
        pairs.update((key, _copy_value(item, memo)) for key, item in value.items())
        return pairs
    if kind is tuple or kind is set:
        return kind(_copy_value(item, memo) for item in value)
    if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):  # not registered
        memo[id(value)] = module = object.__new__(kind)
        _fill(module.__dict__, value.__dict__, memo)
        return module
    if kind is types.FunctionType:
        return _rebind(value, memo) if value.__closure__ else value
    if kind is types.MethodType:
        return types.MethodType(value.__func__, _copy_value(value.__self__, memo))
    if kind is weakref.ref:
        target = value()
        return weakref.ref(memo[id(target)]) if id(target) in memo else value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001
        # Locks, process groups, open files: nothing on which a forward pass leaves a tensor.
        return value


def _rebind(function: types.FunctionType, memo: Memo) -> types.FunctionType:
    """Copy a closure so that it sees the clone where it saw the model."""
    cells = function.__closure__ or ()
    new = tuple(types.CellType() for _ in cells)
    rebound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, new
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    memo[id(function)] = rebound
    for cell, copied in zip(cells, new, strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        copied.cell_contents = _copy_value(content, memo) if isinstance(content, _LEADING_ON) else content
    return rebound


def _bypass_hooks(clone: nn.Module) -> None:
    """Call forward directly, since hooks for all modules of the process would see the clone."""
    for module in clone.modules():
        if not module._forward_pre_hooks and "_compiled_call_impl" in vars(nn.Module):
            module._compiled_call_impl = functools.partial(_forward, weakref.ref(module))


def _forward(module: weakref.ref[nn.Module], *args: Any, **kwargs: Any) -> Any:
    return module().forward(*args, **kwargs)  # type: ignore[union-attr]


class _StandInCopies(TorchFunctionMode):
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested containers, dataclasses and plain objects, in order, each once."""
    visited: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) in _ATOMS or id(item) in visited or isinstance(item, nn.Module):
            continue
        visited.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(reversed(list(item)))
        elif hasattr(item, "__dict__") and not isinstance(item, type | types.ModuleType):
            stack.extend(reversed(list(vars(item).values())))
