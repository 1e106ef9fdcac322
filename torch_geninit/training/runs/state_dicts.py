"""Networks on disk: written whole or not at all, and named where they can't be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn


def save(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state dict of ``model`` to ``path``."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(fresh), dict(metadata) if metadata else None)
    os.replace(fresh, path)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a stored network.

    Raises:
        ValueError: if the file is broken.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a stored network, a .safetensors file, got one that can't be read ({error}). "
            f"Delete it and its record, {path.stem}.json, and the command that filled the folder makes both "
            "anew"
        ) from error


def load_(model: nn.Module, path: Path) -> None:
    """Give ``model`` the weights that ``path`` holds.

    Raises:
        ValueError: if the file is broken or holds another network.
    """
    with opened(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected the state dict of a {type(model).__name__}, got another: {error}"
        ) from error
