"""The verdict of a generator on a planned network, and what becomes of the plan without trust."""

from __future__ import annotations

from dataclasses import replace

from torch_geninit._utils.determinism import fixed
from torch_geninit.generators.entry import Route
from torch_geninit.planning.options import Untrusted
from torch_geninit.planning.plan import Plan


def ask_verdict(plan: Plan, untrusted: Untrusted = "keep") -> Plan:
    """Ask for the verdict; without trust everything that would be generated is skipped, unless asked for."""
    if not plan.generated:
        return plan
    with fixed(), plan.pretrained.unhooked():
        verdict = plan.pretrained.verdict(plan)
    if verdict.trusted or untrusted == "generate":
        return replace(plan, verdict=verdict)
    entries = tuple(
        replace(entry, route=Route.SKIPPED, reason=f"not trusted: {verdict.reason}")
        if entry.route in (Route.GENERATED, Route.TIED)
        else entry
        for entry in plan.entries
    )
    return replace(plan, entries=entries, verdict=verdict)
