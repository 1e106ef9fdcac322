"""Read the architecture of a model by running a clone of it that has no data."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_geninit._utils.modules import named_buffers, named_modules, named_parameters, set_training
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer import outside
from torch_geninit.graph.tracer.clone import clone_structure, tensors_in
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.graph.tracer.draft import Draft, assemble
from torch_geninit.graph.tracer.function_overrides import FunctionOverrides
from torch_geninit.graph.tracer.inputs import Inputs, given, guesses, unlikely, unusable
from torch_geninit.graph.tracer.isolation import isolated, settings_kept
from torch_geninit.graph.tracer.mixed_meta import LARGE
from torch_geninit.graph.tracer.recorder import Recorder
from torch_geninit.graph.tracer.rewrite import simplify
from torch_geninit.graph.tracer.rules import RULES_OF_KIND
from torch_geninit.graph.tracer.structure import makes_weight
from torch_geninit.graph.tracer.uncopied import CannotFollow

GUESSED = "inputs guessed: "
"""Begins the note of a graph whose inputs nobody gave."""
_PASS_INPUTS = "pass example_inputs= (a tensor, a tuple of arguments, or a dict of keyword arguments)"

_LIBRARIES = (os.path.dirname(torch.__file__), str(Path(__file__).parents[2]))
"""Where frames are that are not the user's."""

_ON_META = (
    "; a model on the meta device has no values that a forward pass may ask for: trace it with values and "
    "pass graph="
)
_TRACE_FIRST = (
    "; no rank of a sharded model has the values that a forward pass may ask for: trace before sharding and "
    "pass graph="
)


class TraceError(RuntimeError):
    """A model could not be run to see its architecture.

    Examples:
        >>> try:
        ...     geninit.trace(torch.nn.Linear(3, 4), torch.zeros(2, 5))
        ... except geninit.TraceError as error:
        ...     print(str(error).splitlines()[-1])
        check example_inputs=
    """


