"""What a generator is asked, and what it answers about a network: all that passes between it and a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch_geninit.generators.entry import Entry, Route
from torch_geninit.graph.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of a network, and which of them a generator is asked for; no values, no modules.

    Attributes:
        entries: one for each name in ``named_parameters(remove_duplicate=False)``.
        architecture: the graph that a hypernetwork reads; None where layers are filled one by one, or where
            there is nothing to fill.
        readings: what generators have read off the network, kept from one prediction to the next and shared
            by requests that were made from another with ``dataclasses.replace``. Each notes what it read.
    """

    entries: tuple[Entry, ...]
    architecture: Architecture | None = field(default=None, repr=False)
    readings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # They go by the identity of the generator's tensors, which no copy has.
        return {**self.__dict__, "readings": {}}

    @cached_property
    def generated(self) -> tuple[Entry, ...]:
        """Entries that the generator fills, in the order of the graph, not of registration.

        Generators decode many at once, and the last bits of a row of a product go by its position.
        """
        found = self._with(Route.GENERATED)
        return tuple(sorted(found, key=lambda e: (-1, "") if e.node is None else (e.node, e.canonical)))

    @cached_property
    def skipped(self) -> tuple[Entry, ...]:
        """Entries that stay as they are although nobody asked for that."""
        return self._with(Route.SKIPPED)

    @cached_property
    def kept(self) -> tuple[Entry, ...]:
        """Entries that stay as they are by design."""
        return self._with(Route.KEPT)

    def _with(self, route: Route) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.route is route)
