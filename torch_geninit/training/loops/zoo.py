"""A zoo: many networks, trained from different seeds; of one architecture, or each of another."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torch_geninit.training.arguments import at_least, phases, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.data.kernels import CONVOLUTIONS
from torch_geninit.training.loops.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.networks.families import STAGED, Spec
from torch_geninit.training.networks.resnet import he_, resnet20
from torch_geninit.training.networks.search_space import Space, sample, weights
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.state_dicts import load_, save
from torch_geninit.training.runs.task_queue import TaskQueue

# Early epochs on small images: a ResNet-20 epoch at 16 x 16 costs a quarter of one at 32 x 32. Muon on small
# batches learns most from each image, so much that flips alone overfit in eleven epochs of small images.
RECIPE = Recipe(
    (Phase(16, 3), Phase(24, 7), Phase(32, 3)),
    lr=0.07,
    warmup=0.15,
    batch_size=64,
    shift=3,
    optimizer="muon",
)


def train_zoo(
    data: str | Path,
    folder: str | Path,
    *,
    seeds: range,
    recipe: Recipe = RECIPE,
    families: Sequence[str] = (),
    most_macs: int = 20_000_000,
    depthwise_scale: float = 1.0,
    compile: bool = False,
) -> None:
    """Train one He-initialised network for each seed and keep its final weights.

    Writes ``<folder>/<seed>.safetensors`` and a record, ``<seed>.json``; what is there is skipped, what was
    interrupted resumes, and several processes share the work.

    Args:
        data: prepared data file.
        folder: of the zoo.
        seeds: of the initialisation and the order of the images.
        recipe: of every network.
        families: of the training space; each seed draws a network with normalisation from them. None means
            ResNet-20 for all.
        most_macs: multiplications of the largest that is drawn.
        depthwise_scale: factor on the initial depthwise kernels. Norms undo it, and steps are larger in
            proportion: a small one leaves filters that were learned and not drawn.
        compile: run the training steps through ``torch.compile``: an eighth faster on a CPU, at the price of
            a C++ compiler and a minute at the start.
    """
    folder = Path(folder)
    train, validation, test = (load(data, name) for name in ("train", "validation", "test"))

    def trained(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = he_(drawn(seed, train, families, most_macs) if families else resnet20(len(train.classes)))
        shrink_depthwise_(model, depthwise_scale)
        if compile:
            model.compile(dynamic=False)
        target, run = folder / f"{seed}.safetensors", Run(folder / f"run-{seed}")
        if target.exists():  # without a record: stopped just before it
            load_(model, target)
        else:
            train_classifier(model, train, recipe, seed=seed, run=run, description=f"network {seed}")
        model._compiled_call_impl = None  # one pass each over two sets: not worth compiling
        metrics = {
            "seed": seed,
            "seconds": round(run.seconds),
            "validation_accuracy": score(model, validation).accuracy,
            "test_accuracy": score(model, test).accuracy,
        }
        layers = model.named_modules()
        order = json.dumps([f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Conv2d)])
        save(model, target, {CONVOLUTIONS: order})
        run.checkpoint.unlink(missing_ok=True)
        return metrics

    settings = {
        "data": fingerprint.of_file(data),
        "recipe": asdict(recipe),
        "families": list(families),
        "most_macs": most_macs,
        "depthwise_scale": depthwise_scale,
    }
    TaskQueue(folder, settings).complete({str(seed): seed for seed in seeds}, trained)


def drawn(seed: int, train: Split, families: Sequence[str], most_macs: int) -> nn.Module:
    """Build the network that ``seed`` draws from ``families``, one with normalisation."""
    size, classes = train.images.shape[-1], len(train.classes)
    space = Space(classes, train.normalise(train.images[:1]))
    chosen = weights(families)

    def normalised(stream: random.Random) -> Spec:
        while (spec := cast(Spec, sample(stream, chosen))).style.norm == "none":
            pass
        return spec

    return space.within(normalised, f"zoo/{seed}", most_macs).spec.build(classes, size)


@torch.no_grad()
def shrink_depthwise_(model: nn.Module, scale: float) -> None:
    """Multiply the kernels of depthwise convolutions by ``scale``, in place."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.weight.shape[1] == 1:
            layer.weight.mul_(scale)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--zoo", required=True, help="folder of the zoo; networks that exist are kept")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--networks", type=at_least(1), default=20)
    parser.add_argument(
        "--lr", type=positive, default=RECIPE.lr, help="peak rate of the kernels but depthwise ones (Muon)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=RECIPE.batch_size)
    parser.add_argument(
        "--phases",
        type=phases,
        default=",".join(f"{phase.resolution}x{phase.epochs}" for phase in RECIPE.phases),
        help="RESOLUTIONxEPOCHS, comma separated",
    )
    parser.add_argument(
        "--families", nargs="+", default=[], choices=list(STAGED), help="draw networks instead of ResNet-20s"
    )
    parser.add_argument("--most-macs", type=positive, default=20e6, help="multiplications of a drawn network")
    parser.add_argument(
        "--depthwise-scale",
        type=positive,
        default=1.0,
        help="of depthwise kernels at first; 1 is that of He initialisation",
    )
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="run the training steps through torch.compile")


def main(arguments: argparse.Namespace) -> None:
    recipe = replace(
        RECIPE,
        phases=tuple(Phase(*phase) for phase in arguments.phases),
        lr=arguments.lr,
        batch_size=arguments.batch_size,
        amp=arguments.amp,
    )
    first = arguments.first_seed
    train_zoo(
        arguments.data,
        arguments.zoo,
        seeds=range(first, first + arguments.networks),
        recipe=recipe,
        families=arguments.families,
        most_macs=int(arguments.most_macs),
        depthwise_scale=arguments.depthwise_scale,
        compile=arguments.compile,
    )
