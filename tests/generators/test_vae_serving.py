"""Which VAE serves a layer, at which scale, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.support.vaes import drawn, make_zoo, random_vaes, record
from torch_geninit.generators.rng import noise_stream
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.hub.file import read, write
from torch_geninit.planning.build import plan_layers
from torch_geninit.training.data.kernels import read_slices
from torch_geninit.training.networks.resnet import resnet20


def test_scale_follows_fan_in():
    """Same stream and as many slices: only sqrt(fan_in) differs, relative to He's law."""
    generator = random_vaes(record(fan_in=36))
    wide = drawn(generator, nn.Conv2d(16, 2, 3))["weight"]
    narrow = drawn(generator, nn.Conv2d(2, 16, 3))["weight"]
    torch.testing.assert_close(wide.view(32, 9) * math.sqrt(16 / 2), narrow.view(32, 9))
    same = drawn(generator, nn.Conv2d(4, 8, 3))["weight"].view(32, 9)
    torch.testing.assert_close(same, generator.draw(0, 32, noise_stream(0, "weight")))
    depthwise = drawn(generator, nn.Conv2d(32, 32, 3, groups=32))["weight"].view(32, 9)
    torch.testing.assert_close(depthwise, same * 2)


def test_he_scale_needs_only_the_trained_layers_std():
    generator = random_vaes(record(fan_in=999, std=0.25), scale="he")
    raw = generator.draw(0, 32, noise_stream(0, "weight"))
    for module in (nn.Conv2d(16, 2, 3), nn.Conv2d(4, 8, 3)):
        expected = raw / 0.25 * math.sqrt(2 / (9 * module.in_channels))
        torch.testing.assert_close(drawn(generator, module)["weight"].view(32, 9), expected)


def test_nearest_depth_of_the_same_kernel_size_serves():
    generator = random_vaes(
        record("a", depth=0.0), record("b", (5, 5), depth=0.1), record("c", depth=0.5), record("d", depth=1.0)
    )
    assert [generator.choose((3, 3), d) for d in (0.0, 0.24, 0.26, 0.74, 0.9)] == [0, 0, 2, 2, 3]
    assert generator.choose((3, 3), 0.25) == 0, "the shallower one of two equally near"
    assert generator.choose((5, 5), 0.9) == 1
    assert generator.choose((1, 1), 0.9) is None


def test_whole_filters_serve_first_convolutions_of_as_many_inputs():
    generator = random_vaes(record("slices", depth=0.0), record("filters", depth=0.0, inputs=3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), nn.Conv2d(3, 8, 3))
    plan = plan_layers(model, generator, "test")
    weights = generator.predict(plan, seed=0)
    assert [weights[f"{i}.weight"].inputs for i in range(3)] == [3, 1, 1]
    # One draw of 27 values a filter: the values of the VAE itself, at the new layer's scale.
    filters = generator.draw(1, 8, noise_stream(0, "0.weight"), gain=math.sqrt(36 / 27))
    torch.testing.assert_close(weights["0.weight"].expand(), filters.view(8, 3, 3, 3))
    for other in (nn.Conv2d(1, 8, 3), nn.Conv2d(9, 9, 3, groups=3)):
        plan = plan_layers(other, generator, "test")
        assert generator.predict(plan, seed=0)["weight"].inputs == 1, other


def test_whole_filters_alone_serve_nothing_else():
    generator = random_vaes(record(inputs=3), record(kernel_size=(5, 5)))
    plan = plan_layers(nn.Conv2d(4, 4, 3), generator, "test")
    assert (
        plan.entries[0].reason
        == "no VAE for kernel size 3x3, trained on 5x5, 3x3 of first layers with 3 inputs"
    )


def test_depthwise_convolutions_have_vaes_of_their_own():
    generator = random_vaes(
        record("dense", depth=0.5),
        record("channels", depth=0.0, depthwise=True),
        record("large", (5, 5), depthwise=True),
        record("only dense", (1, 1)),
    )
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 5, groups=8),
        nn.Conv2d(8, 8, 1, groups=8),
        nn.Conv2d(8, 8, 5),
    )
    plan = plan_layers(model, generator, "test")
    weights = generator.predict(plan, seed=0)
    serving = {name: generator.layers[_index(generator, draws)].name for name, draws in weights.items()}
    assert serving == {
        "0.weight": "dense",
        "1.weight": "channels",
        "2.weight": "dense",
        "3.weight": "large",
        "4.weight": "only dense",
    }
    refused = next(entry for entry in plan.entries if entry.name == "5.weight")
    assert refused.reason == "no VAE for kernel size 5x5, trained on 1x1, 3x3, 5x5 of depthwise layers"


