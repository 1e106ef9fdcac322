"""What every generator shares: its card, its compact predictions, its verdict on a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_geninit.graph.architecture import Architecture, Shape
    from torch_geninit.plan import Entry, Plan

ALGORITHM_VERSION = 1
"""Part of every noise seed: a change of the sampling algorithm changes this number too."""


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

    With tile extents (O, I, ...) the parameter is::

        W[o, i, s] = scale * values[o mod O, i mod I, s] * m[o // O, i, s]

    where m is 1 in the first block row and 1 + amplitude * n elsewhere, n ~ N(0, 1) from the parameter's own
    stream (one draw for all rows of a block, so that it costs nothing to speak of): repeating a block would
    give equal filters, and gradient descent could never tell them apart.

    Attributes:
        values: float32 CPU tensor with as many dimensions as the parameter; every dimension but the first two
            has the parameter's own extent.
        shape: shape of the parameter.
        scale: factor on all values.
        amplitude: of the symmetry-breaking modulation; 0 repeats exactly.
        name: canonical parameter name, which seeds the modulation.
    """

    values: Tensor
    shape: Shape
    scale: float = 1.0
    amplitude: float = 0.0
    name: str = ""

    def finite(self) -> bool:
        # A finite sum proves finite terms and costs a twentieth of looking at each; an overflow does not.
        return bool(torch.isfinite(self.values.sum())) or bool(torch.isfinite(self.values).all())

    def expand(self) -> Tensor:
        """Return the whole parameter as a new float32 tensor."""
        full = torch.empty(self.shape)
        self.write_to(full)
        return full

    @torch.no_grad()
    def write_to(self, out: Tensor, start: int = 0) -> None:
        """Expand rows ``start : start + len(out)`` of the parameter into ``out``, of any dtype or device."""
        if not self.shape:
            out.copy_(self.values * self.scale)
            return
        for target, block in self._blocks(start, start + out.shape[0]):
            out[target].copy_(block)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[Any, Tensor]]:
        rows = self.values.shape[0]
        modulation = self._modulation()
        values = self.values if self.scale == 1.0 else self.values * self.scale
        for p in range(start // rows, ceil(stop / rows)):
            low, high = max(start, p * rows), min(stop, (p + 1) * rows)
            block = values[low - p * rows : high - p * rows]
            if len(self.shape) == 1:
                yield slice(low - start, high - start), block
                continue
            columns = block.shape[1]
            for first in range(0, self.shape[1], columns):
                last = min(first + columns, self.shape[1])
                part = block[:, : last - first]
                if modulation is not None and p > 0:
                    part = part * modulation[p - 1, first:last]
                yield (slice(low - start, high - start), slice(first, last)), part

    def _modulation(self) -> Tensor | None:
        if self.amplitude == 0 or len(self.shape) < 2:
            return None
        blocks = ceil(self.shape[0] / self.values.shape[0])
        if blocks == 1:
            return None
        stream = noise_stream(0, self.name)
        return 1 + self.amplitude * torch.randn((blocks - 1, *self.shape[1:]), generator=stream)


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

    def predict(self, plan: Plan, *, seed: int | None = None, noise_scale: float = 1.0) -> dict[str, Tile]:
        """Return a tile for every entry of ``plan`` that is to be generated."""
        raise NotImplementedError
