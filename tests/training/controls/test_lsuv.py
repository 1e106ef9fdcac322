"""LSUV: unit variance behind every layer, orthonormal weights, nothing else changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_geninit.training.controls.lsuv import lsuv_
from torch_geninit.training.networks.convnext import ConvNeXt
from torch_geninit.training.networks.residual import resnet18
from torch_geninit.training.networks.vit import ViT


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int = 32) -> Tensor:
    return 3 * torch.randn(8, 3, size, size, generator=stream(9))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 32 * 32, 5))


def variances(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """Variances of the outputs of all layers in one ordinary forward pass."""
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out.var().item()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


def test_every_layer_has_unit_variance_without_norms() -> None:
    found = variances(lsuv_(plain(), images(), generator=stream()), images())
    assert len(found) == 4
    assert all(abs(variance - 1) < 1e-3 for variance in found.values()), found


def test_residual_network_has_unit_variance_and_keeps_statistics_and_modes() -> None:
    torch.manual_seed(0)
    model = resnet18(8).build(10, 32)
    model.get_submodule("fc").eval() if hasattr(model, "fc") else model.eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    lsuv_(model, images(), generator=stream())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    model.train()
    found = variances(model, images())
    assert len(found) > 20 and all(abs(variance - 1) < 1e-3 for variance in found.values()), found


def test_weights_are_orthogonal_up_to_a_factor() -> None:
    kernel = lsuv_(plain(), images(), generator=stream()).get_parameter("2.weight").detach().flatten(1)
    gram = kernel @ kernel.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(16), atol=1e-4, rtol=1e-4)


def test_what_is_excluded_stays_and_the_generator_decides() -> None:
    one, again, other = (lsuv_(plain(), images(), generator=stream(s), exclude={"7"}) for s in (0, 0, 1))
    assert torch.equal(one.get_parameter("7.weight"), plain().get_parameter("7.weight"))
    assert torch.equal(one.get_parameter("0.weight"), again.get_parameter("0.weight"))
    assert not torch.equal(one.get_parameter("0.weight"), other.get_parameter("0.weight"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: ViT(1, 32, 2, 8).build(10, 32),
            "attention.out_proj: expected layers that run by themselves",
        ),
        (lambda: nn.Sequential(nn.ReLU()), "Sequential: expected convolutions or linear layers"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Threshold(1e9, 0.0), nn.Conv2d(4, 4, 3)), "^2: .*vary"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name_and_left(model: object, message: str) -> None:
    torch.manual_seed(0)
    refused = model()  # type: ignore[operator]
    before = {name: value.clone() for name, value in refused.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        lsuv_(refused, images(), generator=stream())
    assert all(torch.equal(value, before[name]) for name, value in refused.state_dict().items())


def test_a_network_with_depthwise_convolutions_is_served() -> None:
    torch.manual_seed(0)
    model = ConvNeXt((1, 1), (16, 32)).build(10, 32)
    found = variances(lsuv_(model, images(), generator=stream()), images())
    assert all(abs(variance - 1) < 1e-3 for variance in found.values()), found
