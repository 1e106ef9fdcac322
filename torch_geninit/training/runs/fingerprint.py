"""What a measurement depends on, told by content: names and paths stay when a file is replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from torch_geninit.hub import manifest, registry
from torch_geninit.hub.download import sha256

DIGITS = 16


def of_file(path: str | Path) -> str:
    """Return the first digits of a file's sha256."""
    return sha256(Path(path))[:DIGITS]


def of_files(paths: Iterable[Path]) -> str:
    """Return the first digits of a digest of several files, whatever their names and order."""
    return hashlib.sha256(" ".join(sorted(map(of_file, paths))).encode()).hexdigest()[:DIGITS]


def of_weights(generator: nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """Return the first digits of the sha256 of a generator's tensors, as a file in ``dtype`` holds them."""
    digest = hashlib.sha256()
    for name, value in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.to(dtype).float().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def of_measurement(pretrained: str, data: str | Path) -> dict[str, str]:
    """Return what measurements of a generator's networks on ``data`` depend on."""
    return {"generator": of_generator(pretrained), "data": of_file(data)}


def of_generator(pretrained: str) -> str:
    """Return the first digits of the sha256 of a generator's file; for ``"auto"``, of all of them.

    Raises:
        ValueError: if it is neither a name of the manifest nor a file.
    """
    known = {record.name: record for record in manifest.read()}
    if pretrained == registry.AUTO:
        choices = sorted(record.sha256 for record in known.values() if record.kind == "ghn")
        return hashlib.sha256(" ".join(choices).encode()).hexdigest()[:DIGITS]
    if pretrained in known:
        return known[pretrained].sha256[:DIGITS]
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no generator {pretrained!r}; expected a file or one of {', '.join(known)}"
        )
    return of_file(path)
