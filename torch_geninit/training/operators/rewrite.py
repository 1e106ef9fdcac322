"""Put faster operators into a network, however it is written."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from torch_geninit.training.operators.attention import attention
from torch_geninit.training.operators.depthwise import depthwise_convolution
from torch_geninit.training.operators.normalise import batch_normalise

ADDITIONS = (operator.add, operator.iadd, torch.add)
RELUS = (F.relu, torch.relu)


def rewritten(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` that computes the same, faster on CPUs, from parameters of the same names.

    It is for training on CPUs, with BatchNorm on batch statistics. A model whose ``forward`` depends on its
    input is returned as it is: :mod:`torch.fx` can't trace it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
        >>> [node.name for node in rewritten(model).graph.nodes if node.op.startswith("call")]
        ['_0', 'batch_normalise']
        >>> [name for name, _ in rewritten(model).named_parameters()]
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    try:
        network = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError):
        return model
    for node in list(network.graph.nodes):
        layer = _layer(network, node)
        if isinstance(layer, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    for node in list(network.graph.nodes):
        layer = _layer(network, node)
        if isinstance(layer, nn.Conv2d) and _is_depthwise(layer):
            geometry = (layer.stride, layer.padding)
            parameters = _parameters(network, node)
            _replace([node], depthwise_convolution, node.args[0], *parameters, *geometry)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            _replace_normalisation(network, node, layer.eps)
        elif node.target is F.scaled_dot_product_attention and set(node.kwargs) <= {"attn_mask"}:
            node.target = attention
    network.recompile()
    return network


def _replace_normalisation(network: fx.GraphModule, node: fx.Node, eps: float) -> None:
    """Replace a BatchNorm, with the addition and the ReLU that follow it, if nothing else reads between."""
    chain, residual = [node], None
    reader = _only_reader(node)
    if reader is not None and reader.target in ADDITIONS and len(reader.args) == 2 and not reader.kwargs:
        others = [argument for argument in reader.args if argument is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node):
            residual = others[0]
            chain.append(reader)
            reader = _only_reader(reader)
    relu = reader is not None and _is_relu(network, reader)
    if reader is not None and relu:
        chain.append(reader)
    parameters = _parameters(network, node)
    _replace(chain, batch_normalise, node.args[0], *parameters, eps, residual, relu)


def _layer(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    method = node.op == "call_method" and node.target in ("relu", "relu_")
    return method or node.target in RELUS or isinstance(_layer(network, node), nn.ReLU)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _parameters(network: fx.GraphModule, node: fx.Node) -> list[fx.Node | None]:
    """Read weight and bias of the layer that ``node`` calls, right before it."""
    layer = network.get_submodule(str(node.target))
    with network.graph.inserting_before(node):
        return [
            None if getattr(layer, name) is None else network.graph.get_attr(f"{node.target}.{name}")
            for name in ("weight", "bias")
        ]


def _replace(chain: list[fx.Node], function: Callable[..., Tensor], *arguments: fx.node.Argument) -> None:
    """Replace nodes, each the only reader of the one before, by one call where the last stands."""
    last = chain[-1]
    with last.graph.inserting_after(last):
        call = last.graph.call_function(function, arguments)
    last.replace_all_uses_with(call)
    for node in reversed(chain):
        node.graph.erase_node(node)
