"""Turn the published checkpoints of GHN-1, GHN-2 and GHN-3 into generator files::

    python -m torch_geninit.convert SOURCE TARGET.safetensors

SOURCE is a file, or ``repo_id:filename@revision`` on the Hub. This is the one place that reads pickles, and
no verb imports it: torch files with ``weights_only=True`` after an inspection, joblib files by a reader that
knows tensors and plain containers and nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from torch_geninit import restricted_pickle as pickles
from torch_geninit.generators.card import FORMAT_VERSION, check_card
from torch_geninit.generators.file import METADATA_KEY
from torch_geninit.generators.published import PublishedGHN
from torch_geninit.graph.vocabulary import VERSION

_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:@]+)@(?P<revision>[\w./-]+)")
_TOP_LEVEL = re.compile(r"(centrality_embed_in|centrality_embed_out|input_dist_embed)\.")


class ConversionError(ValueError):
    """A checkpoint that can't be converted; the message says what is wrong with it and what to do."""


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, licence: str | None = None
) -> PublishedGHN:
    """Convert a published checkpoint and return the generator.

    Args:
        source: a file, or ``repo_id:filename@revision`` on the Hub. Read are state dicts and ``{config,
        state_dict}``
            dicts, saved by torch or joblib (uncompressed) or as safetensors (the config as JSON in its
            metadata).
        target: .safetensors file to write.
        licence: of the weights, recorded in the file.

    Raises:
        ConversionError: if the file holds anything else, or is no checkpoint of a GHN.
        HubError: if it can't be downloaded.

    Example:
        >>> convert("ghn2_cifar10.pt", "ghn2.safetensors")  # doctest: +SKIP
    """
    path = _local(os.fspath(source))
    state, config = _read(path)
    generator = build(state, config, source=str(source), licence=licence)
    _write(generator, Path(target))
    return generator


# --- reading ------------------------------------------------------------------------------------------------


