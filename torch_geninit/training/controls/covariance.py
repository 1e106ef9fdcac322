"""Depthwise filters with a covariance in closed form (Trockman, Willmott and Kolter 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SCHEDULE = (0.5, 0.0, 3.0)
"""Window width, its velocity and acceleration over relative depth: from half a pixel to two pixels."""


@torch.no_grad()
def covariance_(
    model: nn.Module,
    *,
    generator: torch.Generator,
    schedule: tuple[float, float, float] = SCHEDULE,
    gain: float = 2.0,
) -> nn.Module:
    r"""Draw each filter of the depthwise convolutions at once, neighbouring positions alike.

    .. math:: w \sim N(0, \Sigma_\sigma), \qquad
        \sigma(d) = \sigma_0 + v\, d + \tfrac{1}{2} a\, d^2

    d is the layer's place among the depthwise convolutions, 0 for the first and 1 for the last; for
    :math:`\Sigma_\sigma` see :func:`filter_covariance`. Filters of 1x1, biases and all other layers stay as
    they are.

    The paper tunes the schedule's three constants for each network. Here they are the same for all. The
    window grows from a pixel's width to that of a 7x7 filter, as filters of trained networks do by the paper.

    Args:
        model: a network with depthwise convolutions, changed in place.
        generator: of the draws.
        schedule: sigma_0, v and a, in pixels.
        gain: sum of a filter's variances; 2 is that of He initialisation.

    Raises:
        ValueError: if the network has no depthwise convolution larger than 1x1, one has filters of other than
            two dimensions, or the schedule is not positive everywhere.

    Source: A. Trockman, D. Willmott and J. Z. Kolter, Understanding the Covariance Structure of Convolutional
    Filters, ICLR 2023, arXiv 2210.03651. The authors' repository is empty, so the closed form could not
    be held against their code. The scale and the constants are ours.

    Example::

        >>> import torch
        >>> model = torch.nn.Conv2d(64, 64, 7, groups=64)
        >>> filters = covariance_(model, generator=torch.Generator().manual_seed(0)).weight
        >>> bool(filters[:, 0, 3, 3].std() > filters[:, 0, 0, 0].std())
        True
    """
    layers = depthwise(model)
    widths = [_at(place / max(len(layers) - 1, 1), schedule) for place in range(len(layers))]
    if not min(widths) > 0:
        raise ValueError(f"schedule {schedule}: expected positive widths at every depth, got {min(widths):g}")
    for layer, sigma in zip(layers.values(), widths, strict=True):
        rows, columns = layer.weight.shape[2:]
        covariance = filter_covariance(rows, columns, sigma)
        root = _root(covariance * (gain / covariance.trace()))
        drawn = torch.randn(len(layer.weight), rows * columns, generator=generator, dtype=root.dtype) @ root
        layer.weight.copy_(drawn.view_as(layer.weight))
    return model


def depthwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the depthwise convolutions larger than 1x1 by name, in the order of the modules.

    Raises:
        ValueError: if there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and module.weight[0, 0].numel() > 1
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__}: expected depthwise convolutions larger than 1x1, got none. This "
            "control is for networks such as MobileNet, ConvNeXt and ConvMixer"
        )
    return found


def filter_covariance(rows: int, columns: int, sigma: float) -> Tensor:
    r"""Return the covariance (rows * columns, rows * columns) of the positions of a filter, in float64.

    With offsets p and q from the filter's centre and :math:`g(x) = \exp(-|x|^2 / 2 \sigma^2)`:

    .. math:: \Sigma_{pq} = g(p)\, g(q) \left( g(p - q) - \tfrac{1}{2} g(p)\, g(q) \right)

    The first factors make the filter's border small; g(p - q) makes neighbours alike; the subtracted half
    sets centre against surround. It is positive semidefinite: g(p - q) is a Gaussian kernel, and g(p) g(q)
    is the part of it that its own column of the centre explains, so at most all of it could be subtracted.
    """
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2,
        torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2,
        indexing="ij",
    )
    offsets = torch.stack([y.flatten(), x.flatten()], 1)
    taper = (-offsets.square().sum(1) / (2 * sigma**2)).exp()
    near = (-torch.cdist(offsets, offsets).square() / (2 * sigma**2)).exp()
    window = torch.outer(taper, taper)
    return window * (near - window / 2)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _at(depth: float, schedule: tuple[float, float, float]) -> float:
    start, velocity, acceleration = schedule
    return start + velocity * depth + acceleration * depth**2 / 2
