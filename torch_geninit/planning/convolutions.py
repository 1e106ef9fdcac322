"""Which parameters of a model are weights of convolutions, layer by layer, and which only may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_geninit.generators.entry import Layer
from torch_geninit.parameters.named import ParameterRef

CONVOLUTIONS = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "conv_transpose": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


def convolutions(refs: Sequence[ParameterRef]) -> dict[int, Layer]:
    """Return the convolutions of a model by the id of the module, each with its place among them."""
    found: dict[int, tuple[str, tuple[int, ...], int]] = {}
    for ref in refs:
        if ref.attribute != "weight" or ref.derived or is_lazy(ref.parameter):
            continue
        op = _operation(ref.owner)
        # A traced layer does not say how it uses its weight.
        kernel_size = tuple(getattr(ref.owner, "kernel_size", ()))
        if op is not None and kernel_size and tuple(ref.parameter.shape[2:]) == kernel_size:
            found[id(ref.owner)] = (op, kernel_size, int(getattr(ref.owner, "groups", 1)))
    last = len(found) - 1
    return {
        owner: Layer(op, kernel, index / last if last else 0.5, index, groups)
        for index, (owner, (op, kernel, groups)) in enumerate(found.items())
    }


def may_be_one(ref: ParameterRef) -> str | None:
    """Say why a parameter that :func:`convolutions` does not list may be the weight of one, or None."""
    owner, name = ref.owner, ref.attribute.lower()
    shaped = not is_lazy(ref.parameter) and ref.parameter.dim() > 2
    if not shaped or ref.derived or not ("weight" in name or "kernel" in name):
        return None
    if isinstance(owner, torch.jit.ScriptModule):
        return f"in a traced or scripted {owner.original_name}: fill the model before that"
    if type(owner).forward is nn.Module.forward:
        return "in a module without forward, as torch.export makes them: fill the model before that"
    kind = type(owner).__name__
    if "conv" in kind.lower():
        return f"in a {kind}, which is no convolution of torch.nn or keeps its weight in another shape"
    return None


def _operation(module: nn.Module) -> str | None:
    for op, kinds in CONVOLUTIONS.items():
        if isinstance(module, kinds):
            return op
        if isinstance(module, torch.jit.ScriptModule):
            # What is scripted keeps the attributes of its class, and the name.
            if module.original_name in {kind.__name__ for kind in kinds}:
                return op
    return None
