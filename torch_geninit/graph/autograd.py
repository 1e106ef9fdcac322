"""Read a model as the published hypernetworks did: a walk over the autograd graph, with the originals' own order.

GHN-1, GHN-2 and GHN-3 were trained on graphs that their authors took from autograd, quirks included, and their
weights mean something on those graphs only. This module records such a graph; :mod:`.autograd_rules` holds the
originals' clean-up. Nothing here is shared with :mod:`.trace` but the data types of :mod:`.architecture`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.autograd_rules import (
    Graph,
    Leaf,
    Refused,
    Vertex,
    is_known_leaf,
    is_norm_bias,
    primitive,
    read_ghn2,
    read_ghn3,
)

PUBLISHED_VOCABULARY = -1
"""``Architecture.vocabulary`` of these graphs: their primitives are the originals' fifteen, none of our versions."""


class AutogradReadError(RuntimeError):
    """A model could not be run, so that its autograd graph could not be read."""


def read(model: nn.Module, example_inputs: Any = None, *, dialect: str = "ghn3") -> Architecture:
    """Read ``model`` as GHN-2 (``dialect="ghn2"``) or GHN-3 (``"ghn3"``) would.

    The model itself is never called: a structural copy without data is, in train mode and with gradients enabled,
    as the originals do with a newly built model. Global random states stay as they are. A network that the GHN-2
    original refuses (attention, several inputs to the graph) is read by GHN-3's rules, as its authors' own
    successor code does with GHN-2 weights.

    Args:
        model: any module; may live on the meta device.
        example_inputs: a tensor, or a tuple of positional or a dict of keyword arguments; guessed if None.
        dialect: whose reading.

    Returns:
        Architecture whose ops are the originals' primitives, in the originals' topological order; edges are the
        real ones (virtual edges are shortest paths over them).

    Raises:
        AutogradReadError: if the copy can't be run.

    Example:
        >>> graph = read(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
        >>> [node.op for node in graph.nodes]
        ['input', 'conv', 'bias', 'conv', 'bias']
    """
    clone, outputs = _run(model, example_inputs)
    kind = next((f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__ if _is_special(c)), "")
    if dialect == "ghn2":
        try:
            graph = read_ghn2(_walk(clone, outputs[:1], all_leaves=False), kind)
            return _architecture(graph)
        except Refused:
            pass
    return _architecture(read_ghn3(_walk(clone, outputs, all_leaves=True), kind))


def _is_special(cls: type) -> bool:
    return cls.__module__.startswith("torchvision.models.") and cls.__name__ in (
        "VisionTransformer",
        "SwinTransformer",
        "SqueezeNet",
    )


# --- running a copy ---------------------------------------------------------------------------------------------


