"""Every example runs on small settings, offline, and writes what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from torch_geninit.training.data.images import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, *arguments: str, cwd: Path, launcher: Sequence[str] = ()) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / example), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared file of noise in ten classes: what is tested is that the examples run."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    stream = torch.Generator().manual_seed(0)
    for part, count in (("train", 20), ("test", 4)):
        for name in range(10):
            folder = root / part / f"class{name}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=stream, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    prepare(root, root / "images.safetensors")
    return root / "images.safetensors"


def test_quickstart(tmp_path: Path) -> None:
    printed = run("quickstart.py", "--epochs", "1", "--seeds", "1", "--per-class", "5", cwd=tmp_path)
    assert "layer3.2.conv2.weight" in printed and "generated" in printed
    assert (tmp_path / "quickstart.png").stat().st_size > 5000


@pytest.mark.parametrize("init", ["xavier", "vae", "ghn", "noise-ghn"])
def test_resnet20_cifar10(init: str, images: Path, tmp_path: Path) -> None:
    run(
        "resnet20_cifar10.py",
        *("--init", init, "--data", str(images), "--epochs", "1", "--limit", "100"),
        cwd=tmp_path,
    )
    record = json.loads((tmp_path / f"runs/resnet20-{init}-lr0.1-seed0.json").read_text())
    assert record["init"] == init and len(record["test_accuracy"]) == 2
    assert (tmp_path / f"runs/resnet20-{init}-lr0.1-seed0.png").exists()


def test_ensemble(images: Path, tmp_path: Path) -> None:
    run(
        "ensemble.py",
        *("--data", str(images), "--members", "2", "--epochs", "0", "--limit", "100"),
        *("--out", "report.json"),
        cwd=tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"noise-ghn", "default"}
    assert set(report["noise-ghn"]["ensemble"]) == {"accuracy", "nll", "brier", "ece"}


@pytest.mark.full
def test_fsdp2_meta(tmp_path: Path) -> None:
    printed = run(
        "fsdp2_meta.py",
        *("--compare", "--epochs", "1", "--per-class", "4"),
        cwd=tmp_path,
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    )
    assert "2 processes on" in printed and "every shard equals" in printed and "epoch 1: loss" in printed
