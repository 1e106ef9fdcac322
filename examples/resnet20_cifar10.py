"""Train ResNet-20 on CIFAR-10 from any initialisation and write its learning curve."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import (
    INITS,
    accuracy_before_training,
    add_data_arguments,
    draw_curves,
    initialise,
    open_data,
)

from torch_geninit.training.loops.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.networks.resnet import resnet20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--init", choices=INITS, default="ghn", help="what the network starts from")
    add_data_arguments(parser)
    parser.add_argument("--epochs", type=int, default=5, help="over the training images")
    parser.add_argument(
        "--lr", type=float, default=0.02, help="SGD's peak learning rate; a high one undoes a head start"
    )
    parser.add_argument(
        "--warmup", type=float, default=0.2, help="share of the steps in which the rate rises"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the initialisation and the order of the images"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for JSON and picture")
    arguments = parser.parse_args()

    train, _, test = open_data(arguments.data, arguments.cache, arguments.limit)
    model = initialise(resnet20(len(train.classes)), arguments.init, arguments.seed)
    accuracies = [accuracy_before_training(model, train, test)]
    print(f"before the first step: {100 * accuracies[0]:.1f} % (BatchNorm calibrated)")
    recipe = Recipe(
        [Phase(train.images.shape[-1], arguments.epochs)],
        lr=arguments.lr,
        weight_decay=1e-4,
        warmup=arguments.warmup,
        batch_size=min(128, len(train)),
    )

    def measure(epoch: int, metrics: dict[str, float]) -> None:
        accuracies.append(score(model, test).accuracy)
        metrics["accuracy"] = accuracies[-1]

    train_classifier(
        model, train, recipe, seed=arguments.seed, after_epoch=measure, description=arguments.init
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"resnet20-{arguments.init}-lr{arguments.lr:g}-seed{arguments.seed}"
    record = {
        "init": arguments.init,
        "epochs": arguments.epochs,
        "lr": arguments.lr,
        "warmup": arguments.warmup,
        "seed": arguments.seed,
        "train_images": len(train),
        "test_accuracy": [round(value, 4) for value in accuracies],
    }
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    picture = stem.with_name(f"{stem.name}.png")
    draw_curves({arguments.init: [accuracies]}, picture, "ResNet-20 on CIFAR-10", first_epoch=0)
    for epoch, value in enumerate(accuracies):
        print(f"epoch {epoch}: {100 * value:.1f} %")
    print(f"written: {stem}.json, {picture}")


if __name__ == "__main__":
    main()
