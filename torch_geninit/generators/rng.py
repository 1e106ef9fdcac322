"""The random stream of each parameter."""

from __future__ import annotations

import hashlib

import torch

ALGORITHM_VERSION = 1
"""Part of every noise seed: a change of the sampling algorithm changes this number too."""


def noise_stream(seed: int, name: str) -> torch.Generator:
    """Return the CPU random generator that belongs to (seed, canonical parameter name, algorithm version).

    torch's CPU generator reads no more than 32 bits of a seed, hence a 32-bit blake2b.
    """
    text = f"{seed}\0{name}\0{ALGORITHM_VERSION}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
