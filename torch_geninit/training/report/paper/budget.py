"""How much a report measures: what all its records share, and what each experiment asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch_geninit.training.data.corruptions import CORRUPTIONS

THRESHOLDS = (0.70, 0.80, 0.85, 0.88)
"""Validation accuracies that trainings are timed to: those of the paper."""
BINS = (15, 10)
"""Of the calibration error: the usual number, and the paper's."""


@dataclass(frozen=True)
class Setup:
    """What all records of one folder share.

    Attributes:
        data: fingerprint of the prepared file.
        data_name: what the pages call it.
        train, validation, test: images of each, evenly spaced over the split.
        blocks, widths: of each stage of the residual network.
        epochs: of a training: SGD with Nesterov momentum, the rate rising over the first fifth, then falling
            to 0.
        calibrate: training images that BatchNorm is calibrated on, whatever the initialisation.
        amp: bfloat16 autocast.
    """

    data: str
    data_name: str
    train: int
    validation: int
    test: int
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    epochs: int
    batch_size: int = 128
    weight_decay: float = 5e-4
    calibrate: int = 2000
    amp: bool = False


@dataclass(frozen=True)
class Budget:
    """How much is measured; a smaller one shows the same tables and pictures of less.

    Attributes:
        train, validation, test: images at most; None for all.
        rates: grid of learning rates, the same for every initialisation.
        seeds: trainings of each initialisation at its best rate.
        ensembles: initialisations whose networks are put together.
        members: seeds that are trained for these; at least the largest of ``sizes``.
        sizes: networks of an ensemble.
        corruptions, corrupted_images: kinds, and images of each kind and severity.
        scales, scale_members, scale_epochs: factors on the noise; networks and epochs of each.
        layer_seeds: trainings of one epoch for each layer that is generated alone.
    """

    train: int | None
    validation: int | None
    test: int | None
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    calibrate: int
    rates: Sequence[float]
    seeds: int
    ensembles: Sequence[str]
    members: int
    sizes: Sequence[int]
    corruptions: Sequence[str]
    corrupted_images: int
    scales: Sequence[float]
    scale_members: int
    scale_epochs: int
    layer_seeds: int


ENSEMBLES = ("he", "vae-cifar10", "ghn-cifar10", "noise-ghn-cifar10")

BUDGETS: Mapping[str, Budget] = {
    "full": Budget(
        train=None,
        validation=None,
        test=None,
        blocks=(3, 3, 3),
        widths=(16, 32, 64),
        epochs=20,
        batch_size=128,
        calibrate=2000,
        rates=(0.02, 0.05, 0.1, 0.2),
        seeds=5,
        ensembles=ENSEMBLES,
        members=10,
        sizes=(5, 10),
        corruptions=tuple(CORRUPTIONS),
        corrupted_images=2000,
        scales=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        scale_members=5,
        scale_epochs=5,
        layer_seeds=3,
    ),
    # The smallest network of the training space that the shipped hypernetworks fill.
    "small": Budget(
        train=512,
        validation=500,
        test=500,
        blocks=(1, 1, 1),
        widths=(8, 16, 32),
        epochs=2,
        batch_size=64,
        calibrate=256,
        rates=(0.02, 0.1),
        seeds=2,
        ensembles=ENSEMBLES,
        members=3,
        sizes=(2, 3),
        corruptions=("gaussian_noise", "brightness", "contrast"),
        corrupted_images=100,
        scales=(0.0, 0.5, 1.0, 2.0),
        scale_members=2,
        scale_epochs=1,
        layer_seeds=1,
    ),
}
