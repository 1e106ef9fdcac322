"""A generator whose predictions are good."""

from __future__ import annotations

import pytest

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator


@pytest.fixture(scope="session")
def shipped() -> WeightGenerator:
    """The hypernetwork for ResNets."""
    return geninit.load("ghn-cifar10")
