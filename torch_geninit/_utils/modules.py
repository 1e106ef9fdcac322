"""The modules of a model as they are registered, whatever its class makes of ``modules()`` and the like."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def named_modules(
    module: nn.Module, *, every_path: bool = False, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module, parents first, as ``nn.Module.named_modules`` does.

    Args:
        module: the root.
        every_path: yield a module that is registered twice under both of its names.
        prefix: the name of the root.
    """
    seen: set[int] = set()

    def walk(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if type(part) in weakref.ProxyTypes:
            part = part.__init__.__self__  # type: ignore[misc]
        if not every_path:
            if id(part) in seen:
                return
            seen.add(id(part))
        yield path, part
        for name, child in part._modules.items():
            if child is not None:
                yield from walk(f"{path}.{name}" if path else name, child)

    return walk(prefix, module)


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter, a tied one once, as ``nn.Module.named_parameters`` does."""
    seen: set[int] = set()
    for path, part in named_modules(module):
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{path}.{name}" if path else name), parameter


def named_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and buffer, a tied one once, as ``nn.Module.named_buffers`` does."""
    seen: set[int] = set()
    for path, part in named_modules(module):
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield (f"{path}.{name}" if path else name), buffer


def set_training(module: nn.Module, mode: bool) -> None:
    """Set the mode of one module, whatever its own ``train`` and ``__setattr__`` do besides."""
    if isinstance(module, torch.jit.ScriptModule) or "training" not in vars(module):
        module.training = mode
    else:
        vars(module)["training"] = mode
