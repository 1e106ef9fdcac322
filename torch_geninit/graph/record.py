"""The recorder: notes each ATen operation of a forward pass, and which values went in and out.

A value is known by its storage, so that views of it, however they were made, are the same value; it is the index of
the node that computed it, or the names of the parameters it was made of, or (unknown storage) a constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geninit.graph.architecture import ParameterUse, Shape
from torch_geninit.graph.clone import tensors_in
from torch_geninit.graph.rewrite import Draft, unique
from torch_geninit.graph.vocabulary import RULES

Value = int | tuple[str, ...] | None
Operand = tuple[str, Tensor, Value]

_META = torch.device("meta")
_CPU = torch.device("cpu")
_FLOATS = (torch.float16, torch.bfloat16, torch.float64)


class Operation(NamedTuple):
    """What there is to know about an ATen overload, once."""

    name: str
    rule: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]


class Call(NamedTuple):
    """One call of an operation."""

    operation: Operation
    operands: list[Operand]
    arguments: dict[str, Any]
    outputs: list[Tensor]


def key(tensor: Tensor) -> int:
    """Identify the storage of a tensor."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse and opaque tensors have none
        return id(tensor)


class Recorder(TorchDispatchMode):
    """Record the operations that run while it is active.

    Args:
        meta: whether the network runs without data; tensors with data are then constants, and become meta
            tensors where they meet one.
        shapes: parameter name -> its shape.
    """

    def __init__(self, *, meta: bool, shapes: Mapping[str, Shape]) -> None:
        super().__init__()
        self.meta = meta
        self.shapes = shapes
        self.drafts: list[Draft] = []
        self.values: dict[int, int | tuple[str, ...]] = {}
        self.alive: list[Any] = []
        self.tokens: dict[str, int] = {}
        self.parameter_storages: set[int] = set()
        self.folded: set[int] = set()
        self.muted = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            operation = _OPERATIONS.get(func) or _describe(func)
            arguments = dict(zip(operation.arguments, args, strict=False))
            if kwargs:
                kwargs = dict(kwargs)
                self._normalise(kwargs)
                arguments.update(kwargs)
            operands = self._operands(arguments)
            converted: dict[int, Tensor] = {}
            if self.meta and operands:
                args, kwargs = self._without_data(operation, operands, args, kwargs, converted)
            result = func(*args, **(kwargs or {}))
            if converted:
                result = _restore(result, converted)
            if not self.muted and (operation.rule != "constant"):
                if operation.rule == "view" and not converted:
                    if operation.name in ("_unsafe_view", "view"):
                        self._unfold_shape(operands, result)
                else:
                    self._note(operation, operands, arguments, result)
            return result

    # What goes in.

    def own(self, tensor: Tensor, name: str) -> None:
        """Say that a tensor is a parameter."""
        self._assign([tensor], (name,))
        self.parameter_storages.add(key(tensor))

    def enter(self, tensor: Tensor) -> None:
        """Say that a tensor is an input of the network."""
        self._assign([tensor], self._add("input", tuple(tensor.shape)))

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Say which tensors are the outputs of the network."""
        found = list(tensors)
        sources = [self._source(self.values.get(key(tensor))) for tensor in found]
        shape = tuple(found[0].shape) if found else ()
        self._add("output", shape, [s for group in sources for s in group])

    def _operands(self, arguments: Mapping[str, Any]) -> list[Operand]:
        operands: list[Operand] = []
        for name, argument in arguments.items():
            if isinstance(argument, Tensor):
                operands.append((name, argument, self.values.get(key(argument))))
            elif type(argument) in (list, tuple):
                operands.extend(
                    (name, item, self.values.get(key(item))) for item in argument if isinstance(item, Tensor)
                )
        return operands

    def _normalise(self, kwargs: dict[str, Any]) -> None:
        """Compute in float32 on the CPU, whatever the code asks for: the graph doesn't depend on either."""
        if kwargs.get("dtype") in _FLOATS:
            kwargs["dtype"] = torch.float32
        device = kwargs.get("device")
        if device is not None and device.type != "meta":
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False

    def _without_data(
        self,
        operation: Operation,
        operands: list[Operand],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        converted: dict[int, Tensor],
    ) -> tuple[tuple[Any, ...], Mapping[str, Any] | None]:
        """Replace tensors with data by meta tensors if any operand has none or depends on the input."""
        real = [tensor for _, tensor, _ in operands if not tensor.is_meta]
        if len(real) == len(operands) and not any(isinstance(value, int) for _, _, value in operands):
            return args, kwargs
        if kwargs and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _META}
        if not real:
            return args, kwargs
        replacement: dict[int, Tensor] = {}

        def swap(item: Any) -> Any:
            if isinstance(item, Tensor):
                if item.is_meta:
                    return item
                if id(item) not in replacement:
                    stand_in = torch.empty_like(item, device=_META)
                    replacement[id(item)] = stand_in
                    converted[id(stand_in)] = item
                return replacement[id(item)]
            if type(item) in (list, tuple):
                return type(item)(swap(part) for part in item)
            return item

        if operation.name in ("index", "index_put", "_unsafe_index", "_unsafe_index_put"):
            args = (args[0], _open_masks(args[1], self.values), *args[2:])
        args = tuple(swap(item) for item in args)
        return args, {name: swap(item) for name, item in kwargs.items()} if kwargs else kwargs

    # What comes out.

    def _note(
        self, operation: Operation, operands: list[Operand], arguments: dict[str, Any], result: Any
    ) -> None:
        if isinstance(result, Tensor):
            outputs = [result]
        elif type(result) in (list, tuple):
            outputs = [item for item in result if isinstance(item, Tensor)]
        else:
            outputs = []
        for name in operation.written:
            outputs.extend(tensors_in(arguments.get(name)))
        if outputs:
            handler = _HANDLERS.get(operation.rule, _layer)
            self._assign(outputs, handler(self, Call(operation, operands, arguments, outputs)))

    def _assign(self, tensors: Iterable[Tensor], value: Value) -> None:
        for tensor in tensors:
            identity = key(tensor)
            if value is None:
                self.values.pop(identity, None)
            else:
                if identity not in self.values:
                    try:
                        self.alive.append(tensor.untyped_storage())
                    except (RuntimeError, NotImplementedError):
                        self.alive.append(tensor)
                self.values[identity] = value

    def _add(
        self,
        op: str,
        shape: Shape,
        sources: Iterable[int] = (),
        uses: Iterable[ParameterUse] = (),
        attributes: dict[str, Any] | None = None,
        kernel: str = "",
    ) -> int:
        pairs = tuple((attributes or {}).items())
        uses = tuple({use.name: use for use in reversed(list(uses))}.values())[::-1]
        self.drafts.append(Draft(op, tuple(shape), unique(sources), uses, pairs, kernel))
        return len(self.drafts) - 1

    def node(
        self,
        call: Call,
        op: str,
        sources: Iterable[int],
        uses: Iterable[ParameterUse] = (),
        attributes: dict[str, Any] | None = None,
    ) -> int:
        """Add the node of a call."""
        index = self._add(op, tuple(call.outputs[0].shape), sources, uses, attributes, call.operation.name)
        if op in ("linear", "matmul"):
            self.folded.add(index)
        return index

    def _source(self, value: Value) -> list[int]:
        """Return the nodes behind a value that is data to an operation; a parameter becomes a token."""
        if value is None:
            return []
        if isinstance(value, int):
            return [value]
        for name in value:
            if name not in self.tokens:
                use = ParameterUse(name, "weight", self.shapes[name])
                self.tokens[name] = self._add("token", use.shape, (), (use,))
        return [self.tokens[name] for name in value]

    def data(self, operands: Iterable[Operand]) -> list[int]:
        """Return the nodes behind operands that are data to an operation."""
        return [source for _, _, value in operands for source in self._source(value)]

    def uses(self, operands: Iterable[Operand], role: str | None = None) -> list[ParameterUse]:
        """Return the parameters among operands; the role is the argument's name unless given."""
        found = []
        for name, tensor, value in operands:
            if isinstance(value, tuple):
                found.extend(self._roles(value, role or name, tuple(tensor.shape)))
        return found

    def _roles(self, names: tuple[str, ...], role: str, shape: Shape) -> list[ParameterUse]:
        if len(names) == 1:
            return [ParameterUse(names[0], role, self.shapes[names[0]])]
        roles = {}
        for name in names:
            if name.endswith(("original0", "weight_g")):
                roles[name] = f"{role}_g"
            elif name.endswith(("original1", "weight_v")):
                roles[name] = f"{role}_v"
            elif self.shapes[name] == shape and role not in roles.values():
                roles[name] = role
        return [ParameterUse(name, roles.get(name, "other"), self.shapes[name]) for name in names]

    def _unfold_shape(self, operands: list[Operand], result: Tensor) -> None:
        """Give a linear layer the shape that its user sees: ATen folds leading dimensions before and after it."""
        value = operands[0][2]
        if isinstance(value, int) and value in self.folded:
            self.folded.discard(value)
            draft = self.drafts[value]
            if result.shape[-1:] == draft.shape[-1:]:
                self.drafts[value] = replace(draft, shape=tuple(result.shape))


