"""The network that a config describes: built without values, and compared with the tensors of a file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_geninit._utils.interrupts import never_while_switching
from torch_geninit.errors import GeneratorFileError
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import Probe
from torch_geninit.hub.config import KINDS
from torch_geninit.hub.header import Header, TensorInfo

INTEGERS = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes of integers, and their names in a header."""
FLOATS = ("F32", "F16", "BF16")


class _Outline(TorchFunctionMode):
    """Build a network's tensors without values, and stop if they are far more than the file holds.

    Initialisers are skipped: the values come from the file, and to draw normal numbers on the meta device
    torch imports sympy, which takes longer than all the rest.
    """

    fills = {"normal_", "uniform_", "zero_", "fill_"} | {name for name in dir(nn.init) if name.endswith("_")}

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("the sizes describe a network with far more parameters than the file holds")
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.fills:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(path: Path, config: dict[str, Any], tensors: int) -> WeightGenerator:
    module, name = KINDS[config["kind"]]
    cls: type[WeightGenerator] = getattr(importlib.import_module(module), name)
    check = getattr(cls, "check_config", None)
    try:
        if check is not None:
            check(config)
        # A layer makes some five calls for each of its tensors. The outline is asked when initialisers switch
        # autograd off and on, too, and may stop there: no_grad around it puts the caller's mode back.
        with never_while_switching(), torch.no_grad(), torch.device("meta"), _Outline(1_000 + 100 * tensors):
            return cls(config)
    except MemoryError:
        raise
    except Exception as error:
        raise GeneratorFileError(
            f"{path} can't be used: its config's sizes or other entries don't make a {config['kind']} "
            f"generator ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def compare(path: Path, config: dict[str, Any], header: Header, generator: WeightGenerator) -> bool:
    """Check that the tensors are the generator's, and return whether there is a probe besides."""
    expected = generator.state_dict()
    probe = {n: (i.dtype, i.shape) for n, i in header.tensors.items() if n.startswith("probe.")}
    try:
        Probe.check_header(config, probe)
    except ValueError as error:
        raise GeneratorFileError(f"{path} can't be used: {error}") from error
    found = {name: info for name, info in header.tensors.items() if name not in probe}
    problems = [f"missing tensor {name!r}" for name in expected if name not in found]
    problems += [f"unexpected tensor {name[:100]!r}" for name in found if name not in expected]
    for name, tensor in expected.items():
        info = found.get(name)
        if info is not None and (problem := _mismatch(tensor, info)):
            problems.append(f"tensor {name!r}: {problem}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GeneratorFileError(
            f"{path} can't be used: its tensors are not those of the {config['kind']} generator that its "
            f"config describes: {'; '.join(problems[:5])}{more}. The file was changed, or comes from another "
            "version of torch-geninit: export it again."
        )
    stored = {id(tensor) for tensor in generator.state_dict(keep_vars=True).values()}
    for module in generator.modules():
        held = [*module.buffers(recurse=False), *(v for v in vars(module).values() if isinstance(v, Tensor))]
        if any(tensor.is_meta and id(tensor) not in stored for tensor in held):
            raise TypeError(
                f"{type(module).__name__} holds a tensor that is not in its state dict, so no file can "
                "restore it: register it as a persistent buffer, or compute it where it is used"
            )
    return bool(probe)


def _mismatch(tensor: Tensor, info: TensorInfo) -> str | None:
    if tuple(tensor.shape) != info.shape:
        return f"expected shape {tuple(tensor.shape)}, got {info.shape}"
    wanted: tuple[str, ...]
    if tensor.is_floating_point():
        wanted = FLOATS
    else:
        wanted = (INTEGERS.get(tensor.dtype, str(tensor.dtype)),)
    return None if info.dtype in wanted else f"expected dtype {' or '.join(wanted)}, got {info.dtype}"
