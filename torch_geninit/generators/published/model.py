"""The published hypernetworks GHN-1, GHN-2, their MLP ablations and GHN-3 behind our own interface."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Tile
from torch_geninit.generators.entry import Entry
from torch_geninit.generators.published.decoders import (
    FlatDecoder,
    KernelDecoder,
    VectorDecoder,
    kernel_shape,
    scale,
    squash,
    table,
    table_shape,
)
from torch_geninit.generators.published.encoders import GatedGNN, GraphTransformer, NodeMLP
from torch_geninit.generators.published.features import ShapeEncoder, distances, node_shape
from torch_geninit.generators.published.reader.vocabulary import PRIMITIVES
from torch_geninit.generators.request import Request
from torch_geninit.generators.rng import noise_stream
from torch_geninit.graph.architecture import Architecture, Shape

_BOUNDS = (("family", 2, 3), ("width", 4, 4096), ("kernel", 1, 64), ("layers", 0, 256), ("heads", 0, 256))


class _Source(NamedTuple):
    """Where a parameter is decoded from: a node, its role there, and whether it is the classifier's."""

    node: int
    role: str
    last: bool


class PublishedGHN(WeightGenerator):
    """Predict what a published GHN predicts, to rounding, from a converted checkpoint.

    Repeated blocks are exactly equal, as published. Config entries read here: ``sizes`` (``family`` 2 or 3,
    ``width``, ``channels`` [out, in], ``kernel``, ``layers``, ``heads``, the ablations ``hypernet`` "mlp"
    instead of "gnn" and ``decoder`` "mlp" instead of "conv", and the switches ``virtual_edges``,
    ``layer_norm``, ``weight_norm``) and ``classes``; :mod:`torch_geninit.convert` writes them.
    """

    kind = "published-ghn"
    taken_on_trust = "unmeasured: it has no probe, and nothing was published on where it stops being good"
    unread = "the published hypernetworks don't see it: layers of other types, bare parameters"

    @staticmethod
    def check_config(config: Mapping[str, Any]) -> None:
        """Check the sizes that a generator is built from, before it is.

        Raises:
            ValueError: naming the size, what was expected and what was found.
        """
        sizes = config["sizes"]
        for name, low, high in _BOUNDS:
            value = sizes.get(name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"sizes.{name}: expected an integer from {low} to {high}, got {value!r:.60}")
        channels = sizes.get("channels")
        pair = isinstance(channels, list) and len(channels) == 2
        if not pair or not all(type(n) is int and 1 <= n <= 4096 for n in channels):
            raise ValueError(f"sizes.channels: expected two integers from 1 to 4096, got {channels!r:.60}")
        for name in ("virtual_edges", "layer_norm", "weight_norm"):
            if type(sizes.get(name)) is not bool:
                raise ValueError(f"sizes.{name}: expected true or false, got {sizes.get(name)!r:.60}")
        if sizes["width"] % 4 or (sizes["family"] == 3 and sizes["width"] % max(1, sizes["heads"])):
            raise ValueError(
                "sizes.width: expected a multiple of 4 and of sizes.heads, "
                f"got {sizes['width']} and {sizes['heads']}"
            )
        if sizes["family"] == 3 and not (sizes["layers"] and sizes["heads"]):
            raise ValueError("sizes: a GHN-3 has at least one layer and one head")
        for name, usual in (("hypernet", "gnn"), ("decoder", "conv")):
            value = sizes.get(name)
            if value != usual and (value != "mlp" or sizes["family"] == 3):
                raise ValueError(f"sizes.{name}: expected {usual!r}, or 'mlp' for GHN-2, got {value!r:.60}")
        if sizes["decoder"] == "mlp" and channels[0] != channels[1]:
            raise ValueError(f"sizes.channels: expected two equal ones for the decoder 'mlp', got {channels}")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        sizes = config["sizes"]
        classes = len(config["classes"])
        width, kernel = int(sizes["width"]), int(sizes["kernel"])
        out, in_ = sizes["channels"]
        self.transformer = sizes["family"] == 3
        self.weight_norm = bool(sizes["weight_norm"])
        self.embed = nn.Embedding(len(PRIMITIVES), width)
        self.shape_enc = ShapeEncoder(width, classes, kernel)
        self.gnn: GraphTransformer | NodeMLP | GatedGNN
        if self.transformer:
            self.gnn = GraphTransformer(width, int(sizes["layers"]), int(sizes["heads"]))
        elif sizes["hypernet"] == "mlp":
            self.gnn = NodeMLP(width)
        else:
            self.gnn = GatedGNN(width, bool(sizes["virtual_edges"]))
        self.ln = nn.LayerNorm(width) if sizes["layer_norm"] else None
        self.decoder: KernelDecoder | FlatDecoder
        if sizes["decoder"] == "mlp":
            self.decoder = FlatDecoder(width, (out, in_), kernel, classes)
        else:
            self.decoder = KernelDecoder(width, (out, in_), kernel, classes, centred=self.transformer)
        self.decoder_1d = VectorDecoder(width, max(out, in_))
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(max(out, in_), classes))

    def trace(self, model: nn.Module, example_inputs: Any = None) -> Architecture:
        """Read ``model`` by the originals' walk over the autograd graph."""
        from torch_geninit.generators.published.reader.read import read

        return read(model, example_inputs, dialect="ghn3" if self.transformer else "ghn2")

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        """Refuse what its own graph lacks; raise a ValueError for a graph that another generator reads."""
        if architecture is None or entry.name not in architecture.uses:
            return self.unread
        if architecture.nodes[architecture.uses[entry.name][0]].attribute("primitive") is None:
            raise ValueError(
                "graph= was not made for this generator: a published hypernetwork reads a graph of its own. "
                "Leave graph= out, or pass what its own trace(model, example_inputs) returns"
            )
        return None

    def embeddings(self, architecture: Architecture) -> Tensor:
        """Return the embedding (N, width) of every node but ``output``."""
        nodes = architecture.nodes[:-1]
        primitive = torch.tensor([node.attribute("primitive") for node in nodes])
        x = self.embed(primitive) + self.shape_enc([node_shape(node) for node in nodes])
        x = self.gnn(x, distances(architecture))
        out: Tensor = x if self.ln is None else self.ln(x)
        return out

    @torch.no_grad()
    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> dict[str, Tile]:
        """Predict a tile for every entry to generate, as the original does; ``noise_scale`` is not used.

        Args:
            request: with the graph that :meth:`trace` returned.
            seed: of the first row of a table of positions, which the originals draw.
            noise_scale: not used.

        Returns:
            Tiles by parameter name, repeated without modulation.

        Raises:
            ValueError: if the request has no graph.
        """
        if request.architecture is None:
            raise ValueError("a hypernetwork needs the graph of the network; the plan has none")
        shapes = {entry.name: entry.shape for entry in request.generated}
        canonical = {entry.name: entry.canonical for entry in request.generated}
        values = self.decode(
            request.architecture, shapes, lambda name: noise_stream(seed or 0, canonical[name])
        )
        return {
            entry.name: Tile(
                _widened(values[entry.name], entry.shape),
                entry.shape,
                scale=scale(entry.shape) if self.weight_norm and len(entry.shape) > 1 else 1.0,
                name=entry.canonical,
            )
            for entry in request.generated
        }

    def decode(
        self,
        architecture: Architecture,
        shapes: Mapping[str, Shape],
        stream: Callable[[str], torch.Generator],
    ) -> dict[str, Tensor]:
        """Decode a block of values for each parameter of ``shapes``; vectors are normalised, kernels not.

        ``stream(name)`` gives the noise of those rows of a table of positions that have no place in an image
        (the class token's), which the originals draw too.
        """
        x = self.embeddings(architecture)
        sources = self._sources(architecture)
        values: dict[str, Tensor] = {}
        vectors = [name for name, shape in shapes.items() if len(shape) == 1]
        groups: dict[Shape, list[str]] = defaultdict(list)
        for name, shape in shapes.items():
            if len(shape) == 1:
                continue
            kernel = kernel_shape(shape)
            if sources[name].last and kernel[2:] == (1, 1):
                matrix = self.decoder.classifier(x[sources[name].node, None], shape[1])[: shape[0]]
                values[name] = matrix.view(*matrix.shape, *shape[2:])
            else:
                groups[kernel[2:]].append(name)
        for names in groups.values():
            rows = x[[sources[name].node for name in names]]
            tiles = self.decoder.kernels(rows, [kernel_shape(shapes[name]) for name in names])
            for name, tile in zip(names, tiles, strict=True):
                if table_shape(shapes[name]) is not None:
                    tile = table(tile, shapes[name], stream(name))
                values[name] = tile.reshape(*tile.shape[:2], *shapes[name][2:])
        if vectors:
            values |= self._vectors(x, {name: shapes[name][0] for name in vectors}, sources)
        return values

    def _vectors(
        self, x: Tensor, lengths: Mapping[str, int], sources: Mapping[str, _Source]
    ) -> dict[str, Tensor]:
        pairs = self.decoder_1d(x[[sources[name].node for name in lengths]])
        values = {}
        for (name, length), pair in zip(lengths.items(), pairs, strict=True):
            _, role, last = sources[name]
            vector = pair[0 if role == "weight" else 1]
            if last:
                vector = self.bias_class(vector)
            vector = vector[:length]
            values[name] = squash(vector, role) if self.weight_norm else vector
        return values

    def _sources(self, architecture: Architecture) -> dict[str, _Source]:
        sources: dict[str, _Source] = {}
        count = len(architecture.nodes) - 1
        for index, node in enumerate(architecture.nodes):
            for use in node.parameters:
                own = index
                if use.role == "bias":
                    own = node.attribute("bias_node", index)
                # by position: the originals took every network to end in a classifier
                last = own == (count - 1 if len(use.shape) == 1 else count - 2)
                if self.transformer and len(use.shape) == 1:
                    last = last and node.op not in ("batch_norm", "layer_norm")
                sources.setdefault(use.name, _Source(own, use.role, last))
        return sources


def _widened(value: Tensor, shape: Shape) -> Tensor:
    """Repeat a block to the full width: few wide copies are written twice as fast as many small ones."""
    if len(shape) < 2 or value.shape[1] >= shape[1]:
        return value
    copies = -(-shape[1] // value.shape[1])
    return torch.cat([value] * copies, 1)[:, : shape[1]].contiguous()
