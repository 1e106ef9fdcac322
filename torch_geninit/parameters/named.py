"""The parameters of a live module, each under the name that wrappers and parametrizations leave unchanged."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from torch_geninit._utils.modules import named_modules
from torch_geninit.graph.tracer.clone import unwrap
from torch_geninit.parameters.dtensor import is_sharded

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")


def canonical(name: str) -> str:
    """Return a parameter's name without the parts that wrappers and parametrizations add.

    >>> canonical("_orig_mod.module.conv.parametrizations.weight.original0")
    'conv.weight'
    """
    *modules, leaf = _PARAMETRIZED.sub(r"\1\2", name).split(".")
    return ".".join([*(part for part in modules if part not in WRAPPERS), leaf])


def canonical_module(name: str) -> str:
    """Return a module's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class ModuleNames:
    """Where each module of a model stands in it.

    It holds the modules weakly. They stay behind when it is pickled: what is read back knows none.
    """

    def __init__(self, model: nn.Module | None = None, prefix: str = "") -> None:
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        for name, module in named_modules(model) if model is not None else ():
            self._names[module] = canonical_module(".".join(filter(None, (prefix, name))))

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._names)

    def __reduce__(self) -> tuple[type[ModuleNames], tuple[()]]:
        return ModuleNames, ()

    def __deepcopy__(self, memo: object) -> ModuleNames:
        return self

    @property
    def root(self) -> nn.Module | None:
        """The model itself, if it is still alive."""
        return next((module for module, name in self._names.items() if not name), None)

    def prefix(self, module: nn.Module) -> str:
        """Return the name of ``module``, wrapped or not; empty if it is unknown, or the model itself."""
        return self._names.get(module, self._names.get(unwrap(module), ""))


@dataclass(frozen=True, slots=True, eq=False)
class WeightNorm:
    """The two parameters of W = g v / |v|, |.| taken over all dimensions but ``dim`` (-1: over all)."""

    g: nn.Parameter
    v: nn.Parameter
    dim: int

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the g and v that give ``weight``: |W| and W, as weight_norm itself starts."""
        return torch.norm_except_dim(weight, 2, self.dim), weight


@dataclass(frozen=True, slots=True, eq=False)
class ParameterRef:
    """One parameter of a live module.

    Attributes:
        name: as in ``named_parameters``.
        canonical: the name that seeds its noise.
        owner: module whose layer it belongs to; for a parametrized tensor the module that was parametrized.
        attribute: the owner's attribute that it determines, as ``"weight"``.
        parameter: the live object.
        part: which one, if the attribute is computed from parameters under other names, else empty.
        blocked: why it can't be assigned, if its attribute is computed in a way that can't be undone.
        norm: the pair it belongs to under weight normalisation; v, of W's shape, stands for both.
        first: name of an earlier reference that holds the same memory (a tied parameter).
    """

    name: str
    canonical: str
    owner: nn.Module
    attribute: str
    parameter: nn.Parameter
    part: str = ""
    blocked: str = ""
    norm: WeightNorm | None = None
    first: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identify the parameter in every wrapping of the same model."""
        return self.canonical, self.part

    @property
    def derived(self) -> bool:
        """Whether another parameter's prediction determines this one."""
        return self.norm is not None and self.parameter is self.norm.g


def list_parameters(module: nn.Module, prefix: str = "") -> list[ParameterRef]:
    """List every parameter of ``module``, tied ones under each of their names, in order of registration.

    Two parameters whose canonical names collide (a user's own submodule called ``module``) keep their full
    names
    from the second on: they must not share a noise stream.
    """
    refs: list[ParameterRef] = []
    first: dict[Hashable, str] = {}
    taken: dict[tuple[str, str], Hashable] = {}
    for ref in _parameters(module, f"{prefix}." if prefix else ""):
        identity = memory(ref.parameter)
        if taken.setdefault(ref.key, identity) != identity:
            ref = replace(ref, canonical=f"{prefix}.{ref.name}" if prefix else ref.name)
        earlier = first.setdefault(identity, ref.name)
        refs.append(ref if earlier == ref.name else replace(ref, first=earlier))
    return _without_tied_norms(refs)


