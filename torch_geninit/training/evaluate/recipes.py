"""Train ResNet-20 for the first epoch of ordinary recipes, from He and from scaled predictions."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.entry import Route
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.planning.options import Head
from torch_geninit.training.arguments import at_least, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate.heldout import CALIBRATION_IMAGES
from torch_geninit.training.loops.classifier import (
    Optimizer,
    Phase,
    Recipe,
    diverged,
    score,
    train_classifier,
)
from torch_geninit.training.networks.resnet import he_, resnet20
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue

WEIGHT_DECAY: dict[Optimizer, float] = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.01}
"""Of the ordinary recipes: SGD's on CIFAR-10, Adam's and AdamW's in torch."""
KEPT = 0.03
"""Share of the images that a prediction may lose in its first epoch."""


class Step(NamedTuple):
    """An optimizer and its rate, which is constant: the first of many epochs, without warm-up."""

    optimizer: Optimizer
    lr: float

    def __str__(self) -> str:
        return f"{self.optimizer}-{self.lr:g}"


class Scales(NamedTuple):
    """Factors on a prediction that leave its answers as they are.

    Attributes:
        kernels: on the kernels that only norms read; divides their effective rate by its square.
        classifier: on the classifier; divides its outputs' confidence.
    """

    kernels: float
    classifier: float

    def __str__(self) -> str:
        return f"kernels-{self.kernels:g}-classifier-{self.classifier:g}"


HE = None
"""The initialisation without a prediction to scale."""


class Task(NamedTuple):
    """One network to train; the seed decides what is drawn and the order of the images."""

    step: Step
    scales: Scales | None
    seed: int

    def __str__(self) -> str:
        return f"{self.step}/{self.scales or 'he'}/{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common."""

    pretrained: str
    head: Head = "auto"
    batch_size: int = 128
    amp: bool = False


def initialised(scales: Scales | None, seed: int, classes: int, setting: Setting) -> nn.Module:
    """Build ResNet-20 with He initialisation, or with what a hypernetwork predicts, scaled.

    Raises:
        ValueError: if what should be scaled was not predicted.
    """
    torch.manual_seed(seed)
    model = he_(resnet20(classes))
    if scales is HE:
        return model
    generator = geninit.load(setting.pretrained)
    if not isinstance(generator, GraphHyperNetwork):
        raise ValueError(f"{setting.pretrained}: expected a graph hypernetwork, its kernels can be scaled")
    generator.kernel_scale = scales.kernels
    made = geninit.plan(model, pretrained=generator, head=setting.head)
    made.write_(model, unfilled="keep")
    if not made.generated:
        raise ValueError(f"{setting.pretrained} leaves ResNet-20 as it is: {made.verdict}")
    if scales.classifier != 1:
        if made["fc.weight"].route is not Route.GENERATED:
            raise ValueError("the classifier is not generated, so it is not scaled; expected a scale of 1")
        with torch.no_grad():
            for parameter in model.get_submodule("fc").parameters():
                parameter.mul_(scales.classifier)
    return model


class Measurement:
    """Trains networks for an epoch, and measures them on validation images with BatchNorm calibrated."""

    def __init__(self, train: Split, validation: Split, setting: Setting) -> None:
        self.train, self.validation, self.setting = train, validation, setting
        self.started: dict[tuple[Scales | None, int], float] = {}

    def __call__(self, task: Task) -> dict[str, Any]:
        """Return the accuracy before and after the epoch; chance where training diverges."""
        model = initialised(task.scales, task.seed, len(self.train.classes), self.setting)
        start = task.scales, task.seed
        if start not in self.started:
            self.started[start] = self._accuracy(copy.deepcopy(model))
        recipe = Recipe(
            [Phase(self.train.images.shape[-1], 1)],
            lr=task.step.lr,
            weight_decay=WEIGHT_DECAY[task.step.optimizer],
            batch_size=self.setting.batch_size,
            warmup=0.0,
            optimizer=task.step.optimizer,
            amp=self.setting.amp,
            falling=False,
        )
        train_classifier(model, self.train, recipe, seed=task.seed, description=str(task))
        return {
            "recipe": str(task.step),
            "initialisation": str(task.scales or "he"),
            "seed": task.seed,
            "before": self.started[start],
            "after": 1 / len(self.train.classes) if diverged(model) else self._accuracy(model),
        }

    def _accuracy(self, model: nn.Module) -> float:
        geninit.recalibrate_bn_(model, (x for x, _ in self.train.spread(CALIBRATION_IMAGES).batches()))
        return score(model, self.validation).accuracy


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each initialisation and recipe: means over seeds, and whether the mark is reached.

    It is reached where the epoch takes at most :data:`KEPT` away, and He initialisation ends it behind.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["initialisation"], record["recipe"]), []).append(record)

    def mean(initialisation: str, recipe: str, moment: str) -> float:
        return statistics.mean(record[moment] for record in groups[initialisation, recipe])

    rows = []
    for initialisation, recipe in groups:
        before, after = (mean(initialisation, recipe, moment) for moment in ("before", "after"))
        row = {"initialisation": initialisation, "recipe": recipe, "before": before, "after": after}
        if initialisation != "he":
            row["reached"] = after >= before - KEPT and after > mean("he", recipe, "after")
        rows.append(row)
    return rows


def step(text: str) -> Step:
    """Read ``"sgd-0.1"``: an optimizer and its rate."""
    optimizer, _, lr = text.partition("-")
    if optimizer not in WEIGHT_DECAY:
        names = ", ".join(WEIGHT_DECAY)
        raise argparse.ArgumentTypeError(
            f"expected an optimizer of {names} and its rate, as sgd-0.1, got {text!r}"
        )
    return Step(optimizer, positive(lr))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--pretrained", default="ghn-cifar10", help="hypernetwork: a name or a file")
    parser.add_argument(
        "--recipes",
        type=step,
        nargs="+",
        default=[Step("sgd", 0.1), Step("sgd", 0.01), Step("adam", 1e-3), Step("adamw", 1e-3)],
        help="optimizers and their rates",
    )
    parser.add_argument("--kernel-scales", type=positive, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--classifier-scales", type=positive, nargs="+", default=[1.0])
    parser.add_argument("--images", type=at_least(1), help="of an epoch, evenly spaced; all by default")
    parser.add_argument("--validation-images", type=at_least(1), help="to measure on; all by default")
    parser.add_argument("--seeds", type=at_least(1), default=1)
    parser.add_argument("--head", choices=("auto", "keep", "generate"), default="auto")
    parser.add_argument("--batch-size", type=at_least(1), default=128)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Train each network that is not recorded yet; print a line for each initialisation and recipe."""
    train = load(arguments.data, "train", arguments.images)
    validation = load(arguments.data, "validation", arguments.validation_images)
    setting = Setting(arguments.pretrained, arguments.head, arguments.batch_size, arguments.amp)
    scaled = [Scales(*both) for both in product(arguments.kernel_scales, arguments.classifier_scales)]
    tasks = {
        str(task): task
        for task in (
            Task(each, scales, seed)
            for seed in range(arguments.seeds)
            for scales in (HE, *scaled)
            for each in arguments.recipes
        )
    }
    settings = {
        "data": fingerprint.of_file(arguments.data),
        "generator": fingerprint.of_generator(arguments.pretrained),
        "images": len(train),
        "validation_images": len(validation),
        "head": setting.head,
        "batch_size": setting.batch_size,
        "amp": setting.amp,
    }
    queue = TaskQueue(arguments.run, settings)
    records = queue.complete(tasks, Measurement(train, validation, setting))
    for row in summary(records):
        print(json.dumps(row), flush=True)
