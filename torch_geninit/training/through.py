"""Gradients through predicted weights: the loss of networks whose parameters a hypernetwork makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torch_geninit.generators.compact import Tile
from torch_geninit.generators.ghn import GraphHyperNetwork
from torch_geninit.training.architectures import Sample
from torch_geninit.training.classifier import resize


class ClipGradient(torch.autograd.Function):
    """Identity whose gradients are scaled down to a joint norm of at most ``limit``; not finite ones are 0.

    Put between hypernetwork and network, it keeps one exploding network from drowning all others of a step.
    """

    @staticmethod
    def forward(ctx: Any, limit: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.limit = limit
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if not torch.isfinite(norm):
            return (None, *(torch.zeros_like(g) for g in gradients))
        return (None, *torch._foreach_mul(gradients, (ctx.limit / norm.clamp(min=1e-12)).clamp(max=1.0)))


def full_parameters(tiles: Mapping[str, Tile], clip: float | None = None) -> dict[str, Tensor]:
    """Repeat tiles to whole parameters, differentiably, their gradients clipped to a joint norm."""
    parameters = {name: tile.repeat() for name, tile in tiles.items()}
    if clip is None:
        return parameters
    return dict(zip(parameters, ClipGradient.apply(clip, *parameters.values()), strict=True))


def logits_through(
    generator: GraphHyperNetwork,
    network: Sample,
    images: Tensor,
    noise: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """Return the logits of ``network`` with predicted parameters, BatchNorm on batch statistics."""
    tiles = generator(
        network.architecture,
        network.names,
        features=network.features,
        noise=None if noise is None else noise.__getitem__,
    )
    if network.spec.needs_full_size:
        images = resize(images, network.size)
    logits: Tensor = functional_call(network.model, full_parameters(tiles, clip), (images,))
    return logits.float()


class Objective(nn.Module):
    """The loss of one step as a module, so that DistributedDataParallel can wrap it.

    The mean over networks of the cross-entropy of each on its own images. With noise each network is drawn
    twice, z and z', and its loss is::

        L = (CE(f_z) + CE(f_z')) / 2 + diversity * max(cos(f_z, f_z'), floor)

    on the flattened logits of the same images (paper, section on noise GHN).
    """

    def __init__(
        self, generator: GraphHyperNetwork, *, clip: float, diversity: float = 0.0, floor: float = -1.0
    ) -> None:
        super().__init__()
        self.generator = generator
        self.clip, self.diversity, self.floor = clip, diversity, floor

    def forward(
        self,
        networks: Sequence[Sample],
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        draws: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; ``draws`` are (2, nodes, noise) for each network."""
        losses, entropies, cosines = [], [], []
        # The mean divides every network's gradient by their number before it is clipped.
        clip = self.clip / len(networks)
        for index, (network, x, y) in enumerate(zip(networks, images, labels, strict=True)):
            if draws is None:
                losses.append(F.cross_entropy(self._logits(network, x, clip), y))
                entropies.append(losses[-1].detach())
                continue
            first, second = (self._logits(network, x, clip, z) for z in draws[index])
            entropy = (F.cross_entropy(first, y) + F.cross_entropy(second, y)) / 2
            cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0)
            losses.append(entropy + self.diversity * cosine.clamp(min=self.floor))
            entropies.append(entropy.detach())
            cosines.append(cosine.detach())
        parts = {"cross_entropy": torch.stack(entropies)}
        if cosines:
            parts["cosine"] = torch.stack(cosines)
        return torch.stack(losses).nan_to_num(0.0, posinf=0.0, neginf=0.0).mean(), parts

    def _logits(self, network: Sample, images: Tensor, clip: float, noise: Tensor | None = None) -> Tensor:
        return logits_through(self.generator, network, images, noise, clip)
