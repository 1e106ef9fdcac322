"""MobileNetV2 (Sandler et al. 2018), MobileNetV3 (Howard et al. 2019) and MNASNet (Tan et al. 2019)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar, TypeVar

from torch import nn

from torch_geninit.training.networks.inverted import InvertedResiduals, Row
from torch_geninit.training.networks.layers import ACTIVATIONS, Activation, Norm, SqueezeExcite
from torch_geninit.training.networks.specification import divisible, seen, unseen


class MobileNetV2(InvertedResiduals):
    """A MobileNetV2."""

    family: ClassVar[str] = "mobilenet_v2"


class MobileNetV3(InvertedResiduals):
    """A MobileNetV3; its gates are hard and a quarter as wide as what they scale."""

    family: ClassVar[str] = "mobilenet_v3"
    named = (
        ((1, 1, 1, 3, 1, 1, 2, 2, 3), (16, 24, 24, 40, 80, 80, 80, 112, 160)),
        ((1, 1, 1, 1, 2, 2, 3), (16, 24, 24, 40, 40, 48, 96)),
    )

    def gates(self, in_channels: int, hidden: int) -> SqueezeExcite:
        return SqueezeExcite(hidden, divisible(hidden // 4), nn.ReLU(), nn.Hardsigmoid())


class MNASNet(InvertedResiduals):
    """An MNASNet."""

    family: ClassVar[str] = "mnasnet"
    named = (((1, 3, 3, 3, 2, 4, 1), (16, 24, 40, 80, 96, 192, 320)),)


V2 = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)
"""Table 2 of the paper of MobileNetV2."""

V3_LARGE = (
    Row(1, 16, 1, 1, 3, False, "relu"),
    Row(4, 24, 1, 2, 3, False, "relu"),
    Row(3, 24, 1, 1, 3, False, "relu"),
    Row(3, 40, 3, 2, 5, True, "relu"),
    Row(6, 80, 1, 2, 3, False, "hardswish"),
    Row(2.5, 80, 1, 1, 3, False, "hardswish"),
    Row(2.3, 80, 2, 1, 3, False, "hardswish"),
    Row(6, 112, 2, 1, 3, True, "hardswish"),
    Row(6, 160, 3, 2, 5, True, "hardswish"),
)
V3_SMALL = (
    Row(1, 16, 1, 2, 3, True, "relu"),
    Row(4.5, 24, 1, 2, 3, False, "relu"),
    Row(3.67, 24, 1, 1, 3, False, "relu"),
    Row(4, 40, 1, 2, 5, True, "hardswish"),
    Row(6, 40, 2, 1, 5, True, "hardswish"),
    Row(3, 48, 2, 1, 5, True, "hardswish"),
    Row(6, 96, 3, 2, 5, True, "hardswish"),
)
"""Tables 1 and 2 of the paper of MobileNetV3; expansions are widths in the table over the block's input."""

MNASNET = (
    Row(1, 16, 1, 1, 3, False, "relu"),
    Row(3, 24, 3, 2, 3, False, "relu"),
    Row(3, 40, 3, 2, 5, False, "relu"),
    Row(6, 80, 3, 2, 5, False, "relu"),
    Row(6, 96, 2, 1, 3, False, "relu"),
    Row(6, 192, 4, 2, 5, False, "relu"),
    Row(6, 320, 1, 1, 3, False, "relu"),
)
"""MNASNet-B1, as torchvision has it; A1 adds gates to the third, fifth and sixth row."""


N = TypeVar("N", bound=InvertedResiduals)


def mobilenet_v2(classes: int, size: int) -> nn.Module:
    """Build torchvision's mobilenet_v2 of width 1."""
    return MobileNetV2(32, 2, V2, 1280, dropout=0.2).build(classes, size)


def sample(r: random.Random) -> InvertedResiduals:
    """Draw a MobileNet or MNASNet that training may see."""
    return seen(_draw, r)


def sample_unseen(r: random.Random) -> InvertedResiduals:
    """Draw a MobileNet or MNASNet that training never sees."""
    return unseen(_draw, r)


def scaled(rows: tuple[Row, ...], width: float, depths: tuple[int, ...]) -> tuple[Row, ...]:
    """Return ``rows`` with their widths times ``width`` and ``depths`` blocks."""
    return tuple(
        replace(row, width=divisible(row.width * width), blocks=blocks)
        for row, blocks in zip(rows, depths, strict=True)
    )


