"""Attention as three operations: several times faster on CPUs than torch's fused one, which saves memory."""

from __future__ import annotations

from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v of (N, heads, T, d); keeps (N, heads, T, T) for the backward.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 16, 8)
        >>> attention(q, k, v).shape
        torch.Size([2, 4, 16, 8])
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    # Autocast would return float32 here, and convert it again for the product.
    return scores.softmax(-1, dtype=value.dtype) @ value
