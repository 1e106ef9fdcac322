"""Gradients through predicted weights: the loss of networks whose parameters a hypernetwork makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.queries import head_nodes
from torch_geninit.training.loops.classifier import resize
from torch_geninit.training.networks.search_space import Sample
from torch_geninit.training.operators.precision import bfloat16_if


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


def predicted_parameters(
    generator: GraphHyperNetwork, network: Sample, noise: Tensor | None = None
) -> dict[str, Tensor]:
    """Predict every parameter of ``network``, differentiably, tiles repeated to whole tensors."""
    tiles = generator(
        network.architecture,
        network.names,
        features=network.features,
        noise=None if noise is None else noise.__getitem__,
    )
    return {name: tile.repeat() for name, tile in tiles.items()}


def logits_with(
    parameters: Mapping[str, Tensor],
    network: Sample,
    images: Tensor,
    *,
    clip: float | None = None,
    amp: bool = False,
) -> Tensor:
    """Return the logits of ``network``, BatchNorm on batch statistics, gradients clipped to a joint norm.

    With ``amp`` the network computes in bfloat16.
    """
    if network.spec.needs_full_size:
        images = resize(images, network.size)
    if clip is not None:
        clipped = ClipGradient.apply(clip, *parameters.values())
        parameters = dict(zip(parameters, clipped, strict=True))
    with bfloat16_if(amp, images.device.type):
        logits: Tensor = functional_call(network.rewritten, dict(parameters), (images,))
    return logits.float()


def logits_through(
    generator: GraphHyperNetwork, network: Sample, images: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return the logits of ``network`` with predicted parameters, BatchNorm on batch statistics."""
    return logits_with(predicted_parameters(generator, network, noise), network, images)


def distance_from_standard(parameters: Mapping[str, Tensor], network: Sample) -> Tensor:
    """Return sum_v |v - v_0|^2 over vectors and the classifier; v_0 is 1 for a normalisation's gains, else 0.

    Of the matrices only the last before the output counts: a large one sends large gradients into all others.
    """
    heads = head_nodes(network.architecture)
    classifiers = {
        use.name
        for index in heads
        for use in network.architecture.nodes[index].parameters
        if use.role == "weight"
    }
    gains = {
        use.name
        for node in network.architecture.nodes
        if node.op.endswith("_norm")
        for use in node.parameters
        if use.role == "weight"
    }
    squares = [
        (p.float() - float(name in gains)).square().sum()
        for name, p in parameters.items()
        if p.ndim == 1 or name in classifiers
    ]
    return torch.stack(squares).sum() if squares else torch.zeros(())


@dataclass(frozen=True)
class Diversity:
    """How the draws of a noise GHN are kept apart.

    Attributes:
        weight: of their similarity in the loss.
        floor: similarity below which there is no pull apart.
        on: whether it is the cosine of their logits or of their probabilities, of the same images.
        shared: whether all nodes of a network see the same noise, instead of each its own.
    """

    weight: float = 1.0
    floor: float = -1.0
    on: Literal["logits", "probabilities"] = "logits"
    shared: bool = False

    def noise(self, nodes: int, width: int, stream: torch.Generator) -> Tensor:
        """Draw noise of two members, (2, nodes, width)."""
        drawn = torch.randn(2, 1 if self.shared else nodes, width, generator=stream)
        return drawn.expand(2, nodes, width)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine of two members' flattened outputs, from their logits (N, classes)."""
        if self.on == "probabilities":
            first, second = first.softmax(1), second.softmax(1)
        return F.cosine_similarity(first.flatten(), second.flatten(), dim=0)


class Objective(nn.Module):
    """The loss of one step as a module, so that DistributedDataParallel can wrap it.

    The mean over networks of the cross-entropy of each on its own images. With noise each network is drawn
    twice, z and z', and its loss is::

        L = (CE(f_z) + CE(f_z')) / 2 + weight * max(cos(f_z, f_z'), floor)

    on the flattened logits of the same images (paper, section on noise GHN), or as :class:`Diversity` says.
    ``decay`` times :func:`distance_from_standard` is added: a large constant in front of a matrix changes
    nothing that the loss sees, but SGD on that matrix then diverges at ordinary rates, and a large
    classifier does the same to all before it. With ``amp`` the networks compute in bfloat16, the hypernetwork
    in float32 still: its matrices are too small to gain.
    """

    def __init__(
        self,
        generator: GraphHyperNetwork,
        *,
        clip: float,
        diversity: Diversity | None = None,
        decay: float = 0.0,
        amp: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.clip, self.diversity, self.decay = clip, diversity or Diversity(), decay
        self.amp = amp

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
                logits, decay = self._logits(network, x, clip)
                entropy = F.cross_entropy(logits, y)
                losses.append(entropy + decay)
                entropies.append(entropy.detach())
                continue
            (first, a), (second, b) = (self._logits(network, x, clip, z) for z in draws[index])
            entropy = (F.cross_entropy(first, y) + F.cross_entropy(second, y)) / 2
            cosine = self.diversity.similarity(first, second)
            pull = self.diversity.weight * cosine.clamp(min=self.diversity.floor)
            losses.append(entropy + pull + (a + b) / 2)
            entropies.append(entropy.detach())
            cosines.append(cosine.detach())
        parts = {"cross_entropy": torch.stack(entropies)}
        if cosines:
            parts["cosine"] = torch.stack(cosines)
        return torch.stack(losses).nan_to_num(0.0, posinf=0.0, neginf=0.0).mean(), parts

    def _logits(
        self, network: Sample, images: Tensor, clip: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        # Products of wide templates are the one part of a hypernetwork that is dear enough for bfloat16.
        wide = self.amp and self.generator.decoder.factors > 0
        with bfloat16_if(wide, images.device.type):
            parameters = predicted_parameters(self.generator, network, noise)
        # Norms compute in float32, whatever the kernels do.
        parameters = {name: p if p.ndim > 1 else p.float() for name, p in parameters.items()}
        decay = self.decay * distance_from_standard(parameters, network) if self.decay else 0.0
        return logits_with(parameters, network, images, clip=clip, amp=self.amp), decay
