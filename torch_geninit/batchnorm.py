"""Running statistics of BatchNorm for weights that were not trained step by step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from torch_geninit._utils.modules import named_buffers, named_modules, named_parameters, set_training
from torch_geninit._utils.plain_averages import PlainAverages, memory
from torch_geninit._utils.surroundings import refuse_inside_transforms
from torch_geninit._utils.tensors import has_no_values, is_fake
from torch_geninit.errors import warn_caller

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def recalibrate_bn_(model: ModuleT, batches: Iterable[Tensor | Sequence[Any]]) -> ModuleT:
    """Recompute the running statistics of every BatchNorm layer of ``model`` from ``batches``, in place.

    Unlike the initialisers this calls the model. Statistics are reset and become plain averages over the N
    batches, whatever the layers' momentum:

        mean = 1/N sum_n mean_n,   variance = 1/N sum_n variance_n

    A layer that is called several times for a batch, or not for all of them, averages over its calls. One
    that is never called keeps its statistics, with a warning.
    Only BatchNorm layers run in training mode meanwhile; dropout and everything else in evaluation mode.
    Training flags, momenta and parameters are afterwards as before, and no random state of torch is read by
    this function.

    Args:
        model: a network with BatchNorm layers that track running statistics: 1d, 2d, 3d, synchronised,
            subclasses of these and other layers with ``running_mean`` and ``running_var``; scripted, traced,
            exported and compiled ones, too. InstanceNorm, and layers that are called frozen, are left alone.
            A model without such layers is returned as it is, and is not called.
        batches: input tensors, or tuples whose first item is one (a DataLoader); moved to the model's device.
            Only the first dimension counts samples, and every batch weighs the same.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: if there are no batches, one holds no values or some that are not finite, the statistics
            come out not finite, or the statistics are on the meta device, fake, still lazy, or inference
            tensors.
        RuntimeError: inside of a function that torch compiles, traces or transforms.
        TypeError: if ``model`` is no module, or a batch is no tensor and doesn't start with one.
        Exception: whatever the model or ``batches`` raise; the old statistics are put back first.

    Warns:
        GenInitWarning: once, if layers keep their statistics because no batch reaches them.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> model = geninit.recalibrate_bn_(model, [torch.rand(64, 3, 32, 32) for _ in range(4)])
        >>> int(model[1].num_batches_tracked)
        4
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    refuse_inside_transforms()
    found = _find(model)
    if not found:
        return model
    device = next(tensor.device for _, tensor in chain(named_parameters(model), named_buffers(model)))
    with _calibrating(model, found) as layers:
        _run(model, batches, device)
    kept = [layer for layer in layers if not layer.calibrated]
    if kept:
        warn_caller(
            f"recalibrate_bn_ keeps the statistics of {len(kept)} of {len(layers)} BatchNorm layers of "
            f"{type(model).__name__}, the first is {kept[0].name!r}: {kept[0].why_kept}"
        )
    return model


class NotFiniteError(ValueError):
    """Statistics that overflow; the message names the layer."""


@contextmanager
def calibrating(model: nn.Module) -> Iterator[list[_Layer]]:
    """Let ``model`` run with the statistics of its batches inside the block, and keep their average.

    Yields the layers with running statistics; those that were run are ``calibrated`` in the end.
    """
    with _calibrating(model, _find(model)) as layers:
        yield layers


