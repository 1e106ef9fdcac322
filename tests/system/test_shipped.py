"""The shipped generators on real images: a damaged or mismatched file falls to chance, and this notices."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.networks.resnet import resnet20

pytest.importorskip("torchvision")

ARCHIVE = Path(os.environ.get("GENINIT_DATA", "absent")) / "cifar10_jpeg.tar.xz"


@pytest.fixture(scope="module")
def images() -> Split:
    """A hundred training images a class; accuracy on them is a sanity check, not a measurement."""
    if not ARCHIVE.exists():
        pytest.skip("GENINIT_DATA names no folder with cifar10_jpeg.tar.xz")
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    taken: Counter[str] = Counter()
    pixels: list[Tensor] = []
    names: list[str] = []
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not member.isfile() or parts[-3] != "train" or taken[parts[-2]] == 100:
                continue
            file = archive.extractfile(member)
            assert file is not None
            taken[parts[-2]] += 1
            names.append(parts[-2])
            pixels.append(pil_to_tensor(Image.open(io.BytesIO(file.read())).convert("RGB")))
    classes = tuple(sorted(taken))
    labels = torch.tensor([classes.index(name) for name in names])
    config = geninit.load("ghn-cifar10").config["input"]
    return Split(torch.stack(pixels), labels, tuple(config["mean"]), tuple(config["std"]), classes)


def accuracy(model: nn.Module, images: Split) -> float:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    mixed = images.subset(order)
    geninit.recalibrate_bn_(model, mixed.batches())
    return (logits_of(model, mixed).argmax(1) == mixed.labels).float().mean().item()


def test_ghn_classifies_without_training(images: Split) -> None:
    assert accuracy(geninit.ghn_(resnet20(), strict=True), images) > 0.75


def test_noise_ghn_members_classify_and_differ(images: Split) -> None:
    members = [geninit.noise_ghn_(resnet20(), seed, strict=True) for seed in (0, 1)]
    assert all(accuracy(member, images) > 0.7 for member in members)
    first, second = (logits_of(member, images).argmax(1) for member in members)
    assert 0.03 < (first != second).float().mean() < 0.3


def test_classes_of_the_configs_are_those_of_the_data(images: Split) -> None:
    for name in ("ghn-cifar10", "noise-ghn-cifar10"):
        assert tuple(geninit.load(name).config["classes"]) == images.classes
