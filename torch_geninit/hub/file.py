"""Generator files: one safetensors file whose header carries a JSON config, read without believing either."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from torch_geninit._utils import strict_json
from torch_geninit._utils.checks import expect
from torch_geninit._utils.interrupts import never_while_switching
from torch_geninit._utils.surroundings import undisturbed
from torch_geninit.errors import GeneratorFileError
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import CLASSES, IMAGES, LABELS, Probe
from torch_geninit.hub.config import FORMAT_VERSION, check_config
from torch_geninit.hub.header import Header, HeaderError, TensorInfo, read_header
from torch_geninit.hub.skeleton import INTEGERS, build, compare

METADATA_KEY = "torch_geninit"
MAX_FILE_BYTES = 8 << 30

_PIECE = 1 << 22
_CONVERT = "python -m torch_geninit.convert {} TARGET.safetensors"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = {**_FLOATS, **{name: dtype for dtype, name in INTEGERS.items()}}


@undisturbed()
def read(path: str | os.PathLike[str]) -> WeightGenerator:
    """Read a generator file and return the generator, in float32 on the CPU, in evaluation mode.

    Nothing in the file is executed, and nothing is allocated on the word of its header: the network is first
    built without storage from the config's sizes and compared with the tensors that are really there.

    Args:
        path: a .safetensors file written by :func:`write`.

    Raises:
        GeneratorFileError: if the file is missing, is no generator file, contradicts itself, asks for a newer
            torch-geninit, or holds values that are not finite.

    Examples:
        >>> from torch_geninit.hub import manifest
        >>> generator = read(manifest.SHIPPED / "vae-cifar10.safetensors")
    """
    path = Path(path)
    with _readable(path) as (file, header):
        config = _config(path, header)
        generator = build(path, config, len(header.tensors))
        probed = compare(path, config, header, generator)
        values = {}
        with never_while_switching(), torch.inference_mode(False), torch.no_grad():
            # straight into place, in the file's order: no more than one tensor is in memory twice
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
                values[name] = _tensor(file, info)
                if not finite(values[name]):
                    raise GeneratorFileError(
                        f"{path} can't be used: tensor {name!r} holds NaN or infinite values. The file is "
                        "damaged or its training diverged: get it again, or train again."
                    )
            # The ranges were checked against this length; the file may have changed since.
            if file.read(1):
                raise HeaderError("it changed while it was read")
            if probed:
                generator.probe = _probe(path, config, values)
            _assign(generator, values)
    return generator.eval().requires_grad_(False)


def _probe(path: Path, config: Mapping[str, Any], values: dict[str, Tensor]) -> Probe:
    """Take the probe out of ``values``."""
    probe = Probe(values.pop(IMAGES), values.pop(LABELS), tuple(config.get(CLASSES, ())))
    try:
        probe.check(len(config["classes"]))
    except ValueError as error:
        raise GeneratorFileError(f"{path} can't be used: {error}") from error
    return probe


def _assign(generator: WeightGenerator, values: Mapping[str, Tensor]) -> None:
    """Put tensors in the places of those without values.

    Straight into the modules' own dictionaries, since ``register_parameter`` may be somebody's who builds
    models without memory, and moves every parameter to the meta device.
    """
    for path, module in generator.named_modules():
        start = f"{path}." if path else ""
        for name in [n for n, parameter in module._parameters.items() if parameter is not None]:
            module._parameters[name] = nn.Parameter(values[start + name], requires_grad=False)
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            module._buffers[name] = values[start + name]


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite; asked in pieces, since it takes more memory than what is asked about."""
    if bool(torch.isfinite(tensor.sum())):  # a finite sum proves finite terms; an overflow proves nothing
        return True
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[i : i + _PIECE]).all()) for i in range(0, len(flat), _PIECE))


