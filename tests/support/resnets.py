"""A small network that the shipped generators are good at."""

from __future__ import annotations

from torch_geninit.training.networks.resnet import ResNet


def resnet8(num_classes: int = 10) -> ResNet:
    """Build ResNet-8, one block a stage: tried on a probe in a third of ResNet-20's time."""
    return ResNet((1, 1, 1), (16, 32, 64), num_classes)
