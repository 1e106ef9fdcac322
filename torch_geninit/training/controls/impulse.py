"""Structured initialisation of vision transformers: attention to one neighbour (Zheng et al. 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.controls.attention import patch_positions, projections
from torch_geninit.training.controls.mimetic import VALUE_OUT, factors, near_identity

SHIFTS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Rows and columns to the patch that each head attends to; the tenth head has the first one's again."""

POSITIONS = 0.36
"""Standard deviation of the learned positions, 18 times the usual 0.02."""

SIZE = 7.0
"""Norm of each head's queries and keys."""

NOISE = 0.0018
"""Standard deviation of what is no impulse, whose height is 1: 3 x 0.6 beside 1000 in the authors' code."""


@torch.no_grad()
def impulse_(model: nn.Module, *, generator: torch.Generator) -> nn.Module:
    r"""Let each head attend to one neighbour of its patch, as a convolution with an impulse filter would.

    For N patches, D channels and heads of k channels, P (N, D) the positions after layer normalisation,
    :math:`P^+` its pseudo-inverse from the k largest singular values, and H (N, N) the shift of a head, see
    :data:`SHIFTS`, 0 where it leaves the image:

    .. math:: W_Q W_K^\top \propto P^+ (H + 0.0018\, Z)\, P^{+\top}, \qquad
        \operatorname{softmax}\left( P W_Q W_K^\top P^\top / \sqrt k \right) \approx H

    Z is normal, and 0 at the impulses. The factors are those of the singular value decomposition's k largest
    values, scaled to norm 7 each. Positions are drawn from N(0, 0.36^2). Values and outputs are set as in
    :func:`mimetic_`. Biases, MLPs and the classifier stay as they are. All blocks have the same shifts.

    Where there are more patches than channels of a head, the shift is only approximate.

    Args:
        model: a :class:`VisionTransformer` with learned positions, changed in place.
        generator: of the draws.

    Raises:
        ValueError: if the network is no such one, or its patches form no square.

    Source: J. Zheng, X. Li, H. Saratchandran and S. Lucey, Structured Initialization for Vision Transformers,
    NeurIPS 2025, arXiv 2505.19985. The constants are those of the authors' code for ViTs.

    Example::

        >>> import torch
        >>> from torch_geninit.training.networks.vit import ViT
        >>> model = ViT(depth=1, width=96, heads=3, patch=8).build(10, 32)
        >>> model = impulse_(model, generator=torch.Generator().manual_seed(0))
        >>> query, key, _ = model.encoder.blocks[0].attention.attention.in_proj_weight.chunk(3)
        >>> round(query[:32].norm().item(), 3)
        7.0
    """
    found = projections(model)
    table, extra = patch_positions(model)
    grid = math.isqrt(len(table) - extra)
    table.copy_(POSITIONS * torch.randn(table.shape, generator=generator))
    positions = F.layer_norm(table[extra:], table.shape[1:])
    for one in found:
        width = one.out.shape[0]
        size = width // one.heads
        inverse = _pseudo_inverse(positions, size)
        for head in range(one.heads):
            target = shift(grid, *SHIFTS[head % len(SHIFTS)])
            noise = NOISE * torch.randn(target.shape, generator=generator) * (target == 0)
            left, right = factors(inverse @ (target + noise) @ inverse.T, size)
            rows = slice(head * size, (head + 1) * size)
            one.query[rows] = SIZE * (left / left.norm()).T
            one.key[rows] = SIZE * (right / right.norm()).T
        alpha, beta = VALUE_OUT
        left, right = factors(near_identity(width, alpha, -beta, generator), width)
        one.value.copy_(left.T)
        one.out.copy_(right)
    return model


def shift(grid: int, rows: int, columns: int) -> Tensor:
    """Return the matrix (grid^2, grid^2) with 1 from each patch to the one so many rows and columns on."""
    return torch.kron(_shifted_identity(grid, rows), _shifted_identity(grid, columns))


def _shifted_identity(size: int, by: int) -> Tensor:
    return torch.diag_embed(torch.ones(size - abs(by)), offset=by)


def _pseudo_inverse(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, int((values > 1e-4 * values[0]).sum()))
    return (right[:kept].T / values[:kept]) @ left[:, :kept].T