# Rules: each returns the value of the call's outputs.


def sources_of(operands: Iterable[Operand]) -> list[int]:
    return list(unique(value for _, _, value in operands if isinstance(value, int)))


def parameters_of(operands: Iterable[Operand]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for _, _, value in operands if isinstance(value, tuple) for n in value))


def _arithmetic(call: Call) -> Value:
    """Parameters alone: their names stay with what is computed from them."""
    return parameters_of(call.operands) or None


def _generic(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    return recorder.node(call, "other", sources, recorder.uses(call.operands, "other"))


def _activation(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    op = call.operation.rule if len(sources) == 1 else "other"
    if call.operation.name == "hardtanh" and call.arguments.get("min_val") == 0:
        op = "relu"  # relu6
    return recorder.node(call, op, sources, recorder.uses(call.operands, "weight"))


def _affine(recorder: Recorder, call: Call) -> Value:
    """Adding and multiplying: constants are transparent, parameters are biases and scales, the rest are joins."""
    rule = call.operation.rule
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    uses = recorder.uses(call.operands, "bias" if rule == "add" else "weight")
    if len(sources) > 1:
        return recorder.node(call, rule, sources, uses)
    if uses:
        return recorder.node(call, "bias" if rule == "add" else "scale", sources, uses)
    if rule == "mul":
        factors = [name for name, _, value in call.operands if isinstance(value, int)]
        if len(factors) > 1 or (factors == ["other"] and call.operation.name in ("div", "true_divide")):
            return recorder.node(call, "activation", sources)
    return sources[0]


def _linear(recorder: Recorder, call: Call) -> Value:
    name = call.operation.name
    added = [o for o in call.operands if o[0] == "self"] if name[:3] in ("add", "bad") else []
    operands = [o for o in call.operands if o not in added] if added else call.operands
    sources = sources_of(operands)
    parameters = [o for o in operands if isinstance(o[2], tuple)]
    if not sources:
        last = operands[-1]
        layered = isinstance(last[2], tuple) and name in ("addmm", "mm", "bmm", "baddbmm", "_addmm_activation")
        if not layered or not (name == "addmm" or _transposed(last[1])):
            return _arithmetic(call)
        parameters = [last]
    if not parameters:
        uses = recorder.uses(added, "bias")
        return recorder.node(call, "matmul", sources + sources_of(added), uses)
    weight = parameters[-1]
    data = [operand for operand in operands if operand is not weight]
    attributes = {} if _transposed(weight[1]) or weight is operands[0] else {"transposed_weight": 1}
    uses = recorder.uses([weight], "weight") + recorder.uses(added, "bias")
    return recorder.node(call, "linear", recorder.data(data) + sources_of(added), uses, attributes)


def _transposed(tensor: Tensor) -> bool:
    """Whether a matrix is the transposed view of a stored one."""
    return tensor.ndim < 2 or tensor.stride(-1) != 1 or tensor.shape[-1] == 1 == tensor.stride(-2)


def _layer(recorder: Recorder, call: Call) -> Value:
    """A primitive with arguments called weight and bias."""
    op = call.operation.rule
    if op not in _LAYERS:
        return _generic(recorder, call)
    own = [o for o in call.operands if o[0] in ("weight", "bias")]
    data = [o for o in call.operands if o[0] not in ("weight", "bias")]
    attributes: dict[str, Any] = {}
    if op == "conv":
        op, attributes = _convolution(call)
    elif op == "batch_norm":
        if not sources_of(call.operands) and parameters_of(data):
            return _arithmetic(call)  # a weight is standardised
        op = _which_batch_norm(recorder, call)
    return recorder.node(call, op, recorder.data(data) + sources_of(own), recorder.uses(own), attributes)


def _convolution(call: Call) -> tuple[str, dict[str, Any]]:
    arguments = call.arguments
    weight = arguments["weight"]
    space = weight.ndim - 2

    def sizes(name: str, default: int) -> Shape:
        given = tuple(arguments.get(name) or (default,))
        return given * space if len(given) == 1 else given

    attributes = {
        "kernel_size": tuple(weight.shape[2:]),
        "stride": sizes("stride", 1),
        "padding": sizes("padding", 0),
        "dilation": sizes("dilation", 1),
        "groups": int(arguments.get("groups", 1)),
    }
    return "conv_transpose" if arguments.get("transposed") else "conv", attributes


def _which_batch_norm(recorder: Recorder, call: Call) -> str:
    """Instance norm is batch norm on a repeated weight without running statistics."""
    if call.arguments.get("running_mean") is not None:
        return "batch_norm"
    weight = call.arguments.get("weight")
    if weight is None:
        return "instance_norm"
    value = recorder.values.get(key(weight))
    if isinstance(value, tuple) and key(weight) in recorder.parameter_storages:
        return "batch_norm"
    return "instance_norm"


def _attention(recorder: Recorder, call: Call) -> Value:
    masks = [o for o in call.operands if o[0] in ("attn_mask", "attn_bias", "bias", "mask")]
    data = [o for o in call.operands if o[0] not in ("attn_mask", "attn_bias", "bias", "mask")]
    uses = recorder.uses(masks, "bias")
    return recorder.node(call, "attention", recorder.data(data) + sources_of(masks), uses)


def _pool(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    source, out = call.operands[0][1].shape, call.outputs[0].shape
    arguments = call.arguments
    given = tuple(arguments.get("kernel_size") or ())
    space = len(given) or len(arguments.get("output_size") or ()) or max(1, len(out) - 2)
    if call.operation.rule == "avg_pool" and all(size == 1 for size in out[-space:]):
        return recorder.node(call, "global_avg_pool", sources)
    if given:
        kernel = given
        stride = tuple(arguments.get("stride") or ()) or kernel
    else:
        kernel = tuple(max(1, a // max(1, b)) for a, b in zip(source[-space:], out[-space:], strict=True))
        stride = kernel
    attributes = {"kernel_size": kernel, "stride": stride if len(stride) == space else stride * space}
    return recorder.node(call, call.operation.rule, sources, (), attributes)


def _reduce(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    dims = call.arguments.get("dim")
    rank = call.operands[0][1].ndim
    spatial = isinstance(dims, list | tuple) and rank >= 3 and len(dims) == rank - 2
    op = "other"
    if spatial and 0 not in [int(d) % rank for d in dims]:
        op = {"mean": "global_avg_pool", "amax": "max_pool"}.get(call.operation.name, "other")
    return recorder.node(call, op, sources, recorder.uses(call.operands[1:], "other"))


def _concat(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    if len(call.operands) == 1:
        return sources[0]
    data = recorder.data(call.operands)
    constants = any(value is None and tensor.numel() for _, tensor, value in call.operands)
    op = "pad" if constants and len(set(data)) == 1 else "concat"
    return recorder.node(call, op, data)


def _plain(recorder: Recorder, call: Call) -> Value:
    """One operation on data; on parameters alone it is arithmetic."""
    sources = sources_of(call.operands)
    if not sources:
        return _arithmetic(call)
    if call.operation.rule == "pad" and not any(call.arguments.get("pad") or (1,)):
        return sources[0]
    return recorder.node(call, call.operation.rule, recorder.data(call.operands))


_LOOKUPS = frozenset(("index", "index_select", "gather", "take", "take_along_dim", "_unsafe_index"))
_WRITES = frozenset(
    """copy index_put _index_put_impl _unsafe_index_put scatter index_copy masked_scatter slice_scatter
    select_scatter""".split()
)


def _move(recorder: Recorder, call: Call) -> Value:
    """Data movement: transparent, unless it joins several values."""
    name, operands = call.operation.name, call.operands
    if not operands:
        return None
    if name in ("fill", "zero", "bernoulli"):
        return operands[0][2]
    target = operands[0]
    if name == "copy" and (target[2] is None or _whole(target[1])):
        return operands[1][2]
    sources = sources_of(operands)
    if not sources:
        return _arithmetic(call)
    if name in _LOOKUPS and isinstance(target[2], tuple):
        return recorder.node(call, "embedding", sources, recorder.uses([target], "weight"))
    data = unique(recorder.data(operands))
    if len(data) == 1:
        return data[0]
    return recorder.node(call, "concat" if name in _WRITES else "other", data)


def _whole(tensor: Tensor) -> bool:
    """Whether a tensor covers its storage."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()


_LAYERS = frozenset(
    ("conv", "embedding", "batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "recurrent")
)
_HANDLERS: dict[str, Callable[[Recorder, Call], Value]] = {
    "linear": _linear,
    "attention": _attention,
    "max_pool": _pool,
    "avg_pool": _pool,
    "reduce": _reduce,
    "add": _affine,
    "mul": _affine,
    "affine": _affine,
    "concat": _concat,
    "pad": _plain,
    "resample": _plain,
    "softmax": _plain,
    "move": _move,
    "view": _move,
    "other": _generic,
    **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh", "activation"), _activation),
}

_OPERATIONS: dict[Any, Operation] = {}


def _describe(func: Any) -> Operation:
    schema = func._schema
    name = schema.name.rpartition("::")[2]
    if name not in RULES:
        name = name.removesuffix("_")
    operation = Operation(
        name,
        RULES.get(name, "other"),
        tuple(argument.name for argument in schema.arguments),
        tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write),
    )
    _OPERATIONS[func] = operation
    return operation


def _restore(result: Any, converted: Mapping[int, Tensor]) -> Any:
    """Return the tensor that an in-place operation was called on, not its stand-in."""
    if isinstance(result, Tensor):
        return converted.get(id(result), result)
    if type(result) in (list, tuple):
        return type(result)(_restore(item, converted) for item in result)
    return result


def _open_masks(indices: Any, values: Mapping[int, Value]) -> list[Any]:
    """Replace boolean masks, which need data, by index tensors."""
    opened: list[Any] = []
    for index in indices:
        known = isinstance(index, Tensor) and not index.is_meta and not isinstance(values.get(key(index)), int)
        if known and index.dtype in (torch.bool, torch.uint8):
            opened.extend(index.nonzero().unbind(1))
        else:
            opened.append(index)
    return opened


class Surroundings(TorchFunctionMode):
    """Let a network on meta tensors believe that it runs on a CPU, and note what ATen takes apart.

    Recurrent layers become hundreds of operations, fused attention a different set on each backend: they are seen
    here, before that.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _SEEN.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self.recorder, func, args, dict(kwargs or {}))


def _device(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _CPU if recorder.meta else func(*args, **kwargs)


def _is_meta(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return False if recorder.meta else func(*args, **kwargs)


def _composite(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], weights: list[Any]
) -> tuple[Any, list[Operand], list[Tensor]]:
    recorder.muted, muted = True, recorder.muted
    try:
        result = func(*args, **kwargs)
    finally:
        recorder.muted = muted
    own = {id(tensor) for tensor in tensors_in(weights)}
    operands: list[Operand] = []
    for tensor in tensors_in([*args, *kwargs.values()]):
        role = "weight" if id(tensor) in own else "data"
        operands.append((role, tensor, recorder.values.get(key(tensor))))
    return result, operands, list(tensors_in(result))


def _recurrent(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    weights: list[Any] = list(args[2:]) if func.__name__.endswith("_cell") else list(lists[-1])
    result, operands, outputs = _composite(recorder, func, args, kwargs, weights)
    if recorder.muted:
        return result
    uses = []
    for _, tensor, value in (o for o in operands if o[0] == "weight"):
        for name in value if isinstance(value, tuple) else ():
            role = re.sub(r"(_l\d+)?(_reverse)?$", "", name.rpartition(".")[2])
            if role not in ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"):
                role = "weight" if tensor.ndim > 1 else "bias"
            uses.append(ParameterUse(name, role, recorder.shapes[name]))
    sources = recorder.data(o for o in operands if o[0] == "data")
    node = recorder._add("recurrent", tuple(outputs[0].shape), sources, uses, None, func.__name__)
    recorder._assign(outputs, node)
    return result


def _scaled_dot_product(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result, _, outputs = _composite(recorder, func, args, kwargs, [])
    if recorder.muted:
        return result
    named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
    operands = [(n, t, recorder.values.get(key(t))) for n, t in named.items() if isinstance(t, Tensor)]
    operation = Operation(func.__name__, "attention", (), ())
    recorder._assign(outputs, _attention(recorder, Call(operation, operands, named, outputs)))
    return result


_SEEN: dict[Any, Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    Tensor.device.__get__: _device,  # type: ignore[attr-defined]
    Tensor.is_meta.__get__: _is_meta,  # type: ignore[attr-defined]
    torch.nn.functional.scaled_dot_product_attention: _scaled_dot_product,
    **dict.fromkeys(
        (
            torch.lstm,
            torch.gru,
            torch.rnn_tanh,
            torch.rnn_relu,
            torch.lstm_cell,
            torch.gru_cell,
            torch.rnn_tanh_cell,
            torch.rnn_relu_cell,
        ),
        _recurrent,
    ),
}
