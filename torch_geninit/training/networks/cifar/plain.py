"""Networks for 32x32 images that are a chain of layers, and ResNet-9, nearly one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torch_geninit.training.networks.cifar.published import Published
from torch_geninit.training.networks.layers import Residual, conv_norm

VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(depth: int, classes: int, hidden: Sequence[int] = ()) -> nn.Sequential:
    """Build a VGG with BatchNorm: five poolings leave one position of 512 channels."""
    layers: list[nn.Module] = []
    channels = 3
    for count, width in zip(VGG_CONVOLUTIONS[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    layers.append(nn.Flatten())
    for width in hidden:
        layers += [nn.Dropout(0.5), nn.Linear(channels, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, classes))


class FlattenedVGG(nn.Module):
    """Six convolutions; the classifier reads all 4x4 positions through a ``view``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (32, 32, 64, 64, 128, 128)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(128 * 4 * 4, 256), nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(torch.relu(convolution(x)))
            if index % 2:
                x = self.drop(self.pool(x))
        x = x.view(-1, 128 * 4 * 4)
        return self.fc2(torch.relu(self.fc1(x)))


def nin(classes: int) -> nn.Module:
    """Build Network in Network: 5x5 and 3x3 convolutions, each followed by two 1x1."""

    def group(inputs: int, widths: Sequence[int], kernel: int) -> list[nn.Module]:
        pairs = zip((inputs, *widths), widths, strict=False)
        return [conv_norm(a, b, 1 if index else kernel) for index, (a, b) in enumerate(pairs)]

    return nn.Sequential(
        *group(3, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(0.5),
        *group(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, 1),
        nn.Dropout(0.5),
        *group(192, (192, 192), 3),
        nn.Conv2d(192, classes, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def lenet(classes: int) -> nn.Module:
    """Build LeNet-5 for colour images with a BatchNorm after each convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def alexnet(classes: int) -> nn.Module:
    """Build AlexNet cut for 32x32 images, with BatchNorm: five convolutions, two hidden layers."""
    return nn.Sequential(
        conv_norm(3, 64, 3, 2),
        nn.MaxPool2d(2),
        conv_norm(64, 192, 3),
        nn.MaxPool2d(2),
        conv_norm(192, 384, 3),
        conv_norm(384, 256, 3),
        conv_norm(256, 256, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256 * 2 * 2, 1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )


def all_convolutional(classes: int) -> nn.Module:
    """Build All-CNN-C with BatchNorm: strides for pooling, a 1x1 convolution for the classifier."""
    widths = ((96, 1), (96, 1), (96, 2), (192, 1), (192, 1), (192, 2), (192, 1))
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    channels = 3
    for width, stride in widths:
        layers.append(conv_norm(channels, width, 3, stride))
        channels = width
    last = [nn.Conv2d(192, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, conv_norm(192, 192, 1), *last)


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def resnet9(classes: int, factor: float | None = None, celu: bool = False) -> nn.Module:
    """Build ResNet-9 of the fast-training contests: 64 to 512 channels, pooled, two residual pairs."""

    def conv(inputs: int, outputs: int) -> nn.Module:
        if not celu:
            return conv_norm(inputs, outputs, 3)
        return nn.Sequential(*conv_norm(inputs, outputs, 3, activation=None), nn.CELU(0.075))

    def pooled(inputs: int, outputs: int) -> list[nn.Module]:
        return [conv(inputs, outputs), nn.MaxPool2d(2)]

    return nn.Sequential(
        conv(3, 64),
        *pooled(64, 128),
        Residual(conv(128, 128), conv(128, 128)),
        *pooled(128, 256),
        *pooled(256, 512),
        Residual(conv(512, 512), conv(512, 512)),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(512, classes, bias=factor is None),
        *([] if factor is None else [Scale(factor)]),
    )


class Fire(nn.Module):
    """A narrow 1x1 convolution, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, inputs: int, outputs: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = conv_norm(inputs, squeezed, 1)
        self.ones, self.threes = conv_norm(squeezed, outputs // 2, 1), conv_norm(squeezed, outputs // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.ones(x), self.threes(x)], 1)


def squeezenet(classes: int) -> nn.Module:
    """Build SqueezeNet with BatchNorm; its classifier is a 1x1 convolution, averaged."""
    return nn.Sequential(
        conv_norm(3, 96, 3),
        nn.MaxPool2d(2),
        *(Fire(96, 128, 16), Fire(128, 128, 16), Fire(128, 256, 32)),
        nn.MaxPool2d(2),
        *(Fire(256, 256, 32), Fire(256, 384, 48), Fire(384, 384, 48), Fire(384, 512, 64)),
        nn.MaxPool2d(2),
        Fire(512, 512, 64),
        nn.Dropout(0.5),
        nn.Conv2d(512, classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


SIMONYAN, PAGE = "Simonyan & Zisserman 2015", "Page 2018, how to train your ResNet"

NETWORKS: dict[str, Published] = {
    "vgg11_bn": Published(lambda c: vgg(11, c), "one linear layer", SIMONYAN),
    "vgg13_bn": Published(lambda c: vgg(13, c), "one linear layer", SIMONYAN),
    "vgg16_bn": Published(lambda c: vgg(16, c), "one linear layer", SIMONYAN),
    "vgg19_bn": Published(lambda c: vgg(19, c), "one linear layer", SIMONYAN),
    "vgg16_bn_512": Published(lambda c: vgg(16, c, (512, 512)), "two hidden layers of 512", SIMONYAN),
    "vgg6_flattened": Published(FlattenedVGG, "ReLU before norm; reads all positions", SIMONYAN),
    "vgg11_bn_logsoftmax": Published(
        lambda c: nn.Sequential(vgg(11, c), nn.LogSoftmax(-1)), "returns log-probabilities", SIMONYAN
    ),
    "nin": Published(nin, "1x1 convolutions between large ones", "Lin et al. 2014"),
    "lenet5_bn": Published(lenet, "two convolutions, three linear layers", "LeCun et al. 1998"),
    "alexnet_bn": Published(alexnet, "cut for small images", "Krizhevsky et al. 2012"),
    "all_cnn_c": Published(all_convolutional, "convolutions alone", "Springenberg et al. 2015"),
    "resnet9": Published(resnet9, "max-pooling, two residual pairs", PAGE),
    "resnet9_scaled": Published(
        lambda c: resnet9(c, 0.125), "logits times 1/8, no bias in the classifier", PAGE
    ),
    "resnet9_celu": Published(lambda c: resnet9(c, 0.0625, celu=True), "CELU of 0.075, logits / 16", PAGE),
    "squeezenet_bn": Published(squeezenet, "fire modules", "Iandola et al. 2016"),
}
