"""A generator small enough to write hostile files with, and the bytes of a sound file."""

from __future__ import annotations

import json
import struct
from typing import Any

import torch
from torch import nn

from torch_geninit.generators.base import WeightGenerator


class Toy(WeightGenerator):
    """``depth`` linear layers of ``width``, and one integer buffer."""

    kind = "ghn"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        sizes = config["sizes"]
        self.layers = nn.ModuleList(nn.Linear(sizes["width"], sizes["width"]) for _ in range(sizes["depth"]))
        self.register_buffer("steps", torch.tensor(7))

    @staticmethod
    def check_config(config: dict[str, Any]) -> None:
        if config["trained"].get("epochs", 1) < 1:
            raise ValueError("trained.epochs: expected at least 1")


KIND = {"ghn": ("tests.support.toy_generator", "Toy")}


def config(**changes: Any) -> dict[str, Any]:
    """A complete config of a Toy."""
    return {
        "kind": "ghn",
        "format_version": 1,
        "vocabulary": {"version": 1, "graphs": {"resnet20": "0" * 32}},
        "sizes": {"width": 4, "depth": 2},
        "trained": {"epochs": 3},
        "input": {"size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "classes": ["cat", "dog"],
        "licence": "MIT",
        **changes,
    }


def toy(**changes: Any) -> Toy:
    """A Toy whose values float16 holds exactly."""
    generator = Toy(config(**changes))
    with torch.no_grad():
        for index, parameter in enumerate(generator.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) / 8 - index)
    return generator


def pack(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Assemble a safetensors file by hand; ``header`` is an object, or text to be taken as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def record(content: bytes, **changes: Any) -> dict[str, Any]:
    """A complete manifest record of a file with this content."""
    import hashlib

    return {
        "name": "toy",
        "kind": "ghn",
        "filename": "toy.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "repo_id": None,
        "revision": None,
        "licence": "MIT",
        "training_data": "none",
        "architectures": "one toy",
        "learning_rate": "any",
        "vocabulary": {"version": 1, "graphs": {}},
        "input": {"size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "numbers": {"accuracy": 0.5, "by layer": {"kl": [1.0, 2.0]}},
        "command": "python -m torch_geninit.training ghn",
        "seed": 0,
        "duration_seconds": 1.5,
        "core_hours": 0.25,
        "machine": "two cores",
        **changes,
    }
