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
from torch_geninit.parameters.named import ModuleNames, ParameterRef, list_parameters
from torch_geninit.planning import align
from torch_geninit.planning.convolutions import convolutions, may_be_one
from torch_geninit.planning.filters import Patterns, read_filters
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.shared_memory import keep_apart
from torch_geninit.planning.skipped import skip_all_kept, skip_included_in_vain
from torch_geninit.planning.verdict import with_verdict

OTHER_LAYER = "vae_ draws the weights of torch.nn's convolutions only"
OTHER_HEAD = "head of other size"
OTHER_GRAPH = "the graph that was passed doesn't have it: not reached, or of another model"


def plan_model(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> Plan:
    """Plan as ``method`` does; ``refs`` are the parameters of ``model``."""
    if method != "vae":
        return plan_graph(model, method, pretrained, source, options, refs)
    return plan_layers(
        model,
        pretrained,
        source,
        name=options.name,
        include=options.include,
        exclude=options.exclude,
        refs=refs,
    )


def plan_layers(
    module: nn.Module,
    pretrained: WeightGenerator,
    source: str,
    *,
    name: str = "",
    include: Patterns = None,
    exclude: Patterns = None,
    refs: Sequence[ParameterRef] | None = None,
) -> Plan:
    """Plan for a generator that fills convolutions one by one; ``refs`` are the parameters of ``module``."""
    refs = list_parameters(module, name) if refs is None else refs
    layers = convolutions(refs)
    filters = read_filters(refs, include, exclude)
    rules = filters.kept

    def decide(ref: ParameterRef) -> Decision:
        layer = layers.get(id(ref.owner))
        if layer is None or ref.attribute != "weight":
            why = may_be_one(ref)
            return Decision(Route.SKIPPED, why) if why is not None else Decision(Route.KEPT, OTHER_LAYER)
        return Decision(Route.GENERATED, role="weight", layer=layer)

    entries = _entries(refs, rules, decide, lambda entry: pretrained.refusal(entry, None))
    if not layers and not any(entry.route is Route.SKIPPED for entry in entries):
        entries = skip_all_kept(entries, rules)
    entries = keep_apart(entries, refs, module)
    plan = Plan(
        entries=tuple(entries),
        method="vae",
        model=type(module).__name__,
        source=source,
        pretrained=pretrained,
        modules=ModuleNames(module, name),
    )
    return skip_included_in_vain(with_verdict(plan, module, refs), filters.asked)


def plan_graph(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> Plan:
    """Plan for a generator that reads the graph of a model; ``refs`` are the parameters of ``model``."""
    draft, asked = draft_graph(model, method, pretrained, source, options, refs)
    plan = with_verdict(draft, model, refs, options.example_inputs, options.untrusted)
    return skip_included_in_vain(plan, asked)


def draft_graph(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> tuple[Plan, tuple[frozenset[str], ...]]:
    """Plan without a verdict, an outline will do; and return the names that each pattern asks for."""
    filters = read_filters(refs, options.include, options.exclude)
    rules, graph, head = filters.kept, options.graph, options.head
    passed = graph is not None and not options.traced
    unread = OTHER_GRAPH if passed else pretrained.unread
    if graph is None and any(ref.name not in rules for ref in refs):
        graph = pretrained.trace(model, options.example_inputs)
    if graph is not None:
        if passed:
            align.check(graph, refs, model, lambda: pretrained.trace(model, options.example_inputs))
        graph = align.fit(graph, refs)
    uses = graph.uses if graph is not None else {}
    classes = len(pretrained.config["classes"])
    heads = head_nodes(graph) if graph is not None else {}

    def decide(ref: ParameterRef) -> Decision:
        if ref.name not in uses:
            return Decision(Route.SKIPPED, unread)
        index, use = uses[ref.name]
        if index in heads:
            if head == "keep":
                return Decision(Route.KEPT, "head, kept as asked", use.role, index)
            if heads[index] != classes and head == "generate":
                raise ValueError(
                    f"head='generate', but the head {ref.name!r} has another size than {source}:\n"
                    f"  expected: {classes} classes\n"
                    f"  got:      {heads[index]} outputs\n"
                    "Use head='auto' to keep it, or a generator for as many classes"
                )
            if heads[index] != classes:
                reason = f"{OTHER_HEAD}: {heads[index]} outputs, {source} has {classes} classes"
                return Decision(Route.KEPT, reason, use.role, index)
        return Decision(Route.GENERATED, role=use.role, node=index)

    entries = _entries(refs, rules, decide, lambda entry: pretrained.refusal(entry, graph))
    if head == "auto" and not rules and all(entry.route is Route.KEPT for entry in entries):
        entries = skip_all_kept(entries, rules)
    entries = keep_apart(entries, refs, model)
    draft = Plan(
        entries=tuple(entries),
        architecture=graph,
        method=method,
        model=type(model).__name__,
        source=source,
        pretrained=pretrained,
        modules=ModuleNames(model),
    )
    return draft, filters.asked


class Decision(NamedTuple):
    """What happens to a parameter, and what is known of it; one to generate may still be refused."""

    route: Route
    reason: str = ""
    role: str | None = None
    node: int | None = None
    layer: Layer | None = None


def _entries(
    refs: Sequence[ParameterRef],
    rules: Mapping[str, str],
    decide: Callable[[ParameterRef], Decision],
    refusal: Callable[[Entry], str | None],
) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for ref in refs:
        p = ref.parameter
        lazy = is_lazy(p)
        if ref.first is not None or ref.name in rules:
            decision = Decision(Route.KEPT, rules.get(ref.name, ""))
        elif lazy:
            raise ValueError(
                f"parameter {ref.name!r} is lazy and has no shape yet. Run the model once on example "
                "inputs first; nothing was changed"
            )
        elif ref.blocked:
            decision = Decision(Route.SKIPPED, ref.blocked)
        else:
            decision = Decision(Route.KEPT) if ref.derived else decide(ref)
        shape = () if lazy else tuple(p.shape)
        entry = Entry(
            name=ref.name,
            canonical=ref.canonical,
            shape=shape,
            dtype=str(p.dtype).removeprefix("torch."),
            route=decision.route,
            reason=decision.reason,
            role=decision.role,
            node=decision.node,
            layer=decision.layer,
            tied_to=ref.first,
            fan_in=0 if len(shape) < 2 or ref.derived else math.prod(shape[1:]),
            part=ref.part,
        )
        if ref.first is not None:
            entry = _tied(entry, entries[ref.first])
        elif entry.route is Route.GENERATED and (reason := refusal(entry)) is not None:
            entry = replace(entry, route=Route.SKIPPED, reason=reason)
        entries[ref.name] = entry
    for ref in refs:
        if ref.derived and ref.norm is not None and ref.name not in rules:
            carrier = next(s.name for s in refs if s.parameter is ref.norm.v)
            entries[ref.name] = replace(_tied(entries[ref.name], entries[carrier]), tied_to=carrier)
    return list(entries.values())


def _tied(entry: Entry, first: Entry) -> Entry:
    if first.route is Route.GENERATED:
        return replace(entry, route=Route.TIED, reason=f"tied to {first.name}")
    return replace(entry, route=first.route, reason=f"tied to {first.name}: {first.reason}")
