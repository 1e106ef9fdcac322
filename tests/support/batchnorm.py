"""A network with BatchNorm, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    )


def batches(sizes: tuple[int, ...] = (4, 4, 4)) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, 3, 8, 8) * (i + 1) for i, size in enumerate(sizes)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}
