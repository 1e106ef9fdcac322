"""Layer-sequential unit-variance initialisation (Mishkin and Matas 2016)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
TOLERANCE = 0.1
MOST_TRIALS = 10
"""The paper's tolerance of the variance, and how often a layer is scaled at most."""


@torch.no_grad()
def lsuv_(
    model: nn.Module,
    images: Tensor,
    *,
    generator: torch.Generator,
    exclude: Collection[str] = (),
    tolerance: float = TOLERANCE,
    most_trials: int = MOST_TRIALS,
) -> nn.Module:
    r"""Draw orthonormal weights, then scale layer after layer until its outputs have unit variance.

    .. math:: W \leftarrow W \big/ \sqrt{\operatorname{Var}(W x + b)}
        \quad\text{until}\quad |\operatorname{Var}(W x + b) - 1| < \text{tolerance}

    over all images, positions and channels, in the order in which the layers first run: each sees the outputs
    of those before it, scaled already. Biases become 0. BatchNorms use the statistics of ``images`` and keep
    their own; dropout is off.

    Args:
        model: a network of convolutions and linear layers, changed in place, or not at all on an error.
        images: what it reads, (N, channels, H, W), normalised.
        generator: of the orthonormal matrices.
        exclude: names of layers to leave as they are, a classifier's.
        tolerance: of the variance.
        most_trials: how often a layer is scaled at most.

    Raises:
        ValueError: if a layer is run by other code than its own (``nn.MultiheadAttention`` does so), has
            outputs that don't vary, is lazy, or there is no layer.

    Source: D. Mishkin and J. Matas, All you need is a good init, ICLR 2016, arXiv 1511.06422.

    Example::

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> images = torch.randn(16, 3, 9, 9)
        >>> model = lsuv_(model, images, generator=torch.Generator().manual_seed(0))
        >>> bool((model(images).var() - 1).abs() < 0.1)
        True
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Layer) and n not in exclude}
    if not layers:
        raise ValueError(f"{type(model).__name__}: expected convolutions or linear layers, got none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
        order = _order(model, images, layers)
        for name in order:
            nn.init.orthogonal_(layers[name].weight, generator=generator)
            if (bias := layers[name].bias) is not None:
                nn.init.zeros_(bias)
        for name in order:
            _scale_(model, images, name, layers[name], tolerance, most_trials)
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


def _order(model: nn.Module, images: Tensor, layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of the layers in the order in which they first run."""
    order: dict[str, None] = {}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: order.update({name: None}))
        for name, layer in layers.items()
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if idle := layers.keys() - order.keys():
        raise ValueError(
            f"{', '.join(sorted(idle))}: expected layers that run by themselves, got some that other code "
            "reads. LSUV can't serve them; exclude them"
        )
    return list(order)


class _Seen(Exception):  # no error: it ends a forward pass whose rest is not needed
    """Carries a layer's outputs out of a forward pass."""

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs


def _scale_(
    model: nn.Module, images: Tensor, name: str, layer: Layer, tolerance: float, most_trials: int
) -> None:
    def seen(_: nn.Module, __: object, outputs: Tensor) -> None:
        raise _Seen(outputs)

    for _ in range(most_trials):
        hook = layer.register_forward_hook(seen)
        try:
            model(images)
        except _Seen as found:
            variance = found.outputs.float().var().item()
        finally:
            hook.remove()
        if not 0 < variance < float("inf"):
            raise ValueError(f"{name}: expected outputs that vary, got variance {variance:g}")
        if abs(variance - 1) < tolerance:
            return
        layer.weight.div_(variance**0.5)
