"""Who fills each parameter of a model, or why nobody does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Entry, Layer, Route
from torch_geninit.graph.queries import head_nodes
from torch_geninit.parameters.named import ModuleNames, Slot, survey
from torch_geninit.planning import align
from torch_geninit.planning.convolutions import convolutions, may_be_one
from torch_geninit.planning.filters import Patterns, read_wishes
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.shared_memory import keep_apart
from torch_geninit.planning.skipped import skip_all_kept, skip_included_in_vain
from torch_geninit.planning.verdict import ask_verdict

OTHER_LAYER = "vae_ draws the weights of torch.nn's convolutions only"
OTHER_HEAD = "head of other size"
OTHER_GRAPH = "the graph that was passed doesn't have it: not reached, or of another model"


def plan_model(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    options: PlanOptions,
    slots: Sequence[Slot],
) -> Plan:
    """Plan as ``method`` does; ``slots`` are the parameters of ``model``."""
    if method != "vae":
        return plan_graph(model, method, pretrained, source, options, slots)
    return plan_layers(
        model,
        pretrained,
        source,
        name=options.name,
        include=options.include,
        exclude=options.exclude,
        slots=slots,
    )


def plan_layers(
    module: nn.Module,
    pretrained: WeightGenerator,
    source: str,
    *,
    name: str = "",
    include: Patterns = None,
    exclude: Patterns = None,
    slots: Sequence[Slot] | None = None,
) -> Plan:
    """Plan for a generator that fills convolutions one by one; ``slots`` are the parameters of ``module``."""
    slots = survey(module, name) if slots is None else slots
    layers = convolutions(slots)
    wishes = read_wishes(slots, include, exclude)
    rules = wishes.kept

    def decide(slot: Slot) -> Decision:
        layer = layers.get(id(slot.owner))
        if layer is None or slot.attribute != "weight":
            why = may_be_one(slot)
            return Decision(Route.SKIPPED, why) if why is not None else Decision(Route.KEPT, OTHER_LAYER)
        return Decision(Route.GENERATED, role="weight", layer=layer)

    entries = _entries(slots, rules, decide, lambda entry: pretrained.refusal(entry, None))
    if not layers and not any(entry.route is Route.SKIPPED for entry in entries):
        entries = skip_all_kept(entries, rules)
    entries = keep_apart(entries, slots, module)
    plan = Plan(
        entries=tuple(entries),
        method="vae",
        model=type(module).__name__,
        source=source,
        pretrained=pretrained,
        modules=ModuleNames(module, name),
    )
    return skip_included_in_vain(ask_verdict(plan), wishes.asked)


def plan_graph(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    options: PlanOptions,
    slots: Sequence[Slot],
) -> Plan:
    """Plan for a generator that reads the graph of a model; ``slots`` are the parameters of ``model``."""
    wishes = read_wishes(slots, options.include, options.exclude)
    rules, graph, head = wishes.kept, options.graph, options.head
    unread = pretrained.unread if graph is None else OTHER_GRAPH
    if graph is None and any(slot.name not in rules for slot in slots):
        graph = pretrained.trace(model, options.example_inputs)
    if graph is not None:
        graph = align.fit(graph, slots, type(model).__name__)
    uses = graph.uses if graph is not None else {}
    classes = len(pretrained.card["classes"])
    heads = head_nodes(graph) if graph is not None else {}

    def decide(slot: Slot) -> Decision:
        if slot.name not in uses:
            return Decision(Route.SKIPPED, unread)
        index, use = uses[slot.name]
        if index in heads:
            if head == "keep":
                return Decision(Route.KEPT, "head, kept as asked", use.role, index)
            if heads[index] != classes and head == "generate":
                raise ValueError(
                    f"head='generate', but the head {slot.name!r} has another size than {source}:\n"
                    f"  expected: {classes} classes\n"
                    f"  got:      {heads[index]} outputs\n"
                    "Use head='auto' to keep it, or a generator for as many classes"
                )
            if heads[index] != classes:
                reason = f"{OTHER_HEAD}: {heads[index]} outputs, {source} has {classes} classes"
                return Decision(Route.KEPT, reason, use.role, index)
        return Decision(Route.GENERATED, role=use.role, node=index)

    entries = _entries(slots, rules, decide, lambda entry: pretrained.refusal(entry, graph))
    if head == "auto" and not rules and all(entry.route is Route.KEPT for entry in entries):
        entries = skip_all_kept(entries, rules)
    entries = keep_apart(entries, slots, model)
    plan = Plan(
        entries=tuple(entries),
        architecture=graph,
        method=method,
        model=type(model).__name__,
        source=source,
        pretrained=pretrained,
        modules=ModuleNames(model),
    )
    return skip_included_in_vain(ask_verdict(plan, options.untrusted), wishes.asked)


class Decision(NamedTuple):
    """What happens to a parameter, and what is known of it; one to generate may still be refused."""

    route: Route
    reason: str = ""
    role: str | None = None
    node: int | None = None
    layer: Layer | None = None


def _entries(
    slots: Sequence[Slot],
    rules: Mapping[str, str],
    decide: Callable[[Slot], Decision],
    refusal: Callable[[Entry], str | None],
) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for slot in slots:
        p = slot.parameter
        lazy = is_lazy(p)
        if slot.first is not None or slot.name in rules:
            decision = Decision(Route.KEPT, rules.get(slot.name, ""))
        elif lazy:
            raise ValueError(
                f"parameter {slot.name!r} is lazy and has no shape yet. Run the model once on example "
                "inputs first; nothing was changed"
            )
        elif slot.blocked:
            decision = Decision(Route.SKIPPED, slot.blocked)
        else:
            decision = Decision(Route.KEPT) if slot.derived else decide(slot)
        shape = () if lazy else tuple(p.shape)
        entry = Entry(
            name=slot.name,
            canonical=slot.canonical,
            shape=shape,
            dtype=str(p.dtype).removeprefix("torch."),
            route=decision.route,
            reason=decision.reason,
            role=decision.role,
            node=decision.node,
            layer=decision.layer,
            tied_to=slot.first,
            fan_in=0 if len(shape) < 2 or slot.derived else math.prod(shape[1:]),
            part=slot.part,
        )
        if slot.first is not None:
            entry = _tied(entry, entries[slot.first])
        elif entry.route is Route.GENERATED and (reason := refusal(entry)) is not None:
            entry = replace(entry, route=Route.SKIPPED, reason=reason)
        entries[slot.name] = entry
    for slot in slots:
        if slot.derived and slot.norm is not None and slot.name not in rules:
            carrier = next(s.name for s in slots if s.parameter is slot.norm.v)
            entries[slot.name] = replace(_tied(entries[slot.name], entries[carrier]), tied_to=carrier)
    return list(entries.values())


def _tied(entry: Entry, first: Entry) -> Entry:
    if first.route is Route.GENERATED:
        return replace(entry, route=Route.TIED, reason=f"tied to {first.name}")
    return replace(entry, route=first.route, reason=f"tied to {first.name}: {first.reason}")
