"""Who fills each parameter of a model, or why nobody does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parameter import is_lazy

from torch_geninit._utils.determinism import fixed
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Entry, Layer, Route
from torch_geninit.graph.architecture import Architecture, ParameterUse
from torch_geninit.graph.queries import head_nodes
from torch_geninit.parameters.named import Slot, canonical, canonical_module, survey
from torch_geninit.planning.convolutions import CONVOLUTIONS, convolutions, may_be_one
from torch_geninit.planning.filters import NAMED, Patterns, Wishes, read_wishes
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.shared_memory import keep_apart

Head = Literal["auto", "keep", "generate"]
Untrusted = Literal["keep", "generate"]

OTHER_LAYER = "vae_ draws the weights of torch.nn's convolutions only"
OTHER_HEAD = "head of other size"
OTHER_GRAPH = "the graph that was passed doesn't have it: not reached, or of another model"

TELLING: dict[str, tuple[type[nn.Module], ...]] = {
    **CONVOLUTIONS,
    "batch_norm": (nn.modules.batchnorm._BatchNorm,),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
}
"""Primitives that tell which of torch's layers they came from; a linear one may come from anywhere."""


def plan_layers(
    module: nn.Module,
    pretrained: WeightGenerator,
    source: str,
    *,
    name: str = "",
    include: Patterns = None,
    exclude: Patterns = None,
) -> Plan:
    """Plan for a generator that fills convolutions one by one."""
    slots = survey(module, name)
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
        entries = _skip_kept(entries, rules)
    entries = keep_apart(entries, slots, module)
    plan = Plan(
        entries=tuple(entries),
        method="vae",
        model=type(module).__name__,
        source=source,
        pretrained=pretrained,
        modules=_modules(module, name),
    )
    return _skip_included_in_vain(_judged(plan), wishes)


def plan_graph(
    model: nn.Module,
    method: Method,
    pretrained: WeightGenerator,
    source: str,
    *,
    example_inputs: Any = None,
    graph: Architecture | None = None,
    head: Head = "auto",
    untrusted: Untrusted = "keep",
    include: Patterns = None,
    exclude: Patterns = None,
) -> Plan:
    """Plan for a generator that reads the graph of a model."""
    if head not in ("auto", "keep", "generate"):
        raise ValueError(f"head: expected 'auto', 'keep' or 'generate', got {head!r}")
    if untrusted not in ("keep", "generate"):
        raise ValueError(f"untrusted: expected 'keep' or 'generate', got {untrusted!r}")
    slots = survey(model)
    wishes = read_wishes(slots, include, exclude)
    rules = wishes.kept
    unread = pretrained.unread if graph is None else OTHER_GRAPH
    if graph is None and any(slot.name not in rules for slot in slots):
        graph = pretrained.trace(model, example_inputs)
    if graph is not None:
        graph = _fit(graph, slots, type(model).__name__)
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
        entries = _skip_kept(entries, rules)
    entries = keep_apart(entries, slots, model)
    plan = Plan(
        entries=tuple(entries),
        architecture=graph,
        method=method,
        model=type(model).__name__,
        source=source,
        pretrained=pretrained,
        modules=_modules(model),
    )
    return _skip_included_in_vain(_judged(plan, untrusted), wishes)


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


def _skip_kept(entries: list[Entry], rules: Mapping[str, str]) -> list[Entry]:
    """Skip, and so warn about, what is kept by design: otherwise nothing would be done in silence."""
    return [
        replace(e, route=Route.SKIPPED) if e.route is Route.KEPT and e.name not in rules else e
        for e in entries
    ]


def _skip_included_in_vain(plan: Plan, wishes: Wishes) -> Plan:
    """Skip, and so warn about, what a pattern of include= asks for if nothing that it matches is filled."""
    kept = {entry.name for entry in plan.kept}
    in_vain = {name for names in wishes.asked if names <= kept for name in names}
    if not in_vain:
        return plan
    entries = tuple(
        replace(e, route=Route.SKIPPED, reason=f"{NAMED}{e.reason}") if e.name in in_vain else e
        for e in plan.entries
    )
    return replace(plan, entries=entries)


def _tied(entry: Entry, first: Entry) -> Entry:
    if first.route is Route.GENERATED:
        return replace(entry, route=Route.TIED, reason=f"tied to {first.name}")
    return replace(entry, route=first.route, reason=f"tied to {first.name}: {first.reason}")


def _judged(plan: Plan, untrusted: Untrusted = "keep") -> Plan:
    """Ask for the verdict; without trust everything that would be generated is skipped, unless asked for."""
    if not plan.generated:
        return plan
    with fixed():
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


def _modules(module: nn.Module, prefix: str = "") -> WeakKeyDictionary[nn.Module, str]:
    names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
    for name, part in module.named_modules():
        names[part] = canonical_module(".".join(filter(None, (prefix, name))))
    return names


def _fit(graph: Architecture, slots: Sequence[Slot], model: str) -> Architecture:
    """Check a graph against the model's parameters, and make it the graph that a generator reads.

    Parameters get the names they have now: a graph may be older than the model's wrappers (torch.compile,
    DDP, fully_shard), so canonical names decide. A weight-normalised layer looks like the layer itself.
    """
    own = {slot.name: slot for slot in slots}
    by_canonical: dict[str, Slot] = {}
    for slot in slots:
        by_canonical.setdefault(slot.canonical, own[slot.first or slot.name])
    read: dict[str, Slot] = {}
    for name, (index, use) in graph.uses.items():
        found = own.get(name) or by_canonical.get(canonical(name))
        if found is None:
            raise ValueError(
                f"the graph is not of this {model}: it reads {name!r}, a parameter that it doesn't have. "
                "Trace this model, or leave graph= out"
            )
        _compare(found, use, graph.nodes[index].op, model)
        read[name] = found
    if all(name == slot.name and slot.norm is None for name, slot in read.items()):
        return graph
    nodes = tuple(
        replace(
            node,
            parameters=tuple(
                replace(use, name=slot.name, role="weight" if slot.norm is not None else use.role)
                for use in node.parameters
                if not (slot := read[use.name]).derived
            ),
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _compare(slot: Slot, use: ParameterUse, op: str, model: str) -> None:
    shape = None if is_lazy(slot.parameter) else tuple(slot.parameter.shape)
    layer = type(slot.owner)
    if shape == use.shape and (op not in TELLING or isinstance(slot.owner, TELLING[op])):
        return
    torchs_own = layer.__module__.startswith("torch.nn.modules.")
    other = torchs_own and any(isinstance(slot.owner, kinds) for name, kinds in TELLING.items() if name != op)
    if shape == use.shape and not other:
        return
    raise ValueError(
        f"the graph is not of this {model}: parameter {slot.name!r} differs:\n"
        f"  expected: {tuple(use.shape)}, read by {op}\n"
        f"  got:      {shape}, of a {layer.__name__}\n"
        "Trace this model, or leave graph= out"
    )
