"""One well-known network: how it is built, what it is, where it was described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Published:
    """A network that reads 32x32 images.

    Attributes:
        build: number of classes -> the network; its output is that many logits, or log-probabilities.
        description: what sets it apart, in a few words.
        paper: authors and year.
    """

    build: Callable[[int], nn.Module]
    description: str
    paper: str
