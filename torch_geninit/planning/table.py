"""A plan as a table: the summary and the verdict first, then its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_geninit._utils.tables import Table
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.generators.request import Request

HEADER = ("parameter", "shape", "route", "He std", "source or reason")
MOST_ROWS = 20
"""Of the table that a plan prints as; ``plan.table()`` has them all."""
WIDEST = 70
"""Longest reason in a row; the verdict is spelt out above the rows, and entries have it all."""


def full(plan: Request, title: str, source: str, said: Sequence[str] = ()) -> Table:
    """Lay out every parameter of the plan, below what is ``said`` of all of it."""
    return Table(
        HEADER, [_row(entry, source) for entry in plan.entries], above=[_summary(plan, title), *said]
    )


def short(plan: Request, title: str, source: str, said: Sequence[str] = ()) -> Table:
    """Lay out the first parameters, and say how many more there are."""
    rows = [_row(entry, source) for entry in plan.entries[:MOST_ROWS]]
    more = len(plan.entries) - len(rows)
    below = [f"… {more} more: plan.table()"] if more else []
    return Table(HEADER, rows, above=[_summary(plan, title), *said], below=below)


def _row(entry: Entry, source: str) -> tuple[str, ...]:
    reason = entry.reason or source
    return (
        entry.name,
        "x".join(map(str, entry.shape)) or "scalar",
        entry.route.value,
        f"{math.sqrt(2 / entry.fan_in):.3g}" if entry.fan_in else "",
        reason if len(reason) <= WIDEST else reason[: WIDEST - 3] + "...",
    )


def _summary(plan: Request, title: str) -> str:
    parts = []
    for route in Route:
        chosen = [entry for entry in plan.entries if entry.route is route]
        numbers = sum(math.prod(entry.shape) for entry in chosen if entry.tied_to is None)
        if chosen:
            parts.append(f"{len(chosen)} {route.value} ({numbers:,} numbers)")
    return f"{title}: {', '.join(parts) or 'no parameters'}"
