"""Which parameters of a live module a prediction goes to, and which it must not touch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from torch import nn

from torch_geninit.generators.entry import Entry, Route
from torch_geninit.parameters import transformers
from torch_geninit.parameters.dtensor import gathered
from torch_geninit.parameters.named import ModuleNames, Slot, survey
from torch_geninit.parameters.overlap import follows, shared_memory
from torch_geninit.parameters.write import check_writable

Key = tuple[str, str]
"""Canonical name and part of a parameter."""


@dataclass(frozen=True)
class Targets:
    """Parameters of a live module that a plan fills, and those it does not.

    Attributes:
        filled: name -> slot, and name of the prediction that fills it.
        left: not generated.
        loaded: would be filled, but hold what transformers loaded from a checkpoint.
        keeps_loaded: whether what transformers loaded is kept, as in its own initialisation pass.
        gathered: ids of parameters that FSDP will throw away.
        whole: whether the module is the whole planned model.
    """

    filled: Mapping[str, tuple[Slot, str]]
    left: Sequence[Slot]
    loaded: Sequence[Slot]
    keeps_loaded: bool
    gathered: frozenset[int]
    whole: bool

    def written(self) -> list[nn.Parameter]:
        """Every parameter that gets values."""
        return [parameter for slot, _ in self.filled.values() for parameter in _carriers(slot)]


@dataclass(frozen=True)
class PlannedParameters:
    """The parameters that a plan knows, to be found again: in the model, in a part of it, in its wrappings.

    Attributes:
        model: class name of the planned model.
        entries: one for each name in ``named_parameters(remove_duplicate=False)``.
        modules: where the modules of the planned model stand in it.
    """

    model: str
    entries: Sequence[Entry]
    modules: ModuleNames

    def match(self, module: nn.Module, prefix: str | None = None) -> Targets:
        """Find the parameters of ``module`` that are to be filled, and check that they can be written.

        It may be a part of the planned model, which may have changed since. What transformers loaded from a
        checkpoint is neither filled nor left.

        Raises:
            ValueError: if a parameter is not in the plan, differs from it, or can't be written.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
        if prefix is None:
            prefix = self.modules.prefix(module)
        slots = survey(module, prefix)
        unknown = [slot.name for slot in slots if slot.key not in self._by_key]
        if unknown:
            where = f" below {prefix!r}" if prefix else ""
            raise ValueError(
                f"{len(unknown)} parameters of {type(module).__name__}, first {unknown[0]!r}, are not in the "
                f"plan for {self.model}{where}. Plan for this model, or say with prefix= which part this is"
            )
        for slot in slots:
            entry = self._by_key[slot.key]
            if tuple(slot.parameter.shape) != entry.shape:
                raise ValueError(
                    f"parameter {slot.name!r} of {type(module).__name__} has another shape than planned:\n"
                    f"  expected: {entry.shape}\n"
                    f"  got:      {tuple(slot.parameter.shape)}\n"
                    "Plan again after changing a model"
                )
        targets = self._targets(module, slots, keep_loaded=True, whole=not prefix)
        frozen = [slot.name for slot, _ in targets.filled.values() if not slot.parameter.requires_grad]
        if frozen:
            raise ValueError(
                f"{len(frozen)} parameters of {type(module).__name__}, first {frozen[0]!r}, were frozen "
                "after the plan was made: expected requires_grad=True, got False. Plan again after changing "
                "a model"
            )
        written = {id(parameter) for parameter in targets.written()}
        self._refuse_new_overlaps(module, slots, written)
        _check_writable(slots, targets)
        return targets

    def of_planned(self, module: nn.Module, slots: Sequence[Slot]) -> Targets:
        """The same for the planned model itself, right after planning, from the parameters planned with.

        Nothing can have changed since. What transformers loaded is filled like the rest.
        """
        targets = self._targets(module, slots, keep_loaded=False, whole=True)
        _check_writable(slots, targets)
        return targets

    def _targets(
        self, module: nn.Module, slots: Sequence[Slot], *, keep_loaded: bool, whole: bool
    ) -> Targets:
        return find_targets(
            slots,
            self._sources,
            keep_loaded=keep_loaded,
            gathered=gathered(chain(module.modules(), self.modules)),
            whole=whole,
        )

    def _refuse_new_overlaps(self, module: nn.Module, slots: Sequence[Slot], written: Container[int]) -> None:
        entries = {slot.name: self._by_key[slot.key] for slot in slots}
        filled = {slot.name for slot in slots if id(slot.parameter) in written}
        for inner, outer, _ in shared_memory(module, slots):
            if not filled & {inner, outer}:
                continue
            if inner not in filled and outer in entries and follows(entries.get(inner), entries[outer].name):
                continue
            raise ValueError(
                f"{inner!r} and {outer!r} of {type(module).__name__} share memory, and writing to one would "
                "change the other: expected memory of their own, as when the plan was made. Plan again after "
                "changing a model"
            )

    @cached_property
    def _by_key(self) -> Mapping[Key, Entry]:
        return {(entry.canonical, entry.part): entry for entry in self.entries}

    @cached_property
    def _sources(self) -> Mapping[Key, str]:
        """Name the prediction that fills each parameter which is generated, or tied to one that is."""
        routes = (Route.GENERATED, Route.TIED)
        return {(e.canonical, e.part): e.tied_to or e.name for e in self.entries if e.route in routes}


def _check_writable(slots: Sequence[Slot], targets: Targets) -> None:
    written = {id(parameter) for parameter in targets.written()}
    check_writable([slot for slot in slots if id(slot.parameter) in written], targets.gathered)


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
        keep_loaded,
        gathered,
        whole,
    )


def _loaded(slots: Sequence[Slot]) -> frozenset[str]:
    """Name the first slots of parameters to keep; of the two under weight normalisation both or none."""
    return frozenset(s.first or s.name for s in slots if any(map(transformers.is_loaded, _carriers(s))))


def _carriers(slot: Slot) -> tuple[nn.Parameter, ...]:
    return (slot.parameter,) if slot.norm is None else (slot.norm.g, slot.norm.v)
