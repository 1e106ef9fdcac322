"""A training run on disk: a resumable checkpoint and metrics as JSON lines, in one folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch


class Run:
    """Folder of one training run.

    ``checkpoint.pt`` is replaced atomically, so a run killed at any moment resumes from the last one;
    ``metrics.jsonl`` gets one JSON object a line. Lines written after the last checkpoint are dropped
    on resume, so each step stands there once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.metrics = self.folder / "metrics.jsonl"
        self._started = time.monotonic()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of work in this run, those before the last resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def peek(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, if there is one, and change nothing."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)["state"]
        return state

    def resume(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, or None for a fresh run."""
        if not self.checkpoint.exists():
            self.metrics.unlink(missing_ok=True)
            return None
        stored = torch.load(self.checkpoint, weights_only=True)
        self._seconds_before, self._started = stored["seconds"], time.monotonic()
        if self.metrics.exists():
            with self.metrics.open("r+") as file:
                file.truncate(stored["metrics_size"])
        state: dict[str, Any] = stored["state"]
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write ``state`` as the checkpoint to resume from; tensors, containers and numbers only."""
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        fresh = self.checkpoint.with_suffix(".tmp")
        torch.save({"state": state, "seconds": self.seconds, "metrics_size": size}, fresh)
        os.replace(fresh, self.checkpoint)

    def log(self, **values: Any) -> None:
        """Append one line to the metrics file."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"seconds": round(self.seconds, 1), **values}) + "\n")
