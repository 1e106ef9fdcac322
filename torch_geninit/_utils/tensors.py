"""What can be told of a tensor without touching its values."""

from __future__ import annotations

from torch import Tensor


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor was made under a ``FakeTensorMode``; to import its class takes long."""
    kind = type(tensor)
    return kind.__name__ == "FakeTensor" and kind.__module__.startswith("torch._subclasses.")


def has_no_values(tensor: Tensor) -> bool:
    """Whether a tensor has a shape only: on the meta device, or fake."""
    return tensor.is_meta or is_fake(tensor)


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether some elements of a strided tensor lie in the same place, as in an expanded view."""
    if not tensor.numel():
        return False
    extents = sorted(
        (stride, extent) for stride, extent in zip(tensor.stride(), tensor.shape, strict=True) if extent > 1
    )
    reach, nested = 0, True
    for stride, extent in extents:
        nested = nested and stride > reach
        reach += stride * (extent - 1)
    if nested:
        return False
    if reach + 1 < tensor.numel():
        return True
    offsets = {0}
    for stride, extent in extents:
        offsets = {offset + stride * index for offset in offsets for index in range(extent)}
    return len(offsets) < tensor.numel()
