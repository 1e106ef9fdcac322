"""Measure how members' accuracy and their differences trade off, over noise GHNs and noise scales."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import torch_geninit as geninit
from torch_geninit.planning.choose import Pretrained
from torch_geninit.training.arguments import at_least, finite
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate import plots
from torch_geninit.training.evaluate.heldout import CALIBRATION_IMAGES
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.metrics import diversity, measures, of_all_subsets, probabilities_of
from torch_geninit.training.networks.resnet import resnet20


def measure_members(
    pretrained: Pretrained, scale: float, members: int, train: Split, measured: Split
) -> dict[str, Any]:
    """Measure ResNet-20s of the seeds 0 to ``members`` - 1 before training, alone and all together.

    ``member`` is their mean accuracy, ``accuracy``, ``nll``, ``brier`` and ``ece`` those of their averaged
    logits, ``disagreement`` and ``cosine`` means over pairs.
    """
    logits = []
    for seed in range(members):
        torch.manual_seed(seed)
        model = resnet20(len(train.classes))
        geninit.noise_ghn_(model, seed, pretrained=pretrained, noise_scale=scale, strict=True)
        geninit.recalibrate_bn_(model, (x for x, _ in train.spread(CALIBRATION_IMAGES).batches()))
        logits.append(logits_of(model, measured))
    labels = measured.labels.cpu()
    return {
        "noise_scale": scale,
        "member": of_all_subsets(logits, labels, 1)["accuracy"],
        **measures(probabilities_of(logits), labels),
        **diversity(logits),
    }


def tradeoff(
    generators: Sequence[str], scales: Sequence[float], members: int, train: Split, measured: Split
) -> Iterator[dict[str, Any]]:
    """Measure every generator, a name or a file, at every noise scale."""
    for name in generators:
        generator = geninit.load(name)
        for scale in scales:
            found = measure_members(generator, scale, members, train, measured)
            yield {"generator": name, **found}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--generators", nargs="+", default=["noise-ghn-cifar10"], help="names or files")
    parser.add_argument("--scales", type=finite, nargs="+", default=[0.5, 1.0, 1.5, 2.0], help="of all noise")
    parser.add_argument("--members", type=at_least(2), default=5)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--picture", type=Path, help="file for accuracy over disagreement")


def main(arguments: argparse.Namespace) -> None:
    """Measure, a line each as it goes; draw the picture."""
    train, measured = load(arguments.data, "train"), load(arguments.data, arguments.split)
    records = []
    for record in tradeoff(arguments.generators, arguments.scales, arguments.members, train, measured):
        records.append(record)
        print(json.dumps(record), flush=True)
    if arguments.picture:
        plots.diversity_tradeoff(records, arguments.picture)
