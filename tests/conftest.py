"""Offline, one thread, and small real generators in files."""

from __future__ import annotations

import os

# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.contract import Verb
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.graph import vocabulary
from torch_geninit.hub.file import read, write
from torch_geninit.training.data.images import Split

torch.set_num_threads(1)

# A shell starts background jobs with SIGINT ignored, and Python keeps it so: tests of Ctrl-C need the
# default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of one part of the package each. Those of contract, system and training use it as a whole.
UNITS = ("convert", "generators", "graph", "hub", "parameters", "planning", "utils")

CONFIG: dict[str, Any] = {
    "format_version": 1,
    "vocabulary": {"version": vocabulary.VERSION, "graphs": {}},
    "input": {"size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "classes": [f"class {i}" for i in range(10)],
    "licence": "MIT",
}
TRAINED_GHN: dict[str, Any] = {
    "kinds": [
        "1x1 convolution",
        "3x3 convolution",
        "conv bias",
        "linear weight",
        "linear bias",
        "batch_norm weight",
        "batch_norm bias",
    ],
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare ``-m unit`` the imports of tests that are none."""
    outside = collection_path.parent == Path(__file__).parent and collection_path.name not in UNITS
    return True if config.option.markexpr == "unit" and outside else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the unit tests: those of UNITS' folders that have no marker of another tier."""
    tests = Path(__file__).parent
    for item in items:
        others = (item.get_closest_marker(name) for name in ("full", "gpu", "network", "system"))
        if item.path.relative_to(tests).parts[0] in UNITS and not any(others):
            item.add_marker("unit")


def vae_config() -> dict[str, Any]:
    layers = [
        {"name": f"conv{i}.weight", "kernel_size": [3, 3], "fan_in": 27, "depth": depth}
        for i, depth in enumerate((0.0, 0.5, 1.0))
    ]
    return {
        **copy.deepcopy(CONFIG),
        "kind": "vae",
        "sizes": {"decoder": "slice", "latent": 4, "hidden": 8, "layers": layers},
        "trained": {},
    }


def ghn_config(noise: int = 0) -> dict[str, Any]:
    sizes = {
        "width": 16,
        "rounds": 2,
        "hidden": 16,
        "mix": 8,
        "rank": 8,
        "head_rank": 2,
        "channels": 8,
        "kernel": 3,
    }
    sizes |= {"primitives": len(vocabulary.PRIMITIVES), "linear_rank": 0, "depthwise_rank": 0, "basis": 0}
    return {
        **copy.deepcopy(CONFIG),
        "kind": "noise-ghn" if noise else "ghn",
        "sizes": {**sizes, "noise": noise},
        "trained": copy.deepcopy(TRAINED_GHN),
    }


def tiny_generator(kind: str) -> WeightGenerator:
    """Build a small generator with seeded random weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator: WeightGenerator
        if kind == "vae":
            generator = SliceVAEs(vae_config())
            for decoder in generator.decoders:
                torch.nn.init.normal_(decoder.spread, std=0.1)
        else:
            generator = GraphHyperNetwork(ghn_config(noise=4 if kind == "noise-ghn" else 0))
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: kind of generator -> path of a file with a small one."""
    folder = tmp_path_factory.mktemp("generators")

    def file(kind: str) -> Path:
        path = folder / f"tiny-{kind}.safetensors"
        if not path.exists():
            write(tiny_generator(kind), path, dtype=torch.float32)
        return path

    return file


@pytest.fixture(scope="session")
def tiny(tiny_file: Callable[[str], Path]) -> Callable[[str], WeightGenerator]:
    """Return a function: kind of generator -> a small one, read from its file once."""
    loaded: dict[str, WeightGenerator] = {}

    def generator(kind: str) -> WeightGenerator:
        if kind not in loaded:
            loaded[kind] = read(tiny_file(kind))
        return loaded[kind]

    return generator


@pytest.fixture
def ghn(tiny: Callable[[str], WeightGenerator]) -> WeightGenerator:
    """Return the small plain hypernetwork."""
    return tiny("ghn")


@pytest.fixture(scope="session")
def images() -> Split:
    """Forty images of random pixels, four a class."""
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (40, 3, 32, 32), generator=stream, dtype=torch.uint8)
    names = tuple(f"class {i}" for i in range(10))
    return Split(pixels, torch.arange(40) % 10, (0.5,) * 3, (0.25,) * 3, names)


@pytest.fixture(params=[("vae", "vae"), ("ghn", "ghn"), ("noise_ghn", "noise-ghn")], ids=lambda p: p[0])
def verb(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], WeightGenerator],
    tiny_file: Callable[[str], Path],
) -> Verb:
    return Verb(*request.param, tiny, tiny_file)
