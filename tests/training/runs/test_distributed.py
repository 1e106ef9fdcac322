"""Training on two gloo processes gives what one process gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support import processes
from torch_geninit.training.loops import ghn, warm_start
from torch_geninit.training.networks.search_space import SpaceOptions
from torch_geninit.training.runs.distributed import World

RANK = """
import sys, pytest
from tests.training.runs.test_distributed import train
train(*sys.argv[1:], pytest.MonkeyPatch())
"""


def train(data: str | Path, folder: str | Path, patch: pytest.MonkeyPatch) -> None:
    """Make one step of a small generator on four networks, shared by however many processes there are."""
    small = {"width": 16, "rounds": 1, "hidden": 16, "rank": 8, "linear_rank": 4, "depthwise_rank": 4}
    patch.setattr(warm_start, "SIZES", {**warm_start.SIZES, **small, "channels": 8, "kernel": 3})
    patch.setattr(ghn, "check", lambda *_, **__: {})
    schedule = ghn.Schedule(((32, 1),), lr=1e-2, warmup=1, batch_size=8, networks=4)
    space = SpaceOptions({"plain": 1.0, "transformer": 1.0}, pool=4, most_macs=20_000_000)
    ghn.train_ghn(data, folder, schedule, space=space)


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    stream = torch.Generator().manual_seed(0)
    tensors = {}
    for part in ("train", "validation"):
        images = torch.randint(0, 255, (40, 3, 32, 32), generator=stream, dtype=torch.uint8)
        tensors |= {f"{part}.images": images, f"{part}.labels": torch.arange(40) % 2}
    metadata = {"classes": '["cat", "dog"]', "mean": "[0.5, 0.5, 0.5]", "std": "[0.3, 0.3, 0.3]"}
    save_file(tensors, tmp_path / "data.safetensors", metadata)
    return tmp_path / "data.safetensors"


def test_two_processes_train_what_one_trains(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    # A rank's networks keep their order, so only the order of the sums over them differs.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ranks = subprocess.Popen(
        [sys.executable, *torchrun, str(script), str(data), str(tmp_path / "two")],
        env=processes.environment(),
        stderr=subprocess.PIPE,
    )
    train(data, tmp_path / "one", monkeypatch)
    _, errors = ranks.communicate(timeout=300)
    assert ranks.returncode == 0, errors.decode()
    # Adam divides by the gradient's size, so rounding moves a weight whose gradient is nearly zero as far as
    # any other: the averaged gradients are compared, as the first step's momentum holds them.
    one, two = (torch.load(tmp_path / name / "checkpoint.pt")["state"] for name in ("one", "two"))
    momenta = [
        {index: state["exp_avg"] for index, state in each["optimizer"]["state"].items()}
        for each in (one, two)
    ]
    assert momenta[0].keys() == momenta[1].keys() and len(momenta[0]) > 20
    scale = max(value.abs().max() for value in momenta[0].values())
    for index, value in momenta[0].items():
        torch.testing.assert_close(momenta[1][index], value, rtol=1e-3, atol=float(1e-5 * scale))


def test_networks_that_ranks_cannot_share_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "join", classmethod(lambda cls, device: cls(0, 2)))
    with pytest.raises(ValueError, match="3 networks a step can't be shared by 2 ranks"):
        ghn.train_ghn(data, tmp_path / "run", ghn.Schedule(((16, 1),), networks=3))
