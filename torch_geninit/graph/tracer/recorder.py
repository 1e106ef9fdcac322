"""The recorder: notes each ATen operation of a forward pass, and which values went in and out.

A value is known by its storage, so that views of it, however they were made, are the same value. It is the
index of the node that computed it, or the names of the parameters that it was made of, or (an unknown
storage) a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geninit.graph.architecture import ParameterUse, Shape
from torch_geninit.graph.tracer.clone import tensors_in
from torch_geninit.graph.tracer.draft import Draft, unique
from torch_geninit.graph.tracer.inputs import NESTED
from torch_geninit.graph.tracer.mixed_meta import (
    CPU,
    LARGE,
    as_float32,
    met,
    normalised,
    on_meta_if_large,
    restored,
    without_data,
)
from torch_geninit.graph.tracer.operation import OPERATIONS, Operation, describe
from torch_geninit.graph.tracer.shape_rules import like

Value = int | tuple[str, ...] | None
Operand = tuple[str, Tensor, Value]


class Call(NamedTuple):
    """One call of an operation: tensors that go in, all arguments by name, tensors that come out."""

    operation: Operation
    operands: list[Operand]
    arguments: Mapping[str, Any]
    outputs: list[Tensor]


Rule = Callable[["Recorder", Call], Value]

_INDEXING = frozenset(("index", "index_put", "_unsafe_index", "_unsafe_index_put", "_index_put_impl"))


def key(tensor: Tensor) -> int:
    """Identify the storage of a tensor."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and opaque tensors have none
        return id(tensor)


