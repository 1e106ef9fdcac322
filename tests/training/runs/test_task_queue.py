"""Records of many tasks: each done once, by whichever process comes first, under the same settings."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from torch_geninit.training.runs.task_queue import TaskQueue, write_record

TASKS = {"a": 1, "b": 2, "c": 3}


def doubled(task: int) -> dict[str, Any]:
    return {"value": 2 * task}


def test_what_is_recorded_is_not_done_again(tmp_path: Path) -> None:
    assert list(TaskQueue(tmp_path, {}).fill({"b": 2}, doubled)) == [{"value": 4}]
    again = TaskQueue(tmp_path, {})
    assert list(again.fill(TASKS, doubled)) == [{"value": 2}, {"value": 6}]
    assert again.of(TASKS) == [{"value": 2}, {"value": 4}, {"value": 6}]
    assert again.of(["c", "unknown", "a"]) == [{"value": 6}, {"value": 2}]


@pytest.mark.parametrize("dies", [False, True])
def test_a_task_in_the_hands_of_another_comes_last(tmp_path: Path, dies: bool) -> None:
    """It is waited for, and done if the other gives it back."""
    records, begun, end = TaskQueue(tmp_path, {}), threading.Event(), threading.Event()

    def slow(task: int) -> dict[str, Any]:
        begun.set()
        assert end.wait(60)
        if dies:
            raise RuntimeError("killed")
        return doubled(task)

    def other() -> None:
        with contextlib.suppress(RuntimeError):
            list(records.fill({"b": 2}, slow))

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    mine = records.fill(TASKS, doubled)
    assert [next(mine)["value"], next(mine)["value"]] == [2, 6]
    end.set()
    assert [record["value"] for record in mine] == ([4] if dies else [])
    thread.join()
    assert [record["value"] for record in records.of(TASKS)] == [2, 4, 6]


def test_what_is_begun_waits_for_nobody(tmp_path: Path) -> None:
    records, begun, end = TaskQueue(tmp_path, {}), threading.Event(), threading.Event()

    def slow(task: int) -> dict[str, Any]:
        begun.set()
        assert end.wait(60)
        return doubled(task)

    thread = threading.Thread(target=records.begin, args=({"b": 2}, slow))
    thread.start()
    assert begun.wait(60)
    records.begin(TASKS, doubled)
    assert [record["value"] for record in records.of(TASKS)] == [2, 6]
    end.set()
    thread.join()
    assert [record["value"] for record in records.of(TASKS)] == [2, 4, 6]


def test_names_may_have_folders(tmp_path: Path) -> None:
    records = TaskQueue(tmp_path, {})
    assert list(records.fill({"lr0.1/0": 1, "lr0.1/1": 2}, doubled)) == [{"value": 2}, {"value": 4}]
    assert json.loads((tmp_path / "lr0.1" / "1.json").read_text()) == {"value": 4}
    records.amend("lr0.1/1", {"value": 5})
    assert records.of(["lr0.1/1"]) == [{"value": 5}]


def test_a_task_that_fails_leaves_no_record_and_may_be_tried_again(tmp_path: Path) -> None:
    def fail(task: int) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    records = TaskQueue(tmp_path, {})
    with pytest.raises(RuntimeError, match="out of memory"):
        list(records.fill(TASKS, fail))
    assert records.of(TASKS) == []
    assert len(list(records.fill(TASKS, doubled))) == 3


def take(folder: Path, count: int, results: multiprocessing.Queue[list[int]]) -> None:
    records = TaskQueue(folder, {"of": "all"})
    tasks = {str(i): i for i in range(count)}
    results.put([r["value"] for r in records.fill(tasks, doubled)])


def test_processes_share_the_tasks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=take, args=(tmp_path, 60, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    done: list[int] = [value for _ in workers for value in results.get(timeout=300)]
    for worker in workers:
        worker.join()
    assert sorted(done) == [2 * i for i in range(60)], "each once"


def test_records_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    TaskQueue(tmp_path, {"rates": (0.1, 0.3)})
    list(TaskQueue(tmp_path, {"rates": [0.1, 0.3]}).fill({"a": 1}, doubled))
    with pytest.raises(ValueError, match=r"other settings: expected .*0\.2.*found .*0\.1"):
        TaskQueue(tmp_path, {"rates": [0.2]})


def test_a_command_that_was_refused_leaves_the_folder_to_others(tmp_path: Path) -> None:
    def refuse(task: int) -> dict[str, Any]:
        raise ValueError("too large a batch")

    with pytest.raises(ValueError, match="too large"):
        list(TaskQueue(tmp_path, {"batch": 1000}).fill(TASKS, refuse))
    records = TaskQueue(tmp_path, {"batch": 10})
    with FileLock(tmp_path / ".b.json.lock"), pytest.raises(ValueError, match="other settings"):
        TaskQueue(tmp_path, {"batch": 20})  # another process is at it
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="other settings"):
        TaskQueue(tmp_path, {"batch": 20})
    (tmp_path / "run-1" / "checkpoint.pt").unlink()
    list(records.fill({"a": 1}, doubled))
    with pytest.raises(ValueError, match="other settings"):
        TaskQueue(tmp_path, {"batch": 20})


@pytest.mark.parametrize("text", ["", '{"value": ', "[1]", "NaN"])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    records = TaskQueue(tmp_path, {})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: expected a record.*Delete it"):
        records.of(TASKS)


def test_who_lost_the_folder_to_other_settings_adds_nothing(tmp_path: Path) -> None:
    """It opened the folder long before its first task, as a comparison of many starts does."""
    first = TaskQueue(tmp_path, {"epochs": 20})
    list(TaskQueue(tmp_path, {"epochs": 1}).fill({"a": 1}, doubled))
    with pytest.raises(ValueError, match="other settings: expected .*20.*found .*1"):
        list(first.fill(TASKS, doubled))
    assert len(first.of(TASKS)) == 1


def test_a_record_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_record(path, {"value": 1})

    def interrupted(*_: object, **__: object) -> Iterator[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_record(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}
