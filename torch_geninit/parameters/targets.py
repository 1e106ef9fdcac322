"""Which parameters of a live module a prediction goes to, and which it must not touch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from torch import nn

from torch_geninit._utils.modules import named_modules
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.parameters import transformers
from torch_geninit.parameters.dtensor import gathered
from torch_geninit.parameters.named import ModuleNames, ParameterRef, list_parameters
from torch_geninit.parameters.overlap import follows, shared_memory
from torch_geninit.parameters.write import check_writable

Key = tuple[str, str]
"""Canonical name and part of a parameter."""


@dataclass(frozen=True)
class Targets:
    """Parameters of a live module that a plan fills, and those it does not.

    Attributes:
        filled: name -> ref, and name of the prediction that fills it.
        left: not generated.
        loaded: would be filled, but hold what transformers loaded from a checkpoint.
        keeps_loaded: whether what transformers loaded is kept, as in its own initialisation pass.
        gathered: ids of parameters that FSDP will throw away.
        whole: whether the module is the whole planned model.
    """

    filled: Mapping[str, tuple[ParameterRef, str]]
    left: Sequence[ParameterRef]
    loaded: Sequence[ParameterRef]
    keeps_loaded: bool
    gathered: frozenset[int]
    whole: bool

    def written(self) -> list[nn.Parameter]:
        """Every parameter that gets values."""
        return [parameter for ref, _ in self.filled.values() for parameter in _carriers(ref)]


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
        refs = list_parameters(module, prefix)
        unknown = [ref.name for ref in refs if ref.key not in self._by_key]
        if unknown:
            where = f" below {prefix!r}" if prefix else ""
            raise ValueError(
                f"{len(unknown)} parameters of {type(module).__name__}, first {unknown[0]!r}, are not in the "
                f"plan for {self.model}{where}. Plan for this model, or say with prefix= which part this is"
            )
        for ref in refs:
            entry = self._by_key[ref.key]
            if tuple(ref.parameter.shape) != entry.shape:
                raise ValueError(
                    f"parameter {ref.name!r} of {type(module).__name__} has another shape than planned:\n"
                    f"  expected: {entry.shape}\n"
                    f"  got:      {tuple(ref.parameter.shape)}\n"
                    "Plan again after changing a model"
                )
        targets = self._targets(module, refs, keep_loaded=True, whole=not prefix)
        frozen = [ref.name for ref, _ in targets.filled.values() if not ref.parameter.requires_grad]
        if frozen:
            raise ValueError(
                f"{len(frozen)} parameters of {type(module).__name__}, first {frozen[0]!r}, were frozen "
                "after the plan was made: expected requires_grad=True, got False. Plan again after changing "
                "a model"
            )
        written = {id(parameter) for parameter in targets.written()}
        self._refuse_new_overlaps(module, refs, written)
        _check_writable(refs, targets)
        return targets

    def of_planned(self, module: nn.Module, refs: Sequence[ParameterRef]) -> Targets:
        """The same for the planned model itself, right after planning, from the parameters planned with.

        Nothing can have changed since. What transformers loaded is filled like the rest.
        """
        targets = self._targets(module, refs, keep_loaded=False, whole=True)
        _check_writable(refs, targets)
        return targets

    def _targets(
        self, module: nn.Module, refs: Sequence[ParameterRef], *, keep_loaded: bool, whole: bool
    ) -> Targets:
        return find_targets(
            refs,
            self._sources,
            keep_loaded=keep_loaded,
            gathered=gathered(chain(dict(named_modules(module)).values(), self.modules)),
            whole=whole,
        )

    def _refuse_new_overlaps(
        self, module: nn.Module, refs: Sequence[ParameterRef], written: Container[int]
    ) -> None:
        entries = {ref.name: self._by_key[ref.key] for ref in refs}
        filled = {ref.name for ref in refs if id(ref.parameter) in written}
        for inner, outer, _ in shared_memory(module, refs):
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


def _check_writable(refs: Sequence[ParameterRef], targets: Targets) -> None:
    written = {id(parameter) for parameter in targets.written()}
    check_writable([ref for ref in refs if id(ref.parameter) in written], targets.gathered)


def find_targets(
    refs: Sequence[ParameterRef],
    sources: Mapping[Key, str],
    *,
    keep_loaded: bool,
    gathered: frozenset[int],
    whole: bool,
) -> Targets:
    """Sort ``refs`` by what happens to them; ``sources`` names the prediction of each that is generated.

    Raises:
        ValueError: if two share memory that the plan treats differently.
    """
    loaded = _loaded(refs) if keep_loaded else frozenset()
    planned: dict[str, tuple[ParameterRef, str | None]] = {}
    for ref in refs:
        source = sources.get(ref.key)
        first, expected = planned.setdefault(ref.first or ref.name, (ref, source))
        if source != expected and first.name not in loaded:
            raise ValueError(
                f"parameters {first.name!r} and {ref.name!r} were tied after the plan was made: expected "
                "memory of their own, got the same. Plan again after changing a model"
            )
    filled = {name: source for name, (_, source) in planned.items() if source is not None}
    for name in loaded:
        filled.pop(name, None)
    taken = filled.keys() | loaded
    # In a part of a model it can't be seen that v belongs to another layer, too; the plan knows.
    alone = {id(s.norm.g) for s in refs if s.derived and s.norm is not None and s.key not in sources}
    refs = [replace(s, norm=None) if s.norm is not None and id(s.norm.g) in alone else s for s in refs]
    return Targets(
        {s.name: (s, filled[s.name]) for s in refs if s.name in filled and not s.derived},
        [s for s in refs if (s.first or s.name) not in taken],
        [s for s in refs if s.name in loaded and s.key in sources and not s.derived],
        keep_loaded,
        gathered,
        whole,
    )


def _loaded(refs: Sequence[ParameterRef]) -> frozenset[str]:
    """Name the first references of parameters to keep; of the two under weight normalisation both or none."""
    return frozenset(s.first or s.name for s in refs if any(map(transformers.is_loaded, _carriers(s))))


def _carriers(ref: ParameterRef) -> tuple[nn.Parameter, ...]:
    return (ref.parameter,) if ref.norm is None else (ref.norm.g, ref.norm.v)