class Recorder(TorchDispatchMode):
    """Record the operations that run while it is active.

    Args:
        meta: whether the network runs without data; tensors with data are then constants, and become meta
            tensors where they meet one.
        shapes: parameter name -> its shape.
        rules: name of a rule (see :data:`~torch_geninit.graph.vocabulary.RULES`) -> what it does.
    """

    def __init__(self, *, meta: bool, shapes: dict[str, Shape], rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meta = meta
        self.shapes = shapes
        self.rules = rules
        self.drafts: list[Draft] = []
        self.muted = False
        self._parameters: set[int] = set()
        self._values: dict[int, int | tuple[str, ...]] = {}
        self._alive: list[Any] = []
        self._tokens: dict[str, int] = {}
        self._folded: int | None = None

    # The network's boundary.

    def own(self, tensor: Tensor, name: str) -> None:
        """Say that a tensor is a parameter."""
        self.assign([tensor], (name,))
        self._parameters.add(key(tensor))

    def enter(self, tensor: Tensor) -> None:
        """Say that a tensor is an input of the network."""
        self.assign([tensor], self.add("input", tuple(tensor.shape)))

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Say which tensors are the outputs of the network."""
        found = list(tensors)
        sources = [source for tensor in found for source in self.sources(self.value(tensor))]
        self.add("output", tuple(found[0].shape) if found else (), sources)

    # What rules use.

    def value(self, tensor: Tensor) -> Value:
        """Return what is known of a tensor."""
        return self._values.get(key(tensor))

    def is_parameter(self, tensor: Tensor) -> bool:
        """Tell a parameter, or a view of it, from what was computed from one."""
        return key(tensor) in self._parameters

    def assign(self, tensors: Iterable[Tensor], value: Value) -> None:
        """Say what tensors are from now on, and with them everything that shares their storage."""
        for tensor in tensors:
            identity = key(tensor)
            if value is None:
                self._values.pop(identity, None)
                continue
            if identity not in self._values:
                # An address must not be used again for another storage.
                self._alive.append(tensor if identity == id(tensor) else tensor.untyped_storage())
            self._values[identity] = value

    def add(
        self,
        op: str,
        shape: Shape,
        sources: Iterable[int] = (),
        uses: Iterable[ParameterUse] = (),
        attributes: Mapping[str, Any] | None = None,
        kernel: str = "",
    ) -> int:
        """Add a node and return its index; of several uses of one parameter the first counts."""
        pairs = tuple(attributes.items()) if attributes else ()
        first: dict[str, ParameterUse] = {}
        for use in uses:
            first.setdefault(use.name, use)
        self.drafts.append(Draft(op, shape, unique(sources), tuple(first.values()), pairs, kernel))
        return len(self.drafts) - 1

    def node(
        self,
        call: Call,
        op: str,
        sources: Iterable[int],
        uses: Iterable[ParameterUse] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        """Add the node of a call."""
        index = self.add(op, tuple(call.outputs[0].shape), sources, uses, attributes, call.operation.name)
        if op in ("linear", "matmul"):
            self._folded = index
        return index

    def without_data(self, value: Any) -> Any:
        """Replace every tensor with data in nested lists and tuples by a meta tensor of the same value."""
        if isinstance(value, Tensor) and not value.is_meta:
            stand_in = like(value, met(value.dtype))
            self.assign([stand_in], self.value(value))
            return stand_in
        if type(value) in (list, tuple):
            return type(value)(self.without_data(item) for item in value)
        return value

    def sources(self, value: Value) -> list[int]:
        """Return the nodes behind a value that is data to an operation; a parameter becomes a token."""
        if value is None:
            return []
        if isinstance(value, int):
            return [value]
        for name in value:
            if name not in self._tokens:
                use = ParameterUse(name, "weight", self.shapes[name])
                self._tokens[name] = self.add("token", use.shape, (), (use,))
        return [self._tokens[name] for name in value]

    def data(self, operands: Iterable[Operand]) -> list[int]:
        """Return the nodes behind operands that are data to an operation."""
        return [source for _, _, value in operands for source in self.sources(value)]

    def uses(self, operands: Iterable[Operand], role: str | None = None) -> list[ParameterUse]:
        """Return the parameters among operands; the role is the argument's name unless given.

        Where an argument was computed from several parameters, the one of its own shape has the role, the
        magnitude and the direction of a normalised weight have ``weight_g`` and ``weight_v``, and the rest
        are ``other``.
        """
        found = []
        for argument, tensor, value in operands:
            if not isinstance(value, tuple):
                continue
            name = role or argument
            roles = {value[0]: name} if len(value) == 1 else self._roles(value, name, tuple(tensor.shape))
            found += [ParameterUse(n, roles.get(n, "other"), self.shapes[n]) for n in value]
        return found

    def _roles(self, names: tuple[str, ...], role: str, shape: Shape) -> dict[str, str]:
        roles: dict[str, str] = {}
        for name in names:
            if name.endswith(("original0", "weight_g")):
                roles[name] = f"{role}_g"
            elif name.endswith(("original1", "weight_v")):
                roles[name] = f"{role}_v"
            elif sorted(self.shapes[name]) == sorted(shape) and role not in roles.values():
                roles[name] = role
        return roles

    # The recording.

    def _dispatch(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Reading a tensor's device must tell the truth here.
        with torch._C.DisableTorchFunction():
            operation = OPERATIONS.get(func) or describe(func)
            rule = operation.rule
            if operation.composite and torch.is_inference_mode_enabled():  # nobody took it apart yet
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            if rule == "view":
                result = func(*args, **kwargs) if kwargs else func(*args)
                if self._folded is not None:
                    self._unfold(args[0], result)
                return result
            arguments = dict(zip(operation.arguments, args, strict=False))
            if kwargs:
                arguments.update(kwargs)
            operands = self._operands(arguments)
            constant = all(value is None and not (self.meta and t.is_meta) for _, t, value in operands)
            if kwargs:
                kwargs = normalised(kwargs, constant=constant)
                arguments.update(kwargs)
            originals: Mapping[int, Tensor] = {}
            result = None
            if not self.meta:
                if not constant:
                    args = as_float32(args, lambda tensor: self._is_written(tensor, operation, arguments))
            elif rule == "constant":
                args, kwargs = self._constant(operation, args, kwargs)
            elif not constant:
                args, kwargs, originals = self._mixed_meta(operation, operands, args, kwargs)
                if operation.shortcut is not None:
                    result = operation.shortcut(
                        {**arguments, **dict(zip(operation.arguments, args, strict=False)), **(kwargs or {})}
                        if originals
                        else arguments
                    )
            elif operands and _may_be_large(operation, operands):
                result = self._large(func, args, kwargs)
            if result is None:
                result = func(*args, **(kwargs or {}))
            if originals:
                result = restored(result, originals)
            if rule != "constant" and not self.muted:
                self._note(operation, operands, arguments, result)
            return result

    def _mixed_meta(
        self,
        operation: Operation,
        operands: list[Operand],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
    ) -> tuple[tuple[Any, ...], Mapping[str, Any] | None, Mapping[int, Tensor]]:
        """Replace what has data, or is of another type of real numbers, where data meets constants."""
        fits = all(tensor.is_meta and met(tensor.dtype) is tensor.dtype for _, tensor, _ in operands)
        if fits and not (kwargs and kwargs.get("device") is not None):
            return args, kwargs, {}
        return without_data(args, kwargs, self._constant_mask if operation.name in _INDEXING else _never)

    def _constant(
        self, operation: Operation, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
    ) -> tuple[tuple[Any, ...], Mapping[str, Any] | None]:
        """Make a constant with data, also one that takes its shape from data, unless it is large."""
        if operation.written or not args or not isinstance(args[0], Tensor):
            return args, on_meta_if_large(args, kwargs)
        size = args[1] if operation.name.startswith("new_") else args[0].shape
        if "device" in operation.arguments and prod(size) <= LARGE:
            kwargs = {**(kwargs or {}), "device": CPU}
        return args, kwargs

    def _large(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
        """Return what a constant is without data if it is large."""
        try:
            swapped, keywords, _ = without_data(args, kwargs, _never)
            result = func(*swapped, **(keywords or {}))
        except Exception:  # noqa: BLE001 - its shape depends on values
            return None
        return result if any(tensor.numel() > LARGE for tensor in tensors_in(result)) else None

    def _is_written(self, tensor: Tensor, operation: Operation, arguments: Mapping[str, Any]) -> bool:
        return any(tensor is item for name in operation.written for item in tensors_in(arguments.get(name)))

    def _note(
        self, operation: Operation, operands: list[Operand], arguments: Mapping[str, Any], result: Any
    ) -> None:
        if isinstance(result, Tensor):
            outputs = [result]
        elif type(result) in (list, tuple):
            outputs = [item for item in result if isinstance(item, Tensor)]
        else:
            outputs = []
        for name in operation.written:
            outputs.extend(tensors_in(arguments.get(name)))
        if operation.written:
            # A weight that is normalised in place stays that weight.
            outputs = [output for output in outputs if not self.is_parameter(output)]
        if any(output.is_nested for output in outputs):
            raise NotImplementedError(NESTED)
        if outputs:
            call = Call(operation, operands, arguments, outputs)
            self.assign(outputs, self.rules[operation.rule](self, call))

    def _operands(self, arguments: Mapping[str, Any]) -> list[Operand]:
        operands: list[Operand] = []
        for name, argument in arguments.items():
            if isinstance(argument, Tensor):
                operands.append((name, argument, self.value(argument)))
            elif type(argument) in (list, tuple):
                for item in argument:
                    if isinstance(item, Tensor):
                        operands.append((name, item, self.value(item)))
        return operands

    def _constant_mask(self, index: Any) -> bool:
        """Tell a boolean mask that doesn't depend on the input."""
        mask = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and not index.is_meta
        return mask and self.value(index) is None

    def _unfold(self, folded: Tensor, result: Tensor | list[Tensor]) -> None:
        """Give a linear layer the shape that its user sees: ATen folds leading dimensions before it."""
        if isinstance(result, Tensor) and self.value(folded) == self._folded:
            draft = self.drafts[self._folded]  # type: ignore[index]
            if result.shape[-1:] == draft.shape[-1:] and result.numel() == prod(draft.shape):
                self.drafts[self._folded] = replace(draft, shape=tuple(result.shape))  # type: ignore[index]
        self._folded = None


def _may_be_large(operation: Operation, operands: list[Operand]) -> bool:
    sizes = prod(tensor.numel() for _, tensor, _ in operands)
    return not operation.written and (sizes > LARGE or operation.name == "repeat")


def _never(index: Any) -> bool:
    return False


# Not in the class body: torch would wrap it there to keep torch.compile out, at the cost of importing its
# compiler.
Recorder.__torch_dispatch__ = Recorder._dispatch  # type: ignore[method-assign, assignment]
