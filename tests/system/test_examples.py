"""Every example runs on small settings, offline, and writes what it says."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from tests.support import processes
from torch_geninit.training.data.images import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, *arguments: str, cwd: Path, launcher: Sequence[str] = (), **more: str) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / example), *arguments],
        cwd=cwd,
        env=processes.environment(**{"HF_HUB_OFFLINE": "1", **more}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise in ten classes: what is tested is that the examples run."""
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
    return root


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    prepare(folder, folder / "images.safetensors")
    return folder / "images.safetensors"


@pytest.mark.full
def test_quickstart(tmp_path: Path) -> None:
    printed = run("quickstart.py", "--epochs", "1", "--seeds", "1", "--per-class", "5", cwd=tmp_path)
    assert "ghn_ on ResNet: 57 generated" in printed
    assert (tmp_path / "quickstart.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "init", ["noise-ghn", *(pytest.param(i, marks=pytest.mark.full) for i in ("xavier", "vae", "ghn"))]
)
def test_resnet20_cifar10(init: str, folder: Path, tmp_path: Path) -> None:
    run(
        "resnet20_cifar10.py",
        *("--init", init, "--data", str(folder), "--epochs", "1", "--limit", "100"),
        cwd=tmp_path,
        XDG_CACHE_HOME=str(tmp_path / "home"),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"home", "runs"}
    assert [path.suffix for path in (tmp_path / "home" / "torch-geninit").iterdir()] == [".safetensors"]
    record = json.loads((tmp_path / f"runs/resnet20-{init}-lr0.02-seed0.json").read_text())
    assert record["init"] == init and len(record["test_accuracy"]) == 2
    assert (tmp_path / f"runs/resnet20-{init}-lr0.02-seed0.png").exists()


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("common")


def test_a_folder_is_prepared_once_into_the_cache(
    common: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = common.open_data(str(folder), tmp_path, 10)
    (prepared,) = tmp_path.iterdir()
    assert prepared.suffix == ".safetensors"
    monkeypatch.setattr(common, "prepare", lambda *_, **__: pytest.fail("prepared again"))
    again = common.open_data(str(folder), tmp_path, 10)
    assert [len(part) for part in again] == [len(part) for part in first]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))


def test_without_network_one_sentence_says_what_to_do(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    parser = argparse.ArgumentParser()
    common.add_data_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        common.open_data(parser.parse_args([]).data, tmp_path / "cache")
    (line,) = str(ended.value).splitlines()
    assert "images can't be had" in line and "pass a prepared file" in line
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_option_has_a_help_text(example: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(example.read_text())) if isinstance(node, ast.Call)]
    options = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"]
    assert [ast.unparse(c) for c in options if not any(k.arg == "help" for k in c.keywords)] == []


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_what_the_examples_write_is_ignored(tmp_path: Path) -> None:
    root = EXAMPLES.parent
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    written = (
        "quickstart.png",
        "runs/x.json",
        "examples/quickstart.png",
        "examples/runs/x.json",
        "report.json",
    )
    done = subprocess.run(["git", "check-ignore", *written], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == list(written)


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
