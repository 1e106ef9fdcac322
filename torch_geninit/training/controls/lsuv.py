"""Layer-sequential unit-variance initialisation (Mishkin and Matas 2016)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@torch.no_grad()
def lsuv_(
    model: nn.Module, images: Tensor, *, generator: torch.Generator, exclude: Collection[str] = ()
) -> nn.Module:
    r"""Draw orthonormal weights, then scale layer after layer until its outputs have unit variance.

    .. math:: W \leftarrow W \big/ \sqrt{\operatorname{Var}(W x)}

    over all images, positions and channels, in the order in which the layers first run: each sees the outputs
    of those before it, scaled already. Biases become 0. The paper repeats this until the variance is near
    enough to 1. Without biases the first scaling is exact, so one forward pass does for all layers.

    BatchNorms use the statistics of ``images`` and keep their own; dropout is off.

    Args:
        model: a network of convolutions and linear layers, changed in place, or not at all on an error.
        images: what it reads, (N, channels, H, W), normalised.
        generator: of the orthonormal matrices.
        exclude: names of layers to leave as they are, a classifier's.

    Raises:
        ValueError: if a layer is run by other code than its own (``nn.MultiheadAttention`` does so), has
            outputs that don't vary, or there is no layer.

    Source: D. Mishkin and J. Matas, All you need is a good init, ICLR 2016, arXiv 1511.06422.

    Example::

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> images = torch.randn(16, 3, 9, 9)
        >>> model = lsuv_(model, images, generator=torch.Generator().manual_seed(0))
        >>> round(model(images).var().item(), 3)
        1.0
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Layer) and n not in exclude}
    if not layers:
        raise ValueError(f"{type(model).__name__}: expected convolutions or linear layers, got none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for layer in layers.values():
            nn.init.orthogonal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        _scale_(model, images, layers)
    except BaseException:
        model.load_state_dict(before)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, value in model.named_buffers():
            if name in before:
                value.copy_(before[name])
    return model


def _scale_(model: nn.Module, images: Tensor, layers: Mapping[str, Layer]) -> None:
    """Scale every layer when it first runs, and its outputs with it."""
    scaled: set[str] = set()

    def scale(name: str, layer: Layer, outputs: Tensor) -> Tensor:
        if name in scaled:
            return outputs
        scaled.add(name)
        variance = outputs.var().item()
        if not 0 < variance < math.inf:
            raise ValueError(f"{name}: expected outputs that vary, got variance {variance:g}")
        layer.weight.div_(variance**0.5)
        return outputs / variance**0.5

    hooks = [
        layer.register_forward_hook(lambda layer, _, outputs, name=name: scale(name, layer, outputs))
        for name, layer in layers.items()
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if idle := layers.keys() - scaled:
        raise ValueError(
            f"{', '.join(sorted(idle))}: expected layers that run by themselves, got some that other code "
            "reads. LSUV can't serve them; exclude them"
        )
