"""Make a trained decoder smaller without changing what it makes, and its templates many again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from torch_geninit.generators.ghn.decoder import TemplateBank
from torch_geninit.generators.ghn.features import node_features
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.rng import noise_stream
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.queries import head_nodes

RANKS = {"conv": "rank", "linear": "linear_rank", "depthwise": "depthwise_rank"}
"""Bank -> its size in the config."""


def folded(generator: GraphHyperNetwork) -> GraphHyperNetwork:
    """Return a generator of the same function whose template banks have no more than mix + 1 templates.

    Coefficients are affine in the mixed channels, c = A m + a, so rank templates T make no more than the
    mix + 1 templates A^T T and a^T T can. More of them train better than they store.
    """
    decoder = generator.decoder
    state = generator.state_dict()
    sizes = dict(generator.config["sizes"])
    for part, size in RANKS.items():
        bank = decoder.banks[part] if part in decoder.banks else None
        if not isinstance(bank, TemplateBank) or sizes[size] <= decoder.mix + 1:
            continue
        coefficients, offsets, templates = fold(bank)
        prefix = f"decoder.banks.{part}"
        state[f"{prefix}.coefficients.weight"] = coefficients
        state[f"{prefix}.coefficients.bias"] = offsets
        state[f"{prefix}.templates"] = templates
        sizes[size] = decoder.mix + 1
    result = GraphHyperNetwork({**generator.config, "sizes": sizes})
    result.load_state_dict(state)
    return result.eval()


def trimmed(generator: GraphHyperNetwork, seen: Iterable[Architecture]) -> GraphHyperNetwork:
    """Return a generator without the parts of the decoder that none of the networks ``seen`` asks for.

    These are template banks, tables, and kernel positions around the largest kernel; they were never trained.
    """
    decoder, largest = generator.decoder, 1
    parts: set[str] = set()
    for architecture in seen:
        heads = head_nodes(architecture)
        for index, node in enumerate(architecture.nodes):
            for use in node.parameters:
                piece = decoder.piece(node, use, head=index in heads)
                if piece is None:
                    continue
                parts.add(piece.part)
                if piece.part in decoder.banks:
                    largest = max(largest, *piece.shape[2:])
    sizes = dict(generator.config["sizes"])
    for part, size in RANKS.items():
        if part != "conv" and part not in parts:  # what has no bank of its own is decoded from this one
            sizes[size] = 0
    if "table" not in parts:
        sizes["basis"] = 0
    old = sizes["kernel"]
    new = sizes["kernel"] = min(old, largest + (old - largest) % 2)  # of the same centre
    state, chosen = generator.state_dict(), centre(old, new)
    for name in ("decoder.positions.weight", "decoder.positions.bias"):
        value = state[name].view(old**2, sizes["mix"], *state[name].shape[1:])
        state[name] = value[chosen].flatten(0, 1)
    result = GraphHyperNetwork({**generator.config, "sizes": sizes})
    result.load_state_dict({name: state[name] for name in result.state_dict()})
    return result.eval()


@torch.no_grad()
def narrowed(generator: GraphHyperNetwork, seen: Sequence[Architecture], rank: int = 64) -> GraphHyperNetwork:
    """Return a generator whose matrix that tells kernel positions apart has no more than ``rank`` ranks.

    What is lost is least, in mean square over the hidden states u of the networks ``seen``: with
    L L^T = E[u u^T], the matrix W becomes the truncated singular value decomposition of W L, times L^-1. It
    is half of the file otherwise. A generator that is no larger as it is, is returned as it is.
    """
    weight = generator.decoder.positions.weight
    rows, hidden = weight.shape
    if generator.config["sizes"].get("narrow") or rank * (rows + hidden) >= rows * hidden:
        return generator
    states = torch.cat([_hidden_states(generator, architecture) for architecture in seen]).double()
    moment = states.T @ states / len(states)
    # Some of every direction: other networks have states that these have not.
    moment += 1e-4 * moment.trace() / hidden * torch.eye(hidden, dtype=torch.float64)
    root = torch.linalg.cholesky(moment)
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    share = values[:rank].sqrt()
    inner = torch.linalg.solve_triangular(root.T, (share[:, None] * right[:rank]).T, upper=True).T
    state = generator.state_dict()
    state["decoder.positions.weight"] = (left[:, :rank] * share).float()
    state["decoder.narrow.weight"] = inner.float()
    result = GraphHyperNetwork({**generator.config, "sizes": {**generator.config["sizes"], "narrow": rank}})
    result.load_state_dict(state)
    return result.eval()


def _hidden_states(generator: GraphHyperNetwork, architecture: Architecture) -> Tensor:
    """Return what kernels of a network are decoded from, (states, hidden)."""
    decoder = generator.decoder
    chosen = [
        index
        for index, node in enumerate(architecture.nodes)
        if node.op in ("conv", "linear") and node.parameters
    ]
    x = generator.encoder(node_features(architecture))[chosen]
    noise = torch.randn(len(x), generator.noise_width, generator=noise_stream(0, "states"))
    x = torch.cat([x, noise], 1)
    states = decoder.trunk(x)
    if "linear" not in decoder.banks:
        return states
    sections = states[:, None] + decoder.section.weight
    return torch.cat([states, sections.flatten(0, 1)])


def centre(kernel: int, part: int) -> Tensor:
    """Return flat indices of the ``part`` x ``part`` positions in the middle of ``kernel`` x ``kernel``."""
    margin = (kernel - part) // 2
    grid = torch.arange(kernel**2).view(kernel, kernel)
    return grid[margin : margin + part, margin : margin + part].flatten()


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
