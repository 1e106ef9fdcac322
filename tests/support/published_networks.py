"""Small published hypernetworks with random weights, and the networks they are tried on."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.generators.compact import Tile
from torch_geninit.generators.published.decoders import scale
from torch_geninit.generators.published.model import PublishedGHN
from torch_geninit.generators.rng import noise_stream

torchvision = pytest.importorskip("torchvision")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet20A(nn.Module):
    expected_input_sz = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


class MetaStorage(torch.overrides.TorchFunctionMode):
    """Build modules without storage, computing what constructors compute (RegNet's widths) for real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def network(name: str, classes: int = 1000, meta: bool = True) -> nn.Module:
    if name == "resnet20A":
        return ResNet20A()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with MetaStorage() if meta else warnings.catch_warnings():
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def tiny(family: int, seed: int = 0, **changes: Any) -> PublishedGHN:
    """Build a small generator with random weights of a size that makes its values differ."""
    sizes = {"width": 8, "channels": [16, 16], "kernel": 11 if family == 2 else 16}
    sizes |= {"layers": 2, "heads": 4} if family == 3 else {"layers": 0, "heads": 0}
    sizes |= {"virtual_edges": family == 2, "layer_norm": True, "weight_norm": True}
    sizes |= {"hypernet": "gnn", "decoder": "conv"}
    config = {
        "kind": "published-ghn",
        "sizes": {"family": family, **sizes, **changes},
        "classes": [str(i) for i in range(10)],
    }
    generator = PublishedGHN(config)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.5, generator=stream)
    return generator.eval().requires_grad_(False)


def predict(generator: PublishedGHN, model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    architecture = generator.trace(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in architecture.uses}
    values = generator.decode(architecture, shapes, lambda name: noise_stream(seed, name))
    factors = {n: scale(s) if len(s) > 1 and generator.weight_norm else 1.0 for n, s in shapes.items()}
    return {name: Tile(values[name], shapes[name], factors[name]).expand() for name in shapes}