def _tensor(file: BinaryIO, info: TensorInfo) -> Tensor:
    """Read the next tensor of the file, as float32 if it is of real numbers."""
    dtype = _DTYPES[info.dtype]
    data = bytearray(info.end - info.begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise HeaderError("it changed while it was read")
    if not data:
        return torch.empty(info.shape, dtype=torch.float32 if dtype.is_floating_point else dtype)
    if sys.byteorder == "big":
        size = dtype.itemsize
        swapped = torch.frombuffer(data, dtype=torch.uint8).view(-1, size).flip(1).contiguous()
        tensor = swapped.view(-1).view(dtype)
    else:
        tensor = torch.frombuffer(data, dtype=dtype)
    tensor = tensor.view(info.shape)
    return tensor.float() if dtype.is_floating_point else tensor


def write(
    generator: WeightGenerator, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16
) -> None:
    """Write ``generator`` to ``path`` so that :func:`read` gives it back; equal generators give equal bytes.

    Args:
        generator: its ``config`` goes into the header; its state dict and its probe are the content.
        path: replaced atomically if it exists.
        dtype: of floating-point tensors in the file.

    Raises:
        ValueError: if the config is incomplete, a value is not finite in ``dtype``, or the probe not valid.
    """
    config = {**generator.config, "format_version": FORMAT_VERSION}
    check_config(config)
    tensors = {}
    if generator.probe is not None:
        generator.probe.check(len(config["classes"]))
        own = list(generator.probe.classes) or None
        expect(
            config.get(CLASSES) == own, f"the config's {CLASSES}", f"the probe's, {own}", config.get(CLASSES)
        )
        tensors = {IMAGES: generator.probe.images.contiguous(), LABELS: generator.probe.labels.contiguous()}
    Probe.check_header(
        config, {name: (INTEGERS.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}
    )
    for name, tensor in generator.state_dict().items():
        stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        if not torch.isfinite(stored).all():
            raise ValueError(
                f"tensor {name!r} is not finite as {dtype}; train again, or write with dtype=torch.float32 "
                "if only the range is too small"
            )
        tensors[name] = stored.contiguous()
    metadata = {METADATA_KEY: json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)}
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_bytes(safetensors.torch.save(tensors, metadata))
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the checked config of a generator file without reading its tensors.

    Raises:
        GeneratorFileError: as :func:`read`, for what the header alone can show.
    """
    path = Path(path)
    with _readable(path) as (_, header):
        return _config(path, header)


@undisturbed()
def outline(path: str | os.PathLike[str]) -> WeightGenerator:
    """Return the generator of a file without its values, on the meta device: enough to plan with.

    Raises:
        GeneratorFileError: as :func:`read`, for what the header alone can show.
    """
    path = Path(path)
    with _readable(path) as (_, header):
        config = _config(path, header)
        generator = build(path, config, len(header.tensors))
        compare(path, config, header, generator)
    return generator.eval().requires_grad_(False)


@contextmanager
def _readable(path: Path) -> Iterator[tuple[BinaryIO, Header]]:
    try:
        with _open(path) as file:
            yield file, read_header(file, os.fstat(file.fileno()).st_size)
    except (HeaderError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        remedy = "if it was downloaded or copied, get it again"
        if "pickle" in reason:
            remedy = f"a published GHN has to be converted: {_CONVERT.format(path.name)}"
        raise GeneratorFileError(
            f"{path} can't be read as a generator: {reason}. Expected a .safetensors file as "
            f"torch_geninit.training exports; {remedy}."
        ) from error


def _open(path: Path) -> BinaryIO:
    # Before open(), which would wait for ever on a named pipe.
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise HeaderError(f"no file can have that name ({error})") from error
    if stat.S_ISDIR(mode):
        inside = sorted(child.name for child in path.glob("*.safetensors"))[:3]
        found = f"; it holds {', '.join(inside)}: name the file" if inside else ""
        raise HeaderError(f"it is a directory{found}")
    if not stat.S_ISREG(mode):
        raise HeaderError("it is not a regular file")
    file = open(path, "rb")
    if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
        file.close()
        raise HeaderError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return file


def _config(path: Path, header: Header) -> dict[str, Any]:
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        raise GeneratorFileError(
            f"{path} is a safetensors file but no generator: its header has no {METADATA_KEY!r} config. "
            "To load plain weights into a model, use safetensors.torch.load_model; to convert a published "
            f"GHN, {_CONVERT.format(path.name)}."
        )
    try:
        config = strict_json.parse(text)
        check_config(config)
    except ValueError as error:
        raise GeneratorFileError(f"{path} can't be used: {error}") from error
    return cast("dict[str, Any]", config)
