"""The shipped generators on real images: a damaged or mismatched file falls to chance, and this notices."""

from __future__ import annotations

import io
import os
import tarfile
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
EACH = 40


@pytest.fixture(scope="module")
def parts() -> dict[str, Split]:
    """Forty images a class of each part, normalised as the generators expect."""
    if not ARCHIVE.exists():
        pytest.skip("GENINIT_DATA names no folder with cifar10_jpeg.tar.xz")
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    pixels: dict[str, list[Tensor]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if not member.isfile():
                continue
            *_, part, name, _ = Path(member.name).parts
            if part not in names or names[part].count(name) == EACH:
                continue
            file = archive.extractfile(member)
            assert file is not None
            names[part].append(name)
            pixels[part].append(pil_to_tensor(Image.open(io.BytesIO(file.read())).convert("RGB")))
    classes = tuple(sorted(set(names["train"])))
    config = geninit.load("ghn-cifar10").config["input"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return {
        part: Split(
            torch.stack(pixels[part]), torch.tensor(list(map(classes.index, found))), mean, std, classes
        )
        for part, found in names.items()
    }


@pytest.fixture(scope="module")
def images(parts: dict[str, Split]) -> Split:
    """Training images; accuracy on them is a sanity check, not a measurement."""
    return parts["train"]


def accuracy(model: nn.Module, images: Split) -> float:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    mixed = images.subset(order)
    geninit.recalibrate_bn_(model, mixed.batches())
    return (logits_of(model, mixed).argmax(1) == mixed.labels).float().mean().item()


def test_ghn_classifies_without_training(images: Split) -> None:
    assert accuracy(geninit.ghn_(resnet20(), strict=True), images) > 0.75


def test_one_call_is_enough_to_classify_what_no_generator_saw(parts: dict[str, Split]) -> None:
    test = parts["test"]
    assert len(test) == 10 * EACH
    model = geninit.ghn_(resnet20()).eval()
    assert (logits_of(model, test).argmax(1) == test.labels).float().mean().item() >= 0.8


def test_noise_ghn_members_classify_and_differ(images: Split) -> None:
    members = [geninit.noise_ghn_(resnet20(), seed, strict=True) for seed in (0, 1)]
    assert all(accuracy(member, images) > 0.7 for member in members)
    first, second = (logits_of(member, images).argmax(1) for member in members)
    assert 0.03 < (first != second).float().mean() < 0.3


def test_classes_of_the_configs_are_those_of_the_data(images: Split) -> None:
    for name in ("ghn-cifar10", "noise-ghn-cifar10"):
        assert tuple(geninit.load(name).config["classes"]) == images.classes
