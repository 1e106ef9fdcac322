"""State dicts as the originals publish them, and the ways in which they are saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_geninit.generators.published.model import PublishedGHN

GHN2: dict[str, Any] = {
    "family": 2,
    "width": 8,
    "channels": [16, 16],
    "kernel": 11,
    "layers": 0,
    "heads": 0,
    "hypernet": "gnn",
    "decoder": "conv",
    "virtual_edges": True,
    "layer_norm": True,
    "weight_norm": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "GHN-1": {**GHN2, "virtual_edges": False, "layer_norm": False, "weight_norm": False},
    "GHN-2": GHN2,
    "MLP": {**GHN2, "hypernet": "mlp", "virtual_edges": False},
    "GHN-2, flat decoder": {**GHN2, "decoder": "mlp"},
    "GHN-3": {**GHN2, "family": 3, "kernel": 16, "layers": 2, "heads": 4, "virtual_edges": False},
}


def original(name: str) -> dict[str, Tensor]:
    """Make a state dict as the originals publish it."""
    sizes = FAMILIES[name]
    generator = PublishedGHN({"sizes": sizes, "classes": [str(i) for i in range(10)]})
    stream = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=stream) for n, t in generator.state_dict().items()}
    if sizes["family"] == 3:
        # as on the Hub
        for table in ("centrality_embed_in", "centrality_embed_out", "input_dist_embed"):
            state[f"{table}.weight"] = state.pop(f"gnn.0.{table}.weight")
    elif sizes["decoder"] == "conv":
        for layer in ("decoder.conv.0", "decoder.conv.2", "decoder.class_layer_predictor.1"):
            state[f"{layer}.weight"] = state[f"{layer}.weight"][:, :, None, None]
    return state


def same(found: PublishedGHN, state: dict[str, Tensor]) -> bool:
    """Whether a generator has the values of a published state dict."""
    values = found.state_dict()
    renamed = {
        n if n in values else f"gnn.0.{n}": t.flatten(1) if t.ndim == 4 else t for n, t in state.items()
    }
    return set(values) == set(renamed) and all(torch.equal(values[n], t) for n, t in renamed.items())


def joblib_dump(content: Any, path: Path, compress: Any = 0) -> None:
    pytest.importorskip("joblib").dump(content, path, compress=compress)


def legacy_dump(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def safetensors_dump(content: Any, path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(content, path)


COMPRESSIONS = ("zlib", "gzip", "bz2", "xz", "lzma")
PICKLES: dict[str, Callable[[Any, Path], None]] = {
    "torch": torch.save,
    "old torch": legacy_dump,
    "joblib": joblib_dump,
}
"""Formats that hold any container."""
PACKED = {name: partial(joblib_dump, compress=(name, 3)) for name in COMPRESSIONS}
FORMATS = {**PICKLES, "safetensors": safetensors_dump}
