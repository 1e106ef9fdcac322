"""Comparing generated networks with stored ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate.memorisation import (
    averaged,
    compare,
    cropped_and_tiled,
    error_overlap,
    stored_networks,
    weight_distance,
    with_noise,
)
from torch_geninit.training.networks.resnet import ResNet, he_, resnet20


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for seed in range(2):
        torch.manual_seed(seed)
        save_file(he_(resnet20()).state_dict(), str(folder / f"{seed}.safetensors"))
    return folder


def test_networks_of_another_kind_are_named(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "3.safetensors")
    with pytest.raises(ValueError, match=r"3\.safetensors: expected the state dict of a ResNet, got another"):
        stored_networks(tmp_path, 10)
    (tmp_path / "3.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"3\.safetensors: expected a stored network"):
        stored_networks(tmp_path, 10)


def test_distance_is_of_directions(zoo: Path) -> None:
    a, b = stored_networks(zoo, 10)
    assert weight_distance(a, a) == 0
    assert weight_distance(a, b) == pytest.approx(2**0.5, abs=0.05)  # unrelated directions are orthogonal
    scaled = resnet20()
    scaled.load_state_dict(a.state_dict())
    with torch.no_grad():
        scaled.layer1[0].conv1.weight.mul_(3)
    assert weight_distance(scaled, a) == pytest.approx(0, abs=1e-5)
    # |w + e|, e at right angles and a fifth as long: an angle of atan(0.2)
    assert weight_distance(with_noise(a, 0.2, 0), a) == pytest.approx(0.197, abs=0.01)


def test_overlap_of_errors_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0])
    a = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])  # wrong on 1, 2
    b = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # wrong on 2, 3
    assert error_overlap(a, b, labels) == pytest.approx(1 / 3)
    assert error_overlap(a, a, labels) == 1.0


def test_average_is_the_mean_of_every_parameter(zoo: Path) -> None:
    a, b = stored_networks(zoo, 10)
    for name, parameter in averaged([a, b]).named_parameters():
        torch.testing.assert_close(parameter, (a.get_parameter(name) + b.get_parameter(name)) / 2)


def test_rows_of_the_comparison(zoo: Path) -> None:
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (30, 3, 32, 32), generator=stream, dtype=torch.uint8)
    images = Split(pixels, torch.arange(30) % 10, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij"))
    rows = {row["kind"]: row for row in compare(zoo, images, images, members=2)}
    assert rows["stored"]["networks"] == 2
    assert rows["stored"]["distance to the nearest stored"] > 1.3  # never to itself
    noisy = [rows[f"a stored one with noise of {share} of its standard deviation"] for share in (0.05, 0.4)]
    assert noisy[0]["distance to the nearest stored"] < noisy[1]["distance to the nearest stored"] < 0.5
    assert rows["ghn_"]["distance to the nearest stored"] > 1.2
    assert rows["ghn_"]["error overlap among themselves"] is None


def test_selected_weights_are_the_source_s_cropped_and_tiled() -> None:
    torch.manual_seed(0)
    small = ResNet((1, 4, 3), (8, 32, 64))
    large = ResNet((3, 3, 3), (24, 48, 96), 7)
    torch.nn.init.normal_(small.get_parameter("layer2.3.bn1.bias"))
    from_small = cropped_and_tiled(small.state_dict(), 10)
    kernel = small.get_parameter("layer1.0.conv2.weight")
    for block in range(3):  # one block repeated, its eight channels twice in both dimensions
        assert torch.equal(
            from_small.get_parameter(f"layer1.{block}.conv2.weight"), kernel.repeat(2, 2, 1, 1)
        )
    assert torch.equal(from_small.get_parameter("fc.weight"), small.fc.weight)
    from_large = cropped_and_tiled(large.state_dict(), 10)
    assert torch.equal(from_large.get_parameter("conv1.weight"), large.conv1.weight[:16])
    assert torch.equal(
        from_large.get_parameter("fc.weight"), torch.cat([large.fc.weight, large.fc.weight[:3]])[:, :64]
    )
