"""Where a vision transformer keeps what its controls set: projections of each attention, the positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from torch_geninit.training.networks.vit import SelfAttention, VisionTransformer


@dataclass(frozen=True)
class Projections:
    """The weights of one self-attention, as views (D, D) of its parameters; x becomes x W^T.

    Attributes:
        name: of the module.
        heads: how many; head h has the rows h D / heads to (h + 1) D / heads of query, key and value.
    """

    name: str
    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


def projections(model: nn.Module) -> list[Projections]:
    """Return the projections of every self-attention, in the order of the modules.

    Raises:
        ValueError: if there is none, or one has queries and keys of other sizes or norms between.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight
            if packed is None:
                raise ValueError(
                    f"{name}: expected queries, keys and values of one size, got an attention with kdim= or "
                    "vdim=. This control can't serve it"
                )
            query, key, value = packed.detach().chunk(3)
            out = module.out_proj.weight.detach()
            found.append(Projections(name, module.num_heads, query, key, value, out))
        elif isinstance(module, SelfAttention):
            if isinstance(module.query_norm, nn.LayerNorm):
                raise ValueError(
                    f"{name}: expected queries and keys without norms, got normalised ones. Their products "
                    "can't be set; this control can't serve it"
                )
            if module.packed:
                query, key, value = module.qkv.weight.detach().chunk(3)
            else:
                query, key, value = (
                    layer.weight.detach() for layer in (module.query, module.key, module.value)
                )
            found.append(Projections(name, module.heads, query, key, value, module.out.weight.detach()))
    if not found:
        raise ValueError(
            f"{type(model).__name__}: expected a network with self-attention, got one without. This control "
            "is for vision transformers"
        )
    return found


def patch_positions(model: nn.Module) -> tuple[Tensor, int]:
    """Return the learned positions of all tokens (T, D), and how many of the first are no patches.

    Raises:
        ValueError: if there is no such table, or its patches form no square.
    """
    kind = type(model).__name__
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{kind}: expected a VisionTransformer of training.networks, got another network")
    table = model.encoder.positions
    if not isinstance(table, nn.Parameter):
        raise ValueError(f"{kind}: expected a learned table of positions, got fixed or no positions")
    extra = model.encoder.extra if model.encoder.all else 0
    patches = table.shape[1] - extra
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{kind}: expected a square grid of patches, got {patches} of them")
    return table.detach()[0], extra
