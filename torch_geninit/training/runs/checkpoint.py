"""A training run on disk: a resumable checkpoint and metrics as JSON lines, in one folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout


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
        # Once more in the same process is no other: a run may be opened anew.
        self._lock = FileLock(self.folder / ".lock", blocking=False, is_singleton=True, thread_local=False)

    def claim(self) -> None:
        """Keep other processes from training here, as long as this object lives.

        Runs of tasks need not be claimed: who has a task of a queue has its run.

        Raises:
            ValueError: if another process does.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.folder}: expected a run that no other process trains, got one that another is "
                "training. Wait for it, or choose another folder"
            ) from None

    @property
    def seconds(self) -> float:
        """Seconds of work in this run, those before the last resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def peek(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, if there is one, and change nothing."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = self.stored()["state"]
        return state

    def stored(self) -> dict[str, Any]:
        """Return the last checkpoint: ``state``, and ``seconds`` of work up to it.

        Raises:
            ValueError: if there is none, or it is no checkpoint.
        """
        if not self.checkpoint.exists():
            raise ValueError(
                f"{self.folder} holds no checkpoint; expected the --run folder of a training command"
            )
        try:
            stored: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            if not {"state", "seconds", "metrics_size"} <= stored.keys():
                raise KeyError("state")
        except (OSError, MemoryError):  # which say nothing about the file's content
            raise
        except Exception as error:  # torch has many for a broken file
            raise ValueError(
                f"{self.checkpoint}: expected a checkpoint of a training command, got a file that can't be "
                f"read ({type(error).__name__}). Delete it to start anew"
            ) from error
        return stored

    def resume(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, or None for a fresh run."""
        if not self.checkpoint.exists():
            self.metrics.unlink(missing_ok=True)
            return None
        stored = self.stored()
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