def test_filters_of_grey_images_are_no_depthwise_ones():
    generator = random_vaes(record("dense"), record("channels", depth=0.0, depthwise=True))
    plan = plan_layers(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3)), generator, "test")
    draws = generator.predict(plan, seed=0)["0.weight"]
    assert generator.layers[_index(generator, draws)].name == "dense"


def _index(generator, draws):
    return next(i for i, decoder in enumerate(generator.decoders) if decoder is draws.decoder)


def test_every_convolution_of_resnet20_gets_its_own_vae(tmp_path):
    model = resnet20()
    make_zoo(tmp_path, 2)
    layers = [s.layer for s in read_slices(tmp_path, ("0",))]
    generator = random_vaes(*(record(s.name, s.kernel_size, s.fan_in, s.depth, s.std) for s in layers))
    plan = plan_layers(model, generator, "test")
    served = {e.name: layers[generator.choose(e.layer.kernel_size, e.layer.depth)] for e in plan.generated}
    assert len(served) == 19
    for entry in plan.generated:
        assert served[entry.name].name == entry.name
        assert served[entry.name].fan_in == entry.fan_in


def test_what_no_vae_makes_is_refused_with_a_reason():
    generator = random_vaes(record(), record(kernel_size=(5, 5)))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 7),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.Linear(4, 4),
    )
    plan = plan_layers(model, generator, "test")
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert [entry.name for entry in plan.generated] == ["0.weight"]
    assert reasons["1.weight"] == "no VAE for kernel size 7x7, trained on 3x3, 5x5"
    assert reasons["2.weight"] == "no VAE for conv_transpose layers, trained on convolutions"
    assert reasons["3.weight"] == "no VAE for kernel size 3, trained on 3x3, 5x5"
    linear = next(entry for entry in plan.entries if entry.name == "4.weight")
    assert generator.refusal(linear, None) == "VAEs make weights of convolutions only"
    assert plan.verdict is not None and plan.verdict.trusted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "sizes.layers"),
        ({"latent": 0}, "sizes.latent"),
        ({"hidden": 2.5}, "sizes.hidden"),
        ({"decoder": "other"}, "sizes.decoder"),
        ({"layers": [record(depth=1.5)]}, "depth"),
        ({"layers": [record(fan_in=0)]}, "fan_in"),
        ({"layers": [record(std=0.0)]}, "std"),
        ({"layers": [record(kernel_size=(3, -3))]}, "kernel_size"),
        ({"layers": [record(inputs=0)]}, "inputs"),
        ({"layers": [record(inputs=3)], "decoder": "paper"}, "inputs 1"),
        ({"layers": [record(inputs=3, depthwise=True)]}, "depthwise"),
        ({"layers": [record() | {"depthwise": "no"}]}, "depthwise"),
    ],
)
def test_a_config_with_impossible_sizes_is_refused(change, message):
    sizes = {"decoder": "slice", "latent": 2, "hidden": 4, "layers": [record()], **change}
    with pytest.raises(ValueError, match=message):
        SliceVAEs({"sizes": sizes})
    with pytest.raises(ValueError, match="scale"):
        random_vaes(scale="xavier")


def test_a_generator_file_gives_the_same_weights(tmp_path):
    generator = random_vaes()
    generator.config |= {
        "kind": "vae",
        "vocabulary": {"version": 1, "graphs": {}},
        "trained": {},
        "input": {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        "classes": ["cat", "dog"],
        "licence": "MIT",
    }
    write(generator, tmp_path / "vae.safetensors", torch.float32)
    again = read(tmp_path / "vae.safetensors")
    module = nn.Conv2d(3, 8, 3)
    assert torch.equal(drawn(again, module)["weight"], drawn(generator, module)["weight"])
