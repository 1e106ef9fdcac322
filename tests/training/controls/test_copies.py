"""Weights from trained networks: selected from a larger one, or with noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_geninit.training.controls.noisy import noisy_
from torch_geninit.training.controls.selection import evenly_spaced, select_
from torch_geninit.training.networks.residual import ResidualSpec, resnet18
from torch_geninit.training.networks.resnet import ResNet, he_


def network(blocks: tuple[int, int], width: int, seed: int) -> ResNet:
    torch.manual_seed(seed)
    return he_(ResNet(blocks, (width, 2 * width), 10))  # type: ignore[return-value]


def test_evenly_spaced_elements_by_hand() -> None:
    line = torch.arange(12.0)
    assert evenly_spaced(line, torch.Size([4])).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(line, torch.Size([5])).tolist() == [0, 3, 6, 8, 11]  # 2.75 apart, 5.5 to even
    table = torch.arange(24.0).view(4, 6)
    assert evenly_spaced(table, torch.Size([2, 3])).tolist() == [[0, 2, 4], [12, 14, 16]]


def test_the_first_blocks_of_a_wider_deeper_network_are_taken() -> None:
    large, small = network((3, 4), 16, 1), network((2, 2), 8, 0)
    running = large.get_buffer("layer1.1.bn1.running_mean").copy_(torch.arange(16.0))
    head = {name for name, _ in small.named_parameters() if name.startswith("fc")}
    kept = small.get_parameter("fc.weight").detach().clone()
    select_(small, large.state_dict(), exclude=head)
    for name in ("layer1.1.conv1.weight", "layer2.1.conv2.weight"):
        assert torch.equal(small.get_parameter(name), large.get_parameter(name)[::2, ::2]), name
    assert torch.equal(small.get_parameter("conv1.weight"), large.get_parameter("conv1.weight")[::2])
    assert torch.equal(small.get_buffer("layer1.1.bn1.running_mean"), running[::2])
    assert torch.equal(small.get_parameter("fc.weight"), kept)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (network((2, 2), 4, 1), r"conv1.weight: expected a tensor nowhere smaller than \(8, 3, 3, 3\)"),
        (network((1, 2), 16, 1), "layer1.1.conv1.weight: expected a larger network of the same kind"),
    ],
)
def test_a_source_that_does_not_serve_is_refused_by_name(source: nn.Module, message: str) -> None:
    small = network((2, 2), 8, 0)
    with pytest.raises(ValueError, match=message):
        select_(small, source.state_dict())
    before = network((2, 2), 8, 0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_noise_is_a_share_of_each_weight_s_deviation() -> None:
    spec: ResidualSpec = resnet18(16)
    torch.manual_seed(0)
    trained, model = spec.build(10, 32), spec.build(10, 32)
    generator = torch.Generator().manual_seed(3)
    noisy_(model, trained.state_dict(), 0.2, generator=generator)
    for name, value in trained.named_parameters():
        difference = model.get_parameter(name) - value
        if value.dim() == 1:
            assert not difference.any(), name
        elif value.numel() > 1000:
            assert (difference.std() / value.std()).item() == pytest.approx(0.2, rel=0.1), name
            correlation = torch.corrcoef(torch.stack([difference.flatten(), value.flatten()]))[0, 1]
            assert abs(correlation) < 0.15, name


def test_noise_is_seeded_and_what_is_excluded_stays() -> None:
    trained = network((1, 1), 8, 1).state_dict()

    def made(seed: int) -> ResNet:
        generator, model = torch.Generator().manual_seed(seed), network((1, 1), 8, 0)
        noisy_(model, trained, 0.1, generator=generator, exclude={"fc.weight"})
        return model

    assert torch.equal(made(0).conv1.weight, made(0).conv1.weight)
    assert not torch.equal(made(0).conv1.weight, made(1).conv1.weight)
    assert torch.equal(made(0).fc.weight, network((1, 1), 8, 0).fc.weight)
    assert torch.equal(made(0).fc.bias, trained["fc.bias"])


@pytest.mark.parametrize(
    ("blocks", "share", "message"),
    [
        (
            (2, 1),
            0.1,
            "layer1.1.conv1.weight: expected a checkpoint of this .* none of that name",
        ),
        ((1, 1), -0.1, "share: expected a number from 0 up, got -0.1"),
        ((1, 1), float("nan"), "share: expected a number from 0 up, got nan"),
    ],
)
def test_another_architecture_or_a_negative_share_is_refused(
    blocks: tuple[int, int], share: float, message: str
) -> None:
    model, trained = network(blocks, 8, 0), network((1, 1), 8, 1).state_dict()
    with pytest.raises(ValueError, match=message):
        noisy_(model, trained, share, generator=torch.Generator())
    before = network(blocks, 8, 0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
