"""Which parameters of a live module a prediction goes to, and which it must not touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from torch_geninit.parameters import transformers
from torch_geninit.parameters.named import Slot

Key = tuple[str, str]
"""Canonical name and part of a parameter."""


@dataclass(frozen=True)
class Targets:
    """Parameters of a live module that a plan fills, and those it does not.

    Attributes:
        filled: name -> slot, and name of the prediction that fills it.
        left: not generated.
        loaded: would be filled, but hold what transformers loaded from a checkpoint.
        gathered: ids of parameters that FSDP will throw away.
        whole: whether the module is the whole planned model.
    """

    filled: Mapping[str, tuple[Slot, str]]
    left: Sequence[Slot]
    loaded: Sequence[Slot]
    gathered: frozenset[int]
    whole: bool

    def written(self) -> list[nn.Parameter]:
        """Every parameter that gets values."""
        return [parameter for slot, _ in self.filled.values() for parameter in _carriers(slot)]


def find_targets(
    slots: Sequence[Slot],
    sources: Mapping[Key, str],
    *,
    keep_loaded: bool,
    gathered: frozenset[int],
    whole: bool,
) -> Targets:
    """Sort ``slots`` by what happens to them; ``sources`` names the prediction of each that is generated.

    Raises:
        ValueError: if two share memory that the plan treats differently.
    """
    loaded = _loaded(slots) if keep_loaded else frozenset()
    planned: dict[str, tuple[Slot, str | None]] = {}
    for slot in slots:
        source = sources.get(slot.key)
        first, expected = planned.setdefault(slot.first or slot.name, (slot, source))
        if source != expected and first.name not in loaded:
            raise ValueError(
                f"parameters {first.name!r} and {slot.name!r} were tied after the plan was made: expected "
                "memory of their own, got the same. Plan again after changing a model"
            )
    filled = {name: source for name, (_, source) in planned.items() if source is not None}
    for name in loaded:
        filled.pop(name, None)
    taken = filled.keys() | loaded
    # In a part of a model it can't be seen that v belongs to another layer, too; the plan knows.
    alone = {id(s.norm.g) for s in slots if s.derived and s.norm is not None and s.key not in sources}
    slots = [replace(s, norm=None) if s.norm is not None and id(s.norm.g) in alone else s for s in slots]
    return Targets(
        {s.name: (s, filled[s.name]) for s in slots if s.name in filled and not s.derived},
        [s for s in slots if (s.first or s.name) not in taken],
        [s for s in slots if s.name in loaded and s.key in sources and not s.derived],
        gathered,
        whole,
    )


def _loaded(slots: Sequence[Slot]) -> frozenset[str]:
    """Name the first slots of parameters to keep; of the two under weight normalisation both or none."""
    return frozenset(s.first or s.name for s in slots if any(map(transformers.is_loaded, _carriers(s))))


def _carriers(slot: Slot) -> tuple[nn.Parameter, ...]:
    return (slot.parameter,) if slot.norm is None else (slot.norm.g, slot.norm.v)
