"""What each contender is: whose weights, whose classifier, what a file's content changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torch_geninit.training.controls.covariance import depthwise
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate.contenders import content, initialised, short_name
from torch_geninit.training.networks.mixers import ConvMixer
from torch_geninit.training.networks.residual import resnet18
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.networks.vit import ViT

CONVOLUTIONS, FILTERS = resnet18(8), ConvMixer(2, 16, 4, 5)
TOKENS = ViT(2, 32, 2, 8)


def start(name: str, spec: Specification, images: Split, seed: int = 0) -> nn.Module:
    return initialised(name, spec, 10, images.normalise(images.images[:8]), seed, untrusted="generate")


def library(spec: Specification, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spec.build(10, 32)


def head(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("reference", CONVOLUTIONS),
        ("reference", TOKENS),
        ("he", CONVOLUTIONS),
        ("he", TOKENS),
        ("library", CONVOLUTIONS),
        ("mimetic", TOKENS),
        ("impulse", TOKENS),
        ("covariance", FILTERS),
        ("lsuv", CONVOLUTIONS),
    ],
)
def test_the_classifier_is_the_library_s_and_draws_go_by_the_seed(
    name: str, spec: Specification, images: Split
) -> None:
    one, again, other = (start(name, spec, images, seed) for seed in (0, 0, 1))
    assert torch.equal(head(one).weight, head(library(spec)).weight)
    assert torch.equal(head(one).bias, head(library(spec)).bias)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    drawn = [name for name, p in one.named_parameters() if p.dim() > 1 and "extra" not in name]
    same = [name for name in drawn if torch.equal(one.get_parameter(name), other.get_parameter(name))]
    assert same == (["encoder.positions"] if name == "mimetic" else [])


def test_the_reference_is_he_of_convolutions_and_the_library_s_of_tokens(images: Split) -> None:
    kernels = [p for p in start("reference", resnet18(32), images).parameters() if p.dim() == 4]
    for kernel in kernels:
        if kernel.numel() > 5000:
            expected = (2 / kernel[0].numel()) ** 0.5
            assert kernel.std().item() == pytest.approx(expected, rel=0.05)
    for one, other in zip(
        start("reference", TOKENS, images).parameters(), library(TOKENS).parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_what_a_control_leaves_is_the_reference_s(images: Split) -> None:
    drawn, reference = start("covariance", FILTERS, images), start("reference", FILTERS, images)
    names = {f"{name}.weight" for name in depthwise(drawn)}
    assert len(names) == 2
    for name, value in drawn.named_parameters():
        assert torch.equal(value, reference.get_parameter(name)) is (name not in names), name


@pytest.mark.parametrize("kind", ["ghn", "noise-ghn", "vae"])
def test_generators_fill_all_but_the_classifier(
    kind: str, images: Split, tiny_file: Callable[[str], Path]
) -> None:
    made = start(str(tiny_file(kind)), CONVOLUTIONS, images)
    reference = start("reference", CONVOLUTIONS, images)
    assert torch.equal(head(made).weight, head(reference).weight)
    kernel = next(name for name, p in made.named_parameters() if p.dim() == 4 and p.shape[-1] == 3)
    assert not torch.equal(made.get_parameter(kernel), reference.get_parameter(kernel))


def test_a_generator_that_fills_nothing_is_refused(images: Split) -> None:
    """The generator for networks over tokens has no 3x3 kernels."""
    with pytest.raises(ValueError, match="ghn-cifar10-tokens: expected a network that it fills, .*leaves"):
        initialised("ghn-cifar10-tokens", CONVOLUTIONS, 10, images.normalise(images.images[:2]), 0)


def test_stored_networks_are_selected_from_or_given_noise(images: Split, tmp_path: Path) -> None:
    large = library(resnet18(16), 5).state_dict()
    save_file(large, str(tmp_path / "large.safetensors"))
    selected = start(f"selection={tmp_path / 'large.safetensors'}", CONVOLUTIONS, images)
    same = library(CONVOLUTIONS, 7).state_dict()
    save_file(same, str(tmp_path / "same.safetensors"))
    noisy = start(f"noisy={tmp_path / 'same.safetensors'}:0", CONVOLUTIONS, images)
    name = next(name for name, p in noisy.named_parameters() if p.dim() == 4)
    assert torch.equal(selected.get_parameter(name), large[name][::2])
    assert torch.equal(noisy.get_parameter(name), same[name])
    for model in (selected, noisy):
        assert torch.equal(head(model).weight, head(library(CONVOLUTIONS)).weight)


def test_names_and_contents(tmp_path: Path, tiny_file: Callable[[str], Path]) -> None:
    path = tmp_path / "wide.safetensors"
    save_file({"a": torch.zeros(1)}, str(path))
    noisy, other = f"noisy={path}:0.1", f"noisy={path}:0.2"
    assert short_name(noisy) == "noisy-wide-0.1" and short_name(f"selection={path}") == "selection-wide"
    assert short_name(str(tiny_file("ghn"))) == "tiny-ghn" and short_name("mimetic") == "mimetic"
    before = content(noisy)
    assert before != content(other) and before != content(f"selection={path}")
    save_file({"a": torch.ones(1)}, str(path))
    assert content(noisy) != before, "told by content, not by name"


def test_a_control_that_can_not_serve_says_so(images: Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a network with self-attention"):
        start("mimetic", CONVOLUTIONS, images)
    with pytest.raises(ValueError, match="expected the state dict of a network"):
        start(f"selection={tmp_path / 'none.safetensors'}", CONVOLUTIONS, images)
