"""The probe of a hypernetwork that is exported: labelled images, drawn with a seed."""

from __future__ import annotations

import torch

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import CLASSES, Probe
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


def add(
    generator: WeightGenerator,
    train: Split,
    images: int | None = None,
    seed: int = SEED,
    source: str | None = None,
) -> None:
    """Give ``generator`` a probe, and its config the words for it.

    Args:
        generator: gets the probe.
        train: what it was trained on; or any labelled images, where those may not be given away.
        images: as in :func:`draw`.
        seed: of the draw.
        source: what the images are, in words, if the generator was not trained on them. Their classes are
            then the probe's own.

    Raises:
        ValueError: if the images are of another size, or of other classes without a ``source``, or a class
            has too few.
    """
    config = generator.config
    size, classes = list(config["input"]["size"]), list(train.classes)
    if source is None and list(config["classes"]) != classes:
        raise ValueError(
            f"a probe is of the training images:\n  expected classes: {list(config['classes'])}\n"
            f"  got: {classes}\nSay in words what the images are (--probe-source), if they are others"
        )
    if size != list(train.images.shape[1:]):
        raise ValueError(
            f"a probe has images of the training images' size:\n  expected: {size}\n"
            f"  got: {list(train.images.shape[1:])}"
        )
    drawn = draw(train, images, seed)
    words = f"{len(drawn.labels)} images of {source or 'the training split'}, drawn with seed {seed}"
    config.pop(CLASSES, None)
    if source is not None:
        drawn = drawn._replace(classes=tuple(classes))
        config[CLASSES] = classes
    generator.probe, config["probe"] = drawn, words
