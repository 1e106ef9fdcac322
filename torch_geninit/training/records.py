"""One JSON record for each of many tasks, in a folder that several processes work through together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

Task = TypeVar("Task")


class Records:
    """Folder of records, ``<name>.json`` each, all made with the settings in ``settings.json``.

    Names may have folders in front, as ``lr0.1/3``.

    A process takes the first task that is neither recorded nor another's, and waits for the others' in the
    end, so the same command may be started once a core; one that is killed gives its task back.

    Raises:
        ValueError: if the folder holds records of other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, wanted = self._path("settings"), json.loads(json.dumps(settings))
        with FileLock(_lock(path)):
            found = json.loads(path.read_text()) if path.exists() else None
            if found is None:
                write_record(path, wanted)
            elif found != wanted:
                raise ValueError(
                    f"{self.folder} holds records of other settings: expected {wanted}, found {found}; "
                    "choose another folder"
                )

    def begin(self, tasks: Mapping[str, Task], work: Callable[[Task], dict[str, Any]]) -> None:
        """Do the named tasks that nobody else does, and wait for nobody."""
        for _ in self._round(tasks, work, wait=False):
            pass

    def fill(
        self, tasks: Mapping[str, Task], work: Callable[[Task], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Do the named tasks that nobody else does; yield each new record.

        At the end all are recorded, by this process or another.
        """
        for wait in (False, True):
            yield from self._round(tasks, work, wait)

    def _round(
        self, tasks: Mapping[str, Task], work: Callable[[Task], dict[str, Any]], wait: bool
    ) -> Iterator[dict[str, Any]]:
        for name, task in tasks.items():
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(_lock(path), blocking=wait):
                    if path.exists():
                        continue
                    record = work(task)
                    write_record(path, record)
            except Timeout:
                continue
            yield record

    def complete(
        self, tasks: Mapping[str, Task], work: Callable[[Task], dict[str, Any]], *, progress: str = ""
    ) -> list[dict[str, Any]]:
        """Do as :meth:`fill` and return all records; ``progress`` names the unit of a progress bar."""
        from tqdm.auto import tqdm

        done = len(self.of(tasks))
        with tqdm(initial=done, total=len(tasks), unit=progress, disable=not progress) as bar:
            for _ in self.fill(tasks, work):
                bar.update()
        return self.of(tasks)

    def of(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the records there are, in the order of ``names``."""
        return [json.loads(self._path(name).read_text()) for name in names if self._path(name).exists()]

    def amend(self, name: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a task that is done."""
        write_record(self._path(name), record)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole or not at all: another process may look for it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(record))
    os.replace(fresh, path)
