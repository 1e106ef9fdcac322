"""A shortcut says of a tensor without data what ATen says of one with data: size, type and layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from torch_geninit.graph.tracer.shape_rules import SHORTCUTS

aten = torch.ops.aten
IMAGE = torch.zeros(2, 6, 9, 8)
LAST = IMAGE.to(memory_format=torch.channels_last)
TABLE = torch.zeros(11, 5)
NUMBERS = torch.zeros(3, 4, dtype=torch.int64)

KNOWN: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.mean.dim, (IMAGE, [-1, -2])),
    (aten.mean.dim, (IMAGE, [2, 3], True)),
    (aten.mean.dim, (LAST, [-1, -2], True)),
    (aten.mean.dim, (torch.zeros(2, 7, 5), [1])),
    (aten.mean.default, (IMAGE,)),
    (aten.sum.dim_IntList, (IMAGE, [1])),
    (aten.amax.default, (IMAGE, [1, 3])),
    (aten.linalg_vector_norm.default, (IMAGE, 2, [-1], True)),
    (aten.max_pool2d_with_indices.default, (IMAGE, [3, 3], [2, 2], [1, 1])),
    (aten.max_pool2d_with_indices.default, (IMAGE, [2, 2], [2, 2], [0, 0], [1, 1], True)),
    (aten.max_pool2d_with_indices.default, (IMAGE[0], [3, 2], [1, 1], [1, 0], [2, 1])),
    (aten.avg_pool2d.default, (IMAGE, [2, 2])),
    (aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [1, 1], True)),
    (aten._adaptive_avg_pool2d.default, (IMAGE, [4, 3])),
    (aten.upsample_nearest2d.default, (IMAGE, [18, 16])),
    (aten.upsample_bilinear2d.default, (IMAGE, [5, 7], False)),
    (aten.embedding.default, (TABLE, NUMBERS)),
    (aten.index.Tensor, (TABLE, [NUMBERS])),
    (aten._safe_softmax.default, (IMAGE, -1)),
    (aten._log_softmax.default, (IMAGE, 1, False)),
    (aten.clamp_min.default, (IMAGE, 0.5)),
    (aten.masked_fill.Scalar, (IMAGE, torch.ones(9, 8, dtype=torch.bool), 0.0)),
    (aten.sub.Tensor, (torch.zeros(4, 1, 7), torch.zeros(4, 7, 1))),
    (
        aten.cat.default,
        ([torch.zeros(2, 8, 8, 3)[:, 0::2, 0::2], torch.zeros(2, 8, 8, 3)[:, 1::2, 0::2]], -1),
    ),
    (
        aten.convolution.default,
        (IMAGE, torch.zeros(6, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ),
]
REFUSED: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.mean.dim, (IMAGE, [4])),
    (aten.mean.dim, (IMAGE, [1, 1])),
    (aten.max_pool2d_with_indices.default, (IMAGE, [20, 20])),
    (aten.avg_pool2d.default, (IMAGE, [2, 2], [2, 2], [2, 2])),
    (aten.sub.Tensor, (torch.zeros(4, 2, 7), torch.zeros(4, 3, 7))),
    (aten.index.Tensor, (TABLE, [torch.zeros(11, dtype=torch.bool)])),
    (aten._safe_softmax.default, (IMAGE, 4)),
    (
        aten.convolution.default,
        (IMAGE, torch.zeros(6, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [2, 2], 1),
    ),
]


def told(func: Any, args: tuple[Any, ...]) -> list[Tensor] | None:
    """Return what the shortcut makes of the arguments, without their data."""
    names = [argument.name for argument in func._schema.arguments]
    bare = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, args)
    found = SHORTCUTS[func._schema.name.partition("::")[2]](dict(zip(names, bare, strict=False)))
    return None if found is None else tree_leaves(found)


@pytest.mark.parametrize(("func", "args"), KNOWN, ids=lambda x: str(x) if callable(x) else "")
def test_what_a_shortcut_says_is_what_aten_computes(func: Any, args: tuple[Any, ...]) -> None:
    def layout(tensor: Tensor) -> list[tuple[int, int]]:
        return [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]

    found, expected = told(func, args), tree_leaves(func(*args))
    assert found is not None and len(found) == len(expected)
    for tensor, computed in zip(found, expected, strict=True):
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (computed.shape, computed.dtype)
        assert layout(tensor) == layout(computed)


@pytest.mark.parametrize(("func", "args"), REFUSED, ids=lambda x: str(x) if callable(x) else "")
def test_what_is_an_error_or_goes_by_values_is_left_to_aten(func: Any, args: tuple[Any, ...]) -> None:
    assert told(func, args) is None
