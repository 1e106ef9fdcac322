"""What each kind of operation adds to a graph: a node, or nothing where it only moves data.

A rule returns the value of the call's outputs. Parameters on which only arithmetic is done keep their names:
a normalised or transposed weight is still that weight to the layer that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from torch_geninit.graph.architecture import Shape
from torch_geninit.graph.tracer.draft import unique
from torch_geninit.graph.tracer.recorder import Call, Operand, Recorder, Rule, Value

_LOOKUPS = frozenset(("index", "index_select", "gather", "take", "take_along_dim", "_unsafe_index"))
_WRITES = frozenset(
    """copy index_put _index_put_impl _unsafe_index_put scatter index_copy masked_scatter slice_scatter
    select_scatter""".split()
)
_MATRIX_PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "_addmm_activation", "linear"))
_FACTORS = frozenset(("tensor1", "tensor2"))  # of addcmul and addcdiv
RELU6 = 6
_MASKS = frozenset(("attn_mask", "attn_bias", "bias", "mask"))


def sources_of(operands: Iterable[Operand]) -> list[int]:
    """Return the nodes among operands, without repetition."""
    return list(unique(value for _, _, value in operands if isinstance(value, int)))


def arithmetic(operands: Iterable[Operand]) -> Value:
    """Return the parameters among operands: the value of what is computed from them alone."""
    names = [name for _, _, value in operands if isinstance(value, tuple) for name in value]
    return tuple(dict.fromkeys(names)) or None


def _generic(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    return recorder.node(call, "other", sources, recorder.uses(call.operands, "other"))


def _activation(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    op = call.operation.rule if len(sources) == 1 else "other"
    bounds = call.arguments.get("min_val"), call.arguments.get("max_val")
    if call.operation.name == "hardtanh" and bounds == (0, RELU6):
        op = "relu"
    return recorder.node(call, op, sources, recorder.uses(call.operands, "weight"))


def _affine(recorder: Recorder, call: Call) -> Value:
    """Add or multiply: constants are transparent, parameters are biases or scales, the rest are joins."""
    rule = call.operation.rule
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    factors = [o for o in call.operands if rule == "mul" or o[0] in _FACTORS]
    terms = [o for o in call.operands if rule == "add" and o[0] not in _FACTORS]
    weights, biases = recorder.uses(factors, "weight"), recorder.uses(terms, "bias")
    if len(sources) > 1:
        return recorder.node(call, rule, sources, weights + biases)
    if weights or biases:
        return recorder.node(call, "scale" if weights else "bias", sources, weights + biases)
    if rule == "mul":
        places = [name for name, _, value in call.operands if isinstance(value, int)]
        if len(places) > 1 or (places == ["other"] and call.operation.name in ("div", "true_divide")):
            return recorder.node(call, "activation", sources)
    return sources[0]


def _transparent(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    return sources[0] if len(sources) == 1 else _generic(recorder, call)


def _linear(recorder: Recorder, call: Call) -> Value:
    """Multiply matrices: by a parameter a linear layer, otherwise a join."""
    name = call.operation.name
    added = [o for o in call.operands if o[0] == "self"] if name.startswith(("add", "badd")) else []
    operands = call.operands[len(added) :]
    sources = sources_of(operands)
    parameters = [o for o in operands if isinstance(o[2], tuple)]
    if not sources:
        weight = operands[-1]
        layer = isinstance(weight[2], tuple) and name in _MATRIX_PRODUCTS
        stored = recorder.is_parameter(weight[1]) and _transposed(weight[1])
        if not layer or not (name == "addmm" or stored):
            return arithmetic(call.operands)  # as in a weight of low rank
        parameters = [weight]
    if not parameters:
        uses = recorder.uses(added, "bias")
        return recorder.node(call, "matmul", sources + sources_of(added), uses)
    weight = parameters[-1]
    data = [operand for operand in operands if operand is not weight]
    stored_in_out = weight is not operands[0] and not _transposed(weight[1])
    uses = recorder.uses([weight], "weight") + recorder.uses(added, "bias")
    attributes = {"transposed_weight": 1} if stored_in_out else None
    return recorder.node(call, "linear", recorder.data(data) + sources_of(added), uses, attributes)


def _transposed(tensor: Tensor) -> bool:
    """Whether a matrix is the transposed view of a stored one."""
    return tensor.ndim < 2 or tensor.stride(-1) != 1 or tensor.shape[-1] == 1 == tensor.stride(-2)


def _layer(recorder: Recorder, call: Call) -> Value:
    """Apply a layer whose parameters are the arguments weight and bias."""
    op = call.operation.rule
    own = [o for o in call.operands if o[0] in ("weight", "bias")]
    data = [o for o in call.operands if o[0] not in ("weight", "bias")]
    attributes: dict[str, Any] = {}
    if op == "conv":
        op, attributes = _convolution(call)
    elif op == "batch_norm":
        if not sources_of(call.operands) and arithmetic(data):
            return arithmetic(call.operands)  # a weight that is standardised
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
    """Tell instance norm, which ATen makes of batch norm on a repeated weight without running statistics."""
    weight = call.arguments.get("weight")
    running = call.arguments.get("running_mean") is not None
    direct = weight is not None and recorder.is_parameter(weight)
    return "batch_norm" if running or direct else "instance_norm"


def attention(recorder: Recorder, call: Call) -> Value:
    """Attend; a mask may be a parameter, its role is then bias."""
    masks = [o for o in call.operands if o[0] in _MASKS]
    data = [o for o in call.operands if o[0] not in _MASKS]
    uses = recorder.uses(masks, "bias")
    return recorder.node(call, "attention", recorder.data(data) + sources_of(masks), uses)


def _fused_layer(recorder: Recorder, call: Call) -> Value:
    """Apply several layers in one kernel: all that the parameters are is their own names' business."""
    own = [o for o in call.operands if isinstance(o[2], tuple)]
    uses = [use for o in own for use in recorder.uses([o], "bias" if o[1].ndim == 1 else "weight")]
    return recorder.node(call, call.operation.rule, sources_of(call.operands), uses)


