"""The probe: labelled images in a hypernetwork's file, on which its predictions are measured."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geninit._utils.checks import expect

IMAGES, LABELS = "probe.images", "probe.labels"
"""Names of the two tensors in a file."""
CLASSES = "probe_classes"
"""Entry of a config: names of the probe's classes, where they are not the generator's."""
LEAST_IMAGES = 32
"""Fewer tell chance from a trained network too rarely."""
MOST_IMAGES, MOST_BYTES = 4096, 1 << 24
"""A file of generators is not for data sets."""


class Probe(NamedTuple):
    """Labelled images; the classes take turns, so that the first few are as balanced as all.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, below the number of classes.
        classes: names of the probe's own classes; none where they are the generator's.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()

    @staticmethod
    def check_header(config: Mapping[str, Any], shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Check dtypes and shapes, before anything is read, against the ``input`` and the config's ``probe``.

        Args:
            config: of the generator; its ``probe`` says in words what the images are.
            shapes: dtype and shape of each tensor in the file whose name begins with ``probe.``.

        Raises:
            ValueError: naming what was expected and what was found.
        """
        text = config.get("probe")
        expect(
            (text is not None) == bool(shapes),
            "the config's probe",
            f"a text together with the tensors {IMAGES} and {LABELS}, or none of the three",
            text,
        )
        if not shapes:
            expect(
                CLASSES not in config, f"the config's {CLASSES}", "none without a probe", config.get(CLASSES)
            )
            return
        if CLASSES in config:
            _check_names(config[CLASSES])
        expect(isinstance(text, str) and 0 < len(text) <= 200, "the config's probe", "a text of a line", text)
        expect(set(shapes) == {IMAGES, LABELS}, "the probe", f"{IMAGES} and {LABELS}", sorted(shapes))
        (kind, shape), labels = shapes[IMAGES], shapes[LABELS]
        size = tuple(config["input"]["size"])
        fits = kind == "U8" and len(shape) == 4 and shape[1:] == size and len(size) == 3
        expect(fits, IMAGES, f"uint8 images of {' x '.join(map(str, size))}, as the config's input", shape)
        capped = LEAST_IMAGES <= shape[0] <= MOST_IMAGES and prod(shape) <= MOST_BYTES
        bounds = f"{LEAST_IMAGES} to {MOST_IMAGES} images of at most {MOST_BYTES} bytes in all"
        expect(capped, IMAGES, bounds, shape)
        expect(labels == ("I64", shape[:1]), LABELS, f"int64 of shape {shape[:1]}", labels)

    def check(self, classes: int) -> None:
        """Raise a ValueError if a label is no class, or a class comes twice before all others have come.

        ``classes`` is the generator's number, for a probe without classes of its own.
        """
        classes = len(self.classes) or classes
        low, high = (int(extent) for extent in self.labels.aminmax())
        expect(0 <= low <= high < classes, LABELS, f"classes from 0 to {classes - 1}", (low, high))
        for part in torch.split(self.labels, classes):
            twice = len(set(part.tolist())) < len(part)
            expect(not twice, LABELS, "each class once before any comes again", part.tolist())

    def first(self, count: int) -> Probe:
        """Return the first ``count`` images."""
        return Probe(self.images[:count], self.labels[:count], self.classes)


def _check_names(names: Any) -> None:
    named = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
    expect(
        named and len(set(names)) == len(names),
        f"the config's {CLASSES}",
        "two or more different names",
        names,
    )
