"""What every generator shares: its card, its compact predictions, its verdict on a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_geninit.generators.expectation import Expectation
    from torch_geninit.graph.architecture import Architecture, Shape
    from torch_geninit.plan import Entry, Plan

ALGORITHM_VERSION = 1
"""Part of every noise seed: a change of the sampling algorithm changes this number too."""


STAGED_ELEMENTS = 1 << 22
"""Values expanded at a time for a parameter of another dtype or device: 16 MiB."""


def noise_stream(seed: int, name: str) -> torch.Generator:
    """Return the CPU random generator that belongs to (seed, canonical parameter name, algorithm version).

    torch's CPU generator reads no more than 32 bits of a seed, hence a 32-bit blake2b.
    """
    text = f"{seed}\0{name}\0{ALGORITHM_VERSION}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Tile:
    """Compact prediction of one parameter: a block of values and the rule that expands it.

    With tile extents (R, C, ...) the parameter is::

        W[o, i, s] = scale * values[o mod R, i mod C, s] * m[o // R, i, s]

    where m is 1 in the first block row and 1 + amplitude * n elsewhere, n ~ N(0, 1) from the parameter's own
    stream (one draw for all rows of a block, so that it costs nothing to speak of): repeating a block would
    give equal filters, and gradient descent could never tell them apart. A weight that packs several matrices
    along its rows has a tile for each, one below the other, and the law holds in each section.

    Attributes:
        values: float32 CPU tensor with as many dimensions as the parameter; every dimension but the first two
            has the parameter's own extent.
        shape: shape of the parameter.
        scale: factor on all values.
        amplitude: of the symmetry-breaking modulation; 0 repeats exactly.
        name: canonical parameter name, which seeds the modulation.
        sections: matrices packed into the parameter.
    """

    values: Tensor
    shape: Shape
    scale: float = 1.0
    amplitude: float = 0.0
    name: str = ""
    sections: int = 1

    def finite(self) -> bool:
        # A finite sum proves finite terms and costs a twentieth of looking at each; an overflow does not.
        return bool(torch.isfinite(self.values.sum())) or bool(torch.isfinite(self.values).all())

    def expand(self) -> Tensor:
        """Return the whole parameter as a new float32 tensor."""
        full = torch.empty(self.shape)
        self.write_to(full)
        return full

    def repeat(self) -> Tensor:
        """Return the whole parameter without its modulation and scale, differentiably."""
        whole = torch.unflatten(self.values, 0, (self.sections, -1)) if self.shape else self.values
        extents = (self.shape[0] // self.sections, *self.shape[1:2]) if self.shape else ()
        for dim, extent in enumerate(extents, start=1):
            if whole.shape[dim] < extent:
                times = ceil(extent / whole.shape[dim])
                whole = torch.cat([whole] * times, dim).narrow(dim, 0, extent)
        return whole.reshape(self.shape)

    @torch.no_grad()
    def write_to(self, out: Tensor, start: int = 0) -> None:
        """Expand rows ``start : start + len(out)`` of the parameter into ``out``, of any dtype or device."""
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
        return factors


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


class Verdict(NamedTuple):
    """Whether a generator's prediction for a network is to be trusted.

    Attributes:
        trusted: False keeps the whole network as it is.
        distance: how far the network is from what the generator was trained on; 0 is inside.
        reason: one sentence for the warning.
    """

    trusted: bool
    distance: float
    reason: str


class WeightGenerator(nn.Module):
    """Base of the networks that make weights.

    A generator is built from its card's ``sizes``, reads a plan, and returns tiles; it never sees a module.
    """

    kind: ClassVar[str]
    unread: ClassVar[str] = "the forward pass doesn't reach it"
    """Why a parameter may be missing from the graph that :meth:`trace` returns."""

    def __init__(self, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.card = dict(card)

    def trace(self, model: nn.Module, example_inputs: Any = None) -> Architecture:
        """Read ``model`` as this generator was trained to see networks; the model itself is never called."""
        from torch_geninit.graph.trace import trace

        return trace(model, example_inputs)

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        """Say why this generator can't fill ``entry``, or None if it can."""
        raise NotImplementedError

    def verdict(self, plan: Plan) -> Verdict:
        """Judge the network of ``plan``, whose entries to generate are marked."""
        raise NotImplementedError

    def expectation(self, plan: Plan) -> Expectation | None:
        """Say what accuracy to expect before training; None if no networks were measured."""
        return None

    def predict(self, plan: Plan, *, seed: int | None = None, noise_scale: float = 1.0) -> dict[str, Tile]:
        """Return a tile for every entry of ``plan`` that is to be generated."""
        raise NotImplementedError
