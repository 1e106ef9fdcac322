"""One JSON record for each of many tasks, in a folder that several processes work through together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

Task = TypeVar("Task")


class TaskQueue:
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
        self.settings = json.loads(json.dumps(settings))
        path = self._path("settings")
        with FileLock(_lock(path)):
            if not path.exists() or self._untouched():
                write_record(path, self.settings)
        self._check()

    def _check(self) -> None:
        """Refuse to add to records of other settings, also those of a later command, see `_untouched`."""
        path = self._path("settings")
        with FileLock(_lock(path)):
            found = read_record(path, "Choose another folder")
        if found != self.settings:
            raise ValueError(
                f"{self.folder} holds records of other settings: expected {self.settings}, found {found}; "
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
                    self._check()
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
        remedy = "Delete it, and the same command makes it anew"
        return [read_record(self._path(name), remedy) for name in names if self._path(name).exists()]

    def amend(self, name: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a task that is done."""
        write_record(self._path(name), record)

    def _untouched(self) -> bool:
        """Tell whether nothing was made with the settings yet, as after a command that was refused.

        The folder is then another's to take: who opened it and made nothing is refused at the first task.
        """
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        if any(path.suffix != ".lock" and path.name != "settings.json" for path in files):
            return False
        own = _lock(self._path("settings"))
        return not any(_is_held(path) for path in files if path.suffix == ".lock" and path != own)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _is_held(lock: Path) -> bool:
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read a record; ``remedy`` tells what to do about a broken one.

    Raises:
        ValueError: if the file holds none.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        record = error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a record, a JSON object, got something else. {remedy}")
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole or not at all: another process may look for it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(record))
    os.replace(fresh, path)
