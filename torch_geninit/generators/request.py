"""What a generator is asked, and what it answers about a network: all that passes between it and a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch_geninit._utils.tables import Table
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.graph.architecture import Architecture

FAR = 10.0
"""Standard deviations from which a distance tells no more than that it is large."""


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


class Expectation(NamedTuple):
    """What to expect of generated weights before any training.

    Attributes:
        accuracy: expected share of test images classified correctly, BatchNorm calibrated.
        low, high: ends of the 90 % interval.
        distance: to the nearest of the networks that were measured, in standard deviations among these.
        nearest: names of the nearest ones, nearest first.
        images: what accuracy is measured on.
        from_training: distance of the graph from the networks of training, 0 inside them, as in a plan's
            verdict; not a number where a description alone was asked about.
        caveat: why the model itself will not start like that, empty where it will: it is kept, for lack
            of trust, or its classifier, or it reads other images.
        source: the generator that was asked.
    """

    accuracy: float
    low: float
    high: float
    distance: float
    nearest: tuple[str, ...]
    images: str
    from_training: float = math.nan
    caveat: str = ""
    source: str = ""

    def __str__(self) -> str:
        by = f" by {self.source}" if self.source else ""
        return (
            f"{self._condition}{100 * self.accuracy:.0f} % ({self._interval}) on {self.images} before "
            f"training{by}; distance from the training networks {self.from_training:.2f}; nearest "
            f"measured network: {self.nearest[0]}, {self._away} away"
        )

    @property
    def _condition(self) -> str:
        return f"{self.caveat}. If it were otherwise: " if self.caveat else ""

    @property
    def _interval(self) -> str:
        return f"{100 * self.low:.0f} to {100 * self.high:.0f} %"

    @property
    def _away(self) -> str:
        return f"{self.distance:.2f} standard deviations" if self.distance < FAR else "far"

    def _repr_html_(self) -> str:
        rows = [
            ("accuracy before training", f"{100 * self.accuracy:.0f} %"),
            ("90 % interval", self._interval),
            ("images", self.images),
            ("generator", self.source or "not named"),
            ("distance from the training networks", f"{self.from_training:.2f}"),
            ("nearest measured network", f"{self.nearest[0]}, {self._away} away"),
        ]
        above = [self._condition.strip()] if self.caveat else []
        return Table(("what to expect", ""), rows, above=above)._repr_html_()


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of a network, and which of them a generator is asked for; no values, no modules.

    Attributes:
        entries: one for each name in ``named_parameters(remove_duplicate=False)``.
        architecture: the graph that a hypernetwork reads; None where layers are filled one by one, or where
            there is nothing to fill.
        verdict: whether the generator's prediction is to be trusted; None where it was not asked.
    """

    entries: tuple[Entry, ...]
    architecture: Architecture | None = field(default=None, repr=False)
    verdict: Verdict | None = None

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

    @cached_property
    def readings(self) -> dict[str, Any]:
        """What a generator has read off the network, kept from one prediction to the next."""
        return {}

    def _with(self, route: Route) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.route is route)
