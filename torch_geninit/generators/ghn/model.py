"""The graph hypernetwork: reads an architecture, predicts every parameter, with or without noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geninit._utils.checks import expect
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Tile
from torch_geninit.generators.entry import Entry
from torch_geninit.generators.ghn.decoder import Decoder, Piece
from torch_geninit.generators.ghn.encoder import Encoder
from torch_geninit.generators.ghn.features import NodeFeatures, node_features
from torch_geninit.generators.request import Request
from torch_geninit.generators.rng import noise_stream
from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.queries import head_nodes, normalised_kernels, packed_sections

SIZES = (
    "primitives",
    "width",
    "rounds",
    "noise",
    "hidden",
    "mix",
    "rank",
    "head_rank",
    "linear_rank",
    "depthwise_rank",
    "basis",
    "channels",
    "kernel",
)
OPTIONAL = ("rounds", "noise", "linear_rank", "depthwise_rank", "basis")
"""Sizes that may be 0: the generator does without that part."""

AMPLITUDE = 0.1
"""Of the modulation that tells repeated blocks apart, where a layer is wider than the decoder."""


DECODED = 1 << 18
"""Numbers decoded at once: a decoder's intermediate values take several times the memory of its results."""


class Reading(NamedTuple):
    """What the decoder needs of an architecture besides noise.

    Attributes:
        uses: name of a parameter to predict -> index of its node, and how it is used there.
        order: nodes with such parameters.
        embedded: (len(order), width), what the encoder makes of them.
        groups: which parameters are decoded alike.
        normalised: kernels whose scale does not matter.
    """

    uses: Mapping[str, tuple[int, ParameterUse]]
    order: list[int]
    embedded: Tensor
    groups: Mapping[Piece, list[str]]
    normalised: set[str]


