"""Measure how members' accuracy and their differences trade off, over noise GHNs and noise scales."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import torch_geninit as geninit
from torch_geninit.initializers import Pretrained
from torch_geninit.training.arguments import at_least, finite
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate.ensembles import diversity, measures, of_all_subsets, probabilities_of
from torch_geninit.training.evaluate.heldout import CALIBRATION_IMAGES
from torch_geninit.training.loops.classifier import logits_of
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


def frontier(
    generators: Sequence[str], scales: Sequence[float], members: int, train: Split, measured: Split
) -> Iterator[dict[str, Any]]:
    """Measure every generator, a name or a file, at every noise scale."""
    for name in generators:
        generator = geninit.load(name)
        for scale in scales:
            found = measure_members(generator, scale, members, train, measured)
            yield {"generator": name, **found}


def draw(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw accuracy over disagreement, a line a generator: all members together, and dashed the mean one."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    palette = colormaps["tab20"]
    for index, name in enumerate(dict.fromkeys(record["generator"] for record in records)):
        own = sorted((r for r in records if r["generator"] == name), key=lambda r: float(r["disagreement"]))
        apart = [100 * record["disagreement"] for record in own]
        for key, style in (("accuracy", "-"), ("member", "--")):
            axes.plot(
                apart,
                [100 * record[key] for record in own],
                style,
                color=palette(2 * index % 20 + index // 10),  # ten strong ones, then their pale ones
                marker="o" if key == "accuracy" else "x",
                label=Path(name).name.removesuffix(".safetensors") if key == "accuracy" else None,
            )
    axes.set_xlabel("pairwise disagreement (%)")
    axes.set_ylabel("accuracy (%): together, dashed the mean member")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(str(path), dpi=110)


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
    for record in frontier(arguments.generators, arguments.scales, arguments.members, train, measured):
        records.append(record)
        print(json.dumps(record), flush=True)
    if arguments.picture:
        draw(records, arguments.picture)
