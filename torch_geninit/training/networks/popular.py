"""The space of what people build, at 32 to 224 pixels: its families, how each is drawn, who stands for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch_geninit.training.networks import (
    convnext,
    densenet,
    efficientnet,
    googlenet,
    mixers,
    mobilenet,
    residual,
    shufflenet,
    vgg,
    vit,
)
from torch_geninit.training.networks.specification import Specification

Sampler = Callable[[random.Random], Specification]

SAMPLERS: Mapping[str, tuple[Sampler, Sampler]] = MappingProxyType(
    {
        "residual": (residual.sample, residual.sample_unseen),
        "residual-cifar": (residual.sample_small, residual.sample_unseen_small),
        "vgg": (vgg.sample, vgg.sample_unseen),
        "densenet": (densenet.sample, densenet.sample_unseen),
        "googlenet": (googlenet.sample, googlenet.sample_unseen),
        "mobilenet": (mobilenet.sample, mobilenet.sample_unseen),
        "efficientnet": (efficientnet.sample, efficientnet.sample_unseen),
        "shufflenet": (shufflenet.sample, shufflenet.sample_unseen),
        "convnext-imagenet": (convnext.sample, convnext.sample_unseen),
        "convmixer": (mixers.sample_convmixer, mixers.sample_unseen_convmixer),
        "vit": (vit.sample, vit.sample_unseen),
        "mixer-imagenet": (mixers.sample, mixers.sample_unseen),
    }
)
"""Family -> what draws a network of it that training may see, and one that training never sees."""

REFERENCES: Mapping[str, Specification] = MappingProxyType(
    {
        "resnet18 / 2": residual.resnet18(32),
        "resnet18": residual.resnet18(64),
        "resnet50 / 2": residual.resnet50(32),
        "resnet18, CIFAR stem / 2": residual.resnet18(32, "cifar"),
        "vgg11_bn / 2": vgg.VGG(vgg.TABLE_1[11], tuple(width // 2 for width in vgg.PAPER_WIDTHS)),
        "densenet121 / 2": densenet.DenseNet(densenet.DENSENET_121, 16, 32),
        "mobilenet_v2": mobilenet.MobileNetV2(32, 2, mobilenet.V2, 1280),
        "convnext_tiny / 2": convnext.ConvNeXt(convnext.TINY, (48, 96, 192, 384)),
        "vit of 12 blocks": vit.ViT(12, 192, 3, 8),
    }
)
"""Networks that everyone knows and training never sees, "/ 2" at half their width: for validation."""

FULL_SIZE: Mapping[str, Specification] = MappingProxyType(
    {
        "resnet50": residual.resnet50(64),
        "vgg11_bn": vgg.VGG(vgg.TABLE_1[11], vgg.PAPER_WIDTHS, grid=7, hidden=(4096, 4096), dropout=0.5),
        "densenet121": densenet.DenseNet(densenet.DENSENET_121, 32, 64),
        "convnext_tiny": convnext.ConvNeXt(convnext.TINY, (96, 192, 384, 768)),
    }
)
"""Those at torchvision's own width that :data:`REFERENCES` has at half of it; training never sees these."""
