"""What a plan skips, so that it is warned about, although it would be kept by design."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from torch_geninit._utils.modules import named_modules
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.planning.filters import NAMED
from torch_geninit.planning.plan import Plan


def skip_all_kept(entries: Iterable[Entry], rules: Mapping[str, str]) -> list[Entry]:
    """Skip, and so warn about, what is kept by design: otherwise nothing would be done in silence.

    What ``rules`` keep, the user asked for.
    """
    return [
        replace(e, route=Route.SKIPPED) if e.route is Route.KEPT and e.name not in rules else e
        for e in entries
    ]


def skip_included_in_vain(plan: Plan, included: Iterable[frozenset[str]]) -> Plan:
    """Skip, and so warn about, what a pattern of ``include=`` asks for if nothing that it matches is filled.

    ``included`` are the names that each pattern matches.
    """
    kept = {entry.name for entry in plan.kept}
    in_vain = {name for names in included if names <= kept for name in names}
    if not in_vain:
        return plan
    entries = tuple(
        replace(e, route=Route.SKIPPED, reason=f"{NAMED}{e.reason}") if e.name in in_vain else e
        for e in plan.entries
    )
    return replace(plan, entries=entries)


def packed_layers(module: nn.Module, method: str) -> list[str]:
    """Name the quantised layers, whose weights are no parameters any more; for VAEs the convolutions."""
    found: list[str] = []
    for name, part in named_modules(module):
        kind = type(part)
        packed = kind.__module__.startswith("torch.ao.nn.") and ".quantized." in kind.__module__
        if packed and hasattr(kind, "from_float") and (method != "vae" or "Conv" in kind.__name__):
            found.append(name or kind.__name__)
    return found
