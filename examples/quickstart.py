"""Initialise a ResNet-20 by a learned generator and train it on a few digits: no download, about two minutes.

Trains on 20 labelled images a class of scikit-learn's bundled 8x8 digits, from PyTorch's default
initialisation and from ``geninit.ghn_`` (the classifier keeps its default), and draws both curves. Each
initialisation trains at its own best of three rates, chosen on validation images with the first seed.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from common import draw_curves, mean_and_deviation
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.networks.resnet import resnet20

RATES = (0.02, 0.05, 0.1)


class Curve(NamedTuple):
    """Test accuracy after each epoch, and validation accuracy after the last."""

    test: list[float]
    validation: float


def digits(per_class: int, seed: int) -> tuple[Split, Split, Split]:
    """Return ``per_class`` training images a class, 300 validation and 500 test images of 3 x 32 x 32."""
    bunch = load_digits()
    images = F.interpolate(
        torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, (32, 32), mode="bilinear"
    )
    pixels = (images.repeat(1, 3, 1, 1) * 255).round().to(torch.uint8)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, rest = order[:500], order[500:]
    train = torch.cat([rest[labels[rest] == digit][:per_class] for digit in range(10)])
    validation = rest[~torch.isin(rest, train)][:300]
    mean, std = pixels[train].float().mean().item() / 255, pixels[train].float().std().item() / 255
    names = tuple(str(digit) for digit in range(10))

    def split(chosen: Tensor) -> Split:
        return Split(pixels[chosen], labels[chosen], (mean,) * 3, (std,) * 3, names)

    return split(train), split(validation), split(test)


def curve(learned: bool, seed: int, lr: float, epochs: int, per_class: int, title: str) -> Curve:
    """Train one network and measure it after each epoch."""
    train, validation, test = digits(per_class, seed)
    torch.manual_seed(seed)
    model = resnet20(num_classes=10)
    if learned:
        geninit.ghn_(model, head="keep")
    accuracies: list[float] = []
    train_classifier(
        model,
        train,
        Recipe([Phase(32, epochs)], lr=lr, batch_size=50, augment="none"),
        seed=seed,
        after_epoch=lambda *_: accuracies.append(score(model, test).accuracy),
        description=title,
    )
    return Curve(accuracies, score(model, validation).accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="over the labelled images")
    parser.add_argument("--seeds", type=int, default=3, help="networks from each initialisation")
    parser.add_argument("--per-class", type=int, default=20, help="labelled images of each digit")
    parser.add_argument("--picture", type=Path, default=Path("quickstart.png"), help="file to save")
    arguments = parser.parse_args()

    print("What ghn_ would do with a ResNet-20 whose classifier is kept:\n")
    print(geninit.plan(resnet20(), head="keep"))
    networks = 2 * (len(RATES) + arguments.seeds - 1)
    print(f"\nTraining {networks} networks, about ten seconds each on one core:\n")
    curves: dict[str, list[list[float]]] = {}
    turn = count(1)

    def trained(name: str, seed: int, lr: float) -> Curve:
        title = f"{next(turn)} of {networks}: {name}, seed {seed}, lr {lr:g}"
        return curve(name != "default", seed, lr, arguments.epochs, arguments.per_class, title)

    for name in ("default", "geninit.ghn_"):
        tried = {lr: trained(name, 0, lr) for lr in RATES}
        best = max(RATES, key=lambda lr: tried[lr].validation)
        others = [trained(name, seed, best) for seed in range(1, arguments.seeds)]
        curves[f"{name}, lr {best:g}"] = [one.test for one in (tried[best], *others)]
    print(f"\nTest accuracy (%) on 500 digits, {arguments.seeds} seeds, mean +- standard deviation.")
    print(f"Each initialisation at its best of the rates {', '.join(f'{lr:g}' for lr in RATES)}:")
    print("epoch " + "".join(f"{name:>24}" for name in curves))
    for epoch in range(arguments.epochs):
        cells = [mean_and_deviation([100 * run[epoch] for run in runs]) for runs in curves.values()]
        print(f"{epoch + 1:5d} " + "".join(f"{cell:>24}" for cell in cells))
    draw_curves(
        curves,
        arguments.picture,
        f"ResNet-20 on digits, {arguments.per_class} labelled images a class",
    )
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
