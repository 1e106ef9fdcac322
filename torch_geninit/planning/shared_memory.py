"""What can't be filled because it shares memory with something that is to stay as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from torch_geninit.generators.entry import Entry, Route
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.parameters.overlap import Overlap, follows, shared_memory

FILLED = (Route.GENERATED, Route.TIED)


def keep_apart(entries: Sequence[Entry], refs: Sequence[ParameterRef], module: nn.Module) -> list[Entry]:
    """Skip what would change a buffer, or a parameter that is kept, through memory that they share.

    Of two views of the same memory that would both be filled, one that lies wholly inside the other is kept:
    it changes with it. If neither does, both are skipped.
    """
    overlaps = shared_memory(module, refs)
    found = {entry.name: entry for entry in entries}
    while (changed := _first_conflict(overlaps, found)) is not None:
        found.update((entry.name, entry) for entry in changed)
    return list(found.values())


def _first_conflict(overlaps: Iterable[Overlap], found: dict[str, Entry]) -> list[Entry] | None:
    """Return the entries of the first pair that can't stay as planned, with what becomes of them instead."""
    for inner, outer, inside in overlaps:
        filled = [name for name in (inner, outer) if name in found and found[name].route in FILLED]
        if not filled or (filled == [outer] and follows(found.get(inner), outer)):
            continue
        if len(filled) == 2 and inside and not found[inner].tied_to and not _dependents(found, inner):
            reason = f"part of the memory of {outer}, and changes with it"
            return [replace(found[inner], route=Route.KEPT, tied_to=outer, reason=reason)]
        changed = []
        for name in filled:
            other = outer if name == inner else inner
            reason = f"shares memory with {_described(other, found)}"
            carrier = found[name].tied_to or name
            changed += [
                replace(found[one], route=Route.SKIPPED, reason=reason)
                for one in (carrier, *_dependents(found, carrier))
            ]
        return changed
    return None


def _dependents(found: dict[str, Entry], carrier: str) -> list[str]:
    return [entry.name for entry in found.values() if entry.tied_to == carrier]


def _described(name: str, found: dict[str, Entry]) -> str:
    if name not in found:
        return f"the buffer {name}"
    entry = found[name]
    return f"{name}, in part" if entry.route in FILLED else f"{name} ({entry.reason})"
