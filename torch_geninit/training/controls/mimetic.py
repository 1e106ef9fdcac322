"""Mimetic initialisation of vision transformers (Trockman and Kolter 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torch_geninit.training.controls.attention import patch_positions, projections
from torch_geninit.training.networks.vit import sines

QUERY_KEY = (0.7, 0.7)
VALUE_OUT = (0.4, 0.4)
"""Alpha and beta of the two products: the paper's values for ViTs."""


@torch.no_grad()
def mimetic_(
    model: nn.Module,
    *,
    generator: torch.Generator,
    query_key: tuple[float, float] = QUERY_KEY,
    value_out: tuple[float, float] = VALUE_OUT,
    positions: bool = True,
) -> nn.Module:
    r"""Set attention as it is in trained vision transformers: queries like keys, values against outputs.

    Of D channels and heads of k channels each, for tokens as rows:

    .. math::
        W_Q W_K^\top \approx \alpha_1 Z_1 + \beta_1 I, \qquad
        W_V W_{\text{out}} = \alpha_2 Z_2 - \beta_2 I, \qquad Z_{ij} \sim N(0, 1 / D)

    The factors come from the singular value decomposition :math:`U S V^\top` of the right side:
    :math:`U \sqrt S` and :math:`V \sqrt S`. For queries and keys each head has a draw of its own and keeps
    the k largest singular values. Biases, MLPs and the classifier stay as they are.

    Args:
        model: a network with self-attention, changed in place.
        generator: of the draws.
        query_key: alpha and beta of queries and keys.
        value_out: alpha and beta of values and outputs.
        positions: whether the learned positions become sines and cosines, those of extra tokens 0. The paper
            starts from these: only then does W_Q W_K^T near I mean attention to near patches.

    Raises:
        ValueError: if the network has no self-attention, or positions are asked for and it has no table.

    Source: A. Trockman and J. Z. Kolter, Mimetic Initialization of Self-Attention Layers, ICML 2023, arXiv
    2305.09828.

    Example::

        >>> import torch
        >>> from torch_geninit.training.networks.vit import ViT
        >>> model = ViT(depth=2, width=32, heads=1, patch=8).build(10, 32)
        >>> attention = mimetic_(model, generator=torch.Generator().manual_seed(0)).get_submodule(
        ...     "encoder.blocks.0.attention.attention")
        >>> query, key, _ = attention.in_proj_weight.chunk(3)
        >>> round((query.T @ key).diagonal().mean().item(), 1)
        0.7
    """
    found = projections(model)
    table = patch_positions(model) if positions else None
    for one in found:
        width = one.out.shape[0]
        size = width // one.heads
        for head in range(one.heads):
            rows = slice(head * size, (head + 1) * size)
            left, right = factors(near_identity(width, *query_key, generator), size)
            one.query[rows], one.key[rows] = left.T, right.T
        alpha, beta = value_out
        left, right = factors(near_identity(width, alpha, -beta, generator), width)
        one.value.copy_(left.T)
        one.out.copy_(right)
    if table is not None:
        tokens, extra = table
        tokens.copy_(sines(math.isqrt(len(tokens) - extra), extra, tokens.shape[1])[0])
    return model


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L and R (D, rank) with L R^T the best approximation of ``matrix`` (D, D), equally large."""
    left, values, right = torch.linalg.svd(matrix)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, right[:rank].T * root


def near_identity(width: int, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """Draw alpha Z + beta I (width, width), the entries of Z with variance 1 / width."""
    return alpha * torch.randn(width, width, generator=generator) / width**0.5 + beta * torch.eye(width)