def for_small_images(rows: tuple[Row, ...], halvings: int) -> tuple[Row, ...]:
    """Return ``rows`` with all strides but the last ``halvings`` set to 1, as people do for small images."""
    strides = [index for index, row in enumerate(rows) if row.stride > 1]
    early = strides[: len(strides) - halvings]
    return tuple(replace(row, stride=1) if index in early else row for index, row in enumerate(rows))


def _draw(r: random.Random) -> InvertedResiduals:
    return _usual(r) if r.random() < 0.5 else varied(r, r.choice((MobileNetV2, MobileNetV3)))


def depths_near(r: random.Random, rows: tuple[Row, ...]) -> tuple[int, ...]:
    """Draw a depth for each of ``rows``: its own, or a block more or less."""
    return tuple(max(1, row.blocks + r.choice((-1, 0, 0, 1))) for row in rows)


def _usual(r: random.Random) -> InvertedResiduals:
    name = r.choice(("v2", "v2", "v3 large", "v3 small", "mnasnet"))
    width = r.choice((0.35, 0.5, 0.75, 1.0, 1.25, 1.4))
    small = r.random() < 0.5
    stem_stride = 1 if small else 2
    rows = {"v2": V2, "v3 large": V3_LARGE, "v3 small": V3_SMALL, "mnasnet": MNASNET}[name]
    rows = scaled(
        rows, width, depths_near(r, rows) if r.random() < 0.7 else tuple(row.blocks for row in rows)
    )
    if small:
        rows = for_small_images(rows, r.choice((2, 3, 3)) if width <= 0.75 else 3)
    if name == "v2":
        last = 1280 if r.random() < 0.5 else divisible(4 * rows[-1].width)
        return MobileNetV2(divisible(32 * width), stem_stride, rows, last)
    if name == "mnasnet":
        if r.random() < 0.3:
            rows = tuple(replace(row, squeeze_excite=index in (2, 4, 5)) for index, row in enumerate(rows))
        return MNASNet(divisible(32 * width), stem_stride, rows, 1280, activation="relu")
    hidden = divisible((1280 if name == "v3 large" else 1024) * width)
    return MobileNetV3(
        divisible(16 * width),
        stem_stride,
        rows,
        6 * rows[-1].width,
        hidden,
        "hardswish",
        eps=1e-3,
    )


def varied(r: random.Random, kind: type[N]) -> N:
    """Draw a network of inverted residuals whose every part varies."""
    number = r.randint(3, 8)
    base, last_width = r.choice((8, 16, 24, 32)), r.choice((64, 96, 128, 192, 256, 384))
    halvings = min(number - 1, r.choice((2, 3, 3, 4)))
    late = [2] * (halvings - 1) + [1] * (number - 1 - halvings)
    r.shuffle(late)
    strides = [*r.choice(((1, 2), (1, 2), (2, 1))), *late]
    activation: Activation = r.choice([*ACTIVATIONS])
    expansions = r.choice(((6,), (4,), (3,), (2, 3, 4, 6), (1, 2, 4)))
    kernels = r.choice(((3,), (3, 5), (5,), (3, 5, 7)))
    gates, fused = r.choice((0.0, 0.0, 0.5, 1.0)), r.choice((0.0, 0.0, 0.0, 0.3))
    rows = tuple(
        Row(
            1 if index == 0 and r.random() < 0.5 else r.choice(expansions),
            divisible(base * (last_width / base) ** (index / (number - 1))),
            r.randint(1, 4),
            strides[index],
            r.choice(kernels),
            r.random() < gates,
            activation,
            # Full convolutions pay off where there are few channels.
            fused=index < number // 2 and r.random() < fused,
        )
        for index in range(number)
    )
    norm: Norm = r.choice(("batch", "batch", "batch", "batch", "group", "layer"))
    return kind(
        base,
        2 if halvings < 3 else r.choice((1, 2)),
        rows,
        r.choice((0, last_width, 2 * last_width, 4 * last_width)),
        r.choice((0, 0, 128, 256, 512)),
        activation,
        norm,
        r.choice((1e-3, 1e-5)),
        r.choice((3, 3, 5)),
    )
