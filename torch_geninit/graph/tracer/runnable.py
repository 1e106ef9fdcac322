"""A private copy of a model that can be run on data, without a trace on the model or the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torch_geninit._utils.determinism import fixed
from torch_geninit._utils.modules import named_modules
from torch_geninit.graph.tracer import outside
from torch_geninit.graph.tracer.clone import clone_structure
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.graph.tracer.isolation import isolated, settings_kept
from torch_geninit.graph.tracer.trace import copy_with_data


class Runnable:
    """A copy of a model on the CPU, in float32 and evaluation mode, without hooks and wrappers.

    It holds the model's own values; of what is sharded, zeros in the whole's place.

    Attributes:
        module: the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copier = Copier(_copy)
        self.module, _ = clone_structure(model, self._copier)
        for _, module in named_modules(self.module):
            if isinstance(module, nn.SyncBatchNorm):  # which would wait for other processes
                object.__setattr__(module, "__class__", _LocalBatchNorm)
            elif any(base.__name__ == "FSDPModule" for base in type(module).__bases__):
                # fully_shard derives such a class from the module's own, whose state stayed behind.
                object.__setattr__(module, "__class__", type(module).__bases__[-1])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy; to be called :func:`aside`."""
        with outside.copied(self._copier) as context, settings_kept():
            return context.run(self.module, *args, **kwargs)


@contextmanager
def aside() -> Iterator[None]:
    """Fix whatever of the process would change computed values, and put it back afterwards."""
    with isolated(), fixed():
        yield


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _copy(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # to gather the values would be communication
        whole = torch.zeros(tensor.shape)
        return nn.Parameter(whole) if isinstance(tensor, nn.Parameter) else whole
    return copy_with_data(tensor)
