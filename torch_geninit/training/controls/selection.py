"""Weight selection from a larger trained network (Xu et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def select_(model: nn.Module, source: Mapping[str, Tensor], *, exclude: Collection[str] = ()) -> nn.Module:
    r"""Give each tensor of ``model`` evenly spaced elements of the larger one of the same name.

    In a dimension with n of the source's m elements, element i is

    .. math:: w_i = s_{i m / n} \text{ if n divides m, else } s_{\operatorname{round}(i (m - 1) / (n - 1))}

    Names choose the layers: of a deeper source, the first ones of each stage, as the paper does. Buffers,
    BatchNorm's statistics among them, are selected too. Nothing is drawn.

    Args:
        model: a network of the source's kind, changed in place, or not at all on an error.
        source: state dict of a trained network that is nowhere smaller.
        exclude: names to leave as they are, a classifier's.

    Raises:
        ValueError: if the source lacks a tensor, or has one of other dimensions or smaller.

    Source: Z. Xu et al., Initializing Models with Larger Ones, ICLR 2024, arXiv 2311.18823.

    Example::

        >>> import torch
        >>> small, large = torch.nn.Linear(2, 2), torch.nn.Linear(4, 4)
        >>> small = select_(small, large.state_dict())
        >>> torch.equal(small.weight, large.weight[::2, ::2])
        True
    """
    wanted = {name: value for name, value in model.state_dict().items() if name not in exclude}
    chosen = {}
    for name, value in wanted.items():
        if name not in source:
            raise ValueError(
                f"{name}: expected a larger network of the same kind, got one without a tensor of that name"
            )
        if source[name].dim() != value.dim() or any(
            m < n for m, n in zip(source[name].shape, value.shape, strict=True)
        ):
            raise ValueError(
                f"{name}: expected a tensor nowhere smaller than {tuple(value.shape)} in the larger network, "
                f"got {tuple(source[name].shape)}"
            )
        chosen[name] = evenly_spaced(source[name], value.shape)
    for name, value in wanted.items():
        value.copy_(chosen[name])
    return model


def evenly_spaced(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return as many evenly spaced elements of each dimension as ``shape`` says."""
    for dimension, (count, size) in enumerate(zip(shape, tensor.shape, strict=True)):
        if size % count == 0:
            index = torch.arange(count) * (size // count)
        else:
            index = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long()
        tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor
