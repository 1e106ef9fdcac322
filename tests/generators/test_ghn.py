"""The graph hypernetwork against a slow twin, and its verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torch_geninit as geninit
from tests.support.probes import with_probe
from tests.support.random_ghn import SIZES, config
from tests.support.reference import ghn_reference as reference
from torch_geninit.generators.ghn.features import node_depths
from torch_geninit.generators.ghn.model import GraphHyperNetwork, is_kernel
from torch_geninit.graph.architecture import Architecture, Node, ParameterUse
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.resnet import ResNet, resnet20


@pytest.fixture(scope="module")
def residual() -> tuple[ResNet, Architecture]:
    model = ResNet((2, 1), (8, 16), 10)
    return model, trace(model, torch.zeros(1, 3, 32, 32))


def test_depths_are_longest_paths(residual: tuple[ResNet, Architecture]) -> None:
    found = node_depths(residual[1])
    for name, expected in reference.depths(residual[1]).items():
        assert getattr(found, name) == expected, name


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_depths_of_any_graph(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 8))
    use = ParameterUse("w", "weight", (1, 1))
    nodes = tuple(
        Node(
            "input" if index == 0 else "conv",
            (1, 1, data.draw(st.sampled_from([4, 8])), 8),
            (use,) if data.draw(st.booleans()) else (),
        )
        for index in range(count)
    )
    pairs = [(u, v) for v in range(count) for u in range(v)]
    edges = tuple(sorted(data.draw(st.sets(st.sampled_from(pairs)))))
    architecture = Architecture(nodes, edges, 1)
    found = node_depths(architecture)
    for name, expected in reference.depths(architecture).items():
        assert getattr(found, name) == expected, name


def test_embedding_matches_the_twin(
    generator: GraphHyperNetwork, residual: tuple[ResNet, Architecture]
) -> None:
    from torch_geninit.generators.ghn.features import node_features

    with torch.no_grad():
        fast = generator.encoder(node_features(residual[1]))
        torch.testing.assert_close(fast, reference.embed(generator, residual[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2"])
def test_kernels_match_the_twin(
    generator: GraphHyperNetwork, residual: tuple[ResNet, Architecture], name: str
) -> None:
    model, architecture = residual
    weight = f"{name}.weight"
    shape = tuple(model.get_parameter(weight).shape)
    o, i = min(shape[0], 8), min(shape[1], 8)
    with torch.no_grad():
        tiles = generator(architecture, [weight])
        x = reference.embed(generator, architecture)[architecture.uses[weight][0]]
        x = torch.cat([x, torch.zeros(3)])
        expected = reference.kernel(generator, x, o, i, (3, 3), shape, normalised=True)
    torch.testing.assert_close(tiles[weight].values, expected, rtol=1e-4, atol=1e-5)


def test_kernel_without_batch_norm_keeps_its_gain(generator: GraphHyperNetwork) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    architecture = trace(plain, torch.zeros(1, 3, 16, 16))
    with torch.no_grad():
        tiles = generator(architecture, ["0.weight"])
        x = reference.embed(generator, architecture)[architecture.uses["0.weight"][0]]
        x = torch.cat([x, torch.zeros(3)])
        expected = reference.kernel(generator, x, 8, 3, (3, 3), (8, 3), normalised=False)
    torch.testing.assert_close(tiles["0.weight"].values, expected, rtol=1e-4, atol=1e-5)


def test_a_parameter_does_not_depend_on_which_others_are_asked_for(
    generator: GraphHyperNetwork, residual: tuple[ResNet, Architecture]
) -> None:
    _, architecture = residual
    with torch.no_grad():
        together = generator(architecture, list(architecture.uses))
        for name in ("conv1.weight", "bn1.bias", "fc.weight", "fc.bias", "layer2.0.bn1.weight"):
            alone = generator(architecture, [name])[name]
            torch.testing.assert_close(alone.values, together[name].values, rtol=1e-5, atol=1e-6)


def test_noise_changes_members_and_zero_scale_does_not(generator: GraphHyperNetwork) -> None:
    def member(seed: int, scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        noisy = GraphHyperNetwork(config())
        noisy.load_state_dict(generator.state_dict())
        model = ResNet((2, 1), (8, 16), 10)
        geninit.noise_ghn_(model, seed, pretrained=noisy, noise_scale=scale)
        return model.layer1[0].conv1.weight.detach().clone()

    assert not torch.equal(member(0, 1.0), member(1, 1.0))
    assert torch.equal(member(0, 1.0), member(0, 1.0))
    assert torch.equal(member(0, 0.0), member(1, 0.0))


@pytest.mark.parametrize("shared", [False, True])
def test_noise_is_each_node_s_own_or_shared_by_all(generator: GraphHyperNetwork, shared: bool) -> None:
    """The noise that reaches the decoder, node by node, seen at its first layer's input."""
    noisy = GraphHyperNetwork({**config(), "shared_noise": shared})
    noisy.load_state_dict(generator.state_dict())
    seen: list[torch.Tensor] = []
    noisy.decoder.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for seed in (0, 1):
        geninit.noise_ghn_(ResNet((2, 1), (8, 16), 10), seed, pretrained=noisy)
    first, second = (x[:, -noisy.noise_width :] for x in seen)
    assert len(first) > 5 and len(first.unique(dim=0)) == (1 if shared else len(first))
    assert not torch.equal(first, second)


def test_a_member_of_an_odd_seed_sees_mirrored_images(generator: GraphHyperNetwork) -> None:
    """Without strides, and but for that seed's noise, it is the same function of the mirrored image."""
    mirroring = GraphHyperNetwork(config(mirror=True)).eval()
    mirroring.load_state_dict(generator.state_dict())

    def member(pretrained: GraphHyperNetwork, seed: int, scale: float = 1.0) -> nn.Module:
        torch.manual_seed(0)
        model = ResNet((2,), (16,), 10).eval()  # of tiles of eight filters, so repeated
        options = {"pretrained": pretrained, "noise_scale": scale, "untrusted": "generate"}
        return geninit.noise_ghn_(model, seed, **options)  # type: ignore[arg-type]

    images = torch.randn(4, 3, 16, 16)
    for seed, mirrored in ((0, False), (1, True), (-3, True)):
        plain, own = member(generator, seed), member(mirroring, seed)
        expected = plain(images.flip(-1) if mirrored else images)
        torch.testing.assert_close(own(images), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain(images), plain(images.flip(-1)), rtol=1e-2, atol=1e-2)
    assert torch.equal(member(mirroring, 0, 0.0)(images), member(mirroring, 1, 0.0)(images))


def test_kernels_alone_are_mirrored() -> None:
    """Tables and factors may have four dimensions, too; their last one has no left and right."""

    class Tabled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.table = nn.Parameter(torch.randn(1, 8, 8, 8))
            self.factor = nn.Parameter(torch.randn(1, 1, 1, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.conv(x).permute(0, 2, 3, 1) + self.table) * self.factor

    architecture = trace(Tabled(), torch.zeros(1, 3, 8, 8))
    kernels = [name for name in architecture.uses if is_kernel(architecture, name)]
    assert kernels == ["conv.weight"] and {"table", "factor"} < set(architecture.uses)


@pytest.mark.parametrize("more", [{"mirror": 1}, {"mirror": True, "sizes": {**SIZES, "noise": 0}}])
def test_mirrored_members_need_noise(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="mirror: expected false, or true for a generator with noise"):
        GraphHyperNetwork.check_config(config(**more))


def test_kernel_scale_acts_on_normalised_kernels_alone(generator: GraphHyperNetwork) -> None:
    scaled = GraphHyperNetwork(config(kernel_scale=2.0)).eval()
    scaled.load_state_dict(generator.state_dict())

    def made(pretrained: GraphHyperNetwork) -> list[torch.Tensor]:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        kernels = [model[0].weight, model[2].weight]
        options = {"untrusted": "generate", "include": ["0.weight", "2.weight"]}
        geninit.noise_ghn_(model, 0, pretrained=pretrained, **options)
        return kernels

    (first, second), (same, twice) = made(generator), made(scaled)
    assert torch.equal(same, first) and torch.equal(twice, 2 * second)


def test_untrusted_network_is_left_alone_with_one_warning(generator: GraphHyperNetwork) -> None:
    model = resnet20()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.warns(geninit.GenInitWarning, match="of 160 probe images right") as caught:
        geninit.ghn_(model, pretrained=with_probe(generator))
    assert len(caught) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wide_layers_have_no_equal_filters(generator: GraphHyperNetwork) -> None:
    model = ResNet((1, 1), (20, 40), 10)
    geninit.ghn_(model, pretrained=generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            rows = parameter.detach().flatten(1)
            rows = rows / rows.norm(dim=1, keepdim=True)
            similarity = (rows @ rows.T).abs().fill_diagonal_(0)
            assert similarity.max() < 0.9999, name


def test_file_round_trip_keeps_predictions(generator: GraphHyperNetwork, tmp_path: Path) -> None:
    from torch_geninit.graph import vocabulary

    full = config(
        format_version=1,
        vocabulary={"version": vocabulary.VERSION, "graphs": {}},
        input={"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        licence="MIT",
    )
    from torch_geninit.hub.file import write

    made = GraphHyperNetwork(full)
    made.load_state_dict(generator.state_dict())
    write(made, tmp_path / "ghn.safetensors", dtype=torch.float32)
    models = [ResNet((2, 1), (8, 16), 10) for _ in range(2)]
    geninit.ghn_(models[0], pretrained=made)
    geninit.ghn_(models[1], pretrained=tmp_path / "ghn.safetensors")
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
