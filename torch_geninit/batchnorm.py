"""Running statistics of BatchNorm for weights that were not trained step by step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def recalibrate_bn_(model: ModuleT, batches: Iterable[Tensor | Sequence[Any]]) -> ModuleT:
    r"""Recompute the running statistics of every BatchNorm layer of ``model`` from ``batches``, in place.

    Unlike the initialisers this calls the model. Statistics are reset and become plain averages over the N
    batches, whatever the layers' momentum:

    .. math:: \mu = \frac{1}{N} \sum_n \mu_n, \qquad \sigma^2 = \frac{1}{N} \sum_n \hat\sigma^2_n

    Only BatchNorm layers run in training mode meanwhile; dropout and everything else in evaluation mode.
    Training flags, momenta and parameters are afterwards as before, and no random state of torch is read by
    this function.

    Args:
        model: a network whose BatchNorm layers (1d, 2d, 3d, synchronised) track running statistics. One
            without such layers is returned as it is, and is not called.
        batches: input tensors, or tuples whose first item is one (a DataLoader); moved to the model's device.
            Only the first dimension counts samples, and every batch weighs the same.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: if there are no batches, one holds no values or some that are not finite, the statistics
            come out not finite, or the model is on the meta device or still lazy.
        TypeError: if ``model`` is no module, or a batch is no tensor and doesn't start with one.
        Exception: whatever the model or ``batches`` raise; the old statistics are put back first.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> model = recalibrate_bn_(model, [torch.rand(64, 3, 32, 32) for _ in range(4)])
        >>> int(model[1].num_batches_tracked)
        4
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return model
    for name, layer in layers.items():
        for tensor in layer.buffers():
            if is_lazy(tensor) or tensor.is_meta:
                got = "lazy" if is_lazy(tensor) else "on the meta device"
                raise ValueError(
                    f"the statistics of {name!r} are {got}: expected a materialised model; "
                    "run it once on example inputs, or model.to_empty(device=...) and initialise it first"
                )
    device = next(chain(model.parameters(), model.buffers())).device
    flags = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    with torch.no_grad():
        before = [(t, t.clone()) for layer in layers.values() for t in layer.buffers(recurse=False)]
        try:
            for module, _ in flags:
                module.training = False
            for layer in layers.values():
                layer.training = True
                layer.momentum = None
                layer.reset_running_stats()
            _run(model, batches, device)
            for name, layer in layers.items():
                _check_finite(name, layer)
        except BaseException:
            for tensor, value in before:
                tensor.copy_(value)
            raise
        finally:
            for module, training in flags:
                module.training = training
            for layer, momentum in momenta:
                layer.momentum = momentum
    return model


def _run(model: nn.Module, batches: Iterable[Tensor | Sequence[Any]], device: torch.device) -> None:
    if isinstance(batches, Tensor) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(
            f"batches: expected an iterable of batches, got {type(batches).__name__}; "
            "pass a DataLoader, or a single batch as [batch]"
        )
    count = 0
    for count, batch in enumerate(batches, start=1):
        inputs = batch[0] if isinstance(batch, Sequence) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"batch {count}: expected a tensor or a tuple that starts with one, got {_sort(batch)}"
            )
        if not inputs.numel():
            raise ValueError(f"batch {count}: expected values, got an empty tensor {tuple(inputs.shape)}")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise ValueError(f"batch {count}: expected finite values, got some that are not")
        try:
            model(inputs.to(device))
        except Exception as error:
            if sys.version_info >= (3, 11):
                error.add_note(
                    f"recalibrate_bn_ called {type(model).__name__} on batch {count}: {_sort(inputs)}. A "
                    "batch is what the model is trained on: its first dimension counts samples (a DataLoader "
                    "makes batches of a Dataset), its values are normalised floats. The statistics are as "
                    "before"
                )
            raise
    if count == 0:
        raise ValueError(
            "recalibrate_bn_ got no batches: expected at least one; is the DataLoader empty or used up?"
        )


def _sort(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    inside = f" of {type(value[0]).__name__}" if isinstance(value, Sequence) and value else ""
    return type(value).__name__ + inside


def _check_finite(name: str, layer: _BatchNorm) -> None:
    statistics = (layer.running_mean, layer.running_var)
    if not all(t is None or bool(torch.isfinite(t).all()) for t in statistics):
        raise ValueError(
            f"the statistics of {name!r} would not be finite: the activations before it overflow with these "
            "weights and batches; the old statistics were put back"
        )
