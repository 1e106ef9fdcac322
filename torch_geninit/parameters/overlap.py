"""Which tensors of a model overlap in memory: writing one would change the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_geninit._utils.modules import named_buffers
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.parameters.dtensor import is_sharded
from torch_geninit.parameters.named import ParameterRef

LARGEST_MAP = 2**28
"""Places in memory that are compared one by one, at most."""


class Overlap(NamedTuple):
    """Two tensors that share memory.

    Attributes:
        inner, outer: their names.
        inside: whether all of the memory of ``inner`` belongs to ``outer``.
    """

    inner: str
    outer: str
    inside: bool


def shared_memory(module: nn.Module, refs: Iterable[ParameterRef]) -> list[Overlap]:
    """Return the overlaps of the parameters of ``module`` with each other and with buffers.

    Tied parameters, which hold exactly the same memory, are one, under the name of the first.
    """
    buffers = dict(named_buffers(module))
    named = [(ref.name, ref.parameter) for ref in refs if ref.first is None]
    overlaps = find_overlaps([*named, *buffers.items()])
    return [o for o in overlaps if not (o.inner in buffers and o.outer in buffers)]


def follows(entry: Entry | None, outer: str) -> bool:
    """Whether the parameter of ``entry`` lies inside of ``outer``, and is planned to change with it."""
    return entry is not None and entry.route is Route.KEPT and entry.tied_to == outer


def find_overlaps(tensors: Iterable[tuple[str, Tensor]]) -> list[Overlap]:
    """Return the pairs of ``tensors`` that share memory, by their storage and the places they take in it.

    Two views that lie between each other, as the even and the odd columns of a matrix, share none. What has
    no memory that can be compared (lazy, sparse, subclasses that only look like tensors) overlaps nothing.
    """
    tensors = list(tensors)
    if _far_apart(tensor for _, tensor in tensors):
        return []
    places = sorted((p for name, t in tensors if (p := _place(name, t)) is not None), key=lambda p: p.start)
    overlaps: list[Overlap] = []
    reaching: dict[Hashable, list[_Place]] = {}
    for place in places:
        earlier = [other for other in reaching.get(place.space, ()) if other.end > place.start]
        overlaps += [found for other in earlier if (found := _compare(other, place)) is not None]
        reaching[place.space] = [*earlier, place]
    return overlaps


def _far_apart(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are plain ones, each in a stretch of memory of its own, as nearly always."""
    stretches = []
    for tensor in tensors:
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            return False
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        if not (tensor.is_contiguous() or channels_last):
            return False
        start = tensor.data_ptr()
        stretches.append((start, start + tensor.nbytes))
    stretches.sort()
    return all(end <= start for (_, end), (start, _) in pairwise(stretches))


@dataclass(frozen=True)
class _Place:
    """Where the elements of a tensor lie, in bytes from the beginning of an address space."""

    name: str
    space: Hashable
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @cached_property
    def end(self) -> int:
        return (
            self.start + 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        )

    @cached_property
    def size(self) -> int:
        """Bytes, those of an expanded tensor once."""
        size = 1
        for extent, stride in zip(self.shape, self.strides, strict=True):
            size *= extent if stride else 1
        return size

    @property
    def dense(self) -> bool:
        return self.size == self.end - self.start

    def on(self, base: int, span: int, unit: int) -> Tensor:
        """Return a map of memory from ``base`` on, a place for every ``unit`` bytes, with these marked."""
        marked = torch.zeros(span // unit, dtype=torch.bool, device="cpu")
        shape, strides = self.shape, self.strides
        if unit > 1:
            shape, strides = shape[:-1], tuple(stride // unit for stride in strides[:-1])
        marked.as_strided(shape, strides, (self.start - base) // unit).fill_(True)
        return marked


def _place(name: str, tensor: Tensor) -> _Place | None:
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return None
    if is_sharded(tensor):
        tensor = tensor._local_tensor  # type: ignore[attr-defined]
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or not tensor.numel():
        return None
    width = tensor.element_size()
    if tensor.is_meta:  # no address, but a storage
        space: Hashable = tensor.untyped_storage()._cdata
        start = int(tensor.storage_offset()) * width
    else:
        space, start = tensor.device, tensor.data_ptr()
        if not start:  # FSDP frees the memory of parameters that it gathered
            return None
    strides = (*(stride * width for stride in tensor.stride()), 1)
    return _Place(name, space, start, (*tensor.shape, width), strides)


def _compare(a: _Place, b: _Place) -> Overlap | None:
    inner, outer = (a, b) if a.size < b.size else (b, a)
    if a.dense and b.dense:
        return Overlap(inner.name, outer.name, outer.start <= inner.start and inner.end <= outer.end)
    base, end = min(a.start, b.start), max(a.end, b.end)
    width = a.shape[-1]
    unit = width if b.shape[-1] == width and (a.start - b.start) % width == 0 else 1
    if (end - base) // unit > LARGEST_MAP:
        return Overlap(inner.name, outer.name, False)
    # The last element of a tensor of wider elements begins, but doesn't end, where the last byte is.
    span = end - base + unit
    shared = int((inner.on(base, span, unit) & outer.on(base, span, unit)).sum()) * unit
    return Overlap(inner.name, outer.name, shared == inner.size) if shared else None
