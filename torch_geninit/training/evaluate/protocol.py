"""Measure generators: choose on validation images, report on the test set."""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.training import metrics
from torch_geninit.training.arguments import at_least, finite
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.loops.classifier import (
    logits_of,
    score,
)
from torch_geninit.training.networks.resnet import resnet20


def untrained(pretrained: str, train: Split, *, seed: int | None = None, **options: Any) -> nn.Module:
    """Build ResNet-20 as a method initialises it, BatchNorm calibrated on 2,000 training images."""
    model = resnet20(len(train.classes))
    if seed is None:
        geninit.ghn_(model, pretrained=pretrained, strict=True, **options)
    else:
        geninit.noise_ghn_(model, seed, pretrained=pretrained, strict=True, **options)
    geninit.recalibrate_bn_(model, train.spread(2000).batches())
    return model


def step0(pretrained: str, train: Split, measured: Split) -> dict[str, float]:
    """Measure predicted weights without a training step."""
    accuracy, nll = score(untrained(pretrained, train), measured)
    return {"accuracy": accuracy, "nll": nll}


def members(
    pretrained: str,
    train: Split,
    measured: Split,
    *,
    count: int = 10,
    size: int = 5,
    noise_scale: float = 1.0,
) -> dict[str, Any]:
    """Measure ``count`` members of a noise GHN and all ensembles of ``size`` of them.

    ``gain`` is the mean ensemble's lead over the mean member; ``standard_error`` that of the mean member.
    """
    logits: list[Tensor] = [
        logits_of(untrained(pretrained, train, seed=seed, noise_scale=noise_scale), measured)
        for seed in range(count)
    ]
    alone = [metrics.accuracy(each, measured.labels) for each in logits]
    together = metrics.of_all_subsets(logits, measured.labels, size)
    mean = statistics.mean(alone)
    return {
        "noise_scale": noise_scale,
        "members": alone,
        "mean": mean,
        "standard_error": statistics.stdev(alone) / count**0.5,
        "ensemble": together,
        "gain": together["accuracy"] - mean,
        **metrics.diversity(logits),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("step0", "members", "memorisation"))
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--pretrained", help="manifest name or generator file; not for memorisation")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--members", type=at_least(5), default=10)
    parser.add_argument("--noise-scale", type=finite, nargs="+", default=[1.0])
    parser.add_argument("--zoo", help="folder of stored ResNet-20s to compare with (memorisation)")
    parser.add_argument(
        "--sources",
        nargs="*",
        default=[],
        help="files of ResNets of other depths to select weights from (memorisation)",
    )


def main(arguments: argparse.Namespace) -> None:
    if arguments.pretrained is None and arguments.what != "memorisation":
        raise SystemExit(f"evaluate {arguments.what} needs --pretrained")
    train, measured = load(arguments.data, "train"), load(arguments.data, arguments.split)
    if arguments.what == "step0":
        print(json.dumps(step0(arguments.pretrained, train, measured)))
    elif arguments.what == "members":
        for scale in arguments.noise_scale:
            found = members(arguments.pretrained, train, measured, count=arguments.members, noise_scale=scale)
            print(json.dumps(found))
    else:
        from torch_geninit.training.evaluate import memorisation

        if arguments.zoo is None:
            raise SystemExit("evaluate memorisation needs --zoo, the folder of stored networks")
        for row in memorisation.compare(arguments.zoo, train, measured, sources=arguments.sources):
            print(json.dumps(row))
