"""The mark by which transformers knows a parameter that has its values, loaded from a checkpoint or set."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

FLAG = "_is_hf_initialized"
"""Attribute of tensors and of modules; true where an initialisation pass of transformers must not write."""

OURS = "torch_geninit"
"""Its value on what was written here: true for transformers, and no obstacle to writing again."""


def is_loaded(tensor: Tensor) -> bool:
    """Return whether somebody else marked ``tensor`` as holding values to keep."""
    flag = getattr(tensor, FLAG, False)
    return bool(flag) and flag != OURS


def pass_is_over(module: nn.Module) -> bool:
    """Return whether transformers has initialised ``module``; during its pass the module has no mark yet."""
    return bool(getattr(module, FLAG, False))


def reads_marks(modules: Iterable[nn.Module]) -> bool:
    """Return whether one of ``modules`` is a model of transformers."""
    return any(hasattr(type(module), "_initialize_weights") for module in modules)


def mark(parameters: Iterable[Tensor]) -> None:
    """Tell transformers that ``parameters`` have their values, which modules initialised later must keep."""
    for parameter in parameters:
        setattr(parameter, FLAG, OURS)
