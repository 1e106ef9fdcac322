"""Train well-known networks on other images, from every initialisation at its own best rate.

The classifier is always a fresh one. Started again with the same folder, the command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch_geninit.training.arguments import at_least, finite, positive, share
from torch_geninit.training.evaluate.contenders import REFERENCE, WITHOUT_FILE, over_tokens, short_name
from torch_geninit.training.evaluate.rate_search import Record
from torch_geninit.training.evaluate.transfer_cases import (
    NETWORKS,
    Case,
    Course,
    Images,
    compare,
    folder_name,
)
from torch_geninit.training.evaluate.transfer_table import markdown, rows
from torch_geninit.training.networks.specification import Specification

BY_FOLDER = {folder_name(name): name for name in NETWORKS}
"""Networks by names without spaces, for the command line."""


@dataclass(frozen=True)
class Budget:
    """How much is trained, where the command does not say."""

    networks: Sequence[str]
    shares: Sequence[float]
    epochs: Sequence[int]
    rates: Sequence[float]
    token_rates: Sequence[float]
    seeds: int
    most_images: int | None


SEVEN = (
    "resnet18",
    "resnet50",
    "densenet121",
    "vgg11_bn",
    "mobilenet_v2",
    "convnext_tiny",
    "vit-of-12-blocks",
)
BUDGETS: Mapping[str, Budget] = {
    "full": Budget(SEVEN, (1.0, 0.1), (1, 5, 20), (0.01, 0.03, 0.1), (3e-4, 1e-3, 3e-3), 3, None),
    "small": Budget(("resnet18-2", "vit-of-12-blocks"), (0.1,), (1, 3), (0.03,), (1e-3,), 1, 400),
}
"""``small`` takes minutes on one core."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", required=True, help="prepared data files")
    parser.add_argument(
        "--run", required=True, type=Path, help="folder of the records; processes may share it"
    )
    parser.add_argument(
        "--budget", choices=BUDGETS, default="full", help="what is trained where other options don't say"
    )
    parser.add_argument("--networks", nargs="+", choices=BY_FOLDER, help="by default the budget's")
    parser.add_argument(
        "--initialisations",
        nargs="+",
        default=[REFERENCE, "auto"],
        help=f"the first is what others are compared with: {', '.join(WITHOUT_FILE)}, selection=FILE or "
        "noisy=FILE:SHARE of a stored network, generators' names or files",
    )
    parser.add_argument("--shares", type=share, nargs="+", help="of the training images of each class")
    parser.add_argument("--epochs", type=at_least(1), nargs="+", help="after which networks are measured")
    parser.add_argument("--rates", type=positive, nargs="+", help="grid of convolutional networks (SGD)")
    parser.add_argument("--token-rates", type=positive, nargs="+", help="grid of those over tokens (AdamW)")
    parser.add_argument("--seeds", type=at_least(1), help="how many, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--most-images", type=at_least(1), help="of each split")
    parser.add_argument("--image-size", type=at_least(1), help="pixels; by default as prepared")
    parser.add_argument("--batch-size", type=at_least(1), default=Course.batch_size)
    parser.add_argument("--weight-decay", type=finite, default=Course.weight_decay, help="of SGD")
    parser.add_argument(
        "--token-weight-decay", type=finite, default=Course.token_weight_decay, help="of AdamW"
    )
    parser.add_argument(
        "--untrusted",
        choices=("keep", "generate"),
        default="keep",
        help="what a hypernetwork does with networks that it does not trust itself with",
    )
    parser.add_argument("--noise-scale", type=finite, default=1.0, help="of noise hypernetworks")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--keep-weights", action="store_true", help="keep the trained networks")


def main(arguments: argparse.Namespace) -> None:
    """Print a line for each figure and for each case that is left out, then the table."""
    budget = BUDGETS[arguments.budget]
    course = Course(
        epochs=tuple(sorted(set(arguments.epochs or budget.epochs))),
        batch_size=arguments.batch_size,
        weight_decay=arguments.weight_decay,
        token_weight_decay=arguments.token_weight_decay,
        image_size=arguments.image_size,
        most_images=arguments.most_images or budget.most_images,
        amp=arguments.amp,
        untrusted=arguments.untrusted,
        noise_scale=arguments.noise_scale,
    )
    cases = [
        Case(images, part, BY_FOLDER[network], initialisation, course, arguments.run)
        for images in (Images(path, course, arguments.device) for path in arguments.data)
        for part in arguments.shares or budget.shares
        for network in arguments.networks or budget.networks
        for initialisation in arguments.initialisations
    ]

    def rates(spec: Specification) -> Sequence[float]:
        if over_tokens(spec):
            return arguments.token_rates or budget.token_rates
        return arguments.rates or budget.rates

    def told(record: Record) -> None:
        print(json.dumps(record), flush=True)

    seeds = range(arguments.first_seed, arguments.first_seed + (arguments.seeds or budget.seeds))
    figures = compare(cases, rates, seeds, keep_weights=arguments.keep_weights, told=told)
    for figure in figures:
        told(figure)
    reference = short_name(arguments.initialisations[0])
    print(markdown(rows(figures, reference), reference))
