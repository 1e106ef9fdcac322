"""CIFAR residual networks: the target network of the paper and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["A", "B"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around an identity shortcut (He et al. 2016, figure 2).

    Where the shape changes, option A subsamples and pads with zero channels; option B projects by
    a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.missing_channels = out_channels - in_channels
        self.downsample: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.missing_channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.missing_channels:
            before = self.missing_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.missing_channels - before))
        return x


class ResNet(nn.Module):
    """CIFAR residual network of He et al. 2016, section 4.2: a 3x3 stem and stages of basic blocks.

    Args:
        blocks: number of blocks in each stage; ``(3, 3, 3)`` is ResNet-20.
        widths: channels of each stage; every stage but the first halves the resolution.
        num_classes: number of logits.
        shortcut: ``"A"`` (no parameters) or ``"B"`` (1x1 convolutions).
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        shortcut: Shortcut = "A",
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            raise ValueError(f"blocks {tuple(blocks)} and widths {tuple(widths)} differ in length")
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        in_channels = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                layers.append(BasicBlock(in_channels, width, stride, shortcut))
                in_channels = width
            stages.append(nn.Sequential(*layers))
        for index, stage in enumerate(stages, start=1):
            self.add_module(f"layer{index}", stage)
        self.stages = len(stages)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{index}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(num_classes: int = 10, shortcut: Shortcut = "A") -> ResNet:
    """Build ResNet-20: 0.27 M parameters, 19 convolutions in three stages of three blocks."""
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, shortcut)


def he_(model: nn.Module) -> nn.Module:
    """Draw convolutions and linear layers from normal distributions, std = sqrt(2 / fan_in); biases zero."""
    return _draw(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def xavier_(model: nn.Module) -> nn.Module:
    """Draw convolutions and linear layers from normal distributions, std = sqrt(2 / (fan_in + fan_out))."""
    return _draw(model, nn.init.xavier_normal_)


def orthogonal_(model: nn.Module) -> nn.Module:
    """Draw convolutions (as matrices, a row a filter) and linear layers orthogonal; biases zero."""
    return _draw(model, nn.init.orthogonal_)


def _draw(model: nn.Module, draw) -> nn.Module:  # type: ignore[no-untyped-def]
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
