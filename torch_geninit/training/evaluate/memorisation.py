"""Is it more than memory? Generated ResNet-20s against stored ones, with noise or averaged.

Generators of weights have been found to return their training checkpoints, or mixtures of them (Zeng et al.
2025, arXiv 2506.07998), so what is generated is compared with networks that were trained: how near in
weights, how alike in errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.generators.rng import noise_stream
from torch_geninit.training.data.images import Split
from torch_geninit.training.data.kernels import zoo_networks
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.metrics import accuracy
from torch_geninit.training.networks.resnet import ResNet, resnet20
from torch_geninit.training.runs.state_dicts import load_

NOISE = (0.05, 0.1, 0.2, 0.4)
"""Relative standard deviations of the noise added to a stored network's kernels."""


def kernels(model: nn.Module) -> list[Tensor]:
    """Return convolutions and linear layers with unit norm each: BatchNorm hides the scale."""
    return [p.detach().flatten() / p.detach().norm() for p in model.parameters() if p.ndim > 1]


def weight_distance(a: nn.Module, b: nn.Module) -> float:
    """Return the mean over layers of |w_a - w_b|, weights normalised; unrelated ones are at sqrt(2)."""
    return statistics.mean(float((x - y).norm()) for x, y in zip(kernels(a), kernels(b), strict=True))


def error_overlap(a: Tensor, b: Tensor, labels: Tensor) -> float:
    """Return the intersection over union of the images that logits ``a`` and ``b`` get wrong."""
    wrong_a, wrong_b = a.argmax(1) != labels, b.argmax(1) != labels
    union = (wrong_a | wrong_b).sum().item()
    return float((wrong_a & wrong_b).sum()) / union if union else 1.0


def stored_networks(zoo: str | Path, classes: int) -> list[ResNet]:
    """Load the ResNet-20s of a zoo.

    Raises:
        ValueError: if there are none, or one can't be read or is no ResNet-20.
    """
    models = []
    for name in zoo_networks(Path(zoo)):
        model, path = resnet20(classes), Path(zoo) / f"{name}.safetensors"
        load_(model, path)
        models.append(model)
    return models


@torch.no_grad()
def with_noise(model: ResNet, share: float, seed: int) -> ResNet:
    """Return a copy whose kernels have noise of ``share`` of their own standard deviation added."""
    noisy = resnet20(model.fc.out_features)
    noisy.load_state_dict(model.state_dict())
    for name, parameter in noisy.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=noise_stream(seed, name))
            parameter.add_(share * parameter.std() * drawn)
    return noisy


@torch.no_grad()
def averaged(models: Sequence[ResNet]) -> ResNet:
    """Return the network whose parameters are the means of those of ``models``."""
    mean = resnet20(models[0].fc.out_features)
    for name, parameter in mean.named_parameters():
        parameter.copy_(torch.stack([model.get_parameter(name) for model in models]).mean(0))
    return mean


@torch.no_grad()
def cropped_and_tiled(source: Mapping[str, Tensor], classes: int) -> ResNet:
    """Return ResNet-20 with the tensors of a trained ResNet, "weight selection" (Xu et al. 2024).

    A tensor too large is cropped, one too small repeated, in every dimension; where the source has fewer
    blocks in a stage its last one is repeated.
    """
    model = resnet20(classes)
    for name, parameter in model.named_parameters():
        stage, *rest = name.split(".")
        if name not in source and rest and rest[0].isdigit():
            last = max(int(key.split(".")[1]) for key in source if key.startswith(f"{stage}."))
            name = ".".join([stage, str(last), *rest[1:]])
        value = source[name]
        for dimension, size in enumerate(parameter.shape):
            value = value.index_select(dimension, torch.arange(size) % value.shape[dimension])
        parameter.copy_(value)
    return model


def compare(
    zoo: str | Path,
    train: Split,
    measured: Split,
    *,
    sources: Sequence[str | Path] = (),
    ghn: str = "ghn-cifar10",
    noise_ghn: str = "noise-ghn-cifar10",
    members: int = 3,
) -> list[dict[str, Any]]:
    """Measure each kind of network: accuracy, and distance and error overlap to the nearest stored one.

    ``sources`` are files of trained ResNets of other depths whose tensors ResNet-20 gets, see
    :func:`cropped_and_tiled`.

    The row of the stored networks compares each with the nearest other one: what is nearer than they are to
    each other would be a copy. Every network but these gets its BatchNorm statistics from 2,000 training
    images.
    """
    stored = stored_networks(zoo, len(train.classes))
    stored_logits = [logits_of(model, measured) for model in stored]
    made: dict[str, Sequence[nn.Module]] = {"average of the stored": [averaged(stored)]}
    for share in NOISE:
        noisy = [with_noise(stored[0], share, seed) for seed in range(members)]
        made[f"a stored one with noise of {share:g} of its standard deviation"] = noisy
    classes = len(train.classes)
    for source in sources:
        made[f"weights selected from {source}"] = [cropped_and_tiled(load_file(str(source)), classes)]
    made["ghn_"] = [geninit.ghn_(resnet20(classes), pretrained=ghn, strict=True)]
    made["noise_ghn_"] = [
        geninit.noise_ghn_(resnet20(classes), seed, pretrained=noise_ghn, strict=True)
        for seed in range(members)
    ]
    rows = [
        _row(
            "stored", list(range(len(stored))), stored, stored_logits, stored, stored_logits, measured.labels
        )
    ]
    for kind, models in made.items():
        for model in models:
            geninit.recalibrate_bn_(model, (x for x, _ in train.spread(2000).batches()))
        logits = [logits_of(model, measured) for model in models]
        rows.append(_row(kind, None, models, logits, stored, stored_logits, measured.labels))
    return rows


def _row(
    kind: str,
    own: list[int] | None,
    models: Sequence[nn.Module],
    logits: Sequence[Tensor],
    stored: Sequence[nn.Module],
    stored_logits: Sequence[Tensor],
    labels: Tensor,
) -> dict[str, Any]:
    distances, overlaps = [], []
    for index, (model, mine) in enumerate(zip(models, logits, strict=True)):
        others = [i for i in range(len(stored)) if own is None or i != own[index]]
        distances.append(min(weight_distance(model, stored[i]) for i in others))
        overlaps.append(max(error_overlap(mine, stored_logits[i], labels) for i in others))
    among = [error_overlap(a, b, labels) for a, b in combinations(logits, 2)]
    return {
        "kind": kind,
        "networks": len(models),
        "accuracy": statistics.mean(accuracy(each, labels) for each in logits),
        "distance to the nearest stored": statistics.mean(distances),
        "error overlap with the nearest stored": statistics.mean(overlaps),
        "error overlap among themselves": statistics.mean(among) if among else None,
    }
