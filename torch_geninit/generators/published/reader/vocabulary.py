"""The published hypernetworks' vocabulary: which of fifteen primitives a vertex of an autograd walk is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from torch_geninit.generators.published.reader.graph import Graph, Leaf, Vertex

PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""The originals' vocabulary: position = row of the embedding."""

_GHN2_MODULES = {
    "torch.nn.modules.conv.Conv2d": "conv",
    "torch.nn.modules.linear.Linear": "conv",
    "torch.nn.modules.batchnorm.BatchNorm2d": "bn",
    "torch.nn.modules.normalization.LayerNorm": "ln",
    "torchvision.models.convnext.LayerNorm2d": "ln",
}
_GHN3_MODULES = {
    **_GHN2_MODULES,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": "conv",
    "torch.nn.modules.activation.MultiheadAttention": "conv",
    "transformers.pytorch_utils.Conv1D": "conv",
    "torch.nn.modules.sparse.Embedding": "pos_enc",
    "torchvision.models.vision_transformer.Encoder": "pos_enc",
}
_OPERATIONS = {
    "Mean": "glob_avg",
    "AdaptiveAvgPool2D": "glob_avg",
    "MaxPool2DWithIndices": "max_pool",
    "AvgPool2D": "avg_pool",
    "Mul": "cse",
    "Add": "sum",
    "Cat": "concat",
}
GHN2_OPERATIONS = {**_OPERATIONS, "Clone": "msa"}
GHN3_OPERATIONS = {**_OPERATIONS, "Softmax": "msa"}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def family(owner: nn.Module) -> str | None:
    """Row of the module table that a module or one of its bases is."""
    return next((kind for kind in map(_name, type(owner).__mro__) if kind in _GHN3_MODULES), None)


def is_known_leaf(leaf: Leaf) -> bool:
    """Whether GHN-2's table has this very type (a subclass is unknown to it)."""
    return _name(type(leaf.owner)) in _GHN2_MODULES


def is_norm_bias(leaf: Leaf) -> bool:
    """Tell whether a parameter is the bias of a norm, by its name and the class of its owner."""
    return ".bias" in f".{leaf.name}" and "norm" in type(leaf.owner).__name__.lower()


def _operation(label: str) -> str:
    return label.partition("Backward")[0]


def primitive(vertex: Vertex) -> str:
    """Return which of the originals' fifteen primitives a vertex of a finished graph is."""
    leaf = vertex.leaf
    if leaf is None:
        if vertex.label == "input":
            return "input"
        operation = _operation(vertex.label)
        return {**GHN2_OPERATIONS, **GHN3_OPERATIONS}.get(operation, "sum")
    kind = _GHN3_MODULES[family(leaf.owner) or ""]
    if kind != "conv":
        return kind
    if "bias" in leaf.name:
        return "bias"
    if isinstance(leaf.owner, nn.Conv2d) and leaf.owner.groups > 1:
        return "dil_conv" if min(leaf.owner.dilation) > 1 else "sep_conv"
    return "conv"


def unsupported(graph: Graph, operations: Iterable[str]) -> list[str]:
    """Return the labels of vertices that are neither a known layer's nor one of ``operations``."""

    def known(vertex: Vertex) -> bool:
        if vertex.leaf is None:
            return _operation(vertex.label) in operations
        return family(vertex.leaf.owner) is not None and not is_norm_bias(vertex.leaf)

    return list(dict.fromkeys(v.label for v in graph.vertices if not known(v)))
