"""A zoo: which network a seed draws, what is kept of it, and that nothing is trained twice."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("torchvision")
pytest.importorskip("tqdm")

from torch_geninit.training.data.images import Split
from torch_geninit.training.data.kernels import read_other_slices, read_slices
from torch_geninit.training.loops import zoo
from torch_geninit.training.loops.classifier import Phase, Recipe
from torch_geninit.training.networks.resnet import resnet20

RECIPE = Recipe((Phase(16, 1),), lr=0.02, batch_size=20, optimizer="muon")
FAMILIES = ("inverted", "convnext")


@pytest.fixture
def data(images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(zoo, "load", lambda path, split: images)
    path = tmp_path / "images"
    path.write_bytes(b"stand-in")
    return str(path)


def test_every_seed_draws_its_own_network_with_normalisation(images: Split) -> None:
    shapes = []
    for seed in (0, 1, 2, 0):
        model = zoo.drawn(seed, images, FAMILIES, 20_000_000)
        shapes.append({name: tuple(p.shape) for name, p in model.named_parameters()})
        assert any("Norm" in type(module).__name__ for module in model.modules())
    assert shapes[0] == shapes[3] and len({str(one) for one in shapes}) == 3


def test_depthwise_kernels_alone_are_shrunk(images: Split) -> None:
    model = zoo.drawn(2, images, FAMILIES, 20_000_000)
    small = copy.deepcopy(model)
    zoo.shrink_depthwise_(small, 0.1)
    depthwise = {f"{name}.weight" for name, m in model.named_modules() if getattr(m, "groups", 1) > 1}
    assert 0 < len(depthwise) < len(list(model.parameters()))
    for (name, before), after in zip(model.named_parameters(), small.parameters(), strict=True):
        assert torch.equal(after, before * (0.1 if name in depthwise else 1.0)), name


def test_depthwise_scale_belongs_to_a_zoo(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    monkeypatch.setattr(zoo, "shrink_depthwise_", lambda model, scale: scales.append(scale))
    many = {"recipe": RECIPE, "families": FAMILIES, "most_macs": 20_000_000}
    zoo.train_zoo(data, tmp_path, seeds=range(2, 3), depthwise_scale=0.1, **many)
    assert scales == [0.1]
    with pytest.raises(ValueError, match="settings"):
        zoo.train_zoo(data, tmp_path, seeds=range(3, 4), **many)


def test_a_zoo_of_resnets_is_what_slices_are_read_from(data: str, tmp_path: Path) -> None:
    zoo.train_zoo(data, tmp_path, seeds=range(3, 5), recipe=RECIPE)
    layers = read_slices(tmp_path, ("3", "4"))
    assert len(layers) == 19 and layers[0].values.shape == (2, 48, 9)
    record = json.loads((tmp_path / "4.json").read_text())
    assert record["seed"] == 4 and 0 <= record["validation_accuracy"] <= 1
    with safe_open(str(tmp_path / "3.safetensors"), framework="pt") as file:
        assert set(file.keys()) == resnet20().state_dict().keys()


def test_drawn_networks_list_their_convolutions_in_order(data: str, images: Split, tmp_path: Path) -> None:
    zoo.train_zoo(data, tmp_path, seeds=range(7, 8), recipe=RECIPE, families=FAMILIES, most_macs=20_000_000)
    model = zoo.drawn(7, images, FAMILIES, 20_000_000)
    # Factors of a layer, of shape (C, 1, 1), are no convolutions.
    assert any(p.ndim == 3 for p in model.parameters())
    with safe_open(str(tmp_path / "7.safetensors"), framework="pt") as file:
        listed = json.loads(file.metadata()["convolutions"])
        assert not torch.equal(file.get_tensor(listed[0]), model.get_parameter(listed[0]))
    assert listed == [name for name, p in model.named_parameters() if p.ndim == 4]
    others = [slices.layer for slices in read_other_slices(tmp_path, {(3, 3)}, held_out=False)]
    sizes = {layer.kernel_size for layer in others if not layer.depthwise}
    assert sizes and sizes <= {tuple(p.shape[2:]) for p in model.parameters() if p.ndim == 4} - {(3, 3)}


def test_what_is_there_is_not_trained_again(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.train_zoo(data, tmp_path, seeds=range(7, 8), recipe=RECIPE)
    before = (tmp_path / "7.safetensors").read_bytes()
    monkeypatch.setattr(zoo, "train_classifier", None)
    zoo.train_zoo(data, tmp_path, seeds=range(7, 8), recipe=RECIPE)
    record = (tmp_path / "7.json").read_text()
    (tmp_path / "7.json").unlink()  # stopped between network and record
    zoo.train_zoo(data, tmp_path, seeds=range(7, 8), recipe=RECIPE)
    again = json.loads((tmp_path / "7.json").read_text())
    assert {**again, "seconds": 0} == {**json.loads(record), "seconds": 0}
    assert (tmp_path / "7.safetensors").read_bytes() == before
