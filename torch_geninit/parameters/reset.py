"""What is not generated gets its module's own initialisation, whole or sharded, all of it or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from torch_geninit.graph.tracer.clone import clone_structure
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.parameters.dtensor import is_sharded, local_indices, take_part
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.parameters.transformers import is_loaded


def to_reset(module: nn.Module, left: Sequence[ParameterRef]) -> list[nn.Module]:
    """List, children first, the modules whose reset_parameters gives values to what is not generated.

    Those are the owners of the parameters ``left``, and every module with buffers that can reset them:
    running statistics are as empty after ``to_empty`` as parameters are.

    Raises:
        ValueError: names a parameter whose module can't reset it, a buffer without data, or a weight loaded
            from a checkpoint that a reset would destroy.
    """
    owners: dict[int, ParameterRef] = {}
    for ref in left:
        if ref.part or id(ref.owner) not in owners:
            owners[id(ref.owner)] = ref
    modules: list[nn.Module] = []
    for part in _children_first(module):
        owned = owners.get(id(part))
        resettable = _method(part) is not None
        if owned is not None and (not resettable or owned.part):
            why = "computes it from other parameters" if resettable else "has no reset_parameters()"
            raise ValueError(
                f"parameter {owned.name!r} is not generated and can't be reset: its module, a "
                f"{type(part).__name__}, {why}. Initialise it yourself and call with "
                "unfilled='keep'; nothing was changed"
            )
        if owned is not None or (resettable and next(part.buffers(recurse=False), None) is not None):
            modules.append(part)
    _check(module, modules)
    return modules


def _check(module: nn.Module, resets: Sequence[nn.Module]) -> None:
    names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
    for part in resets:
        for tensor in _tensors(part):
            if is_loaded(tensor):
                raise ValueError(
                    f"{names[id(tensor)]!r} was loaded from a checkpoint, and resetting its module, a "
                    f"{type(part).__name__}, would destroy it. Call with unfilled='keep'; nothing was changed"
                )
            if tensor.is_meta:
                raise ValueError(
                    f"{names[id(tensor)]!r} can't be reset: it is on the meta device. Materialise with "
                    "model.to_empty(device=...) first; nothing was changed"
                )


def stale_buffers(module: nn.Module) -> list[str]:
    """Name the buffers that no reset_parameters gives values to."""
    return [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if _method(part) is None
        for name, _ in part.named_buffers(recurse=False)
    ]


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """The order in which constructors initialise: a container may overwrite what its children set."""
    seen: set[int] = set()

    def visit(part: nn.Module) -> Iterator[nn.Module]:
        if id(part) in seen:
            return
        seen.add(id(part))
        for child in part.children():
            yield from visit(child)
        yield part

    return visit(module)


def _method(module: nn.Module) -> Callable[[], None] | None:
    # torch.nn.MultiheadAttention and torch.nn.Transformer spell it with an underscore.
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(type(module), name, None)
        if callable(method):
            return partial(method, module)
    return None


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def reset(modules: Sequence[nn.Module]) -> None:
    """Call ``reset_parameters`` of every module; if one fails, undo them all.

    Every parameter and buffer stays the object that it is, in the memory that it has: what a method puts in
    its place is copied into it.

    Raises:
        RuntimeError: what failed.
    """
    before = _Snapshot(modules)
    with torch.no_grad():
        try:
            for module in modules:
                if any(map(is_sharded, _tensors(module))):
                    _reset_shards(module)
                elif (method := _method(module)) is not None:
                    method()
                    before.take_over(module)
        except BaseException as error:
            before.restore()
            if not isinstance(error, Exception):
                raise
            raise RuntimeError(
                f"reset_parameters() of a {type(module).__name__} failed: {error}. Nothing was changed"
            ) from error


class _Snapshot:
    """Objects and values of modules before a reset.

    A method may assign new Parameters, other ``.data`` or whole submodules instead of filling what there is:
    an optimizer, a tied layer and our own predictions would go on writing to what the model no longer has.
    """

    PLACES = ("_parameters", "_buffers", "_modules")

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.parts = {
            id(module): [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
            for module in modules
        }
        self.had = {
            id(part): {place: dict(getattr(part, place).items()) for place in self.PLACES}
            for part in chain.from_iterable(self.parts.values())
        }
        self.names = {id(module): _named(module) for module in modules}
        tensors = {id(tensor): tensor for module in modules for tensor in _tensors(module)}
        with torch.no_grad():
            self.values = [(t, t.detach().clone()) for t in tensors.values()]
            self.memory = {key: t.detach() for key, t in tensors.items() if not is_sharded(t)}

    def take_over(self, module: nn.Module) -> None:
        """Copy what ``module`` has now into the tensors that it had, and put these back."""
        now = _named(module)
        for name, tensor in self.names[id(module)].items():
            new = now.get(name)
            if new is None or new.shape != tensor.shape:
                got = "nothing" if new is None else f"shape {tuple(new.shape)}"
                raise RuntimeError(f"it replaces {name!r}: expected shape {tuple(tensor.shape)}, got {got}")
            memory = self.memory.get(id(tensor))
            if new is not tensor or (memory is not None and new.data_ptr() != memory.data_ptr()):
                values = new.detach()
                self._put_back(tensor)
                tensor.copy_(values)
        self._put_back_objects(module)

    def restore(self) -> None:
        """Put every object and value back."""
        for module in self.modules:
            for part in self.parts[id(module)]:
                for place, had in self.had[id(part)].items():
                    held = getattr(part, place)
                    for name in held.keys() - had.keys():
                        del held[name]
            self._put_back_objects(module)
        for tensor, value in self.values:
            self._put_back(tensor)
            tensor.copy_(value)

    def _put_back(self, tensor: Tensor) -> None:
        memory = self.memory.get(id(tensor))
        if memory is not None and tensor.data_ptr() != memory.data_ptr():
            tensor.data = memory

    def _put_back_objects(self, module: nn.Module) -> None:
        for part in self.parts[id(module)]:
            for place, had in self.had[id(part)].items():
                held = getattr(part, place)
                for name, item in had.items():
                    if held.get(name) is item:
                        continue
                    held[name] = item
                    if place == "_parameters" and item is not None:
                        setattr(part, name, item)  # recurrent layers keep a list of their weights


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _reset_shards(module: nn.Module) -> None:
    """Reset a twin with whole tensors on the CPU, and keep this rank's part of what it got.

    DTensor's own random operations draw on the device, and on a CPU mesh they give every rank the same
    numbers: the result would depend on the number of ranks. Costs the memory of one whole module.
    """
    twin, _ = clone_structure(module, Copier(_whole))
    method = _method(twin)
    if method is not None:
        method()
    fresh = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        values = fresh[name].detach()
        if not is_sharded(tensor):
            tensor.copy_(values)
            continue
        untouched = values.isnan() if values.is_floating_point() else values == _unknown(values.dtype)
        if untouched.all():
            continue
        if untouched.any():
            raise RuntimeError(f"it sets only a part of {name!r}, whose other values are on other ranks")
        indices = local_indices(tensor)
        if indices is not None:
            take_part(values, indices, tensor.to_local())  # type: ignore[attr-defined]


def _whole(tensor: Tensor) -> Tensor:
    if is_sharded(tensor):
        data = torch.full(tensor.shape, _unknown(tensor.dtype), dtype=tensor.dtype, device="cpu")
    else:
        data = tensor.detach().to("cpu", copy=True)
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )


def _unknown(dtype: torch.dtype) -> float | int:
    """A value that no initialisation gives, for what other ranks hold."""
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min
