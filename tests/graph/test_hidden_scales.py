"""Which kernels' scale does not matter, against what torch computes with other scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_geninit.graph.queries import normalised_kernels
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.blocks import ChannelNorm

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "group": lambda: nn.GroupNorm(2, 8),
    "rms": lambda: nn.RMSNorm(10),
    "layer over channels": lambda: ChannelNorm(8),
    "layer over all": lambda: nn.LayerNorm((8, 10, 10)),
    "none": nn.Identity,
}


class Network(nn.Module):
    """One convolution, its norm, an activation; the norm may not be the only one that reads it."""

    def __init__(self, norm: nn.Module, *, bias: bool, shortcut: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.shortcut = nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm, shortcut
        if bias:
            nn.init.normal_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() + y if self.shortcut else self.norm(y).relu()


class OtherShape(Network):
    """BatchNorm over another axis, where the convolution's bias is no shift of a channel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).transpose(1, 2)).relu()


class Shared(Network):
    """The kernel is read a second time, by a convolution that no norm follows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x.flip(-1))


IMAGES = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def unchanged(model: Network) -> bool:
    """Whether three times the kernel is the same function."""
    before = model(IMAGES)
    model.conv.weight.mul_(3)
    return torch.allclose(model(IMAGES), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shortcut", [False, True], ids=["norm alone", "norm and sum"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("norm", NORMS)
def test_scale_is_hidden_where_the_function_does_not_change(norm: str, bias: bool, shortcut: bool) -> None:
    torch.manual_seed(0)
    model = Network(NORMS[norm](), bias=bias, shortcut=shortcut)
    hidden = normalised_kernels(trace(model, IMAGES))
    same = unchanged(model)
    # Of instance norm that is not noticed: in the graph it is BatchNorm of other channels.
    assert hidden == ({"conv.weight"} if same and not (norm == "instance" and bias) else set())


@pytest.mark.parametrize(("kind", "channels"), [(OtherShape, 10), (Shared, 8)])
def test_scale_is_not_hidden_in(kind: type[Network], channels: int) -> None:
    torch.manual_seed(0)
    model = kind(nn.BatchNorm2d(channels), bias=True, shortcut=False)
    assert not normalised_kernels(trace(model, IMAGES))
    assert not unchanged(model)
