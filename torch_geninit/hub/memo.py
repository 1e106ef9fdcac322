"""What was read from a file, kept until the file changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from torch_geninit.generators.base import WeightGenerator

T = TypeVar("T")

MAX_BYTES = 64 << 20
"""Of a file that is kept: the shipped ones are far smaller, published hypernetworks may take gigabytes."""


def state(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """Return what tells one content of a file from another without reading it."""
    status = os.stat(path)
    return (os.fspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class Memo(Generic[T]):
    """Answers of one reader, one for each state of a file; the oldest go first.

    Args:
        most: answers kept.
        mark: of an answer, compared when it is asked for again: an answer that was changed is read anew.
    """

    def __init__(self, most: int = 16, mark: Callable[[T], Any] = lambda answer: None) -> None:
        self.most, self.mark = most, mark
        self._kept: dict[tuple[Any, ...], tuple[T, Any]] = {}

    def get(self, path: Path, read: Callable[[Path], T], *more: Any) -> T:
        """Return what ``read(path)`` returns, from before if the file and the answer are as they were.

        ``more`` tells apart answers that are to be different objects.
        """
        try:
            key = (*state(path), *more)
        except (OSError, ValueError):
            return read(path)  # its error says what is wrong
        kept = self._kept.get(key)
        if kept is not None and self.mark(kept[0]) == kept[1]:
            return kept[0]
        answer = read(path)
        if key[1] <= MAX_BYTES:
            self._kept[key] = answer, self.mark(answer)
            for old in list(self._kept)[: -self.most]:
                self._kept.pop(old, None)
        return answer


def mark(generator: WeightGenerator) -> tuple[Any, ...]:
    """Return what tells whether a generator is as it was read: its tensors and its own settings."""
    tensors = [
        (name, id(tensor), tensor._version, tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in generator.state_dict(keep_vars=True).items()
        if isinstance(tensor, torch.Tensor)
    ]
    plain = {k: v for k, v in vars(generator).items() if isinstance(v, bool | int | float | str)}
    hooks = {k: len(v) for k, v in vars(generator).items() if k.endswith("_hooks")}
    return tensors, plain, hooks, id(generator.config)
