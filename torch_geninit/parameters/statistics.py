"""Which running statistics of a live module get those of the probe."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from torch_geninit._utils.modules import named_modules
from torch_geninit.parameters.named import canonical_module
from torch_geninit.parameters.targets import Targets


def buffers_to_fill(
    module: nn.Module, prefix: str, measured: Mapping[str, Tensor], targets: Targets
) -> list[tuple[Tensor, Tensor]]:
    """Return each buffer of a BatchNorm that was measured, with its new value.

    A layer none of whose own parameters is filled keeps its statistics: it is frozen, or was left out.

    Args:
        module: the planned model, or the part of it at ``prefix``.
        prefix: name of the part.
        measured: canonical name -> value.
        targets: which parameters are filled.
    """
    if not measured or not targets.filled:
        return []
    written = {id(parameter) for parameter in targets.written()}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for path, part in named_modules(module):
        own = [parameter for parameter in part._parameters.values() if parameter is not None]
        if own and written.isdisjoint(map(id, own)):
            continue
        name = canonical_module(".".join(filter(None, (prefix, path))))
        for attribute, buffer in part.named_buffers(recurse=False):
            value = measured.get(f"{name}.{attribute}".lstrip("."))
            if value is not None and not buffer.is_meta and buffer.shape == value.shape:
                found[id(buffer)] = buffer, value
    return list(found.values())