def trace(model: nn.Module, example_inputs: Any = None) -> Architecture:
    """Read a model's architecture: its operations, what flows between them, and who reads which parameter.

    A structural clone without data is run once and its ATen operations are recorded; the model itself is
    neither called nor changed, nor what it owns, what its code names in classes and modules, or any random
    state. Hooks are left out. The forward pass does run, on the clone, and may have effects outside of it:
    what it prints, logs or writes to a file stays. Works on every device, also meta.

    Args:
        model: any module.
        example_inputs: what its ``forward`` takes: a tensor, a tuple of arguments, or a dict of keyword
            arguments. The tensors may be on any device; only shapes and types matter, unless ``forward``
            itself decides by values, as in ``if x.mean() > 0``: the graph is then what happens with these.
            Guessed from the first layer if None: an image of 1 to 4 channels, features, or tokens. Several
            guesses are tried.

    Returns:
        The graph; every parameter that the output depends on is named as in
        ``nn.Module.named_parameters(model)``.

    Raises:
        TraceError: if the model can't be run on these (or the guessed) inputs, uses an object that can't be
            copied, or the inputs are of no use (an empty batch, an iterator).
        RuntimeError: inside of a function that torch.compile compiles.
        TypeError: if ``model`` is not a module.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> architecture = geninit.trace(model, torch.empty(1, 3, 8, 8))
        >>> [node.op for node in architecture.nodes]
        ['input', 'conv', 'relu', 'output']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"trace expects a torch.nn.Module, got {type(model).__name__}")
    names: dict[int, str] = {}
    for name, parameter in named_parameters(model):
        names[id(parameter)] = name
        if is_lazy(parameter):
            raise TraceError(
                f"parameter {name!r} has no shape yet (a lazy module): call the model once, then trace it"
            )
    with isolated():
        drafts, notes = _record(model, names, example_inputs)
    with _no_collection():
        return assemble(simplify(drafts), notes)


def _record(model: nn.Module, names: dict[int, str], example_inputs: Any) -> tuple[list[Draft], list[str]]:
    wrong = unusable(example_inputs) if example_inputs is not None else None
    if wrong is not None:
        raise TraceError(f"example_inputs: {wrong}")
    candidates = [given(example_inputs)] if example_inputs is not None else guesses(model)
    if not candidates:
        raise TraceError(
            f"can't guess the inputs of {type(model).__name__}: it has no layer to judge by; {_PASS_INPUTS}"
        )
    try:
        inputs, drafts = _first(model, names, candidates, example_inputs is not None)
    except TraceError as error:
        wrong = unlikely(example_inputs)
        if wrong is None:
            raise
        raise TraceError(f"example_inputs: {wrong}") from error
    missing = _unreached(drafts, names)
    if missing:
        more = candidates if example_inputs is not None else [*candidates, *guesses(model, batch=2)]
        try:
            fitting, trained = _first(model, names, more, True, training=True)
        except TraceError:
            pass
        else:
            if _unreached(trained, names) < missing:
                inputs, drafts, missing = fitting, trained, _unreached(trained, names)
    notes = [] if example_inputs is not None else [f"{GUESSED}{inputs.text}"]
    if missing:
        notes.append("not reached by the forward pass: " + ", ".join(sorted(missing)))
    return drafts, notes


def _unreached(drafts: list[Draft], names: dict[int, str]) -> set[str]:
    return set(names.values()).difference(use.name for draft in drafts for use in draft.uses)


def _first(
    model: nn.Module,
    names: dict[int, str],
    candidates: list[Inputs],
    known: bool,
    training: bool = False,
) -> tuple[Inputs, list[Draft]]:
    """Run on the first inputs that work: without data, and if it asks for data, on a copy with data."""
    failures: list[_Failure] = []
    sharded = on_meta = False
    for meta in (True, False):
        if not meta:
            # To gather the values would be communication, and other ranks may not be tracing.
            parameters = [parameter for _, parameter in named_parameters(model)]
            buffers = [buffer for _, buffer in named_buffers(model)]
            sharded = any(hasattr(tensor, "full_tensor") for tensor in (*parameters, *buffers))
            on_meta = any(parameter.is_meta for parameter in parameters)
            if sharded or on_meta:
                break
        for inputs in candidates:
            recorder = Recorder(meta=meta, shapes={}, rules=RULES_OF_KIND)
            try:
                with _no_collection() if meta else nullcontext():  # garbage with data may be large
                    _run(model, names, inputs, recorder, training=training)
                    return inputs, recorder.drafts
            except CannotFollow as error:
                traceback.clear_frames(error.__traceback__)
                text = f"{type(model).__name__} can't be followed: {error}{_place(error)}"
                raise TraceError(text) from error
            except Exception as error:  # whatever a forward pass may raise
                traceback.clear_frames(error.__traceback__)  # they hold the clone
                if _out_of_memory(error):  # other inputs would give another graph, and so other weights
                    raise
                failures.append(_Failure(error, inputs, meta, len(recorder.drafts)))
    raise TraceError(
        _explain(model, failures)
        + ("check example_inputs=" if known else f"that was a guess: {_PASS_INPUTS}")
        + (_TRACE_FIRST if sharded else _ON_META if on_meta and _asks(failures) else "")
        + _about_hooks(model)
    ) from _telling(failures).error


def _asks(failures: list[_Failure]) -> bool:
    """Whether it was the lack of data that made a forward pass fail."""
    return "meta" in str(_telling(failures).error)


class _Failure(NamedTuple):
    """An attempt that failed: why, on which inputs, without data or with, and after how many operations."""

    error: Exception
    inputs: Inputs
    meta: bool
    steps: int


def _telling(failures: list[_Failure]) -> _Failure:
    """Return the attempt that tells most: one with data if there is any, and of those the furthest."""
    return max(failures, key=lambda failure: (not failure.meta, failure.steps))


def _explain(model: nn.Module, failures: list[_Failure]) -> str:
    told = _telling(failures)
    error = told.error
    others = [text for text in dict.fromkeys(f.inputs.text for f in failures) if text != told.inputs.text]
    return (
        f"{type(model).__name__} could not be run on {told.inputs.text}: "
        f"{type(error).__name__}: {str(error).strip() or 'no message'}{_place(error)}\n"
        + (f"nor on {'; or '.join(others)}\n" if others else "")
    )


def _about_hooks(model: nn.Module) -> str:
    """Say that hooks were left out, where there are any that may compute what forward reads or returns."""
    for name, module in named_modules(model):
        for hook in module._forward_hooks.values():
            hook_name = getattr(hook, "__name__", type(hook).__name__)
            return (
                f". Hooks do not run in a trace: if the forward hook {hook_name!r} of "
                f"{name or type(module).__name__!r} changes what forward returns, do that in forward"
            )
        for hook in module._forward_pre_hooks.values():
            if not makes_weight(hook):
                hook_name = getattr(hook, "__name__", type(hook).__name__)
                return (
                    f". Hooks do not run in a trace: if the forward pre-hook {hook_name!r} of "
                    f"{name or type(module).__name__!r} computes what forward reads, such as a weight, "
                    "do that in forward or with torch.nn.utils.parametrize"
                )
    return ""


def _place(error: Exception) -> str:
    """Say which line of the user's code an error comes from."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_LIBRARIES, "<"))
    ]
    return f" (raised at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _run(
    model: nn.Module, names: dict[int, str], inputs: Inputs, recorder: Recorder, *, training: bool
) -> None:
    copier = Copier(_constant if recorder.meta else copy_with_data)
    clone, tensors = clone_structure(model, copier)
    for identity, name in names.items():
        recorder.shapes[name] = tuple(tensors[identity].shape)
        recorder.own(tensors[identity], name)
    if training:
        for _, module in named_modules(clone):
            set_training(module, True)
    args, kwargs = Copier(_empty if recorder.meta else copy_with_data)((inputs.args, dict(inputs.kwargs)))
    for tensor in tensors_in([*args, *kwargs.values()]):
        recorder.enter(tensor)
    with outside.copied(copier) as context, recorder, FunctionOverrides(recorder), settings_kept():
        output = context.run(clone, *args, **kwargs)
    recorder.leave(tensors_in(output))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the garbage collector, which would walk all that a long trace has recorded over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _empty(tensor: Tensor) -> Tensor:
    """Return a meta tensor like this one, but float32 if floating; a parameter requires a gradient."""
    dtype = _dtype(tensor)
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=dtype.is_floating_point or dtype.is_complex)
    return empty


def _constant(tensor: Tensor) -> Tensor:
    """Return a copy in the tensor's own type of what is no parameter, unless it is large or has no data."""
    whole = tensor.layout is torch.strided and not hasattr(tensor, "full_tensor")
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or not whole or tensor.numel() > LARGE:
        return _empty(tensor)
    return tensor.detach().to("cpu", copy=True)


def copy_with_data(tensor: Tensor) -> Tensor:
    """Return a copy like :func:`_empty`, with data; what has none becomes zeros."""
    dtype = _dtype(tensor)
    if tensor.device.type == "meta":
        data = torch.zeros(tensor.shape, dtype=dtype)
    else:
        data = tensor.detach()
        data = data.to("cpu", dtype, copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=dtype.is_floating_point or dtype.is_complex)
    return data
