"""Measure a hypernetwork while it is trained: predicted weights of networks that it never sees, no step."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from torch_geninit.batchnorm import recalibrate_bn_
from torch_geninit.generators.ghn.features import node_features
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import logits_of, score
from torch_geninit.training.loops.ghn_loss import logits_through
from torch_geninit.training.metrics import diversity, measures, of_all_subsets, probabilities_of
from torch_geninit.training.networks import popular
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.networks.search_space import Sample, Space, SpaceOptions, sample_unseen

IMAGES = 1000
"""Validation images that unseen networks are measured on."""


def check(
    generator: GraphHyperNetwork,
    space: Space,
    options: SpaceOptions,
    calibration: Split,
    validation: Split,
) -> dict[str, Any]:
    """Measure networks that training never sees, on validation images and without a step.

    These are the held-out ResNet-20 of the small families (of a noise GHN also five members), BatchNorm
    calibrated; well-known networks of the popular ones and two random ones of each family, with batch
    statistics on :data:`IMAGES` images.
    """
    result = (
        {}
        if popular.SAMPLERS.keys() >= set(options.families)
        else _of_resnet20(generator, space, calibration, validation)
    )
    # In file order a batch would hold a few classes only, and its statistics tell them apart.
    few = validation.spread(IMAGES)
    few = few.subset(torch.randperm(len(few), generator=torch.Generator().manual_seed(0)))
    references = {
        name: accuracy(generator, space.get(spec), few, space.device)
        for name, spec in popular.REFERENCES.items()
        if spec.family in options.families
    }
    if references:
        result["references"] = references
    result["unseen"] = {
        family: statistics.mean(unseen_accuracy(generator, space, options, family, k, few) for k in (0, 1))
        for family in options.families
    }
    result["unseen_mean"] = statistics.mean(result["unseen"].values())
    return result


def _of_resnet20(
    generator: GraphHyperNetwork, space: Space, calibration: Split, validation: Split
) -> dict[str, Any]:
    """Measure the held-out ResNet-20, and of a noise GHN five members of it, alone and together."""
    result: dict[str, Any] = {}
    plain = score(initialised_resnet20(generator, space, calibration), validation)
    result["validation_accuracy"], result["validation_nll"] = plain
    if not generator.noise_width:
        return result
    members = [
        logits_of(initialised_resnet20(generator, space, calibration, seed=seed), validation)
        for seed in range(5)
    ]
    result["member_accuracy"] = of_all_subsets(members, validation.labels, 1)["accuracy"]
    together = measures(probabilities_of(members), validation.labels)
    result["ensemble_accuracy"], result["ensemble_nll"] = together["accuracy"], together["nll"]
    return result | diversity(members)


@torch.no_grad()
def unseen_accuracy(
    generator: GraphHyperNetwork,
    space: Space,
    options: SpaceOptions,
    family: str,
    number: int,
    images: Split,
) -> float:
    """Measure an unseen network of ``family`` with predicted weights and batch statistics."""
    network = space.within(
        lambda random_: sample_unseen(random_, {family: 1.0}), f"unseen/{family}/{number}", options.most_macs
    )
    return accuracy(generator, network, images, space.device)


@torch.no_grad()
def accuracy(generator: GraphHyperNetwork, network: Sample, images: Split, device: str = "cpu") -> float:
    """Measure a network with predicted weights and batch statistics."""
    right = sum(
        (logits_through(generator, network, x.to(device)).argmax(1).cpu() == y.cpu()).sum().item()
        for x, y in images.batches()
    )
    return right / len(images)


@torch.no_grad()
def initialised_resnet20(
    generator: GraphHyperNetwork,
    space: Space,
    calibration: Split,
    *,
    seed: int | None = None,
) -> nn.Module:
    """Build the held-out ResNet-20 with predicted parameters, its BatchNorm calibrated on ``calibration``."""
    model = resnet20(generator.classes)
    architecture = trace(model, space.example)
    model.to(space.device)
    noise = None
    if seed is not None:
        draws = torch.Generator().manual_seed(seed)
        nodes = len(architecture.nodes)
        drawn = torch.randn(1 if generator.shared_noise else nodes, generator.noise_width, generator=draws)
        noise = drawn.expand(nodes, -1)
    tiles = generator(
        architecture,
        [name for name, _ in model.named_parameters()],
        features=node_features(architecture).to(space.device),
        noise=None if noise is None else noise.to(space.device).__getitem__,
    )
    for name, parameter in model.named_parameters():
        parameter.copy_(tiles[name].repeat())
    recalibrate_bn_(model, (images for images, _ in calibration.batches()))
    return model
