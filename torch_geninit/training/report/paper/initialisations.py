"""Initialisations by name: each fills the same network, is calibrated alike, and is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.hub import manifest
from torch_geninit.hub.file import read
from torch_geninit.training.controls.lsuv import lsuv_
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate.initialise import fill_
from torch_geninit.training.networks.resnet import ResNet, he_, orthogonal_, xavier_
from torch_geninit.training.report.paper.budget import Setup
from torch_geninit.training.runs import fingerprint

REFERENCE = "he"
"""What leads are over."""
LSUV_IMAGES = 128


class Initialisation(NamedTuple):
    """How a network that PyTorch has built becomes another.

    Attributes:
        label: what pages call it.
        fill_: (network, seed, training images) -> anything; draws by the seed alone. What it leaves alone is
            PyTorch's.
        content: what a cached record depends on beside the name, as the fingerprint of a file.
    """

    label: str
    fill_: Callable[[nn.Module, int, Split], object]
    content: Callable[[], str] = str


def _generated(name: str, label: str) -> Initialisation:
    def fill(model: nn.Module, seed: int, _: Split) -> None:
        # Read anew, not remembered by the process: every record pays for loading.
        generator = read(manifest.SHIPPED / f"{name}.safetensors")
        fill_(he_(model), generator, seed, strict=True)

    return Initialisation(label, fill, lambda: fingerprint.of_generator(name))


def _lsuv(model: nn.Module, seed: int, train: Split) -> None:
    images = train.spread(LSUV_IMAGES)
    lsuv_(model, images.normalise(images.images), generator=torch.Generator().manual_seed(seed))


REGISTRY: dict[str, Initialisation] = {
    "pytorch": Initialisation("PyTorch's default", lambda *_: None),
    "he": Initialisation("He", lambda model, *_: he_(model)),
    "xavier": Initialisation("Xavier", lambda model, *_: xavier_(model)),
    "orthogonal": Initialisation("orthogonal", lambda model, *_: orthogonal_(model)),
    "lsuv": Initialisation("LSUV", _lsuv),
    "vae-cifar10": _generated("vae-cifar10", "`vae_`"),
    "ghn-cifar10": _generated("ghn-cifar10", "`ghn_`"),
    "noise-ghn-cifar10": _generated("noise-ghn-cifar10", "`noise_ghn_`"),
}
"""Name -> initialisation, in the order of every table. Others are added by :func:`register`."""


def register(name: str, initialisation: Initialisation) -> None:
    """Add an initialisation, after which every experiment can be asked for it.

    Raises:
        ValueError: if there is one of that name.
    """
    if name in REGISTRY:
        raise ValueError(f"initialisation {name!r}: expected a new name, got one that is registered")
    REGISTRY[name] = initialisation


def label(name: str, registry: Mapping[str, Initialisation] = REGISTRY) -> str:
    """Return what pages call an initialisation; its name where it is no longer registered."""
    return registry[name].label if name in registry else name


class Initialised(NamedTuple):
    """A network, and the seconds that it took: loading and generating, and calibrating BatchNorm."""

    model: nn.Module
    seconds: float
    calibration_seconds: float


def network(setup: Setup, classes: int, seed: int) -> nn.Module:
    """Build the network as PyTorch does, its weights drawn with ``seed``."""
    torch.manual_seed(seed)
    return ResNet(setup.blocks, setup.widths, num_classes=classes)


def initialised(name: str, setup: Setup, train: Split, seed: int) -> Initialised:
    """Return the network as one initialisation starts it, with BatchNorm calibrated.

    Raises:
        ValueError: if no initialisation has that name.
        StrictError: if a generator leaves some of the network alone.
    """
    if name not in REGISTRY:
        raise ValueError(f"initialisation: expected one of {', '.join(REGISTRY)}, got {name!r}")
    model = network(setup, len(train.classes), seed)
    start = time.perf_counter()
    REGISTRY[name].fill_(model, seed, train)
    filled = time.perf_counter()
    calibrate(model, setup, train)
    return Initialised(model, filled - start, time.perf_counter() - filled)


def calibrate(model: nn.Module, setup: Setup, train: Split) -> None:
    """Give BatchNorm the statistics of ``setup.calibrate`` training images."""
    geninit.recalibrate_bn_(model, (images for images, _ in train.spread(setup.calibrate).batches()))
