"""A structural clone: the modules of a model, and none of its tensors."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.parallel import DataParallel, DistributedDataParallel

from torch_geninit._utils.modules import named_modules, set_training
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.graph.tracer.structure import ATOMS
from torch_geninit.graph.tracer.uncopied import CannotFollow

_RECURRENT = frozenset(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
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


def clone_structure(model: nn.Module, copier: Copier) -> tuple[nn.Module, dict[int, Tensor]]:
    """Copy the modules of ``model`` with stand-ins in the place of every tensor.

    Hooks, compiled implementations and wrappers are left out, but not the hooks of ``torch.nn.utils`` that
    compute a weight (weight_norm, spectral_norm, pruning). The clone is in eval mode. What it refers to only
    weakly lives as long as the copier.

    Returns:
        The clone, and id of tensor -> its stand-in, for every registered parameter and buffer.
    """
    modules = [module for _, module in named_modules(model)]
    inner = {id(module): unwrap(module) for module in modules}
    own = [module for module in modules if inner[id(module)] is module]
    plain = [module for module in own if not isinstance(module, torch.jit.ScriptModule)]
    tensors: dict[int, Tensor] = {}
    for module in plain:
        copier.shell(module)
    for module in plain:
        for group in (module._parameters, module._buffers):
            for tensor in group.values():
                if tensor is not None and id(tensor) not in tensors:
                    tensors[id(tensor)] = copier(tensor)
    for module in own:
        if id(module) not in copier.memo:
            _refuse_recurrent(module)
            copied = copier(module)
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
    for module in modules:
        copier.remember(module, copier.memo[id(inner[id(module)])])
    for module in plain:
        copier.fill(module, copier.memo[id(module)])
    clone: nn.Module = copier.memo[id(model)]
    for _, module in named_modules(clone):
        set_training(module, False)
    if any(getattr(_torch_module, name, None) for name in _GLOBAL_HOOKS):
        for module in {id(m): m for m in (*dict(named_modules(clone)).values(), *copier.modules)}.values():
            _bypass_hooks(module)
    return clone, tensors


def _refuse_recurrent(script: nn.Module) -> None:
    """TorchScript runs a recurrent layer time step by time step, of which each looks like linear layers."""
    for name, part in script.named_modules():
        if getattr(part, "original_name", "") in _RECURRENT:
            raise CannotFollow(
                f"TorchScript took over the {part.original_name} {name!r} of a {type(script).__name__}, and "
                "its time steps can't be told from linear layers. Initialise before torch.jit.script, or "
                "trace before and pass graph="
            )


def _bypass_hooks(module: nn.Module) -> None:
    """Call forward directly, since hooks for all modules of the process would see the clone."""
    if "_compiled_call_impl" in vars(nn.Module):
        module._compiled_call_impl = functools.partial(_forward, weakref.ref(module))


def _forward(reference: weakref.ref[nn.Module], *args: Any, **kwargs: Any) -> Any:
    module: Any = reference()
    for hook in module._forward_pre_hooks.values():  # torch's own, which compute a weight
        hook(module, args)
    return module.forward(*args, **kwargs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested containers, dataclasses and plain objects, in order, each once."""
    visited: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) in ATOMS or id(item) in visited or isinstance(item, nn.Module):
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
