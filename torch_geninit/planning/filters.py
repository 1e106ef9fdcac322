"""What the user wants of each parameter: ``include=``, ``exclude=`` and frozen ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import NoReturn

from torch.nn.parameter import is_lazy

from torch_geninit._utils.near import did_you_mean
from torch_geninit.parameters.named import ParameterRef

Patterns = str | Iterable[str] | None

FROZEN = "frozen (requires_grad=False)"
NAMED = "named in include=, but "
"""Begins the reason of what is skipped although it was asked for."""


@dataclass(frozen=True)
class Filters:
    """Which parameters to keep and which were asked for.

    Attributes:
        kept: name -> why it is kept.
        asked: the names that each pattern of ``include=`` matched.
    """

    kept: Mapping[str, str]
    asked: tuple[frozenset[str], ...] = ()


def read_filters(refs: Sequence[ParameterRef], include: Patterns, exclude: Patterns) -> Filters:
    """Return what the user wants of the parameters in ``refs``.

    A parameter goes by all of its names: who excludes or freezes the one that is tied to it excludes or
    freezes it. The two parameters of a weight-normalised layer are one as well, since both are written or
    neither.

    Raises:
        TypeError, ValueError: if a pattern is none, or matches nothing.
    """
    groups = _groups(refs)
    asked = tuple(_matches(refs, include, "include")) if include is not None else ()
    included = frozenset().union(*asked) if include is not None else frozenset(groups)
    excluded = frozenset().union(*_matches(refs, exclude, "exclude")) if exclude is not None else frozenset()
    frozen = {ref.name for ref in refs if not ref.parameter.requires_grad}
    kept: dict[str, str] = {}
    for ref in refs:
        names = groups[ref.name]
        if ref.name in excluded:
            kept[ref.name] = "excluded"
        elif others := [name for name in names if name in excluded]:
            kept[ref.name] = f"excluded as {others[0]}"
        elif included.isdisjoint(names):
            kept[ref.name] = "not included"
        elif not ref.parameter.requires_grad:
            kept[ref.name] = FROZEN
        elif others := [name for name in names if name in frozen]:
            kept[ref.name] = f"frozen as {others[0]}"
        elif not is_lazy(ref.parameter) and ref.parameter.numel() == 0:
            kept[ref.name] = "has no elements"
    for ref in refs:
        if ref.norm is not None:
            reason = next((kept[name] for name in groups[ref.name] if name in kept), None)
            if reason is not None:
                kept.setdefault(ref.name, reason)
    return Filters(kept, asked)


def _groups(refs: Sequence[ParameterRef]) -> dict[str, list[str]]:
    """Return for every name those of the parameters that are written together with it, itself among them."""
    names = {id(ref.parameter): ref.first or ref.name for ref in reversed(refs)}
    members: dict[str, list[str]] = {}
    for ref in refs:
        one = ref.parameter if ref.norm is None else ref.norm.v
        members.setdefault(names[id(one)], []).append(ref.name)
    return {name: group for group in members.values() for name in group}


def _matches(
    refs: Sequence[ParameterRef], patterns: str | Iterable[str], option: str
) -> list[frozenset[str]]:
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
    return [_named(refs, pattern) or _unmatched(refs, pattern, option) for pattern in wanted]


def _named(refs: Sequence[ParameterRef], pattern: str) -> frozenset[str]:
    """Return the names that ``pattern`` means: exactly that one, else what it matches as a glob pattern.

    A name may itself hold ``[ ] ? *``. In a pattern, brackets that match nothing as a set of characters are
    taken as they stand, so that ``a[0].*`` means the module ``a[0]``.
    """
    exact = {s.name for s in refs if s.name == pattern} or {s.name for s in refs if s.canonical == pattern}
    if exact:
        return frozenset(exact)
    for glob in (pattern, pattern.replace("[", "[[]")):
        names = {s.name for s in refs if any(fnmatchcase(name, glob) for name in (s.name, s.canonical))}
        if names:
            return frozenset(names)
    return frozenset()


def _unmatched(refs: Sequence[ParameterRef], pattern: str, option: str) -> NoReturn:
    known = ", ".join(ref.name for ref in refs[:3])
    module = any(name.startswith(f"{pattern}.") for s in refs for name in (s.name, s.canonical))
    near = did_you_mean(pattern, (ref.name for ref in refs))
    hint = f"It is a module; did you mean '{escape(pattern)}.*'? " if module else ""
    hint = hint or (f"{near[0].upper()}{near[1:]} " if near else "")
    raise ValueError(
        f"{option}: no parameter matches {pattern!r}. {hint}"
        "Expected a parameter name or a glob pattern as 'layer1.*'; "
        f"the first parameters are {known}"
    )
