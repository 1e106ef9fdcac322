"""A plan as a table: the summary and the verdict first, then its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch_geninit._utils.tables import Table
from torch_geninit.generators.entry import Route

if TYPE_CHECKING:
    from torch_geninit.generators.entry import Entry
    from torch_geninit.planning.plan import Plan

HEADER = ("parameter", "shape", "route", "He std", "source or reason")
MOST_ROWS = 20
"""Of the table that a plan prints as; ``plan.table()`` has them all."""
WIDEST = 70
"""Longest reason in a row; the verdict is spelt out above the rows, and entries have it all."""


def full(plan: Plan) -> Table:
    """Lay out every parameter of the plan."""
    return Table(HEADER, [_row(plan, entry) for entry in plan.entries], above=_summary(plan))


def short(plan: Plan) -> Table:
    """Lay out the first parameters, and say how many more there are."""
    rows = [_row(plan, entry) for entry in plan.entries[:MOST_ROWS]]
    more = len(plan.entries) - len(rows)
    below = [f"… {more} more: plan.table()"] if more else []
    return Table(HEADER, rows, above=_summary(plan), below=below)


def _row(plan: Plan, entry: Entry) -> tuple[str, ...]:
    reason = entry.reason or plan.source
    return (
        entry.name,
        "x".join(map(str, entry.shape)) or "scalar",
        entry.route.value,
        f"{math.sqrt(2 / entry.fan_in):.3g}" if entry.fan_in else "",
        reason if len(reason) <= WIDEST else reason[: WIDEST - 3] + "...",
    )


def _summary(plan: Plan) -> list[str]:
    parts = []
    for route in Route:
        chosen = [entry for entry in plan.entries if entry.route is route]
        numbers = sum(math.prod(entry.shape) for entry in chosen if entry.tied_to is None)
        if chosen:
            parts.append(f"{len(chosen)} {route.value} ({numbers:,} numbers)")
    lines = [f"{plan.method}_ on {plan.model}: {', '.join(parts) or 'no parameters'}"]
    if plan.verdict is not None:
        trusted = "trusted" if plan.verdict.trusted else "not trusted"
        lines.append(f"{plan.source}: {trusted}, {plan.verdict.reason}")
    return lines
