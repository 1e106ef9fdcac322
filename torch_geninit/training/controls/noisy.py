"""A trained network with noise: what a generator that only remembers would give."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def noisy_(
    model: nn.Module,
    checkpoint: Mapping[str, Tensor],
    share: float,
    *,
    generator: torch.Generator,
    exclude: Collection[str] = (),
) -> nn.Module:
    r"""Load ``checkpoint``, then add noise to its weights, in proportion to each one's standard deviation.

    .. math:: w = c + s\, \operatorname{std}(c)\, z, \qquad z_i \sim N(0, 1)

    for every parameter of more than one dimension; scales, biases and buffers are those of the checkpoint.

    Args:
        model: a network of the checkpoint's own architecture, changed in place, or not at all on an error.
        checkpoint: its state dict.
        share: s, from 0 up.
        generator: of the noise.
        exclude: names to leave as they are, a classifier's.

    Raises:
        ValueError: if the checkpoint is of another architecture, or the share is negative.

    Source: Zeng et al. 2025, arXiv 2506.07998, who found generators of weights no better than this.

    Example::

        >>> import torch
        >>> layer, trained = torch.nn.Linear(40, 50), torch.nn.Linear(40, 50)
        >>> layer = noisy_(layer, trained.state_dict(), 0.1, generator=torch.Generator().manual_seed(0))
        >>> round(((layer.weight - trained.weight).std() / trained.weight.std()).item(), 1)
        0.1
    """
    if not share >= 0:
        raise ValueError(f"share: expected a number from 0 up, got {share!r}")
    wanted = {name: value for name, value in model.state_dict().items() if name not in exclude}
    for name, value in wanted.items():
        if name not in checkpoint or checkpoint[name].shape != value.shape:
            got = tuple(checkpoint[name].shape) if name in checkpoint else "none of that name"
            raise ValueError(
                f"{name}: expected a checkpoint of this architecture, {tuple(value.shape)}, got {got}"
            )
    parameters = {name for name, value in model.named_parameters() if value.dim() > 1}
    for name, value in wanted.items():
        value.copy_(checkpoint[name])
        if name in parameters:
            drawn = torch.randn(value.shape, generator=generator)
            value.add_(share * value.std() * drawn.to(value))
    return model
