"""Records of measurements, cached by their settings: the same settings are never measured twice."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch_geninit._version import __version__
from torch_geninit.training.release.export import this_machine
from torch_geninit.training.runs.task_queue import TaskQueue, read_record

DIGITS = 16


def digest(settings: Mapping[str, Any]) -> str:
    """Return what a record of these settings is called, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]


class Records:
    """Folder of ``<experiment>/<digest>.json``: settings, result, and when and where it was made.

    Several processes may share it. All records of an experiment have one setup.

    Example::

        >>> import tempfile
        >>> records = Records(tempfile.mkdtemp())
        >>> records.make("sum", {"a": 1, "b": 2}, {}, lambda: {"value": 3})["value"]
        3
        >>> records.all("sum")[0]["settings"]
        {'a': 1, 'b': 2}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def make(
        self,
        experiment: str,
        settings: Mapping[str, Any],
        setup: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the result that is recorded for ``settings``, or do the ``work`` and record its result.

        Raises:
            ValueError: if the folder holds records of another setup.
        """

        def measured(_: Mapping[str, Any]) -> dict[str, Any]:
            result = work()
            made = {
                "version": __version__,
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "machine": this_machine(),
            }
            return {"settings": dict(settings), "result": dict(result), "made": made}

        queue = TaskQueue(self.folder / experiment, setup)
        result: dict[str, Any] = queue.complete({digest(settings): settings}, measured)[0]["result"]
        return result

    def has(self, experiment: str, settings: Mapping[str, Any]) -> bool:
        """Tell whether there is a record of these settings."""
        return (self.folder / experiment / f"{digest(settings)}.json").exists()

    def all(self, experiment: str) -> list[dict[str, Any]]:
        """Return the records of an experiment, sorted by their settings.

        Raises:
            ValueError: if a file is no record, or not the one that its name says.
        """
        found = []
        for path in sorted((self.folder / experiment).glob("*.json")):
            if path.name == "settings.json":
                continue
            record = read_record(path, "Delete it, and the same command makes it anew")
            if not {"settings", "result", "made"} <= record.keys() or digest(record["settings"]) != path.stem:
                raise ValueError(
                    f"{path}: expected a record named by the digest of its settings, got another file. "
                    "Delete it, and the same command makes it anew"
                )
            found.append(record)
        return sorted(found, key=lambda record: json.dumps(record["settings"], sort_keys=True))

    def setup(self, experiment: str) -> dict[str, Any] | None:
        """Return what the records of an experiment share; None if there are none."""
        path = self.folder / experiment / "settings.json"
        return read_record(path, "Choose another folder") if path.exists() else None
