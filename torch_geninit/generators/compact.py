"""Compact predictions: what it takes to write a parameter, long before it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, prod

import torch
from torch import Tensor

from torch_geninit.generators.rng import noise_stream
from torch_geninit.graph.architecture import Shape

STAGED_ELEMENTS = 1 << 22
"""Values expanded at a time for a parameter of another dtype or device: 16 MiB."""

GATHERED_ELEMENTS = 1 << 20
"""Values gathered at a time for a shard that is not a run of whole rows."""


class Compact(ABC):
    """Prediction of one parameter, small until it is written.

    Checks ask :meth:`finite` and :meth:`bound` before anything is written; then :meth:`write_to` or, for a
    shard that is not a run of rows, :meth:`write_at` expands it. A subclass overrides ``_expand`` and
    ``_expand_at``, which give the same values bit for bit: ranks of a sharded model use either.

    Attributes:
        shape: of the parameter.
        name: canonical parameter name, which seeds what is random.
    """

    shape: Shape
    name: str

    @property
    def extents(self) -> Shape:
        """Extents of what is stored; every dimension but the first two has the parameter's own."""
        return self.shape

    @abstractmethod
    def finite(self) -> bool:
        """Return whether all values will be finite; an override answers without expanding them."""

    @abstractmethod
    def bound(self) -> float:
        """Return a bound on the values' magnitude, which tells whether a narrower dtype can hold them."""

    @torch.no_grad()
    def write_to(self, out: Tensor, start: int = 0) -> None:
        """Expand rows ``start : start + len(out)`` of the parameter into ``out``, of any dtype or device.

        Args:
            out: (rows, *shape[1:]), any strides.
            start: the first row.
        """
        self._expand(out, start)

    @torch.no_grad()
    def write_at(self, indices: Sequence[Tensor], out: Tensor) -> None:
        """Expand the values at ``indices`` into ``out``, of any dtype or device.

        Args:
            indices: a vector of positions for each dimension of the parameter.
            out: (len(indices[0]), len(indices[1]), ...).
        """
        self._expand_at(indices, out)

    @abstractmethod
    def _expand(self, out: Tensor, start: int) -> None:
        """Do what :meth:`write_to` says, with autograd off."""

    @abstractmethod
    def _expand_at(self, indices: Sequence[Tensor], out: Tensor) -> None:
        """Do what :meth:`write_at` says, with autograd off."""

    def expand(self) -> Tensor:
        """Return the whole parameter as a new float32 tensor."""
        full = torch.empty(self.shape)
        self.write_to(full)
        return full


def blocks_of_rows(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut rows of ``size`` values into blocks of at most :data:`GATHERED_ELEMENTS`, or a row."""
    step = max(1, GATHERED_ELEMENTS // max(1, size))
    return ((low, min(low + step, rows)) for low in range(0, rows, step))


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Cut positions into runs of consecutive rows: [3, 4, 7] gives (0, 2), (2, 3)."""
    cuts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]


