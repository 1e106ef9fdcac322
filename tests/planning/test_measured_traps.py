"""Networks that read like those of training and are not: the verdict is what they really do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from tests.support.resnets import resnet8
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.planning.trust import Measured
from torch_geninit.training.networks.resnet import BasicBlock, ResNet

IMAGE = torch.zeros(1, 3, 32, 32)


class Activated(nn.Module):
    """A ResNet-8 in whose blocks, and after its stem, a function of the user's stands where ReLU did."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = resnet8()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = self.activation(net.bn1(net.conv1(x)))
        for block in net.modules():
            if isinstance(block, BasicBlock):
                out = block.bn2(block.conv2(self.activation(block.bn1(block.conv1(x)))))
                x = self.activation(out + block._shortcut(x))
        return net.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def strided(stride: int = 2, widths: tuple[int, ...] = (16, 32, 64)) -> nn.Module:
    model = ResNet((3, 3, 3), widths, 10)
    model.conv1 = nn.Conv2d(3, widths[0], 3, stride, 1, bias=False)
    return model


def right(model: nn.Module, generator: WeightGenerator) -> int:
    """Count by hand what the filled model gets right, evaluated at once on the images of the file."""
    geninit.ghn_(model, pretrained=generator, untrusted="generate", example_inputs=IMAGE)
    assert generator.probe is not None
    record = generator.config["input"]
    mean, std = (torch.tensor(record[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        answers = model.eval()((generator.probe.images / 255 - mean) / std).argmax(1)
    return int((answers == generator.probe.labels).sum())


def measured(model: nn.Module, generator: WeightGenerator) -> Measured:
    plan = geninit.plan(model, pretrained=generator, untrusted="generate", example_inputs=IMAGE)
    assert plan.verdict is not None and plan.verdict.measured is not None, plan.verdict
    return plan.verdict.measured


TRAPS: dict[str, Callable[[], nn.Module]] = {
    "strided stem": strided,
    "negated activations": lambda: Activated(lambda x: -F.relu(x)),
    "activations of the negated": lambda: Activated(lambda x: F.relu(-x)),
    "clamped activations": lambda: Activated(lambda x: x.clamp(0, 0.3)),
}


@pytest.mark.filterwarnings("ignore::torch_geninit.GenInitWarning")
@pytest.mark.parametrize("which", TRAPS)
def test_what_is_measured_is_what_the_network_does(which: str, shipped: WeightGenerator) -> None:
    found = measured(TRAPS[which](), shipped)
    assert found.right is not None and found.images == 160
    # Running statistics divide by one image fewer than those of a batch.
    assert found.right == pytest.approx(right(TRAPS[which](), shipped), abs=3)
    assert found.right < 110, "the plain network gets about 140 right"


def test_functions_of_the_user_s_are_no_trap_by_themselves(shipped: WeightGenerator) -> None:
    found, plain = measured(Activated(F.relu), shipped), measured(resnet8(), shipped)
    assert found.right == plain.right


def test_at_a_guessed_size_it_is_measured_at_that_size(shipped: WeightGenerator) -> None:
    narrow = (8, 16, 32)
    guessed = geninit.plan(strided(widths=narrow), pretrained=shipped).verdict
    given = measured(strided(widths=narrow), shipped)
    assert guessed is not None and guessed.measured is not None
    assert guessed.measured.size == (3, 224, 224) and given.size == (3, 32, 32)
    assert guessed.measured.right != given.right, "it is another network, on images of seven times the size"
