"""What every specification of a training network has in common, and how random ones are drawn."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import ClassVar, TypeVar

from torch import nn


class Specification(ABC):
    """A network, described well enough to build it; subclasses are frozen dataclasses.

    Attributes:
        family: what the field calls networks of this kind.
    """

    family: ClassVar[str]

    @property
    def digest(self) -> int:
        """32 bits of a hash of the specification, the same in every process."""
        return int.from_bytes(blake2b(repr(self).encode(), digest_size=4).digest(), "little")

    @property
    def reserved(self) -> bool:
        """Whether its shape is kept for evaluation: what generators are measured on is never trained."""
        return False

    def held_out(self) -> bool:
        """Whether training never sees this network: the reserved ones, and one in sixteen of all others."""
        return self.reserved or self.digest % 16 == 0

    @property
    def needs_full_size(self) -> bool:
        """Whether it is built for one image size, or leaves too little of smaller images."""
        return False

    @abstractmethod
    def build(self, classes: int, size: int) -> nn.Module:
        """Build the network for ``classes`` and square images of ``size`` pixels."""


S = TypeVar("S", bound=Specification)


def by_digest(specs: Iterable[S]) -> dict[str, S]:
    """Name networks for the files of their records, in hex; what people read is not unique."""
    return {f"{spec.digest:08x}": spec for spec in specs}


def seen(draw: Callable[[random.Random], S], r: random.Random) -> S:
    """Return the first of ``draw(r), draw(r), ...`` that training may see."""
    while (spec := draw(r)).held_out():
        pass
    return spec


def unseen(draw: Callable[[random.Random], S], r: random.Random) -> S:
    """Return the first of ``draw(r), draw(r), ...`` that training never sees."""
    while not (spec := draw(r)).held_out():
        pass
    return spec


def divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor`` that is at least 90 % of ``channels`` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