def grid(indices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Lay each dimension's indices along its own axis, so that together they index a block."""
    return tuple(
        i.view([-1 if axis == own else 1 for axis in range(len(indices))]) for own, i in enumerate(indices)
    )


@dataclass(frozen=True)
class Tile(Compact):
    """A block of values and the rule that repeats it over a parameter.

    With tile extents (R, C, ...) the parameter is::

        W[o, i, s] = scale * values[o mod R, i mod C, s] * m[o // R, i, s]

    where m is 1 in the first block row and 1 + amplitude * n elsewhere, n ~ N(0, 1) from the parameter's own
    stream (one draw for all rows of a block, so that it costs nothing to speak of): repeating a block would
    give equal filters, and gradient descent could never tell them apart. A weight that packs several matrices
    along its rows has a tile for each, one below the other, and the law holds in each section.

    Attributes:
        values: float32 CPU tensor with as many dimensions as the parameter; every dimension but the first two
            has the parameter's own extent.
        shape: of the parameter.
        scale: factor on all values.
        amplitude: of the symmetry-breaking modulation; 0 repeats exactly.
        name: canonical parameter name, which seeds the modulation.
        sections: matrices packed into the parameter.
        mirrored: whether the modulation goes backwards along the last axis, as the values already do.
    """

    values: Tensor
    shape: Shape
    scale: float = 1.0
    amplitude: float = 0.0
    name: str = ""
    sections: int = 1
    mirrored: bool = False

    @property
    def extents(self) -> Shape:
        """Extents (R, C, ...) of the tile."""
        return tuple(self.values.shape)

    def mirror(self) -> Tile:
        """Return the tile of the same parameter with its last axis reversed."""
        return replace(self, values=self.values.flip(-1), mirrored=not self.mirrored)

    def finite(self) -> bool:
        """Return whether the tile, its scale and its modulation are finite."""
        if not (isfinite(self.scale) and isfinite(self.amplitude)):
            return False
        # A finite sum proves finite terms and costs a twentieth of looking at each; an overflow does not.
        return bool(torch.isfinite(self.values.sum())) or bool(torch.isfinite(self.values).all())

    def bound(self) -> float:
        """Return a bound on the magnitude, six standard deviations of the modulation included."""
        if not self.values.numel():
            return 0.0
        # Six standard deviations of the modulation that tells repeated blocks apart.
        return float(self.values.abs().max()) * abs(self.scale) * (1 + 6 * abs(self.amplitude))

    def repeat(self) -> Tensor:
        """Return the whole parameter without its modulation and scale, differentiably."""
        whole = torch.unflatten(self.values, 0, (self.sections, -1)) if self.shape else self.values
        extents = (self.shape[0] // self.sections, *self.shape[1:2]) if self.shape else ()
        for dim, extent in enumerate(extents, start=1):
            if whole.shape[dim] < extent:
                times = ceil(extent / whole.shape[dim])
                whole = torch.cat([whole] * times, dim).narrow(dim, 0, extent)
        return whole.reshape(self.shape)

    def _expand(self, out: Tensor, start: int) -> None:
        if not self.shape:
            out.copy_(self.values * self.scale)
        elif out.dtype == torch.float32 and out.device.type == "cpu":
            self._fill(out, start)
        else:
            rows = max(1, STAGED_ELEMENTS // max(1, prod(self.shape[1:])))
            for low in range(0, len(out), rows):
                target = out[low : low + rows]
                staged = torch.empty(target.shape)
                self._fill(staged, start + low)
                target.copy_(staged)

    def _expand_at(self, indices: Sequence[Tensor], out: Tensor) -> None:
        modulation = self._modulation()
        height, rows = self.shape[0] // self.sections, self.values.shape[0] // self.sections
        for low, high in blocks_of_rows(len(out), out[0].numel()):
            row, *rest = grid([indices[0][low:high], *indices[1:]])
            section, row = row // height, row % height
            source = (section * rows + row % rows, *rest)
            part = self.values[tuple(i % n for i, n in zip(source, self.values.shape, strict=True))]
            part = part * self.scale
            if modulation is not None:
                part *= modulation[(section, row // rows, *rest)]
            out[low:high].copy_(part)

    def _fill(self, out: Tensor, start: int) -> None:
        values = self.values if self.scale == 1.0 else self.values * self.scale
        if values.shape == self.shape:
            out.copy_(values[start : start + len(out)])
            return
        modulation = self._modulation()
        rows = values.shape[0] // self.sections
        height = self.shape[0] // self.sections
        for section in range(start // height, ceil((start + len(out)) / height)):
            top = section * height
            low, high = max(start, top), min(start + len(out), top + height)
            tile = values[section * rows : (section + 1) * rows]
            for first, last, r0, r1 in _spans(low - top, high - top, rows):
                begin = top + first * rows + r0 - start
                blocks, run = last - first, r1 - r0
                target = torch.unflatten(out[begin : begin + blocks * run], 0, (blocks, run))
                factors = None if modulation is None else modulation[section, first:last]
                _tile_columns(target, tile[r0:r1], factors)

    def _modulation(self) -> Tensor | None:
        """Factors (sections, block rows, columns, ...), None where all are 1."""
        if self.amplitude == 0 or len(self.shape) < 2:
            return None
        blocks = ceil(self.shape[0] / self.values.shape[0])
        if blocks == 1:
            return None
        stream = noise_stream(0, self.name)
        factors = torch.ones(self.sections, blocks, *self.shape[1:])
        drawn = torch.randn((self.sections, blocks - 1, *self.shape[1:]), generator=stream)
        factors[:, 1:] += self.amplitude * drawn
        return factors.flip(-1) if self.mirrored else factors


def _spans(low: int, high: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut rows low:high into runs of whole blocks and parts of one: (first block, last, row, end row)."""
    while low < high:
        block, row = divmod(low, rows)
        if row == 0 and high - low >= rows:
            count = (high - low) // rows
            yield block, block + count, 0, rows
            low += count * rows
        else:
            end = min(rows, row + high - low)
            yield block, block + 1, row, end
            low += end - row


def _tile_columns(target: Tensor, tile: Tensor, factors: Tensor | None) -> None:
    """Fill (blocks, rows, columns, ...) with the tile (rows, columns, ...) times (blocks, columns, ...)."""
    if tile.ndim == 1:
        target.copy_(tile)
        return
    width, columns = target.shape[2], tile.shape[1]
    whole = width // columns * columns
    for first, last, times in ((0, whole, whole // columns), (whole, width, 1)):
        if first == last:
            continue
        part = torch.unflatten(target[:, :, first:last], 2, (times, -1))
        block = tile[:, None, : part.shape[3]]
        if factors is None:
            part.copy_(block)
        else:
            scaled = torch.unflatten(factors[:, first:last], 1, (times, -1))[:, None]
            torch.mul(block, scaled, out=part)
