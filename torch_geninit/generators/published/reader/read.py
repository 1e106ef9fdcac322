"""Read a model as the published hypernetworks did: a walk over the autograd graph, in their own order.

GHN-1, GHN-2 and GHN-3 were trained on graphs that their authors took from autograd, quirks included, and
their weights mean something on those graphs only. This module records such a graph; :mod:`.rules`
holds the originals' clean-up, :mod:`.vocabulary` their primitives. Only the copy of the model is made as for
:func:`torch_geninit.trace`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit._utils.modules import named_modules
from torch_geninit.generators.published.reader.graph import Graph, Leaf, Vertex
from torch_geninit.generators.published.reader.rules import Refused, read_ghn2, read_ghn3
from torch_geninit.generators.published.reader.shapes import ShapesOnly
from torch_geninit.generators.published.reader.vocabulary import PRIMITIVES, primitive
from torch_geninit.generators.published.reader.walk import heads, walk
from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.tracer.clone import clone_structure
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.graph.tracer.isolation import isolated
from torch_geninit.graph.tracer.outside import copied
from torch_geninit.graph.vocabulary import VERSION


class AutogradReadError(RuntimeError):
    """A model could not be run, so that its autograd graph could not be read."""


def read(model: nn.Module, example_inputs: Any = None, *, dialect: str = "ghn3") -> Architecture:
    """Read ``model`` as GHN-2 (``dialect="ghn2"``) or GHN-3 (``"ghn3"``) would.

    The model itself is never called: a structural copy without data is, in train mode and with gradients
    enabled, as the originals do with a newly built model. Global random states stay as they are. A network
    that the GHN-2 original refuses (attention, several inputs to the graph) is read by GHN-3's rules, as its
    authors' own successor code does with GHN-2 weights.

    Args:
        model: any module; may live on the meta device.
        example_inputs: a tensor, or a tuple of positional or a dict of keyword arguments; guessed if None.
        dialect: whose reading.

    Returns:
        Architecture in the originals' topological order, closed by an ``output``; edges are the real ones
        (virtual edges are shortest paths over them). Each node but ``output`` has the attribute
        ``primitive``, an index into :data:`.vocabulary.PRIMITIVES`.

    Raises:
        AutogradReadError: if the copy can't be run.

    Examples:
        >>> graph = read(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
        >>> [node.op for node in graph.nodes]
        ['input', 'conv', 'bias', 'conv', 'bias', 'output']
    """
    leaves, outputs = _run(model, example_inputs)
    kind = next((f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__ if _is_special(c)), "")
    if dialect == "ghn2":
        try:
            graph = read_ghn2(walk(leaves, outputs[:1], all_leaves=False), kind)
            return _architecture(graph, heads(leaves, outputs[:1]))
        except Refused:
            pass
    return _architecture(read_ghn3(walk(leaves, outputs, all_leaves=True), kind), heads(leaves, outputs))


def _is_special(cls: type) -> bool:
    return cls.__module__.startswith("torchvision.models.") and cls.__name__ in (
        "VisionTransformer",
        "SwinTransformer",
        "SqueezeNet",
    )


# --- running a copy -----------------------------------------------------------------------------------------


@torch.inference_mode(False)
def _run(model: nn.Module, example_inputs: Any) -> tuple[dict[int, Leaf], list[Tensor]]:
    problems = []
    for device in ("meta", "cpu"):
        for args, kwargs in _candidates(model, example_inputs, device):
            try:
                leaves, outputs = _forward(model, args, kwargs, device)
            except Exception as error:  # noqa: BLE001  a user's forward may raise anything
                problems.append(f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
                continue
            if outputs:
                return leaves, outputs
            problems.append("no output depends on a parameter")
    raise AutogradReadError(
        f"{type(model).__name__} could not be run to read its graph ({problems[-1]}); "
        "pass example_inputs= with inputs that its forward accepts"
    )


def _forward(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: str
) -> tuple[dict[int, Leaf], list[Tensor]]:
    """Run a copy with float32 stand-ins for tensors, in train mode, all parameters trainable.

    Returns:
        Id of stand-in -> parameter (its name in ``model``, its owner in the copy), and the outputs.
    """
    with isolated():
        copier = Copier(lambda tensor: _stand_in(tensor, device))
        clone, _ = clone_structure(model, copier)
        clone.train()
        leaves: dict[int, Leaf] = {}
        for path, module in named_modules(model):
            for attribute, parameter in module._parameters.items():
                if parameter is not None and id(copier(parameter)) not in leaves:
                    name = f"{path}.{attribute}" if path else attribute
                    owner = copier.memo.get(id(module), clone)
                    leaves[id(copier(parameter))] = Leaf(name, owner, tuple(parameter.shape))
        with copied(copier), ShapesOnly() if device == "meta" else nullcontext(), torch.device(device):
            return leaves, [t for t in _tensors(clone(*args, **kwargs)) if t.grad_fn is not None]


def _stand_in(tensor: Tensor, device: str) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if device == "meta" or tensor.is_meta:
        value = torch.zeros(tensor.shape, dtype=dtype, device=device)
    else:
        value = tensor.detach().to(device, dtype, copy=True)
    return nn.Parameter(value, dtype.is_floating_point) if isinstance(tensor, nn.Parameter) else value


def _candidates(
    model: nn.Module, example_inputs: Any, device: str
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    if example_inputs is not None:
        if isinstance(example_inputs, dict):
            yield (), {key: _input(value, device) for key, value in example_inputs.items()}
        else:
            given = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
            yield tuple(_input(value, device) for value in given), {}
        return
    for shape, dtype in _guesses(model):
        yield (torch.zeros(shape, dtype=dtype, device=device),), {}


def _input(value: Any, device: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _stand_in(value.detach(), device)


def _guesses(model: nn.Module) -> Iterator[tuple[Shape, torch.dtype]]:
    # two images: batch norm in train mode can't normalise one value per channel
    expected = getattr(model, "expected_input_sz", None) or getattr(model, "image_size", None)
    first = next(
        (
            m
            for m in model.modules()
            if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.Linear))
        ),
        None,
    )
    if isinstance(expected, (tuple, list)):
        yield (2, *expected), torch.float32
    elif isinstance(first, nn.Embedding):
        yield (2, 16), torch.long
    elif isinstance(first, nn.Linear):
        yield (2, first.in_features), torch.float32
    else:
        channels = first.in_channels if first is not None else 3
        spatial = {nn.Conv1d: 1, nn.Conv3d: 3}.get(type(first), 2)  # type: ignore[arg-type]
        default = 299 if type(model).__name__ == "Inception3" else 224
        for side in (int(expected),) if expected else (default, 32):
            yield (2, channels, *[side] * spatial), torch.float32


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


# --- the result ---------------------------------------------------------------------------------------------


def _architecture(graph: Graph, last_layers: set[str]) -> Architecture:
    """Write the graph down in our own primitives; attribute ``primitive`` is the original's.

    A layer's bias, a vertex of its own to the originals, becomes a node of shape (n,) without parameters,
    and the parameter is listed with its weight, whose attribute ``bias_node`` is the node's index.
    """
    place = {v.leaf.name: i for i, v in enumerate(graph.vertices) if v.leaf is not None}
    nodes = [_node(vertex, place) for vertex in graph.vertices]
    last = len(nodes)
    ends = {place[name] for name in last_layers if name in place}
    # a bias follows its weight
    ends -= {i for i in ends if nodes[i].attribute("bias_node") in ends}
    edges = {*graph.edges(), *((end, last) for end in ends or {last - 1})}
    return Architecture((*nodes, Node("output", ())), tuple(sorted(edges)), VERSION)


def _node(vertex: Vertex, place: dict[str, int]) -> Node:
    kind = primitive(vertex)
    attributes: list[tuple[str, int | Shape]] = [("primitive", PRIMITIVES.index(kind))]
    leaf = vertex.leaf
    if leaf is None:
        if kind in ("max_pool", "avg_pool"):
            attributes.insert(0, ("kernel_size", vertex.kernel_size or (3, 3)))
        return Node(_OPS[kind], (), (), tuple(attributes))
    role = "bias" if "bias" in leaf.name else "weight"
    if role == "bias" and place.get(_partner(leaf.name, "weight")) is not None:
        return Node("bias", leaf.shape, (), tuple(attributes))
    uses = [ParameterUse(leaf.name, role, leaf.shape)]
    name = _partner(leaf.name, "bias")
    bias = leaf.owner._parameters.get(name.rpartition(".")[2]) if name != leaf.name else None
    if bias is not None and (kind in ("bn", "ln") or name in place):
        uses.append(ParameterUse(name, "bias", tuple(bias.shape)))
        if name in place:
            attributes.insert(0, ("bias_node", place[name]))
    return Node(_layer_op(leaf, kind), (), tuple(uses), tuple(attributes))


def _partner(name: str, role: str) -> str:
    path, _, own = name.rpartition(".")
    other = own.replace("weight", role).replace("bias", role)
    return f"{path}.{other}" if path else other


_OPS = {
    "input": "input",
    "max_pool": "max_pool",
    "avg_pool": "avg_pool",
    "glob_avg": "global_avg_pool",
    "sum": "add",
    "cse": "mul",
    "concat": "concat",
    "msa": "softmax",
    "bn": "batch_norm",
    "ln": "layer_norm",
}


def _layer_op(leaf: Leaf, kind: str) -> str:
    if kind in _OPS:
        return _OPS[kind]
    if isinstance(leaf.owner, nn.Conv2d):
        return "conv"
    if isinstance(leaf.owner, nn.MultiheadAttention):
        return "attention"
    if kind == "pos_enc":
        return "embedding" if isinstance(leaf.owner, nn.Embedding) else "bias"
    return "linear"
