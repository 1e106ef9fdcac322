"""Folders of training runs: who may train there, and checkpoints that are none."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

pytest.importorskip("filelock")

from torch_geninit.training.runs.checkpoint import Run


def claim(folder: Path, results: multiprocessing.Queue[str]) -> None:
    try:
        Run(folder).claim()
    except ValueError as error:
        results.put(str(error))
    else:
        results.put("")


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.claim()
    Run(tmp_path).claim()  # this process alone may open it again
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    other = context.Process(target=claim, args=(tmp_path, results))
    other.start()
    told = results.get(timeout=300)
    other.join()
    assert str(tmp_path) in told and "another is training" in told


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    run = Run(tmp_path)
    if content is None:
        torch.save({"model": {}}, run.checkpoint)
    else:
        run.checkpoint.write_bytes(content)
    for read in (run.peek, run.resume):
        with pytest.raises(ValueError, match=r"checkpoint.pt: expected a checkpoint .*Delete it"):
            read()