def _run(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, list[Tensor]]:
    problems = []
    for device in ("meta", "cpu"):
        clone = _clone(model, device)
        for args, kwargs in _candidates(model, example_inputs, device):
            try:
                outputs = _forward(clone, args, kwargs, device)
            except Exception as error:  # whatever a user's forward may raise
                problems.append(f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
                continue
            if outputs:
                return clone, outputs
            problems.append("no output depends on a parameter")
    raise AutogradReadError(
        f"{type(model).__name__} could not be run to read its graph ({problems[-1]}); "
        "pass example_inputs= with inputs that its forward accepts"
    )


def _forward(clone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> list[Tensor]:
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device(device),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return [t for t in _tensors(clone(*args, **kwargs)) if t.grad_fn is not None]


def _clone(model: nn.Module, device: str) -> nn.Module:
    """Copy the structure of ``model`` with float32 stand-ins for its tensors, all parameters trainable."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        registries = (module._parameters, module._buffers, vars(module))
        for tensor in (t for r in registries for t in r.values() if isinstance(t, Tensor)):
            if id(tensor) not in memo:
                memo[id(tensor)] = _stand_in(tensor, device)
    clone = copy.deepcopy(model, memo)
    for module in clone.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                value.clear()
        module._compiled_call_impl = None
        if device == "meta" and type(module) in _NORMS:
            # torch's own normalisation takes over a millisecond a layer on meta tensors; autograd sees the same leaves
            vars(module)["forward"] = partial(_normalise, module)
    return clone.train()


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


class _NormaliseShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return torch.empty_like(x)


def _normalise(module: nn.Module, input: Tensor) -> Tensor:
    out: Tensor = _NormaliseShape.apply(input, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return out


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
        (m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.Linear))),
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


# --- the walk ---------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """Stands for an autograd function: its name, what it reads, and what it saved."""

    key: Any
    name: str
    reads: tuple[Any, ...]
    function: Any


def _step(function: Any) -> _Step:
    if isinstance(function, _Step):
        return function
    name: str = function.name().rpartition("::")[2]
    reads = tuple(f for f, _ in function.next_functions if f is not None)
    if name.startswith("ScaledDotProduct") or name.startswith("EfficientAttention"):
        # Fused attention leaves one function; the weights were trained when it left these three.
        sources = [f for f, _ in function.next_functions]
        query, key, value, *rest = [*sources, None, None]
        scores: Any = _plain((function, "scores"), "BmmBackward0", query, key)
        mask = next((f for f in rest if f is not None), None)
        if mask is not None:
            scores = _plain((function, "mask"), "AddBackward0", scores, mask)
        softmax = _plain((function, "softmax"), "SoftmaxBackward0", scores)
        return _plain(function, "BmmBackward0", softmax, value)
    if name.startswith("SafeSoftmax"):
        name = name[len("Safe") :]
    return _Step(function, name, reads, function)


def _plain(key: Any, name: str, *reads: Any) -> _Step:
    return _Step(key, name, tuple(f for f in reads if f is not None), None)


@dataclass
class _Ends:
    head: int
    tail: int


def _walk(model: nn.Module, outputs: list[Tensor], *, all_leaves: bool) -> Graph:
    """Walk depth-first from the outputs; an operation that reads parameters becomes one vertex for each of them."""
    leaves = _leaves(model)
    graph = Graph()
    ends: dict[Any, _Ends | None] = {}
    steps: dict[Any, _Step] = {}

    def leaf_of(function: Any) -> Leaf | None:
        variable = getattr(function, "variable", None)
        leaf = None if variable is None else leaves.get(id(variable))
        if leaf is None or all_leaves:
            return leaf
        return leaf if is_known_leaf(leaf) and not is_norm_bias(leaf) else None

    def visit(step: _Step) -> None:
        indices = []
        for function in step.reads:
            leaf = leaf_of(function)
            if leaf is None:
                continue
            if function not in ends:
                graph.append(Vertex(leaf.name, leaf))
                ends[function] = _Ends(len(graph) - 1, len(graph) - 1)
            indices.append(ends[function].tail)  # type: ignore[union-attr]
        if not indices:
            graph.append(Vertex(step.name, None, **_saved(step.function)))
            indices = [len(graph) - 1]
        ends[step.key] = _Ends(indices[0], indices[-1])
        steps[step.key] = step

    pending: list[Iterator[_Step]] = [iter([_step(o.grad_fn)]) for o in reversed(outputs)]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
        elif step.key not in steps:
            visit(step)
            pending.append(iter([_step(f) for f in step.reads if getattr(f, "variable", None) is None]))

    for key, step in steps.items():
        head = ends[key].head  # type: ignore[union-attr]
        for function in step.reads:
            if getattr(function, "variable", None) is not None:
                leaf = leaf_of(function)
                if leaf is None:
                    continue
                tail, name = ends[function].tail, leaf.name  # type: ignore[union-attr]
            else:
                below = _step(function)
                tail, name = ends[below.key].tail, below.name  # type: ignore[union-attr]
            if tail != head:
                graph.link(*((head, tail) if "bias" in name else (tail, head)))
    return graph


def _leaves(model: nn.Module) -> dict[int, Leaf]:
    leaves: dict[int, Leaf] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in leaves:
                name = f"{path}.{leaf}" if path else leaf
                leaves[id(parameter)] = Leaf(name, module, tuple(parameter.shape))
    return leaves


def _saved(function: Any) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    if hasattr(function, "_saved_keepdim"):
        saved["keepdim"] = bool(function._saved_keepdim)
    if hasattr(function, "_saved_kernel_size"):
        size = function._saved_kernel_size
        saved["kernel_size"] = (size, size) if isinstance(size, int) else tuple(size)
    return saved


# --- the result -------------------------------------------------------------------------------------------------


def _architecture(graph: Graph) -> Architecture:
    nodes = []
    for vertex in graph.vertices:
        op = primitive(vertex)
        uses: list[ParameterUse] = []
        attributes: tuple[tuple[str, int | Shape], ...] = ()
        leaf = vertex.leaf
        if leaf is not None:
            uses.append(ParameterUse(leaf.name, "bias" if "bias" in leaf.name else "weight", leaf.shape))
            bias = leaf.owner._parameters.get("bias")
            if op in ("bn", "ln") and bias is not None:
                name = leaf.name[: -len("weight")] + "bias"
                uses.append(ParameterUse(name, "bias", tuple(bias.shape)))
        elif op in ("max_pool", "avg_pool"):
            attributes = (("kernel_size", vertex.kernel_size or (3, 3)),)
        nodes.append(Node(op, (), tuple(uses), attributes))
    return Architecture(tuple(nodes), tuple(sorted(graph.edges())), PUBLISHED_VOCABULARY)