class GraphHyperNetwork(WeightGenerator):
    """Predict the parameters of a network from its graph.

    Config entries read here: ``sizes`` (primitives, width, rounds and those of the decoder), ``classes``,
    ``trained`` (kinds of parameters seen in training), ``kernel_scale``: factor on
    convolutions that only norms read. It leaves the function as it is and divides their effective
    learning rate, lr / |w|^2, by its square, so it is chosen for training, not for prediction. Optional:
    ``shared_noise``, all nodes of a network see the same noise instead of each its own; ``mirror``, members
    of odd seeds have mirrored kernels.
    """

    kind = "ghn"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        sizes = config["sizes"]
        self.noise_width = int(sizes["noise"])
        self.shared_noise = bool(config.get("shared_noise", False))
        self.mirror = bool(config.get("mirror", False))
        self.kernel_scale = float(config.get("kernel_scale", 1.0))
        self.encoder = Encoder(sizes["primitives"], sizes["width"], sizes["rounds"])
        self.decoder = Decoder(sizes, len(config["classes"]))

    @staticmethod
    def check_config(config: Mapping[str, Any]) -> None:
        """Raise a ValueError naming the entry that is not valid."""
        for name in SIZES:
            value = config["sizes"].get(name)
            lowest = 0 if name in OPTIONAL else 1
            valid = type(value) is int and value >= lowest
            expect(valid, f"sizes.{name}", f"an integer of at least {lowest}", value)
        for name in ("narrow", "factors"):  # newer than the first files
            value = config["sizes"].get(name, 0)
            expect(type(value) is int and value >= 0, f"sizes.{name}", "an integer from 0 up", value)
        trained = config["trained"]
        kinds = trained.get("kinds")
        valid = isinstance(kinds, list) and all(isinstance(item, str) for item in kinds)
        expect(valid, "trained.kinds", "a list of names", kinds)
        scale = config.get("kernel_scale", 1.0)
        expect(_is_number(scale) and scale > 0, "kernel_scale", "a positive number", scale)
        shared, mirror = config.get("shared_noise", False), config.get("mirror", False)
        expect(isinstance(shared, bool), "shared_noise", "true or false", shared)
        possible = mirror is False or (mirror is True and config["sizes"]["noise"] > 0)
        expect(possible, "mirror", "false, or true for a generator with noise", mirror)

    @property
    def classes(self) -> int:
        """Number of classes that a generated classifier tells apart."""
        return self.decoder.classes

    def forward(
        self,
        architecture: Architecture,
        names: Iterable[str],
        *,
        features: NodeFeatures | None = None,
        noise: Callable[[int], Tensor] | None = None,
    ) -> dict[str, Tile]:
        """Predict tiles for the parameters ``names``; differentiable.

        ``noise(index)`` returns the (noise_width,) noise of the node at ``index``; without it noise is zero.
        """
        return self._decode(self._read(architecture, names, features), noise)

    def _read(
        self, architecture: Architecture, names: Iterable[str], features: NodeFeatures | None = None
    ) -> Reading:
        """Read all of an architecture that goes by no noise."""
        uses = {name: architecture.uses[name] for name in names}
        order = sorted({index for index, _ in uses.values()})
        embedded = self.encoder(features or node_features(architecture))[order]
        groups: dict[Piece, list[str]] = defaultdict(list)
        for name, piece in self._pieces(architecture, uses).items():
            groups[piece].append(name)
        return Reading(uses, order, embedded, groups, normalised_kernels(architecture))

    def _decode(self, reading: Reading, noise: Callable[[int], Tensor] | None) -> dict[str, Tile]:
        uses, order, x, groups, normalised = reading
        if self.noise_width:
            if noise is None:
                values = x.new_zeros(len(order), self.noise_width)
            else:
                values = torch.stack([noise(index) for index in order]).to(x)
            x = torch.cat([x, values], 1)
        hidden = self.decoder.trunk(x)
        row = {index: position for position, index in enumerate(order)}
        tiles: dict[str, Tile] = {}
        for piece, members in _batches(groups):
            u = hidden[[row[uses[name][0]] for name in members]]
            decoded = self.decoder(piece, u)
            shapes = [uses[name][1].shape for name in members]
            broadcast = (-1, *[1] * (decoded.ndim - 1))
            if piece.part in self.decoder.banks or piece.part == "head":
                he = decoded.new_tensor([(2 / prod(shape[1:])) ** 0.5 for shape in shapes])
                decoded = decoded * he.view(broadcast)
            if piece.part in self.decoder.banks and not normalised.issuperset(members):
                immaterial = torch.tensor([name in normalised for name in members], device=u.device)
                gains = torch.where(immaterial, 1.0, self.decoder.gain(u).exp()[:, 0])
                decoded = decoded * gains.view(broadcast)
            for name, shape, values in zip(members, shapes, decoded.contiguous().unbind(), strict=True):
                tiles[name] = Tile(_fit(values, shape), shape, sections=piece.sections)
        return tiles

    def _pieces(
        self, architecture: Architecture, uses: Mapping[str, tuple[int, ParameterUse]]
    ) -> dict[str, Piece]:
        heads = head_nodes(architecture)
        sections = packed_sections(architecture)
        pieces = {}
        for name, (index, use) in uses.items():
            node = architecture.nodes[index]
            piece = self.decoder.piece(node, use, head=index in heads, sections=sections.get(index, 1))
            if piece is None:
                raise ValueError(f"{name!r}: this generator has no decoder for a {kind(node, use)}")
            pieces[name] = piece
        return pieces

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        """Refuse what the graph does not reach, and kinds of parameters that training did not have."""
        if architecture is None or entry.node is None:
            return "not reached by any operation of the graph"
        node = architecture.nodes[entry.node]
        use = architecture.uses[entry.name][1]
        what = kind(node, use)
        if what in self.config["trained"]["kinds"] and self.decoder.piece(node, use, head=False):
            return None
        named = "bias of its own" if what == "bias bias" else what
        return f"never trained on {'an' if what[0] in 'aeio' else 'a'} {named}"

    @torch.no_grad()
    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> dict[str, Tile]:
        """Predict a tile for every entry to generate.

        Args:
            request: with the graph of the network.
            seed: of the noise. Without one, or without noise in the decoder, there is no noise.
            noise_scale: standard deviation of the noise; 0 gives one fixed network.

        Returns:
            Tiles by parameter name; a tile's first two extents are the decoder's or less, the others the
            parameter's own.

        Raises:
            ValueError: if the request has no graph, or ``kernel_scale`` is not a positive number.
        """
        architecture = request.architecture
        if architecture is None:
            raise ValueError("a graph hypernetwork needs the graph of the network; the plan has none")
        expect(
            _is_number(self.kernel_scale) and self.kernel_scale > 0,
            "kernel_scale",
            "a positive number",
            self.kernel_scale,
        )
        canonical = {entry.name: entry.canonical for entry in request.entries}

        def draw(index: int) -> Tensor:
            # A node's noise goes by its first parameter, whether or not that one is generated itself.
            first = architecture.nodes[index].parameters[0]
            stream = noise_stream(seed or 0, "" if self.shared_noise else canonical[first.name])
            return noise_scale * torch.randn(self.noise_width, generator=stream)

        noisy = bool(self.noise_width) and seed is not None
        mirrored = noisy and self.mirror and noise_scale != 0 and (seed or 0) % 2 == 1
        names = [entry.name for entry in request.generated]
        # A verdict asks, then the verb, and an ensemble once for each member.
        asked = architecture, names, [(id(tensor), tensor._version) for tensor in self.parameters()]
        kept = request.readings.get(self.kind)
        if kept is None or kept[0] != asked:
            kept = request.readings[self.kind] = asked, self._read(architecture, names)
        reading: Reading = kept[1]
        tiles = self._decode(reading, draw if noisy else None)
        normalised = reading.normalised
        predicted = {
            name: Tile(
                tile.values.contiguous(),
                tile.shape,
                self.kernel_scale if name in normalised else 1.0,
                AMPLITUDE,
                canonical[name],
                tile.sections,
            )
            for name, tile in tiles.items()
        }
        if mirrored:
            predicted |= {name: predicted[name].mirror() for name in names if is_kernel(architecture, name)}
        return predicted


def _batches(groups: Mapping[Piece, Sequence[str]]) -> Iterator[tuple[Piece, Sequence[str]]]:
    """Cut the members of each piece into batches of about :data:`DECODED` numbers."""
    for piece, members in groups.items():
        count = max(1, DECODED // (piece.sections * prod(piece.shape)))
        for start in range(0, len(members), count):
            yield piece, members[start : start + count]


def is_kernel(architecture: Architecture, name: str) -> bool:
    """Tell whether a parameter is the kernel of a 2d convolution: no other kind has a left and a right."""
    index, use = architecture.uses[name]
    return architecture.nodes[index].op == "conv" and use.role == "weight" and len(use.shape) == 4


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]


def kind(node: Node, use: ParameterUse) -> str:
    """Name what a generator is trained on or not: "3x3 convolution", "batch_norm bias", ..."""
    if node.op not in ("conv", "conv_transpose") or use.role != "weight":
        return f"{node.op} {use.role}"
    groups = node.attribute("groups", 1)
    sort = "" if groups == 1 else "depthwise " if use.shape[1] == 1 else "grouped "
    transposed = "transposed " if node.op == "conv_transpose" else ""
    return f"{'x'.join(map(str, use.shape[2:]))} {sort}{transposed}convolution"


def _fit(values: Tensor, full: Shape) -> Tensor:
    """Give a decoded tile as many dimensions as the parameter; only the first two may be repeated later."""
    if values.numel() == prod(full):
        return values.view(full)
    if len(full) < 2 or values.ndim > 1:
        return values.view(*values.shape[:2], *full[2:])
    axis = full.index(max(full))  # factors or terms of one axis, as (C, 1, 1)
    if axis > 1:
        values = values.repeat(-(-full[axis] // len(values)))[: full[axis]]
    return values.view([len(values) if index == axis else 1 for index in range(len(full))])
