"""bfloat16 autocast, and whether the processor is fast at it."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""What torch calls instructions that multiply bfloat16, on x86 and ARM."""


def bfloat16_if(wanted: bool, device: str) -> AbstractContextManager[object]:
    """Return autocast to bfloat16, or a context that changes nothing.

    Args:
        wanted: whether to autocast.
        device: its type, ``"cpu"`` or ``"cuda"``.

    Warns:
        UserWarning: once a process, if it is wanted of a processor without instructions for bfloat16.

    Example:
        >>> with bfloat16_if(False, "cpu"):
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.float32
    """
    if not wanted:
        return nullcontext()
    if device == "cpu":
        _warn_if_slow()
    return torch.autocast(device, torch.bfloat16)


@cache
def _warn_if_slow() -> None:
    if not multiplies_bfloat16():
        warnings.warn(
            "without instructions for bfloat16, as here, --amp is slower than float32: leave --amp out",
            stacklevel=3,
        )


def multiplies_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16; where torch can't tell, yes.

    ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` answers another question: it is true of AVX512 without such
    instructions, where oneDNN imitates them at a loss.
    """
    # Came to torch in February 2026, about when 2.11 was cut.
    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in INSTRUCTIONS)
