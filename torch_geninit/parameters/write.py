"""The only module that changes a parameter: checks first, then plain copies that nothing interrupts."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_geninit._utils import interrupts
from torch_geninit._utils.determinism import fixed
from torch_geninit._utils.tensors import is_fake, overlaps_itself
from torch_geninit.generators.compact import Compact, runs
from torch_geninit.parameters.dtensor import Indices, is_sharded, local_indices
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.parameters.reset import reset

WRITABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

GATHERED = (
    "a copy that FSDP gathered for a step and will throw away",
    "Call reshard() of the FSDP module that owns it",
)


@dataclass(frozen=True)
class Assignment:
    """A parameter of a live module and the prediction that fills it."""

    ref: ParameterRef
    compact: Compact


def check_writable(refs: Sequence[ParameterRef], gathered: Container[int] = ()) -> None:
    """Refuse parameters that hold no values, or not of a floating type that can be copied into.

    Args:
        refs: the parameters.
        gathered: ids of those that only stand in for a shard, as :func:`dtensor.gathered` finds them.

    Raises:
        ValueError: names the first of them, what was expected and what to do.
    """
    for ref in refs:
        problem = GATHERED if id(ref.parameter) in gathered else _unwritable(ref.parameter)
        if problem is not None:
            got, remedy = problem
            raise ValueError(
                f"parameter {ref.name!r} can't be written:\n"
                "  expected: a materialised float64, float32, float16 or bfloat16 tensor\n"
                f"  got:      {got}\n"
                f"{remedy}; nothing was changed"
            )


def _unwritable(p: Tensor) -> tuple[str, str] | None:
    outer = type(p).__name__
    exclude = "list its name in exclude="
    if is_lazy(p):
        return f"{outer}, a lazy parameter without shape", "Run the model once on example inputs first"
    if p.is_meta:
        return (
            f"a tensor of shape {tuple(p.shape)} on the meta device",
            "Materialise with model.to_empty(device=...) first; its other parameters and buffers are then "
            "to be reset too, as ghn_ does with unfilled='reset'",
        )
    if is_fake(p):
        return "a fake tensor, which has no values", "Build the model outside of FakeTensorMode"
    if p.is_quantized or p.dtype not in WRITABLE:
        return f"{p.dtype}", f"Initialise before converting the model, or {exclude}"
    if p.layout is not torch.strided:
        return f"layout {p.layout}", f"Initialise before converting the model, or {exclude}"
    if is_sharded(p):
        try:
            local_indices(p)
        except ValueError as error:
            return f"a DTensor: {error}", "Initialise before that placement"
        return _unwritable(_local(p))
    if type(p).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return (
            f"the tensor subclass {outer}, whose copy_ may do something else",
            f"Initialise before converting the model, or {exclude}",
        )
    if p.is_inference() and not torch.is_inference_mode_enabled():
        return (
            "an inference tensor outside inference mode",
            "Build the model outside torch.inference_mode()",
        )
    if overlaps_itself(p):
        return (
            f"an expanded view, whose elements share memory: shape {tuple(p.shape)}, strides {p.stride()}",
            "Make it a tensor of its own with .clone()",
        )
    return None


def check_prediction(compact: Compact, name: str, shape: Sequence[int]) -> None:
    """Check a prediction against its parameter; costs next to nothing, since predictions are compact.

    Raises:
        RuntimeError: the generator is broken: another shape, or values that are not finite.
    """
    extents = compact.extents
    fits = len(extents) == len(shape) and extents[2:] == tuple(shape[2:]) and 0 not in extents[:2]
    if tuple(compact.shape) != tuple(shape) or not (fits or 0 in shape):
        raise RuntimeError(
            f"the generator's prediction for {name!r} has another shape:\n"
            f"  expected: {tuple(shape)}\n"
            f"  got:      {tuple(compact.shape)} from a block of {extents}\n"
            "The generator is broken; nothing was changed"
        )
    if not compact.finite():
        raise RuntimeError(
            f"the generator's prediction for {name!r} holds values that are not finite: its file is "
            "damaged or was exported from a diverged run; nothing was changed"
        )


def _check_range(assignment: Assignment) -> None:
    if assignment.ref.parameter.dtype != torch.float16:
        return
    largest, limit = assignment.compact.bound(), torch.finfo(torch.float16).max
    if largest > limit:
        raise ValueError(
            f"the prediction for {assignment.ref.name!r} doesn't fit its float16:\n"
            f"  expected: at most {limit:.0f}\n"
            f"  got:      {largest:.3g}\n"
            "Initialise in float32 or bfloat16; nothing was changed"
        )


def write(
    assignments: Sequence[Assignment],
    resets: Sequence[nn.Module] = (),
    buffers: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """Reset ``resets``, then copy every prediction into its parameter, and each buffer's value, in place.

    A KeyboardInterrupt that arrives during the copies is raised after the last one.

    Raises:
        ValueError: before the first change, if a prediction doesn't fit, or a module can't be reset.
    """
    for assignment in assignments:
        _check_range(assignment)
    with interrupts.deferred():
        reset(resets)
        with fixed():
            jobs = [(a, _indices(a.ref.parameter)) for a in assignments]
            for assignment, indices in jobs:
                _copy(assignment, indices)
            for buffer, value in buffers:
                with torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(value)


def _copy(assignment: Assignment, indices: Indices | None) -> None:
    ref, compact = assignment.ref, assignment.compact
    target: Tensor = ref.parameter
    if ref.norm is not None:
        g, v = ref.norm.split(compact.expand())
        _plain(ref.norm.g).copy_(g)
        _plain(ref.norm.v).copy_(v)
    elif is_sharded(target):
        if indices is not None:
            write_part(compact, indices, _local(target))
    elif target.is_inference():
        with torch.inference_mode():
            compact.write_to(_plain(target))
    else:
        compact.write_to(_plain(target))


def _plain(parameter: Tensor) -> Tensor:
    """Return the same memory without its subclass, whose copy_ may raise when half a model is written."""
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.as_subclass(parameter, Tensor)


def _local(parameter: Tensor) -> Tensor:
    with torch.no_grad():
        local: Tensor = parameter.to_local()  # type: ignore[attr-defined]
    return local


def _indices(parameter: Tensor) -> Indices | None:
    return local_indices(parameter) if is_sharded(parameter) else None


def write_part(compact: Compact, indices: Sequence[Tensor], out: Tensor) -> None:
    """Expand the part of a prediction at ``indices`` into ``out``, and nothing else of the parameter."""
    if not out.numel():
        return
    if not compact.shape:
        compact.write_to(out)
        return
    rows, *others = indices
    whole = all(len(i) == extent for i, extent in zip(others, compact.shape[1:], strict=True))
    if whole and len(runs(rows.tolist())) == 1:
        compact.write_to(out, int(rows[0]))
    else:
        compact.write_at(indices, out)
