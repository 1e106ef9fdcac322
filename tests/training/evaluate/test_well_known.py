"""Well-known networks: a record each, once, and the numbers that an export takes."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
from safetensors.torch import save_file

pytest.importorskip("tqdm")

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import file
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import heldout, well_known
from torch_geninit.training.release.export import measured_numbers


def test_numbers_for_an_export(
    ghn: WeightGenerator,
    images: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        heldout, "measure", lambda model, *rest: {"accuracy": len(seen) / 4 if not seen.append(1) else 0}
    )
    monkeypatch.setattr(well_known, "load", lambda data, split: images)
    file.write(ghn, tmp_path / "it.safetensors")
    save_file({"train.images": images.images}, tmp_path / "data")
    parser = ArgumentParser()
    well_known.add_arguments(parser)
    told = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--images", "8"]
    told += ["--pretrained", str(tmp_path / "it.safetensors"), "--json", str(tmp_path / "numbers.json")]
    for _ in range(2):
        well_known.main(parser.parse_args([*told, "--networks", "resnet18 / 2", "resnet18, CIFAR stem / 2"]))
    assert len(seen) == 2, "each once"
    first, second = (json.loads(line)["network"] for line in capsys.readouterr().out.splitlines()[:2])
    assert (first, second) == ("resnet18 / 2", "resnet18, CIFAR stem / 2")
    assert measured_numbers([tmp_path / "numbers.json"]) == {
        "validation accuracy before training, 8 images": {first: 0.25, second: 0.5}
    }


def test_none_may_be_trained_on() -> None:
    assert all(spec.held_out() for spec in well_known.NETWORKS.values())
