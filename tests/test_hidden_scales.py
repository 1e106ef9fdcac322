"""Which kernels' scale does not matter, against what torch computes with other scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_geninit.graph.landmarks import normalised_kernels
from torch_geninit.graph.trace import trace
from torch_geninit.training.blocks import ChannelNorm

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer over channels": lambda: ChannelNorm(8),
    "layer over all": lambda: nn.LayerNorm((8, 8, 8)),
    "none": nn.Identity,
}
PER_CHANNEL = ("batch", "instance")


class Network(nn.Module):
    """One convolution, its norm, an activation; the norm may not be the only one that reads it."""

    def __init__(self, norm: nn.Module, *, bias: bool, shortcut: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.shortcut = nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() + y if self.shortcut else self.norm(y).relu()


@pytest.mark.parametrize("shortcut", [False, True], ids=["norm alone", "norm and sum"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("norm", NORMS)
def test_scale_is_hidden_where_the_function_does_not_change(norm: str, bias: bool, shortcut: bool) -> None:
    torch.manual_seed(0)
    model = Network(NORMS[norm](), bias=bias, shortcut=shortcut)
    images = torch.randn(4, 3, 8, 8)
    hidden = normalised_kernels(trace(model, images))
    with torch.no_grad():
        if bias:
            model.conv.bias.add_(1.0)
        before = model(images)
        model.conv.weight.mul_(3)
        unchanged = torch.allclose(model(images), before, rtol=1e-3, atol=1e-3)
    assert hidden == ({"conv.weight"} if unchanged else set())
    assert unchanged is (not shortcut and norm != "none" and (norm in PER_CHANNEL or not bias))
