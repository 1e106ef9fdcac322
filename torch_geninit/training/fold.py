"""Fold a trained decoder's linear factors into fewer numbers that make the same weights, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geninit.generators.decoder import TemplateBank
from torch_geninit.generators.ghn import GraphHyperNetwork

RANKS = {"conv": "rank", "linear": "linear_rank", "depthwise": "depthwise_rank"}
"""Bank -> its size in the card."""


def folded(generator: GraphHyperNetwork) -> GraphHyperNetwork:
    """Return a generator of the same function whose template banks have no more than mix + 1 templates.

    Coefficients are affine in the mixed channels, c = A m + a, so rank templates T make no more than the
    mix + 1 templates A^T T and a^T T can. More of them train better than they store.
    """
    decoder = generator.decoder
    state = generator.state_dict()
    sizes = dict(generator.card["sizes"])
    for part, size in RANKS.items():
        if part not in decoder.banks or sizes[size] <= decoder.mix + 1:
            continue
        coefficients, offsets, templates = fold(decoder.banks[part])  # type: ignore[arg-type]
        prefix = f"decoder.banks.{part}"
        state[f"{prefix}.coefficients.weight"] = coefficients
        state[f"{prefix}.coefficients.bias"] = offsets
        state[f"{prefix}.templates"] = templates
        sizes[size] = decoder.mix + 1
    result = GraphHyperNetwork({**generator.card, "sizes": sizes})
    result.load_state_dict(state)
    return result.eval()


@torch.no_grad()
def fold(bank: TemplateBank) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mix + 1, mix) coefficients, (mix + 1,) offsets and (mix + 1, rows, columns) templates.

    Templates have unit mean square, so that half precision serves all of them equally well.
    """
    weight, offset = bank.coefficients.weight.double(), bank.coefficients.bias.double()
    own = bank.templates.double().flatten(1)
    templates = torch.cat([weight.T, offset[None]]) @ own
    scales = templates.square().mean(1).sqrt().clamp(min=1e-12)
    mix = len(scales) - 1
    coefficients = torch.cat([scales[:mix].diag(), scales.new_zeros(1, mix)])
    offsets = torch.cat([scales.new_zeros(mix), scales[mix:]])
    shape = (mix + 1, *bank.templates.shape[1:])
    return coefficients.float(), offsets.float(), (templates / scales[:, None]).view(shape).float()


@torch.no_grad()
def unfold(bank: TemplateBank, rank: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return coefficients, offsets and ``rank`` templates that make the same weights, scaled as fresh ones.

    Adam moves every number by about its rate. Folded templates are few and of scale 1, so what they span
    hardly changes; spread over more of them by a random rotation, with std rank^(-1/2), they learn on as
    before.
    """
    templates = bank.templates.double().flatten(1)
    square = torch.randn(rank, len(templates), generator=stream, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q  # orthonormal columns
    weight, offset = bank.coefficients.weight.double(), bank.coefficients.bias.double()
    spread = rotation @ templates
    scale = spread.std() * rank**0.5
    shape = (rank, *bank.templates.shape[1:])
    return (
        (scale * rotation @ weight).float(),
        (scale * rotation @ offset).float(),
        (spread / scale).view(shape).float(),
    )
