"""A hypernetwork with random weights."""

from __future__ import annotations

import pytest

from tests.support.random_ghn import random_ghn
from torch_geninit.generators.ghn.model import GraphHyperNetwork


@pytest.fixture(scope="module")
def generator() -> GraphHyperNetwork:
    return random_ghn()