def _without_tied_norms(refs: list[ParameterRef]) -> list[ParameterRef]:
    """Block weight normalisation whose v is the memory of another parameter: that one is not normalised."""
    if all(ref.norm is None for ref in refs):
        return refs
    holders: dict[Hashable, set[int]] = {}
    for ref in refs:
        holders.setdefault(memory(ref.parameter), set()).add(id(ref.parameter))
    shared = {id(ref.parameter) for ref in refs if len(holders[memory(ref.parameter)]) > 1}
    reason = "weight normalisation of a weight that another layer has, too"
    return [
        replace(ref, norm=None, blocked=reason)
        if ref.norm is not None and shared & {id(ref.norm.g), id(ref.norm.v)}
        else ref
        for ref in refs
    ]


def _parameters(module: nn.Module, prefix: str) -> Iterator[ParameterRef]:
    modules = dict(named_modules(module, every_path=True))
    for path, owner in modules.items():
        if not owner._parameters:
            continue
        start = f"{path}." if path else ""
        stem = canonical(f"{prefix}{start}_")[:-1]
        for attribute, parameter in owner._parameters.items():
            if parameter is None:
                continue
            name = start + attribute
            full = canonical(prefix + name) if attribute.startswith("original") else stem + attribute
            ref = ParameterRef(name, full, owner, attribute, parameter)
            if isinstance(owner, ParametrizationList) and _PARAMETRIZED.search(name):
                outer, _, leaf = f".{path}".rpartition(".parametrizations.")
                yield _parametrized(ref, owner, modules[outer[1:]], leaf)
            elif owner._forward_pre_hooks and attribute.endswith(("_g", "_v", "_orig")):
                yield _hooked(ref, prefix)
            else:
                yield ref


def _parametrized(
    ref: ParameterRef, originals: ParametrizationList, owner: nn.Module, attribute: str
) -> ParameterRef:
    """Tell weight normalisation, which can be undone, from the other parametrizations.

    Orthogonal's right_inverse changes buffers and draws random numbers; spectral_norm's result depends on
    buffers that are left alone; of a user's own nothing is known.
    """
    ref = replace(ref, owner=owner, attribute=attribute, part=ref.attribute)
    kinds = [type(part) for part in originals]
    if [(kind.__name__, kind.__module__) for kind in kinds] == [
        ("_WeightNorm", "torch.nn.utils.parametrizations")
    ] and not is_sharded(ref.parameter):
        g, v = originals.original0, originals.original1
        return replace(ref, norm=WeightNorm(g, v, originals[0].dim))  # type: ignore[arg-type]
    names = ", ".join(kind.__name__.lstrip("_") for kind in kinds)
    return replace(ref, blocked=f"parametrized by {names}, which can't be assigned without side effects")


def _hooked(ref: ParameterRef, prefix: str) -> ParameterRef:
    """The same for the older weight_norm, spectral_norm and prune, which recompute in a forward hook."""
    hooks: Iterable[Any] = ref.owner._forward_pre_hooks.values()
    for hook in hooks:
        kind = type(hook)
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if not kind.__module__.startswith("torch.nn.utils.") or not name:
            continue
        if ref.attribute not in (f"{name}_g", f"{name}_v", f"{name}_orig"):
            continue
        path = ref.name.rpartition(".")[0]
        full = canonical(f"{prefix}{path}.{name}" if path else f"{prefix}{name}")
        ref = replace(ref, canonical=full, part=ref.attribute, attribute=name)
        if kind.__name__ == "WeightNorm" and not is_sharded(ref.parameter):
            g, v = (getattr(ref.owner, f"{name}_{letter}") for letter in "gv")
            return replace(ref, norm=WeightNorm(g, v, hook.dim))
        return replace(
            ref, blocked=f"computed by {kind.__name__}, which can't be assigned without side effects"
        )
    return ref


def memory(parameter: Tensor) -> Hashable:
    """Return a value that is equal for two parameters exactly if writing one writes the other.

    Views that overlap without being equal are not recognised.
    """
    plain = type(parameter) in (nn.Parameter, Tensor)
    if not plain or parameter.layout is not torch.strided or not parameter.numel():
        return id(parameter)
    place: Hashable = parameter.data_ptr()
    if parameter.is_meta:  # no address, but a storage
        place = parameter.untyped_storage()._cdata, parameter.storage_offset()
    return place, parameter.device, parameter.dtype, parameter.shape, parameter.stride()
