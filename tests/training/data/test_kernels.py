"""Slices of trained networks, of one architecture and of many."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.vaes import make_other, make_zoo
from torch_geninit.training.data.kernels import read_other_slices, read_slices, split_networks, zoo_networks
from torch_geninit.training.networks.resnet import resnet20


def test_networks_are_split_whole_and_by_seed(tmp_path):
    names = tuple(str(i) for i in range(20))
    train, held_out = split_networks(names, 0)
    assert len(held_out) == 4
    assert sorted(train + held_out) == sorted(names)
    assert split_networks(names, 0) == (train, held_out)
    assert split_networks(names, 1)[1] != held_out
    with pytest.raises(ValueError, match="at least 2"):
        split_networks(names[:1], 0)


def test_slices_are_kernels_in_order_and_a_foreign_network_is_refused(tmp_path):
    make_zoo(tmp_path, 11)
    assert zoo_networks(tmp_path) == tuple(str(i) for i in range(11))
    layers = read_slices(tmp_path, ("3",))
    names = [s.layer.name for s in layers]
    assert names[:3] == ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    kernels = sum(p.numel() for p in resnet20().parameters() if p.ndim == 4)
    assert sum(s.values.numel() for s in layers) == kernels
    weight = load_file(tmp_path / "3.safetensors")["layer2.0.conv1.weight"]
    slices = next(s for s in layers if s.layer.name == "layer2.0.conv1.weight")
    assert torch.equal(slices.values[0, 5 * 16 + 7].view(3, 3), weight[5, 7])
    save_file({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "3.safetensors")
    with pytest.raises(ValueError, match="lacks"):
        read_slices(tmp_path, ("3",))


def test_filters_are_learned_with_their_mirror_images(tmp_path):
    make_zoo(tmp_path, 2)
    whole, slices = (read_slices(tmp_path, ("0", "1"), whole_first=w)[0] for w in (True, False))
    weight = load_file(tmp_path / "1.safetensors")["conv1.weight"]
    assert torch.equal(whole.training[:32], whole.all) and torch.equal(slices.training, slices.all)
    assert torch.equal(whole.training[32 + 16 + 4].view(3, 3, 3), weight[4].flip(-1))


def test_slices_of_other_networks_are_sorted_by_size_and_depth(tmp_path):
    layers = make_other(tmp_path)
    seen, kept = (read_other_slices(tmp_path, {(3, 3)}, held_out=h) for h in (False, True))
    found = [(s.layer.kernel_size, s.layer.depthwise, round(s.layer.depth, 2)) for s in seen]
    others = [((1, 1), False, 0.17), ((1, 1), False, 0.83), ((5, 5), False, 0.17)]
    assert found == [others[0], others[1], ((3, 3), True, 0.83), others[2]]
    assert all(s.layer.fan_in == 2 for s in seen)
    # In units of He's standard deviation.
    assert [round(s.layer.std, 1) for s in seen[:2]] == [1.0, 2.0]
    raw = layers["b"].flatten(0, 1).flatten(1) * math.sqrt(64 * 25 / 2)
    together = torch.cat([seen[3].all, kept[3].all])
    assert len(kept[3].all) == 205 and torch.equal(together.sort(0).values, raw.sort(0).values)


def test_depthwise_filters_are_learned_with_their_mirror_images(tmp_path):
    raw = make_other(tmp_path)["dw"].flatten(1) * math.sqrt(9 / 2)
    layers = read_other_slices(tmp_path, {(3, 3)}, held_out=False)
    learned = {s.layer.name: s.training for s in layers}
    assert len(learned["5x5, part 1 of 3"]) == 819, "slices as they are"
    both = learned["3x3 depthwise, part 3 of 3"]
    assert torch.equal(both[:320], raw[torch.arange(400) % 5 > 0])
    assert torch.equal(both[320:].view(-1, 3, 3), both[:320].view(-1, 3, 3).flip(-1))


def test_a_broken_network_is_named(tmp_path):
    (tmp_path / "0.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"0\.safetensors: expected a stored network"):
        read_slices(tmp_path, ("0",))
    with pytest.raises(ValueError, match=r"0\.safetensors: expected a stored network"):
        read_other_slices(tmp_path, (), held_out=False)


def test_a_network_that_does_not_list_its_convolutions_is_refused(tmp_path):
    make_zoo(tmp_path, 1)
    with pytest.raises(ValueError, match="0.safetensors doesn't list its convolutions"):
        read_other_slices(tmp_path, set(), held_out=False)