@contextmanager
def _calibrating(model: nn.Module, found: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    layers = list({memory(layer.module.running_mean): layer for layer in reversed(found)}.values())[::-1]
    flags = [(module, module.training) for _, module in named_modules(model)]
    with torch.no_grad():
        try:
            for module, _ in flags:
                set_training(module, False)
            for layer in found:
                set_training(layer.module, True)
            for layer in layers:
                layer.follow_forward()
            with PlainAverages((layer.module.running_mean, layer.count_update) for layer in layers):
                yield layers
            for layer in layers:
                layer.check_finite()
        except BaseException:
            for layer in layers:
                layer.restore()
            raise
        finally:
            for layer in layers:
                layer.leave_forward()
            for module, training in flags:
                set_training(module, training)
        for layer in layers:
            layer.calibrated = layer.updated
            layer.finish() if layer.calibrated else layer.restore()


@dataclass(eq=False)
class _Layer:
    """One layer with running statistics, and what it takes to get the old ones back.

    Attributes:
        name, module: of the layer.
        saved: name of a buffer -> the tensor, and a copy of its values.
        updates: how often an operation of PyTorch updated the statistics.
        calls: how often the layer's own forward was called; 0 where it is not followed.
        calibrated: whether it has new statistics, in the end.
    """

    name: str
    module: Any
    saved: Mapping[str, tuple[Tensor, Tensor]]
    updates: int = 0
    calls: int = 0
    calibrated: bool = False

    TORCHS_OWN: ClassVar = (_BatchNorm.forward, nn.SyncBatchNorm.forward, nn.Module.forward)

    def count_update(self) -> int:
        """Note that an operation is about to update the statistics; the first one finds none."""
        if not self.updates and not self.calls:
            self.reset()
        self.updates += 1
        return self.updates

    def follow_forward(self) -> None:
        """Give a forward of the layer's own the momentum of a plain average, call by call.

        Such a forward may do the arithmetic itself, or on copies, where no operation tells of it.
        """
        module = self.module
        python = not isinstance(module, torch.jit.ScriptModule)
        if not python or type(module).forward in self.TORCHS_OWN or not hasattr(module, "momentum"):
            return
        self._replaced = {"momentum": module.momentum, "forward": module.__dict__.get("forward")}
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.updates and not self.calls:
                self.reset()
            self.calls += 1
            module.momentum = 1 / self.calls
            return own(*args, **kwargs)

        module.__dict__["forward"] = forward

    def leave_forward(self) -> None:
        """Undo ``follow_forward``."""
        for name, value in self.__dict__.pop("_replaced", {}).items():
            if name == "forward" and value is None:
                self.module.__dict__.pop(name, None)
            else:
                setattr(self.module, name, value)

    @property
    def updated(self) -> bool:
        """Whether the batches gave the layer new statistics."""
        mean, var = self.module.running_mean, self.module.running_var
        return self.updates > 0 or (self.calls > 0 and not bool(((mean == 0) & (var == 1)).all()))

    @property
    def why_kept(self) -> str:
        """Say why the batches gave it none, and what to do."""
        if self.calls:
            return "its forward does not update them. Set them yourself, if they are to change"
        return "no batch reaches them. Set the model up so that the layer is called, and calibrate again"

    def reset(self) -> None:
        """Forget the past, as BatchNorm's own ``reset_running_stats``."""
        self.module.running_mean.zero_()
        self.module.running_var.fill_(1)
        if "num_batches_tracked" in self.saved:
            self.module.num_batches_tracked.zero_()

    def restore(self) -> None:
        """Put the old statistics back, and the old tensors where a forward has replaced them."""
        for name, (tensor, value) in self.saved.items():
            tensor.copy_(value)
            if getattr(self.module, name) is not tensor:
                setattr(self.module, name, tensor)

    def finish(self) -> None:
        """Leave the new statistics in the old tensors, and count the calls they are averaged over."""
        for name, (tensor, _) in self.saved.items():
            if (new := getattr(self.module, name)) is not tensor:
                tensor.copy_(new)
                setattr(self.module, name, tensor)
        if "num_batches_tracked" in self.saved:
            self.module.num_batches_tracked.fill_(self.updates or self.calls)

    def check_finite(self) -> None:
        """Raise a ValueError that names the layer if its statistics overflow."""
        if not all(
            bool(torch.isfinite(t).all()) for t in (self.module.running_mean, self.module.running_var)
        ):
            raise NotFiniteError(
                f"the statistics of {self.name!r} would not be finite: the activations before it overflow "
                "with these weights and batches; the old statistics were put back"
            )


def _find(model: nn.Module) -> list[_Layer]:
    layers = []
    for name, module in named_modules(model):
        buffers = dict(module.named_buffers(recurse=False))
        # A scripted or traced module keeps the name of the class that it was.
        kind = getattr(module, "original_name", type(module).__name__)
        if not {"running_mean", "running_var"} <= buffers.keys() or "frozen" in kind.lower():
            continue
        if isinstance(module, _InstanceNorm) or kind.startswith("InstanceNorm"):
            continue
        for tensor in buffers.values():
            if not is_lazy(tensor) and tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise ValueError(
                    f"the statistics of {name!r} are an inference tensor, which can't be written outside of "
                    "inference mode. Build the model outside torch.inference_mode()"
                )
            if is_lazy(tensor) or has_no_values(tensor):
                got = "lazy" if is_lazy(tensor) else "fake" if is_fake(tensor) else "on the meta device"
                raise ValueError(
                    f"the statistics of {name!r} are {got}: expected a materialised model; "
                    "run it once on example inputs, or model.to_empty(device=...) and initialise it first"
                )
        saved = {key: (tensor, tensor.detach().clone()) for key, tensor in buffers.items()}
        layers.append(_Layer(name, module, saved))
    return layers


def _run(model: nn.Module, batches: Iterable[Tensor | Sequence[Any]], device: torch.device) -> None:
    if isinstance(batches, Tensor) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(
            f"batches: expected an iterable of batches, got {type(batches).__name__}; "
            "pass a DataLoader, or a single batch as [batch]"
        )
    # The threads of DataParallel would not see what is done to the operations of this one.
    network = model.module if isinstance(model, nn.DataParallel) else model
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
            network(inputs.to(device))
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
