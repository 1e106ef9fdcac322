"""A plan as text for the terminal and as HTML for notebooks."""

from __future__ import annotations

import html as markup
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_geninit.generators.entry import Entry
    from torch_geninit.planning.plan import Plan

HEADER = ("parameter", "shape", "route", "He std", "source or reason")
WIDEST = 70
"""Longest reason in a row; the verdict is spelt out below the table, and entries have it all."""


def text(plan: Plan) -> str:
    """Align the columns; the last line sums up."""
    rows = [HEADER, *(_row(plan, entry) for entry in plan.entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_summary(plan)])


def html(plan: Plan) -> str:
    """The same as a table element, everything escaped."""
    head = "".join(f"<th>{cell}</th>" for cell in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{markup.escape(cell)}</td>" for cell in _row(plan, entry)) + "</tr>"
        for entry in plan.entries
    )
    notes = "<br>".join(markup.escape(line) for line in _summary(plan))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{notes}</p>"


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
    for route in type(plan.entries[0].route) if plan.entries else ():
        chosen = [entry for entry in plan.entries if entry.route is route]
        numbers = sum(math.prod(entry.shape) for entry in chosen if entry.tied_to is None)
        if chosen:
            parts.append(f"{len(chosen)} {route.value} ({numbers:,} numbers)")
    lines = [f"{plan.method}_ on {plan.model}: {', '.join(parts) or 'no parameters'}"]
    if plan.verdict is not None:
        trusted = "trusted" if plan.verdict.trusted else "not trusted"
        lines.append(f"{plan.source}: {trusted}, {plan.verdict.reason}")
    return lines
