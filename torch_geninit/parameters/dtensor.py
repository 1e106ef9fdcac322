"""Which part of a sharded parameter lives on this rank, from its placements alone, without communication."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Indices = tuple[Tensor, ...]
"""For each dimension, the indices of the whole tensor that this rank holds, in its order."""


def is_sharded(parameter: Tensor) -> bool:
    """Return whether ``parameter`` is a DTensor (FSDP2, tensor parallel)."""
    # An object of the class can exist only where its module, which costs half a second, was imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


def gathered(modules: Iterable[nn.Module]) -> frozenset[int]:
    """Return the ids of parameters that stand in for FSDP2's shards for the time of a step.

    Between a forward pass and its backward the root's parameters are whole copies (or shards over fewer
    ranks) that are thrown away: what is written there is lost.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    found: set[int] = set()
    for module in modules if fsdp is not None else ():
        if not isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            continue
        state: Any = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for held in (held for group in groups if group is not None for held in group.fsdp_params):
            if held.sharded_state.name != "SHARDED":
                place = held._module_info
                found.add(id(getattr(place.module, place.param_name)))
    return frozenset(found)


def local_indices(parameter: Any) -> Indices | None:
    """Return what this rank holds of a DTensor, or None if it is not part of the parameter's mesh.

    Placements apply in the order of the mesh dimensions, each to what the ones before left, and split like
    ``torch.chunk``. A placement with a ``split_factor`` (FSDP over tensor parallelism on one dimension) cuts
    into that many pieces first and takes its share of each.

    Raises:
        ValueError: for a placement that does not say which values belong here (a pending sum).
    """
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    indices = [torch.arange(extent) for extent in parameter.shape]
    for dim, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            continue
        split = getattr(placement, "split_factor", 1)
        axis = getattr(placement, "dim", None)
        if axis is None or placement.is_partial():
            raise ValueError(f"its placement {placement} does not say which values this rank holds")
        pieces = _chunks(indices[axis], split)
        indices[axis] = torch.cat([_chunks(p, mesh.size(dim))[coordinate[dim]] for p in pieces])
    return tuple(indices)


def _chunks(indices: Tensor, count: int) -> list[Tensor]:
    """Cut into exactly ``count`` pieces as torch.chunk does, the last ones empty if need be."""
    size = -(-len(indices) // count) if len(indices) else 0
    return [indices[i * size : (i + 1) * size] for i in range(count)]


def take_part(whole: Tensor, indices: Sequence[Tensor], out: Tensor) -> None:
    """Copy the part of ``whole`` at ``indices`` into ``out``."""
    for axis, chosen in enumerate(indices):
        if len(chosen) != whole.shape[axis]:
            whole = whole.index_select(axis, chosen)
    out.copy_(whole)
