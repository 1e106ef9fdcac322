"""Entry: one parameter in a plan, what happens to it and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch_geninit.graph.architecture import Shape


class Route(str, Enum):
    """What happens to a parameter."""

    GENERATED = "generated"
    TIED = "tied"
    """Shares the memory of one that is generated."""
    KEPT = "kept"
    """Left as it is by design: excluded, frozen, a head of another size, not what the method draws."""
    SKIPPED = "skipped"
    """Left as it is because unsupported, unreached or not to be trusted: these are warned about."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Layer:
    """A layer as generators see it that fill layers one by one.

    Attributes:
        op: primitive, as ``"conv"``.
        kernel_size: spatial extents of the kernel.
        depth: relative position among the layers of that kind, 0 the first and 1 the last in order of
            registration; 0.5 for a layer on its own.
        index: absolute position.
        groups: into which the input channels are parted.
    """

    op: str
    kernel_size: Shape
    depth: float
    index: int
    groups: int = 1


@dataclass(frozen=True)
class Entry:
    """One parameter in a plan.

    Attributes:
        name: as in the model's ``named_parameters``.
        canonical: the name without what wrappers add; it seeds the parameter's noise.
        shape: of the whole parameter, sharded or not.
        dtype: without ``torch.``.
        route: what happens to it.
        reason: why, in a few words.
        role: ``"weight"``, ``"bias"``, ... where known.
        node: index of the node of the architecture that reads it first.
        layer: for generators that fill layers one by one.
        tied_to: name of the first parameter with the same memory.
        fan_in: inputs to each unit, prod(shape[1:]); 0 for vectors and scalars.
        part: which parameter of several that its tensor is computed from (weight normalisation), else empty.
    """

    name: str
    canonical: str
    shape: Shape
    dtype: str
    route: Route
    reason: str
    role: str | None = None
    node: int | None = None
    layer: Layer | None = None
    tied_to: str | None = None
    fan_in: int = 0
    part: str = ""
