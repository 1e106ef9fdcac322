"""Compare ensembles: members from ``noise_ghn_`` against members from another initialisation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import INITS, add_data_arguments, initialise, mean_and_deviation, open_data
from torch import Tensor

import torch_geninit as geninit
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import Phase, Recipe, logits_of, train_classifier
from torch_geninit.training.metrics import diversity, measures, probabilities_of
from torch_geninit.training.networks.resnet import resnet20


def member(init: str, seed: int, epochs: int, lr: float, train: Split, test: Split) -> Tensor:
    """Return test logits of one member, trained for ``epochs``; untrained ones get BatchNorm calibrated."""
    model = initialise(resnet20(len(train.classes)), init, seed)
    if epochs:
        recipe = Recipe(
            [Phase(train.images.shape[-1], epochs)],
            lr=lr,
            weight_decay=1e-4,
            batch_size=min(128, len(train)),
        )
        train_classifier(model, train, recipe, seed=seed, description=f"{init}, seed {seed}")
    else:
        geninit.recalibrate_bn_(model, train.spread(2000).batches())
    return logits_of(model, test)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_data_arguments(parser)
    parser.add_argument("--members", type=int, default=5, help="networks in each ensemble")
    parser.add_argument("--epochs", type=int, default=1, help="0 measures the initialisation itself")
    parser.add_argument("--lr", type=float, default=0.1, help="SGD's peak learning rate, of all members")
    parser.add_argument(
        "--against", choices=INITS, default="default", help="the other ensemble's initialisation"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    train, _, test = open_data(arguments.data, arguments.cache, arguments.limit)
    report: dict[str, Any] = {}
    for init in ("noise-ghn", arguments.against):
        logits = [
            member(init, seed, arguments.epochs, arguments.lr, train, test)
            for seed in range(arguments.members)
        ]
        alone = [measures(each.softmax(1), test.labels) for each in logits]
        report[init] = {
            "member_accuracy": [one["accuracy"] for one in alone],
            "ensemble": measures(probabilities_of(logits), test.labels),
            **diversity(logits),
        }
    print(f"{arguments.members} members, {arguments.epochs} epochs each, {len(test)} test images")
    header = ("members (%)", "ensemble (%)", "NLL", "ECE", "disagreement", "cosine")
    print(f"{'':12}" + "".join(f"{title:>15}" for title in header))
    for init, row in report.items():
        together = row["ensemble"]
        cells = (
            mean_and_deviation([100 * value for value in row["member_accuracy"]]),
            f"{100 * together['accuracy']:.1f}",
            f"{together['nll']:.3f}",
            f"{together['ece']:.3f}",
            f"{row['disagreement']:.3f}",
            f"{row['cosine']:.3f}",
        )
        print(f"{init:12}" + "".join(f"{cell:>15}" for cell in cells))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
