"""Measure generators: choose on validation images, report on the test set."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training import metrics
from torch_geninit.training.arguments import at_least, finite, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.loops.classifier import (
    Phase,
    Recipe,
    diverged,
    logits_of,
    score,
    train_classifier,
)
from torch_geninit.training.networks.resnet import he_, resnet20


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


def recipes(
    pretrained: str,
    train: Split,
    validation: Split,
    *,
    rates: list[float],
    scales: list[float],
    warmups: list[float],
    epochs: int,
    seed: int,
    amp: bool = False,
) -> list[dict[str, float]]:
    """Measure accuracy after ``epochs`` of SGD for each learning rate, kernel scale and warm-up.

    A scale of 0 stands for He initialisation. The rate rises over ``warmup`` of the steps and falls linearly
    to zero at the end of the last epoch.
    """
    rows = []
    for lr, warmup, scale in product(rates, warmups, scales):
        torch.manual_seed(seed)
        model = resnet20(len(train.classes))
        if scale:
            generator = geninit.load(pretrained)
            if isinstance(generator, GraphHyperNetwork):
                generator.kernel_scale = scale
            geninit.ghn_(model, pretrained=generator, strict=True)
        else:
            he_(model)
        recipe = Recipe(
            [Phase(train.images.shape[-1], epochs)],
            lr=lr,
            warmup=warmup,
            weight_decay=1e-4,
            amp=amp,
        )
        train_classifier(model, train, recipe, seed=seed, description=f"lr {lr} scale {scale}")
        if diverged(model):
            accuracy, nll = 1 / len(train.classes), math.log(len(train.classes))
        else:
            geninit.recalibrate_bn_(model, train.spread(2000).batches())
            accuracy, nll = score(model, validation)
        rows.append(
            {"lr": lr, "warmup": warmup, "scale": scale, "seed": seed, "accuracy": accuracy, "nll": nll}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("step0", "members", "recipes", "memorisation"))
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--pretrained", help="manifest name or generator file; not for memorisation")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--members", type=at_least(5), default=10)
    parser.add_argument("--noise-scale", type=finite, nargs="+", default=[1.0])
    parser.add_argument("--lr", type=positive, nargs="+", default=[0.1])
    parser.add_argument(
        "--scale",
        type=finite,
        nargs="+",
        default=[0.0, 1.0],
        help="of kernels; 0 for He initialisation (recipes)",
    )
    parser.add_argument("--warmup", type=finite, nargs="+", default=[0.0])
    parser.add_argument("--zoo", help="folder of stored ResNet-20s to compare with (memorisation)")
    parser.add_argument(
        "--sources",
        nargs="*",
        default=[],
        help="files of ResNets of other depths to select weights from (memorisation)",
    )
    parser.add_argument("--epochs", type=at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast in training (recipes)")


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
    elif arguments.what == "memorisation":
        from torch_geninit.training.evaluate import memorisation

        if arguments.zoo is None:
            raise SystemExit("evaluate memorisation needs --zoo, the folder of stored networks")
        for row in memorisation.compare(arguments.zoo, train, measured, sources=arguments.sources):
            print(json.dumps(row))
    else:
        recipes(
            arguments.pretrained,
            train,
            measured,
            rates=arguments.lr,
            scales=arguments.scale,
            warmups=arguments.warmup,
            epochs=arguments.epochs,
            seed=arguments.seed,
            amp=arguments.amp,
        )
