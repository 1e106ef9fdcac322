"""EfficientNet (Tan & Le 2019) and EfficientNetV2 (Tan & Le 2021)."""

from __future__ import annotations

import math
import random
from typing import ClassVar

from torch import nn

from torch_geninit.training.networks.inverted import InvertedResiduals, Row
from torch_geninit.training.networks.layers import SqueezeExcite
from torch_geninit.training.networks.mobilenet import depths_near, for_small_images, scaled, varied
from torch_geninit.training.networks.specification import divisible, seen, unseen


class EfficientNet(InvertedResiduals):
    """An EfficientNet of either paper."""

    family: ClassVar[str] = "efficientnet"
    named = (
        ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
        ((2, 4, 4, 6, 9, 15), (24, 48, 64, 128, 160, 256)),
    )

    def gates(self, in_channels: int, hidden: int) -> SqueezeExcite:
        return SqueezeExcite(hidden, max(1, in_channels // 4), nn.SiLU(), nn.Sigmoid())


B0 = (
    Row(1, 16, 1, 1, 3, True, "silu"),
    Row(6, 24, 2, 2, 3, True, "silu"),
    Row(6, 40, 2, 2, 5, True, "silu"),
    Row(6, 80, 3, 2, 3, True, "silu"),
    Row(6, 112, 3, 1, 5, True, "silu"),
    Row(6, 192, 4, 2, 5, True, "silu"),
    Row(6, 320, 1, 1, 3, True, "silu"),
)
"""Table 1 of the first paper."""

V2_SMALL = (
    Row(1, 24, 2, 1, 3, False, "silu", fused=True),
    Row(4, 48, 4, 2, 3, False, "silu", fused=True),
    Row(4, 64, 4, 2, 3, False, "silu", fused=True),
    Row(4, 128, 6, 2, 3, True, "silu"),
    Row(6, 160, 9, 1, 3, True, "silu"),
    Row(6, 256, 15, 2, 3, True, "silu"),
)
"""Table 4 of the second paper."""

COMPOUND = ((0.5, 0.5), (0.75, 1.0), (1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4))
"""Multipliers of width and depth: two smaller than B0, then B0 to B3."""


def sample(r: random.Random) -> EfficientNet:
    """Draw an EfficientNet that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> EfficientNet:
    """Draw an EfficientNet that training never sees."""
    return unseen(_draw, r)


def _draw(r: random.Random) -> EfficientNet:
    return _usual(r) if r.random() < 0.5 else varied(r, EfficientNet)


def _usual(r: random.Random) -> EfficientNet:
    table: tuple[Row, ...]
    if r.random() < 0.7:
        table, (width, depth) = B0, r.choice(COMPOUND)
        last, stem = divisible(1280 * max(1.0, width)), divisible(32 * width)
        eps = 1e-5
    else:
        table, (width, depth) = V2_SMALL, r.choice(((0.5, 0.34), (0.75, 0.34), (1.0, 0.34), (0.75, 0.5)))
        last, stem, eps = 1280, divisible(24 * width), 1e-3
    depths = tuple(math.ceil(row.blocks * depth) for row in table)
    rows = scaled(table, width, depths)
    if r.random() < 0.3:
        rows = scaled(rows, 1.0, depths_near(r, rows))
    small = width <= 1 and r.random() < 0.5
    if small:
        rows = for_small_images(rows, r.choice((2, 3, 3)) if width <= 0.5 else 3)
    return EfficientNet(stem, 1 if small else 2, rows, last, activation="silu", eps=eps)