def _local(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    match = _ON_HUB.fullmatch(source)
    if match is None:
        raise ConversionError(
            f"{source!r} is neither a file nor repo_id:filename@revision "
            "(as 'someone/some-repo:ghn.pt@0123abc'); check the path"
        )
    from torch_geninit.download import Source, fetch

    return fetch(Source(match["repo"], match["revision"], match["file"]))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            if start.startswith(b"PK"):
                return _split(_read_zip(path), path.stat().st_size)
            if start.startswith(b"\x80"):
                return _split(_read_pickle(file), path.stat().st_size)
        if start[8:9] == b"{":
            return _read_safetensors(path)
        raise pickles.RefusedPickle(
            "neither a torch file, an uncompressed joblib file nor a safetensors file"
        )
    except (pickles.RefusedPickle, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise ConversionError(
            f"{path} was not converted: it holds {error}. Expected a checkpoint of tensors, numbers, strings "
            "and plain containers; nothing of the file was run. Get the file again from its authors, or have "
            "them save a state dict"
        ) from error


def _read_pickle(file: Any) -> Any:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    first = pickles.parse(mapped, nested=True)  # type: ignore[arg-type]
    return pickles.parse_legacy(memoryview(mapped)) if first == pickles.MAGIC else first


def _read_zip(path: Path) -> Any:
    """Inspect a torch archive, then load it; compressed or overlapping entries could unpack to any size."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        total = sum(entry.file_size for entry in entries.values())
        if total > size or any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
            raise pickles.RefusedPickle("compressed or overlapping entries, which torch.save never writes")
        name = next((n for n in entries if n.count("/") == 1 and n.endswith("/data.pkl")), None)
        if name is None:
            raise pickles.RefusedPickle("a zip archive that torch.save did not write")
        folder = name.removesuffix("data.pkl")

        def persistent(identity: Any) -> pickles.Storage:
            key, storage = pickles.storage_of(identity)
            entry = entries.get(f"{folder}data/{key}")
            if entry is None or entry.file_size != storage.nbytes:
                raise pickles.RefusedPickle("a storage of another size than its entry")
            return storage

        with archive.open(name) as stream:
            # the whole entry at once: it is stored, hence no larger than the file
            pickle = stream.read()
    pickles.parse(io.BytesIO(pickle), persistent=persistent)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251
    except Exception as error:  # torch's own restricted reader raises what it likes
        raise pickles.RefusedPickle(f"something that torch refuses ({str(error)[:200]})") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise pickles.RefusedPickle("a config that is no JSON") from error
    return safetensors.torch.load_file(path), config if isinstance(config, dict) else {}


def _split(content: Any, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(content, Mapping):
        raise pickles.RefusedPickle(f"a {type(content).__name__}, no dict of tensors")
    config = content.get("config")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise pickles.RefusedPickle("a state_dict that is no dict")
    if all(isinstance(value, Tensor) for value in state.values()):
        return dict(state), dict(config) if isinstance(config, Mapping) else {}
    return pickles.tensors(state, size), dict(config) if isinstance(config, Mapping) else {}


# --- building -----------------------------------------------------------------------------------------------


def build(
    state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str = "", licence: str | None = None
) -> PublishedGHN:
    """Return the generator of a state dict with the originals' names; ``config`` may be empty.

    Raises:
        ConversionError: names what is missing, left over or of another shape.
    """
    renamed = {_renamed(name): value for name, value in state.items()}
    # 1 x 1 convolutions in GHN-2, linear layers in GHN-3
    values = {n: v.flatten(1) if v.ndim == 4 and v.shape[2:] == (1, 1) else v for n, v in renamed.items()}
    for option, supported in (("hypernet", "gatedgnn"), ("decoder", "conv")):
        if config.get(option, supported) != supported:
            raise ConversionError(
                f"the checkpoint's {option} is not {supported!r}; only that is supported, which all of "
                "GHN-1, GHN-2 and GHN-3 have"
            )
    card = _card(values, config, source, licence)
    with torch.device("meta"):
        generator = PublishedGHN(card)
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in values.items()}
    wrong = [name for name in (*expected, *found) if expected.get(name) != found.get(name)]
    if wrong:
        first = wrong[0]
        raise ConversionError(
            f"the checkpoint is not of the GHN that its tensors make it look like: {len(wrong)} of them "
            f"differ, the first is {first!r}: expected {expected.get(first)}, got {found.get(first)}. "
            "Check that it is the checkpoint of a hypernetwork, not of a network made by one"
        )
    loaded = {name: values[name].detach().to(torch.float32).contiguous() for name in expected}
    for name, tensor in loaded.items():
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"tensor {name!r} holds NaN or infinite values: the checkpoint is damaged")
    generator.load_state_dict(loaded, assign=True)
    return generator.eval().requires_grad_(False)


def _renamed(name: str) -> str:
    name = name.removeprefix("module.")
    return f"gnn.0.{name}" if _TOP_LEVEL.match(name) else name


def _card(
    values: Mapping[str, Tensor], config: Mapping[str, Any], source: str, licence: str | None
) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    try:
        width = shapes["embed.weight"][1]
        classes, out = shapes["decoder.class_layer_predictor.1.weight"]
        in_ = shapes["decoder.conv.2.weight"][0] // out
        kernel = isqrt(shapes["decoder.fc.0.weight"][0] // (4 * width))
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ConversionError(
            f"the checkpoint is not of a GHN: {error} is missing or has another number of dimensions. Check "
            "that it is the checkpoint of a hypernetwork, not of a network made by one"
        ) from error
    layers = sum(bool(re.fullmatch(r"gnn\.\d+\.ln1\.weight", name)) for name in shapes)
    family = 3 if layers else 2
    virtual, normed = "gnn.mlp_ve.fc.0.weight" in shapes, "ln.weight" in shapes
    # GHN-1 has none of the three, and of these two alone the tensors tell
    scaled = bool(config.get("weight_norm", family == 3 or virtual or normed))
    small = classes == 10
    card = {
        "kind": PublishedGHN.kind,
        "format_version": FORMAT_VERSION,
        "vocabulary": {"version": VERSION, "graphs": {}},
        "sizes": {
            "family": family,
            "width": width,
            "channels": [out, in_],
            "kernel": kernel,
            "layers": layers,
            "heads": shapes.get("gnn.0.attn.proj_e.2.weight", (0,))[0],
            "virtual_edges": virtual,
            "layer_norm": normed,
            "weight_norm": scaled,
        },
        "trained": {"source": source[:1000], "data": "CIFAR-10" if small else "ImageNet"},
        "input": {
            "size": [3, 32, 32] if small else [3, 224, 224],
            "mean": [0.49139968, 0.48215827, 0.44653124] if small else [0.485, 0.456, 0.406],
            "std": [0.24703233, 0.24348505, 0.26158768] if small else [0.229, 0.224, 0.225],
        },
        "classes": [f"class {index}" for index in range(classes)],
        "licence": licence or "not stated in the checkpoint; see where it was published",
    }
    try:
        check_card(card)
        PublishedGHN.check_card(card)
    except ValueError as error:
        raise ConversionError(f"the checkpoint's sizes are impossible: {error}") from error
    return card


# --- writing ------------------------------------------------------------------------------------------------


def _write(generator: PublishedGHN, target: Path) -> None:
    # In float32 and straight from the tensors: the largest checkpoint has 2.5 GB.
    metadata = {METADATA_KEY: json.dumps(generator.card, sort_keys=True, separators=(",", ":"))}
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(generator.state_dict(), scratch, metadata)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_geninit.convert",
        description="Turn a published GHN checkpoint into a file for ghn_(model, pretrained=...).",
    )
    parser.add_argument("source", help="a file, or repo_id:filename@revision on the Hub")
    parser.add_argument("target", help="the .safetensors file to write")
    parser.add_argument("--licence", help="licence of the weights, recorded in the file")
    options = parser.parse_args(arguments)
    try:
        generator = convert(options.source, options.target, licence=options.licence)
    except (ConversionError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    count = sum(tensor.numel() for tensor in generator.state_dict().values())
    family = f"GHN-{generator.card['sizes']['family']}"
    sys.stdout.write(
        f"wrote {options.target}: {family}, {count} values, {len(generator.card['classes'])} classes\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
