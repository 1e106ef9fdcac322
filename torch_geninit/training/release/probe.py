"""The probe of a hypernetwork that is exported: labelled training images, drawn with a seed."""

from __future__ import annotations

import torch

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import Probe
from torch_geninit.training.data.images import Split

IMAGES = 160
"""Usual number: twice the standard error of a share is then 8 points at most."""
LEAST_OF_A_CLASS = 2
"""One would leave no other image of its class to compare it with."""
SEED = 0


def draw(train: Split, images: int | None = None, seed: int = SEED) -> Probe:
    """Draw a probe from the training split, the same for a seed.

    Args:
        train: the split.
        images: how many; by default as near to 160 as whole rounds over the classes come, and at least two
            of each class.
        seed: of the draw.

    Raises:
        ValueError: if a class has too few images.
    """
    classes = len(train.classes)
    images = classes * max(LEAST_OF_A_CLASS, IMAGES // classes) if images is None else images
    stream = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=stream)
    by_class = [order[train.labels[order] == label] for label in range(classes)]
    chosen: list[int] = []
    for turn in range(-(-images // classes)):
        for label in torch.randperm(classes, generator=stream).tolist()[: images - len(chosen)]:
            if turn >= len(by_class[label]):
                raise ValueError(
                    f"a probe of {images} images needs {turn + 1} of each of {classes} classes: "
                    f"{train.classes[label]!r} has {len(by_class[label])} training images. Draw fewer"
                )
            chosen.append(int(by_class[label][turn]))
    return Probe(train.images[chosen], train.labels[chosen])


def add(generator: WeightGenerator, train: Split, images: int | None = None, seed: int = SEED) -> None:
    """Give ``generator`` a probe, and its config the words for it.

    Raises:
        ValueError: if it was trained on other classes or images of another size, or a class has too few.
    """
    config = generator.config
    for what, expected, got in (
        ("classes", list(config["classes"]), list(train.classes)),
        ("images", list(config["input"]["size"]), list(train.images.shape[1:])),
    ):
        if expected != got:
            raise ValueError(
                f"a probe is of the training images:\n  expected {what}: {expected}\n  got: {got}"
            )
    generator.probe = draw(train, images, seed)
    config["probe"] = f"{len(generator.probe.labels)} images of the training split, drawn with seed {seed}"
