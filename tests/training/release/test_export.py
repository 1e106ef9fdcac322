"""Export: what is written of a generator and of a run, and what is refused."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.conftest import ghn_config, vae_config
from tests.support.exported import exported
from tests.support.toy_generator import record, toy
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.graph.tracer import trace as tracing
from torch_geninit.hub import manifest, registry
from torch_geninit.hub.config import KINDS
from torch_geninit.training.release import export as exporting
from torch_geninit.training.release import model_card
from torch_geninit.training.runs.checkpoint import Run


class TestExport:
    def test_the_export_is_what_users_load(self, house: Path) -> None:
        made = exported()
        assert manifest.read() == (made,)
        assert (made.repo_id, made.revision, made.kind) == (None, None, "ghn")
        generator = registry.load("toy")
        assert torch.equal(generator.layers[1].weight, toy().layers[1].weight)
        assert [entry.where for entry in registry.list_pretrained()] == ["shipped"]

    def test_model_card_is_in_the_hubs_format(self, house: Path) -> None:
        exported()
        text = (house / "cards" / "toy.md").read_text()
        _, front, body = text.split("---\n", 2)
        assert yaml.safe_load(front)["license"] == "mit"
        assert yaml.safe_load(front)["library_name"] == "torch-geninit"
        config = huggingface_hub.ModelCard(text)
        assert config.data.license == "mit"
        assert 'geninit.ghn_(model, pretrained="toy")' in body
        assert "| accuracy | 0.75 |\n\n| by layer | mse | kl |\n" in body
        assert "\n| conv1 | 0.25 | 1.5 |\n| conv2 | 0.5 | 2 |\n" in body
        assert manifest.read()[0].sha256 in body

    @pytest.mark.parametrize("kind", sorted(set(KINDS) | {"published-ghn"}))
    def test_every_kind_has_a_model_card(self, kind: str) -> None:
        (parsed,) = manifest.parse(json.dumps({"schema": 1, "generators": [record(b"x", kind=kind)]}))
        assert 'pretrained="toy")' in model_card.render(parsed)

    def test_a_bad_field_changes_nothing(self, house: Path) -> None:
        exported()
        before = {path: path.read_bytes() for path in house.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match="'numbers': 'accuracy'"):
            exported(numbers={"accuracy": float("nan")})
        with pytest.raises(ValueError, match="'machine'"):
            exported(machine="", dtype=torch.float32)
        assert {path: path.read_bytes() for path in house.rglob("*") if path.is_file()} == before

    def test_numbers_from_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"x": 0.123456789, "n": 3}')
        (tmp_path / "b.json").write_text('{"y": [1.0, 2.0]}')
        (tmp_path / "report.json").write_text('[{"layer": "conv1", "mse": 0.5}]')
        assert exporting.measured_numbers([tmp_path / "a.json", tmp_path / "b.json"], tmp_path) == {
            "x": 0.1235,
            "n": 3,
            "y": [1.0, 2.0],
            "by layer": {"conv1": {"mse": 0.5}},
        }
        with pytest.raises(ValueError, match="'n' stands in another file"):
            exporting.measured_numbers([tmp_path / "a.json", tmp_path / "a.json"])

    def test_kinds_of_training_networks(self) -> None:
        nn = torch.nn
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        grouped = nn.Sequential(nn.Conv2d(6, 6, 5, groups=3), nn.BatchNorm2d(6))
        graphs = [
            tracing.trace(plain, torch.zeros(1, 3, 8, 8)),
            tracing.trace(grouped, torch.zeros(1, 6, 8, 8)),
        ]
        assert exporting.kinds_in(graphs) == [
            "3x3 convolution",
            "5x5 grouped convolution",
            "batch_norm bias",
            "batch_norm weight",
            "conv bias",
            "linear bias",
            "linear weight",
        ]
        assert "5x5 grouped convolution" not in exporting.kinds_in(graphs[:1])

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no checkpoint"):
            exporting.from_run(tmp_path, tmp_path / "data")

    def test_reading_a_run_leaves_it_alone(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        run.save({"card": {}})
        run.log(step=1)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        assert Run(tmp_path).stored()["state"] == {"card": {}}
        assert (tmp_path / "metrics.jsonl").read_bytes() == before


class TestFromRun:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        images = torch.arange(160, dtype=torch.uint8).view(160, 1, 1, 1).expand(160, 3, 16, 16).contiguous()
        metadata = {"classes": '["cat", "dog"]', "mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.2, 0.1]"}
        tensors = {"train.images": images, "train.labels": torch.arange(160) % 2}
        save_file(tensors, tmp_path / "data.safetensors", metadata)
        return tmp_path / "data.safetensors"

    @pytest.mark.parametrize("kind", ["ghn", "noise-ghn", "vae"])
    def test_checkpoint_becomes_a_file(
        self, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.undo()
        if kind == "vae":
            trained: Any = SliceVAEs(vae_config())
            state = {"generator": trained.state_dict(), "seed": 7}
            state["card"] = {"kind": "vae", "trained": {"networks": 20}}
            state["card"]["sizes"] = trained.config["sizes"]
        else:
            config = ghn_config(noise=2 if kind == "noise-ghn" else 0)
            trained = GraphHyperNetwork({**config, "classes": ["cat", "dog"]})
            state = {
                "average": trained.state_dict(),
                "card": {"sizes": config["sizes"], "classes": ["cat", "dog"]},
                "space": {"families": {"plain": 1.0}, "pool": 2, "most_macs": 10**9, "seed": 7},
            }
        Run(tmp_path / "run").save(state)
        parser = ArgumentParser()
        exporting.add_arguments(parser)
        common = ["--run", str(tmp_path / "run"), "--data", str(data), "--name", "mine"]
        options = ["--output", str(tmp_path / "out"), "--kernel-scale", "2"]
        exporting.main(parser.parse_args([*common, *options]))
        read = registry.load(tmp_path / "out" / "mine.safetensors")
        assert read.config["kind"] == kind
        assert read.config["input"] == {"size": [3, 16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
        for name, tensor in read.state_dict().items():
            assert torch.equal(tensor, trained.state_dict()[name].half().float())
        if kind == "vae":
            assert read.config["trained"] == {"networks": 20}
            assert read.probe is None
        else:
            assert sorted(read.probe.images[:, 0, 0, 0].tolist()) == list(range(160)), "no image twice"
            assert torch.equal(read.probe.labels, read.probe.images[:, 0, 0, 0].long() % 2)
            summary = read.config["trained"]
            assert read.config["kernel_scale"] == 2.0
            assert {"linear weight", "linear bias"} <= set(summary["kinds"])
        mirrored = parser.parse_args([*common, "--output", str(tmp_path / "mirrored"), "--mirror"])
        if kind == "noise-ghn":
            exporting.main(mirrored)
            state["space"]["families"] = {"plain": 1.0, "mixer": 1.0}  # type: ignore[index]
            Run(tmp_path / "tokens").save(state)
            tokens = ["--run", str(tmp_path / "tokens"), *common[2:], "--output", str(tmp_path), "--mirror"]
            with pytest.raises(ValueError, match="trained on mixer, too"):
                exporting.main(parser.parse_args(tokens))
            assert registry.load(tmp_path / "mirrored" / "mine.safetensors").config["mirror"] is True
            assert "mirror" not in read.config
        else:
            with pytest.raises(ValueError, match="no noise hypernetwork"):
                exporting.main(mirrored)
        with pytest.raises(SystemExit, match="--training-data"):
            exporting.main(parser.parse_args(common))
        given: dict[str, Any] = {}
        monkeypatch.setattr(exporting, "export", lambda _, name, **fields: given.update(fields))
        needed = ("training-data", "architectures", "learning-rate", "command-line")
        words = [f"--{name}=x" for name in needed]
        exporting.main(parser.parse_args([*common, *words, "--core-hours", "2"]))
        assert given["seed"] == 7, "the run's, whoever exports it"