def _pool(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    source, out = call.operands[0][1].shape, call.outputs[0].shape
    arguments, op = call.arguments, call.operation.rule
    kernel = tuple(arguments.get("kernel_size") or ())
    space = len(kernel) or len(arguments.get("output_size") or ()) or max(1, len(out) - 2)
    if op == "avg_pool" and all(extent == 1 for extent in out[-space:]):
        return recorder.node(call, "global_avg_pool", sources)
    if not kernel:
        kernel = tuple(max(1, a // max(1, b)) for a, b in zip(source[-space:], out[-space:], strict=True))
    stride = tuple(arguments.get("stride") or kernel)
    attributes = {"kernel_size": kernel, "stride": stride * space if len(stride) == 1 else stride}
    return recorder.node(call, op, sources, (), attributes)


def _reduce(recorder: Recorder, call: Call) -> Value:
    """Reduce: over all positions it is a global pooling."""
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    dims, rank = call.arguments.get("dim"), call.operands[0][1].ndim
    op = "other"
    if isinstance(dims, list | tuple) and len(dims) == rank - 2 > 0 and all(d % rank for d in dims):
        op = {"mean": "global_avg_pool", "amax": "max_pool"}.get(call.operation.name, "other")
    return recorder.node(call, op, sources, recorder.uses(call.operands[1:], "other"))


def _concat(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    if len(call.operands) == 1:
        return sources[0]
    data = unique(recorder.data(call.operands))
    constants = any(value is None and tensor.numel() for _, tensor, value in call.operands)
    return recorder.node(call, "pad" if constants and len(data) == 1 else "concat", data)


def _plain(recorder: Recorder, call: Call) -> Value:
    sources = sources_of(call.operands)
    if not sources:
        return arithmetic(call.operands)
    if call.operation.rule == "pad" and not any(call.arguments.get("pad") or (1,)):
        return sources[0]
    return recorder.node(call, call.operation.rule, recorder.data(call.operands))


def _move(recorder: Recorder, call: Call) -> Value:
    """Move data: transparent, unless it joins several values."""
    name, operands = call.operation.name, call.operands
    if not operands:
        return None
    target = operands[0]
    if name in ("fill", "zero", "bernoulli"):
        return target[2]
    if name == "copy" and (target[2] is None or _whole(target[1])):
        return operands[1][2]
    sources = sources_of(operands)
    if not sources:
        return arithmetic(operands)
    if name in _LOOKUPS and isinstance(target[2], tuple):
        return recorder.node(call, "embedding", sources, recorder.uses([target], "weight"))
    data = unique(recorder.data(operands))
    if len(data) == 1:
        return data[0]
    return recorder.node(call, "concat" if name in _WRITES else "other", data)


def _whole(tensor: Tensor) -> bool:
    """Whether a tensor covers its storage."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()


RULES_OF_KIND: Mapping[str, Rule] = {
    "other": _generic,
    "add": _affine,
    "mul": _affine,
    "affine": _transparent,
    "linear": _linear,
    "attention": attention,
    "recurrent": _fused_layer,
    "max_pool": _pool,
    "avg_pool": _pool,
    "reduce": _reduce,
    "concat": _concat,
    "pad": _plain,
    "resample": _plain,
    "softmax": _plain,
    "move": _move,
    "view": _move,
    **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh", "activation"), _activation),
    **dict.fromkeys(("conv", "embedding", "batch_norm", "layer_norm", "group_norm", "rms_norm"), _layer),
}
"""Name of a rule in :data:`torch_geninit.graph.vocabulary.RULES` -> the rule."""
