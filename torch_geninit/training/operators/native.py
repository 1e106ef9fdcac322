"""The compiled kernels: built by the machine's C++ compiler on first use, optional."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")


@cache
def kernels() -> ctypes.CDLL | None:
    """Load the kernels, built in the user's cache for this compiler and processor; None if that can't be."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"training goes on without compiled kernels, slower: {reason}", stacklevel=2)
        return None


def build(compiler: str) -> Path:
    """Compile the kernels, unless they are in the cache."""
    # The macros that a compiler predefines tell its version and what the processor can do.
    macros = subprocess.run(
        [compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull], check=True, capture_output=True, text=True
    ).stdout
    digest = blake2b(SOURCE.read_bytes() + macros.encode(), digest_size=8).hexdigest()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_home / "torch_geninit"
    built = folder / f"kernels-{digest}.so"
    if not built.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Renamed when complete: several processes may build at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / built.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            target.replace(built)
    return built


def takes(*images: Tensor) -> bool:
    """Tell whether the kernels compute on these: bfloat16 in channels_last order, one CPU thread."""
    return (
        all(
            x.dtype == torch.bfloat16
            and x.device.type == "cpu"
            and x.is_contiguous(memory_format=torch.channels_last)
            for x in images
        )
        and torch.get_num_threads() == 1
        and kernels() is not None
    )


def call(kernel: str, *arguments: Tensor | bool | int | float | ctypes.Structure | None) -> None:
    """Call a kernel on what :func:`takes` said yes to; None stands for a tensor that there isn't."""
    getattr(kernels(), kernel)(*map(_passed, arguments))


def _passed(argument: Tensor | bool | int | float | ctypes.Structure | None) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, bool):
        return ctypes.c_bool(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return argument if argument is None else ctypes.byref(argument)
