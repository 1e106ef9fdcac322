"""Small hypernetworks with a probe, whose verdicts are known beforehand."""

from __future__ import annotations

import copy

import torch

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import Probe


def with_other_classes(generator: WeightGenerator) -> WeightGenerator:
    """Give a copy of ``generator``, which has a probe, the same one in two classes of its own."""
    generator = copy.deepcopy(generator)
    assert generator.probe is not None
    names = ["even", "odd"]
    generator.probe = Probe(generator.probe.images, generator.probe.labels % 2, tuple(names))
    generator.config["probe_classes"] = names
    return generator


def with_probe(generator: WeightGenerator, images: int = 160, size: int = 32) -> WeightGenerator:
    """Give a copy of ``generator`` a probe of random pixels, of which nothing can be right but by chance."""
    generator = copy.deepcopy(generator)
    classes = len(generator.config["classes"])
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=stream)
    generator.probe = Probe(pixels, torch.arange(images) % classes)
    generator.config["probe"] = "random pixels"
    return generator
