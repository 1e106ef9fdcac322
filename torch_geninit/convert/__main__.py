"""Turn the published checkpoints of GHN-1, GHN-2 and GHN-3 into generator files::

    python -m torch_geninit.convert SOURCE TARGET.safetensors

SOURCE is a file, or ``repo_id:filename@revision`` on the Hub. This is the one place that reads pickles, and
no initialiser imports it: torch files with ``weights_only=True`` after an inspection, joblib files by a
reader that knows tensors and plain containers and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from torch_geninit.convert.archives import ConversionError, read
from torch_geninit.generators.published.model import PublishedGHN
from torch_geninit.graph.vocabulary import VERSION
from torch_geninit.hub.config import FORMAT_VERSION, check_config
from torch_geninit.hub.download import HubError, Source, fetch, pinned
from torch_geninit.hub.file import METADATA_KEY, finite

__all__ = ["ConversionError", "HubError", "build", "convert", "main"]

_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:@]+)(?:@(?P<revision>[\w./-]+))?")
_TOP_LEVEL = re.compile(r"(centrality_embed_in|centrality_embed_out|input_dist_embed)\.")
_NO_GHN = "Check that it is the checkpoint of a hypernetwork, not of a network made by one"


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, licence: str | None = None
) -> PublishedGHN:
    """Convert a published checkpoint and return the generator.

    Args:
        source: a file, or ``repo_id:filename@revision`` on the Hub. Read are state dicts and
            ``{config, state_dict}`` dicts, saved by torch or joblib (zlib, gzip, bz2, lzma and xz too) or as
            safetensors (the config as JSON in its metadata).
        target: .safetensors file to write, in a folder that exists; it appears whole or not at all, and
            replaces a file of that name.
        licence: of the weights, recorded in the file.

    Raises:
        ConversionError: if the source holds anything else or is no checkpoint of a GHN, or if the target
            can't be.
        HubError: if it can't be downloaded.

    Examples:
        >>> convert("ghn2_cifar10.pt", "ghn2.safetensors")  # doctest: +SKIP
    """
    text, goal = os.fspath(source), Path(target)
    _check_target(goal, Path(text))
    path, origin = _local(text)
    state, published = read(path)
    generator = build(state, published, source=origin, licence=licence)
    _write(generator, goal)
    return generator


# --- where from and where to --------------------------------------------------------------------------------


def _check_target(target: Path, source: Path) -> None:
    """Refuse before anything is downloaded or read."""
    if target.suffix != ".safetensors":
        problem = "its name must end in .safetensors, by which pretrained= knows a file from a name"
    elif not target.parent.is_dir():
        problem = f"there is no folder {target.parent}; create it"
    elif target.is_dir():
        problem = "it is a folder; name a file in it"
    elif target.exists() and source.exists() and target.samefile(source):
        problem = "it is the source; name another file"
    else:
        return
    raise ConversionError(f"{target} can't be the target: {problem}")


def _local(source: str) -> tuple[Path, str]:
    """Return the local file of ``source``, and where it came from in words for the config."""
    path = Path(source)
    if path.is_file():
        return path, path.name
    match = _ON_HUB.fullmatch(source)
    if match is None or {".", "..", ""} & set(re.split(r"[/\\:@]", source)):
        kind = "a folder" if path.is_dir() else "neither a file nor repo_id:filename@revision"
        raise ConversionError(
            f"{source!r} is {kind}. Expected the path of a checkpoint, or as "
            "'someone/some-repo:ghn.pt@0123abc' a file on the Hub"
        )
    if match["revision"] is None:
        raise ConversionError(
            f"{source!r} names no file here, and for the Hub it lacks a revision: add @ and a commit, which "
            f"nobody can change, or a branch, as {source + '@main'!r}"
        )
    pin = pinned(Source(match["repo"], match["revision"], match["file"]))
    return fetch(pin), f"{pin.repo_id}:{pin.filename}@{pin.revision}"


# --- building -----------------------------------------------------------------------------------------------


def build(
    state: Mapping[str, Tensor], published: Mapping[str, Any], *, source: str = "", licence: str | None = None
) -> PublishedGHN:
    """Return the generator of a state dict with the originals' names; ``published`` may be empty.

    Raises:
        ConversionError: names what is missing, left over or of another shape.
    """
    renamed = {_renamed(name): value for name, value in state.items()}
    # 1 x 1 convolutions in GHN-2, linear layers in GHN-3
    values = {n: v.flatten(1) if v.ndim == 4 and v.shape[2:] == (1, 1) else v for n, v in renamed.items()}
    config = _config(values, published, source, licence)
    with torch.device("meta"):
        generator = PublishedGHN(config)
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in values.items()}
    wrong = [name for name in (*expected, *found) if expected.get(name) != found.get(name)]
    if wrong:
        first = wrong[0]
        raise ConversionError(
            f"the checkpoint is not of the GHN that its tensors make it look like: {len(wrong)} of them "
            f"differ, the first is {first[:100]!a}: expected {_said(expected.get(first))}, "
            f"got {_said(found.get(first))}. {_NO_GHN}"
        )
    loaded = {name: values[name].detach().to(torch.float32).contiguous() for name in expected}
    for name, tensor in loaded.items():
        if not finite(tensor):
            raise ConversionError(f"tensor {name!r} holds NaN or infinite values: the checkpoint is damaged")
    generator.load_state_dict(loaded, assign=True)
    return generator.eval().requires_grad_(False)


def _said(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else str(shape)


def _renamed(name: str) -> str:
    name = name.removeprefix("module.")
    return f"gnn.0.{name}" if _TOP_LEVEL.match(name) else name


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the sizes of a GHN off its tensors."""

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) != 2 or 0 in shape:
            raise ConversionError(
                f"the checkpoint is not of a GHN: expected a matrix {name!r}, got {_said(shape)}. {_NO_GHN}"
            )
        return shape[axis]

    width = size("embed.weight", 1)
    flat = "decoder.mlp.fc.2.weight" in shapes
    if flat:
        # (classes * out, ...) and (out * in * S * S, ...)
        classes = size("bias_class.1.weight", 0)
        out = size("decoder.class_layer_predictor.1.weight", 0) // classes
        kernel = 11 if size("shape_enc.embed_spatial.weight", 0) == 9 else 16
        in_ = size("decoder.mlp.fc.2.weight", 0) // max(1, out * kernel * kernel)
    else:
        classes = size("decoder.class_layer_predictor.1.weight", 0)
        out = size("decoder.class_layer_predictor.1.weight", 1)
        in_ = size("decoder.conv.2.weight", 0) // out
        kernel = isqrt(size("decoder.fc.0.weight", 0) // (4 * width))
    layers = sum(bool(re.fullmatch(r"gnn\.\d+\.ln1\.weight", name)) for name in shapes)
    return {
        "family": 3 if layers else 2,
        "width": width,
        "classes": classes,
        "channels": [out, in_],
        "kernel": kernel,
        "layers": layers,
        "heads": shapes.get("gnn.0.attn.proj_e.2.weight", (0,))[0],
        "hypernet": "mlp" if "gnn.fc.0.weight" in shapes else "gnn",
        "decoder": "mlp" if flat else "conv",
        "virtual_edges": "gnn.mlp_ve.fc.0.weight" in shapes,
        "layer_norm": "ln.weight" in shapes,
    }


def _config(
    values: Mapping[str, Tensor], published: Mapping[str, Any], source: str, licence: str | None
) -> dict[str, Any]:
    sizes = _sizes({name: tuple(tensor.shape) for name, tensor in values.items()})
    classes = sizes.pop("classes")
    # GHN-1 has none of the three, and of these two alone the tensors tell
    likely = sizes["family"] == 3 or sizes["virtual_edges"] or sizes["layer_norm"]
    sizes["weight_norm"] = published.get("weight_norm", likely)
    if type(sizes["weight_norm"]) is not bool:
        raise ConversionError(
            "the checkpoint's config says neither true nor false of weight_norm. Expected the arguments with "
            "which the GHN was built"
        )
    small = classes == 10
    config = {
        "kind": PublishedGHN.kind,
        "format_version": FORMAT_VERSION,
        "vocabulary": {"version": VERSION, "graphs": {}},
        "sizes": sizes,
        "trained": {"source": source[:1000], "data": "CIFAR-10" if small else "ImageNet"},
        "input": {
            "size": [3, 32, 32] if small else [3, 224, 224],
            "mean": [0.49139968, 0.48215827, 0.44653124] if small else [0.485, 0.456, 0.406],
            "std": [0.24703233, 0.24348505, 0.26158768] if small else [0.229, 0.224, 0.225],
        },
        "classes": [f"class {index}" for index in range(min(classes, 1 << 20))],
        "licence": licence or "not stated in the checkpoint; see where it was published",
    }
    try:
        check_config(config)
        PublishedGHN.check_config(config)
    except ValueError as error:
        raise ConversionError(f"the checkpoint's sizes are impossible: {error}. {_NO_GHN}") from error
    return config


# --- writing ------------------------------------------------------------------------------------------------


def _write(generator: PublishedGHN, target: Path) -> None:
    # In float32 and straight from the tensors: the largest checkpoint has 2.5 GB.
    metadata = {METADATA_KEY: json.dumps(generator.config, sort_keys=True, separators=(",", ":"))}
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        safetensors.torch.save_file(generator.state_dict(), scratch, metadata)
        # safetensors writes files that nobody else may read
        scratch.chmod(mode)
        os.replace(scratch, target)
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{target} could not be written: {error}. Is there room for it?") from error
    finally:
        scratch.unlink(missing_ok=True)


def _family(sizes: Mapping[str, Any]) -> str:
    if sizes["hypernet"] == "mlp":
        return "MLP"
    later = sizes["virtual_edges"] or sizes["layer_norm"] or sizes["weight_norm"]
    return "GHN-3" if sizes["family"] == 3 else "GHN-2" if later else "GHN-1"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_geninit.convert",
        description="Turn a published GHN checkpoint into a file for ghn_(model, pretrained=...).",
    )
    parser.add_argument("source", help="a file, or repo_id:filename@revision on the Hub")
    parser.add_argument("target", help="the .safetensors file to write; one of that name is replaced")
    parser.add_argument("--licence", "--license", help="licence of the weights, recorded in the file")
    options = parser.parse_args(arguments)
    try:
        generator = convert(options.source, options.target, licence=options.licence)
    except (ConversionError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    count = sum(tensor.numel() for tensor in generator.state_dict().values())
    sys.stdout.write(
        f"wrote {options.target}: {_family(generator.config['sizes'])}, {count} values, "
        f"{len(generator.config['classes'])} classes\n"
        f"use it: torch_geninit.ghn_(model, pretrained={options.target!r})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
