"""The package as it is installed: built, unpacked into an empty folder, used from elsewhere, offline."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERBS = {"vae-cifar10": "vae", "ghn-cifar10": "ghn", "noise-ghn-cifar10": "noise-ghn"}

USE = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
from torch import nn
import torch_geninit as geninit

class Block(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        short = nn.functional.pad(short, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return (y + short).relu()

class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        self.blocks = nn.Sequential(
            *(Block(a, b, b // a) for a, b in zip(widths, widths[1:]))
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(self.bn(self.conv(x)).relu())
        return self.fc(x.mean((2, 3)))

def changed(initialise):
    model = ResNet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert initialise(model) is model
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return sum(not torch.equal(before[name], p) for name, p in model.named_parameters())

example = torch.zeros(1, 3, 32, 32)
result = {
    "file": geninit.__file__,
    "pretrained": {entry.name: [entry.kind, entry.where] for entry in geninit.list_pretrained()},
    "vae": changed(lambda model: geninit.vae_(model, seed=0)),
    "ghn": changed(lambda model: geninit.ghn_(model, example_inputs=example)),
    "noise-ghn": changed(lambda model: geninit.noise_ghn_(model, 0, example_inputs=example)),
}
unwanted = {"torchvision", "matplotlib", "sklearn", "huggingface_hub", "torch_geninit.training"}
result["unwanted"] = sorted(unwanted & set(sys.modules))
print(json.dumps(result))
"""


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run Python and return what it printed; a failure shows its error output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "dist", "*.egg-info")
    for name in ("torch_geninit", "pyproject.toml", "pretrained_manifest.json", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    flags = ("--no-deps", "--no-index", "--quiet", "--no-compile", "--target", str(target))
    python("-m", "pip", "install", *flags, str(wheel), cwd=target)
    return target


def test_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert json.loads(archive.read("torch_geninit/pretrained_manifest.json"))["schema"] == 1
    shipped = {
        f"torch_geninit/pretrained/{path.name}"
        for path in ROOT.glob("torch_geninit/pretrained/*.safetensors")
    }
    assert {"torch_geninit/py.typed", "torch_geninit/training/__main__.py"} | shipped <= names
    outside = {
        name for name in names if not name.startswith("torch_geninit") or name.endswith((".pyc", ".pt"))
    }
    assert not outside
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 60e6


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    required = {
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert {re.split("[<>=]", line)[0] for line in required} == {"torch", "huggingface-hub", "safetensors"}
    assert "Requires-Python: >=3.10" in lines
    extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"draw", "examples", "train", "models", "docs", "dev"}


def test_all_three_verbs_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    records = json.loads((installed / "torch_geninit" / "pretrained_manifest.json").read_text())["generators"]
    missing = set(VERBS) - {record["name"] for record in records}
    assert not missing, f"not in the manifest: {', '.join(sorted(missing))}"
    output = python(
        "-c",
        USE,
        cwd=tmp_path,
        PYTHONPATH=str(installed),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "empty"),
        OMP_NUM_THREADS="1",
    )
    result = json.loads(output)
    assert Path(result["file"]).is_relative_to(installed)
    for name, kind in VERBS.items():
        assert result["pretrained"][name] == [kind, "shipped"]
    # 7 convolutions, and the classifier's weight and bias.
    assert result["vae"] == 7
    assert result["ghn"] >= 7 + 2
    assert result["noise-ghn"] >= 7 + 2
    assert result["unwanted"] == []
    assert not (tmp_path / "empty").exists()


LIST = """
import json, torch_geninit
print(json.dumps([torch_geninit.__file__, len(torch_geninit.list_pretrained())]))
"""


def test_editable_install_finds_the_manifest(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    name = python("-c", build, str(tmp_path), cwd=ROOT).split()[-1]
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(site)
    # What the interpreter does with a .pth file in site-packages, before any other installation.
    start = f"import site, sys; old = list(sys.path); site.addsitedir({str(site)!r}); "
    start += f"sys.path.sort(key=old.__contains__){LIST}"
    file, count = json.loads(python("-c", start, cwd=tmp_path, HF_HUB_OFFLINE="1", PYTHONPATH=""))
    assert Path(file) == ROOT / "torch_geninit" / "__init__.py"
    assert count == len(json.loads((ROOT / "pretrained_manifest.json").read_text())["generators"])
