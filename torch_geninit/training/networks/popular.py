"""The space of what people build beside ResNets: its families and how each is drawn."""

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
    shufflenet,
    vgg,
    vit,
)
from torch_geninit.training.networks.specification import Specification

Sampler = Callable[[random.Random], Specification]

SAMPLERS: Mapping[str, tuple[Sampler, Sampler]] = MappingProxyType(
    {
        "vgg": (vgg.sample, vgg.sample_unseen),
        "densenet": (densenet.sample, densenet.sample_unseen),
        "googlenet": (googlenet.sample, googlenet.sample_unseen),
        "mobilenet": (mobilenet.sample, mobilenet.sample_unseen),
        "efficientnet": (efficientnet.sample, efficientnet.sample_unseen),
        "shufflenet": (shufflenet.sample, shufflenet.sample_unseen),
        "convnext": (convnext.sample, convnext.sample_unseen),
        "convmixer": (mixers.sample_convmixer, mixers.sample_unseen_convmixer),
        "vit": (vit.sample, vit.sample_unseen),
        "mixer": (mixers.sample, mixers.sample_unseen),
    }
)
"""Family -> what draws a network of it that training may see, and one that training never sees."""
