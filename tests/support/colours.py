"""Images of two classes that are easily told apart."""

from __future__ import annotations

import torch

from torch_geninit.training.data.images import Split


def colours(count: int, seed: int = 0, size: int = 16) -> Split:
    """Images of two easily told classes: more red, more blue."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, size, size), generator=stream, dtype=torch.uint8)
    images[labels == 0, 0] += 100
    images[labels == 1, 2] += 100
    return Split(images, labels, (0.3,) * 3, (0.2,) * 3, ("red", "blue"))
