"""A small hypernetwork with every decoder and large random weights."""

from __future__ import annotations

import torch
from torch import nn

from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.vocabulary import PRIMITIVES

SIZES = {
    "primitives": len(PRIMITIVES),
    "width": 16,
    "rounds": 2,
    "noise": 3,
    "hidden": 24,
    "mix": 20,
    "rank": 12,
    "head_rank": 3,
    "linear_rank": 6,
    "depthwise_rank": 5,
    "basis": 2,
    "channels": 8,
    "kernel": 5,
}
KINDS = [
    "3x3 convolution",
    "linear weight",
    "linear bias",
    "batch_norm weight",
    "batch_norm bias",
]


def config(**more: object) -> dict[str, object]:
    about = {"kind": "noise-ghn", "sizes": SIZES, "classes": list("abcdefghij"), "trained": {"kinds": KINDS}}
    return {**about, "input": {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}, **more}


def random_ghn() -> GraphHyperNetwork:
    torch.manual_seed(0)
    made = GraphHyperNetwork(config())
    for parameter in made.parameters():  # biases and gains start near zero and would hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return made.eval()
