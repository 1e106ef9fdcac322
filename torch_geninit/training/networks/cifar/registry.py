"""All well-known networks for 32x32 images by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch_geninit.training.networks.cifar import (
    attention,
    joined,
    mixers,
    mobile,
    plain,
    residual_relatives,
    resnets,
    separable,
    transformers,
)
from torch_geninit.training.networks.cifar.published import Published

_KINDS = (
    plain,
    resnets,
    residual_relatives,
    attention,
    joined,
    mobile,
    separable,
    transformers,
    mixers,
)

CIFAR_NETWORKS: Mapping[str, Published] = MappingProxyType(
    {name: network for kind in _KINDS for name, network in kind.NETWORKS.items()}
)
"""Name -> network. For evaluation only: no generator is trained on these."""
