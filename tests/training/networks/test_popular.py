"""The space of what people build beside ResNets: who is held out, that all run, and torchvision's own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import fx, nn

from torch_geninit import trace
from torch_geninit.training.networks import googlenet
from torch_geninit.training.networks.convnext import ConvNeXt, convnext_tiny
from torch_geninit.training.networks.densenet import DenseNet, densenet121
from torch_geninit.training.networks.efficientnet import B0, V2_SMALL, EfficientNet
from torch_geninit.training.networks.googlenet import GoogLeNet
from torch_geninit.training.networks.mixers import ConvMixer
from torch_geninit.training.networks.mobilenet import (
    MNASNET,
    V2,
    V3_LARGE,
    V3_SMALL,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    mobilenet_v2,
    scaled,
)
from torch_geninit.training.networks.popular import FULL_SIZE, SAMPLERS
from torch_geninit.training.networks.search_space import multiplications
from torch_geninit.training.networks.shufflenet import ShuffleNetV2
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.networks.vgg import PAPER_WIDTHS, TABLE_1, VGG, vgg11_bn
from torch_geninit.training.networks.vit import ViT, vit_width_192
from torch_geninit.training.operators.rewrite import rewritten

SIZES = (64, 32, 96, 224)
MOST_MULTIPLICATIONS = 5e9
"""At 64 pixels: what a ResNet-34 with a CIFAR stem takes."""


@pytest.mark.parametrize("family", SAMPLERS)
def test_samplers_keep_the_held_out_apart_and_repeat_by_seed(family: str) -> None:
    sample, sample_unseen = SAMPLERS[family]
    drawn = [sample(random.Random(seed)) for seed in range(200)]
    unseen = [sample_unseen(random.Random(seed)) for seed in range(40)]
    assert not any(spec.held_out() for spec in drawn) and all(spec.held_out() for spec in unseen)
    assert drawn[:20] == [sample(random.Random(seed)) for seed in range(20)]
    assert len(set(drawn)) > 150
    assert any(not spec.reserved for spec in unseen)


@pytest.mark.parametrize(
    "spec",
    [
        VGG((1, 1, 2, 2, 2), (24, 48, 96, 192, 192)),
        VGG((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), hidden=(512,)),
        DenseNet((6, 12, 24, 16), 12, 24, "3x3"),
        DenseNet((6, 12, 32, 32), 32, 64),
        MobileNetV2(16, 1, scaled(V2, 0.5, (1, 2, 3, 4, 3, 3, 1)), 640),
        EfficientNet(32, 1, B0, 1280),
        ConvNeXt((3, 3, 9, 3), (32, 64, 128, 256), patch=2),
        ConvMixer(8, 256, 2, 5),
        ViT(12, 128, 4, 8, pool="mean"),
    ],
    ids=lambda spec: spec.family,
)
def test_shapes_that_generators_are_measured_on_are_reserved(spec: Specification) -> None:
    assert spec.reserved and spec.held_out()


def check_traced(spec: Specification, size: int) -> None:
    with torch.device("meta"):
        model = spec.build(7, size)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)
    architecture = trace(model, torch.empty(1, 3, size, size, device="meta"))
    reached = {use.name for node in architecture.nodes for use in node.parameters}
    assert reached == {name for name, _ in model.named_parameters()}
    assert isinstance(rewritten(model), fx.GraphModule)
    if size == 64:
        assert 1e6 < multiplications(architecture) < MOST_MULTIPLICATIONS


@pytest.mark.parametrize("family", SAMPLERS)
def test_networks_build_on_meta_and_every_parameter_is_reached(family: str) -> None:
    check_traced(SAMPLERS[family][0](random.Random(1)), 64)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("family", SAMPLERS)
def test_many_networks_build_at_every_size(family: str, seed: int) -> None:
    check_traced(SAMPLERS[family][0](random.Random(f"{family}/{seed}")), SIZES[seed % len(SIZES)])


@pytest.mark.parametrize("family", SAMPLERS)
def test_networks_run_on_images(family: str) -> None:
    runs_on_images(SAMPLERS[family][0](random.Random(3)))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", SAMPLERS)
def test_many_networks_run_on_images(family: str, seed: int) -> None:
    runs_on_images(SAMPLERS[family][0](random.Random(f"run/{seed}")))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", SAMPLERS)
def test_faster_operators_compute_the_same(family: str, seed: int) -> None:
    model = SAMPLERS[family][0](random.Random(f"faster/{seed}")).build(5, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rewritten(model)(images), model(images), rtol=1e-3, atol=1e-3)


def runs_on_images(spec: Specification) -> None:
    model = spec.build(5, 32)
    logits = model(torch.randn(4, 3, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (4, 5) and logits.isfinite().all()
    assert all(parameter.grad is not None for parameter in model.parameters())


def torchvision_vit(num_classes: int) -> nn.Module:
    return torchvision.models.VisionTransformer(64, 8, 12, 3, 192, 768, num_classes=num_classes)


def torchvision_googlenet(num_classes: int) -> nn.Module:
    return torchvision.models.googlenet(num_classes=num_classes, aux_logits=False, init_weights=False)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (vgg11_bn, torchvision.models.vgg11_bn),
        (densenet121, torchvision.models.densenet121),
        (mobilenet_v2, torchvision.models.mobilenet_v2),
        (convnext_tiny, torchvision.models.convnext_tiny),
        (vit_width_192, torchvision_vit),
    ],
    ids=["vgg11_bn", "densenet121", "mobilenet_v2", "convnext_tiny", "vit"],
)
def test_reserved_networks_are_torchvisions(
    ours: Callable[[int, int], nn.Module], theirs: Callable[..., nn.Module]
) -> None:
    check_torchvisions(ours, theirs)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_networks_of_full_size_are_reserved_and_as_large_as_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = FULL_SIZE[name].build(1000, 224), getattr(torchvision.models, name)()
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert FULL_SIZE[name].reserved


@pytest.mark.full
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        (VGG(TABLE_1[16], PAPER_WIDTHS, grid=7, hidden=(4096, 4096)), torchvision.models.vgg16_bn),
        (DenseNet((6, 12, 36, 24), 48, 96), torchvision.models.densenet161),
        (
            MobileNetV3(16, 2, V3_LARGE, 960, 1280, "hardswish", eps=1e-3),
            torchvision.models.mobilenet_v3_large,
        ),
        (
            MobileNetV3(16, 2, V3_SMALL, 576, 1024, "hardswish", eps=1e-3),
            torchvision.models.mobilenet_v3_small,
        ),
        (MNASNet(32, 2, MNASNET, 1280, activation="relu"), torchvision.models.mnasnet1_0),
        (EfficientNet(32, 2, B0, 1280, activation="silu"), torchvision.models.efficientnet_b0),
        (
            EfficientNet(24, 2, V2_SMALL, 1280, activation="silu", eps=1e-3),
            torchvision.models.efficientnet_v2_s,
        ),
        (ShuffleNetV2((4, 8, 4), (116, 232, 464), 24, 1024), torchvision.models.shufflenet_v2_x1_0),
        (GoogLeNet(googlenet.PAPER, 64), torchvision_googlenet),
        (ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768)), torchvision.models.convnext_small),
    ],
    ids=lambda argument: getattr(argument, "family", None) or argument.__name__,
)
def test_networks_at_their_papers_sizes_are_torchvisions(
    spec: Specification, theirs: Callable[..., nn.Module]
) -> None:
    assert spec.reserved
    check_torchvisions(spec.build, theirs)


def check_torchvisions(ours: Callable[[int, int], nn.Module], theirs: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        mine, other = ours(7, 64).eval(), theirs(num_classes=7).eval()
    shapes = [(parameter.shape, parameter.dtype) for parameter in mine.parameters()]
    assert shapes == [(parameter.shape, parameter.dtype) for parameter in other.parameters()]
    image = torch.empty(1, 3, 64, 64)
    assert [node.op for node in trace(mine, image).nodes] == [node.op for node in trace(other, image).nodes]
    stream = torch.Generator().manual_seed(0)
    values = [value(tensor, stream) for tensor in other.state_dict().values()]
    for model in (mine, other):
        state = model.state_dict()
        state.update(zip(list(state), values, strict=True))
        model.load_state_dict(state, assign=True)
    images = torch.randn(2, 3, 64, 64, generator=stream)
    with torch.no_grad():
        expected = other(images)
        torch.testing.assert_close(mine(images), expected)
    assert expected.std() > 1e-3


def value(tensor: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """Draw what ``tensor`` holds: a matrix of He's standard deviation, or positive numbers."""
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    if tensor.ndim < 2:
        return torch.empty(tensor.shape).uniform_(0.5, 1.0, generator=stream)
    bound = (6 / tensor[0].numel()) ** 0.5
    return torch.empty(tensor.shape).uniform_(-bound, bound, generator=stream)
