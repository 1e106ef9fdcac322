"""Measure a hypernetwork on networks that everyone knows, at several widths, without a training step."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.images import load
from torch_geninit.training.evaluate import heldout
from torch_geninit.training.networks import convnext, densenet, popular, residual, vgg
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue

NETWORKS: Mapping[str, Specification] = MappingProxyType(
    {
        **popular.REFERENCES,
        **{f"resnet18, base {base}": residual.resnet18(base) for base in (40, 48, 56)},
        "resnet50": residual.resnet50(64),
        "resnet18, CIFAR stem": residual.resnet18(64, "cifar"),
        "vgg11_bn": vgg.VGG(vgg.TABLE_1[11], vgg.PAPER_WIDTHS),
        "densenet121": densenet.DenseNet(densenet.DENSENET_121, 32, 64),
        "convnext_tiny": convnext.ConvNeXt(convnext.TINY, (96, 192, 384, 768)),
    }
)
"""Name -> network, never trained on at any width; VGG with a single linear layer as its classifier."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--pretrained", default="auto", help="hypernetwork: a name or a file")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=at_least(1), help="of the split, evenly spaced; all by default")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--json", type=Path, help="file for the accuracies, as `export --numbers` reads them")


def main(arguments: argparse.Namespace) -> None:
    """Fill each network, trusted or not, calibrate BatchNorm on training images, and measure it."""
    train, measured = load(arguments.data, "train"), load(arguments.data, arguments.split)
    measured = measured.spread(arguments.images or len(measured))
    settings = {
        **fingerprint.of_measurement(arguments.pretrained, arguments.data),
        "split": arguments.split,
        "images": len(measured),
    }

    def measure(name: str) -> dict[str, Any]:
        torch.manual_seed(0)  # what is not generated keeps its standard initialisation
        model = NETWORKS[name].build(len(train.classes), train.images.shape[-1])
        return {"network": name, **heldout.measure(model, arguments.pretrained, train, measured)}

    queue = TaskQueue(arguments.run, settings)
    tasks = {re.sub(r"\W+", "-", name): name for name in arguments.networks}
    records = queue.complete(tasks, measure, progress="network")
    for record in records:
        print(json.dumps(record), flush=True)
    if arguments.json:
        text = f"{arguments.split} accuracy before training, {len(measured)} images"
        arguments.json.write_text(
            json.dumps({text: {r["network"]: r["accuracy"] for r in records}}, indent=1)
        )
