"""Which part of a sharded parameter lives on this rank, from its placements alone, without communication."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_geninit.generators.base import Tile

Indices = tuple[Tensor, ...]
"""For each dimension, the indices of the whole tensor that this rank holds, in its order."""

BUFFER = 1 << 20
"""Numbers expanded at a time where a shard is not a run of whole rows."""


def is_sharded(parameter: Tensor) -> bool:
    """Return whether ``parameter`` is a DTensor (FSDP2, tensor parallel)."""
    # An object of the class can exist only where its module, which costs half a second, was imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


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


def write_part(tile: Tile, indices: Sequence[Tensor], out: Tensor) -> None:
    """Expand the part of ``tile`` at ``indices`` into ``out``, never the whole parameter at once."""
    if not out.numel():
        return
    if not tile.shape:
        tile.write_to(out)
        return
    rows, *others = indices
    whole_rows = all(len(i) == extent for i, extent in zip(others, tile.shape[1:], strict=True))
    width = max(1, math.prod(tile.shape[1:]))
    for start, stop in _runs(rows.tolist()):
        first = int(rows[start])
        if whole_rows:
            tile.write_to(out[start:stop], first)
            continue
        step = max(1, BUFFER // width)
        for low in range(start, stop, step):
            high = min(low + step, stop)
            block = torch.empty((high - low, *tile.shape[1:]))
            tile.write_to(block, first + low - start)
            for axis, chosen in enumerate(others, start=1):
                if len(chosen) != block.shape[axis]:
                    block = block.index_select(axis, chosen)
            out[low:high].copy_(block)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Cut positions into runs of consecutive rows: [3, 4, 7] gives (0, 2), (2, 3)."""
    cuts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
