"""The verdict on a planned network, and what becomes of the plan without trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from torch_geninit.generators.entry import Route
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.planning.measure import measure
from torch_geninit.planning.options import Untrusted
from torch_geninit.planning.plan import Plan
from torch_geninit.planning.trial import Trial
from torch_geninit.planning.trust import Verdict, judge


def with_verdict(
    plan: Plan,
    model: nn.Module,
    refs: Sequence[ParameterRef],
    example_inputs: Any = None,
    untrusted: Untrusted = "keep",
) -> Plan:
    """Judge ``plan``; without trust everything that would be generated is skipped, unless asked for."""
    if not plan.generated:
        return plan
    verdict = by_layers(plan)
    trial = Trial(plan, plan.pretrained, plan.source, plan.parameters, example_inputs)
    # A cheap look at the graph rules out before anything runs.
    if verdict.trusted and not plan.pretrained.taken_on_trust:
        found = measure(trial, model, refs)
        if isinstance(found, str):
            verdict = Verdict(True, f"unmeasured, judged by its layers alone: {found}")
        else:
            verdict = judge(found)
            plan = replace(plan, trial=trial if plan.method == "noise_ghn" else None)
    if verdict.trusted or untrusted == "generate":
        return replace(plan, verdict=verdict)
    entries = tuple(
        replace(entry, route=Route.SKIPPED, reason=f"not trusted: {verdict.reason}")
        if entry.route in (Route.GENERATED, Route.TIED)
        else entry
        for entry in plan.entries
    )
    return replace(plan, entries=entries, verdict=verdict)


def by_layers(plan: Plan) -> Verdict:
    """Trust a network if every matrix that is to be filled can be: one random one spoils all others."""
    refused = [e for e in plan.entries if e.route is Route.SKIPPED and len(e.shape) > 1]
    if plan.pretrained.taken_on_trust:
        return Verdict(True, plan.pretrained.taken_on_trust)
    if not refused:
        return Verdict(True, "all of its layers can be generated")
    first, several = refused[0], "s" if len(refused) > 1 else ""
    return Verdict(
        False, f"{len(refused)} layer{several} can't be generated, the first is {first.name} ({first.reason})"
    )
