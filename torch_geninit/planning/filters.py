"""What the user wants of each parameter: ``include=``, ``exclude=`` and frozen ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import NoReturn

from torch.nn.parameter import is_lazy

from torch_geninit.parameters.named import Slot

Patterns = str | Iterable[str] | None

FROZEN = "frozen (requires_grad=False)"
NAMED = "named in include=, but "
"""Begins the reason of what is skipped although it was asked for."""


@dataclass(frozen=True)
class Wishes:
    """Which parameters to keep and which were asked for.

    Attributes:
        kept: name -> why it is kept.
        asked: the names that each pattern of ``include=`` matched.
    """

    kept: Mapping[str, str]
    asked: tuple[frozenset[str], ...] = ()


def read_wishes(slots: Sequence[Slot], include: Patterns, exclude: Patterns) -> Wishes:
    """Return what the user wants of the parameters in ``slots``.

    A parameter goes by all of its names: who excludes or freezes the one that is tied to it excludes or
    freezes it. The two parameters of a weight-normalised layer are one as well, since both are written or
    neither.

    Raises:
        TypeError, ValueError: if a pattern is none, or matches nothing.
    """
    groups = _groups(slots)
    asked = tuple(_matches(slots, include, "include")) if include is not None else ()
    included = frozenset().union(*asked) if include is not None else frozenset(groups)
    excluded = frozenset().union(*_matches(slots, exclude, "exclude")) if exclude is not None else frozenset()
    frozen = {slot.name for slot in slots if not slot.parameter.requires_grad}
    kept: dict[str, str] = {}
    for slot in slots:
        names = groups[slot.name]
        if slot.name in excluded:
            kept[slot.name] = "excluded"
        elif others := [name for name in names if name in excluded]:
            kept[slot.name] = f"excluded as {others[0]}"
        elif included.isdisjoint(names):
            kept[slot.name] = "not included"
        elif not slot.parameter.requires_grad:
            kept[slot.name] = FROZEN
        elif others := [name for name in names if name in frozen]:
            kept[slot.name] = f"frozen as {others[0]}"
        elif not is_lazy(slot.parameter) and slot.parameter.numel() == 0:
            kept[slot.name] = "has no elements"
    for slot in slots:
        if slot.norm is not None:
            reason = next((kept[name] for name in groups[slot.name] if name in kept), None)
            if reason is not None:
                kept.setdefault(slot.name, reason)
    return Wishes(kept, asked)


def _groups(slots: Sequence[Slot]) -> dict[str, list[str]]:
    """Return for every name those of the parameters that are written together with it, itself among them."""
    names = {id(slot.parameter): slot.first or slot.name for slot in reversed(slots)}
    members: dict[str, list[str]] = {}
    for slot in slots:
        one = slot.parameter if slot.norm is None else slot.norm.v
        members.setdefault(names[id(one)], []).append(slot.name)
    return {name: group for group in members.values() for name in group}


def _matches(slots: Sequence[Slot], patterns: str | Iterable[str], option: str) -> list[frozenset[str]]:
    """Return the names that each pattern matches."""
    wanted = (
        list(patterns) if isinstance(patterns, Iterable) and not isinstance(patterns, str) else [patterns]
    )
    if not all(isinstance(pattern, str) for pattern in wanted):
        raise TypeError(
            f"{option}: expected a parameter name, a glob pattern or several, got {str(patterns)[:100]}"
        )
    if option == "include" and not wanted:
        raise ValueError("include: expected at least one parameter name or glob pattern, got none")
    return [_named(slots, pattern) or _unmatched(slots, pattern, option) for pattern in wanted]


def _named(slots: Sequence[Slot], pattern: str) -> frozenset[str]:
    """Return the names that ``pattern`` means: exactly that one, else what it matches as a glob pattern.

    A name may itself hold ``[ ] ? *``. In a pattern, brackets that match nothing as a set of characters are
    taken as they stand, so that ``a[0].*`` means the module ``a[0]``.
    """
    exact = {s.name for s in slots if s.name == pattern} or {s.name for s in slots if s.canonical == pattern}
    if exact:
        return frozenset(exact)
    for glob in (pattern, pattern.replace("[", "[[]")):
        names = {s.name for s in slots if any(fnmatchcase(name, glob) for name in (s.name, s.canonical))}
        if names:
            return frozenset(names)
    return frozenset()


def _unmatched(slots: Sequence[Slot], pattern: str, option: str) -> NoReturn:
    known = ", ".join(slot.name for slot in slots[:3])
    module = any(name.startswith(f"{pattern}.") for s in slots for name in (s.name, s.canonical))
    raise ValueError(
        f"{option}: no parameter matches {pattern!r}. "
        + (f"It is a module; did you mean '{escape(pattern)}.*'? " if module else "")
        + "Expected a parameter name or a glob pattern as 'layer1.*'; "
        f"the first parameters are {known}"
    )
