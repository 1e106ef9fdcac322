"""The graph hypernetwork: reads an architecture, predicts every parameter, with or without noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.generators.base import Tile, Verdict, WeightGenerator, noise_stream
from torch_geninit.generators.features import FEATURES, NodeFeatures, node_features
from torch_geninit.generators.trust import judge
from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.vocabulary import PRIMITIVES

if TYPE_CHECKING:
    from torch_geninit.plan import Entry, Plan

AMPLITUDE = 0.1
"""Of the modulation that tells repeated blocks apart, where a layer is wider than the decoder."""


class MessagePassing(nn.Module):
    """One round: h_v <- h_v + MLP([LN(h)_v, mean over predecessors, mean over successors])."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.update = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        x = self.norm(h)
        forward = _mean_over_edges(x, source, target)
        backward = _mean_over_edges(x, target, source)
        updated: Tensor = h + self.update(torch.cat([x, forward, backward], 1))
        return updated


def _mean_over_edges(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros_like(x).index_add_(0, target, x[source])
    degree = x.new_zeros(len(x)).index_add_(0, target, x.new_ones(len(target)))
    return total / degree.clamp(min=1)[:, None]


class Encoder(nn.Module):
    """Node features to node embeddings (N, width)."""

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.primitive = nn.Embedding(len(PRIMITIVES), width)
        self.project = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.rounds = nn.ModuleList(MessagePassing(width) for _ in range(rounds))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: NodeFeatures) -> Tensor:
        h = self.primitive(features.primitive) + self.project(features.values)
        for layer in self.rounds:
            h = layer(h, features.source, features.target)
        embedded: Tensor = self.norm(h)
        return embedded


class Decoder(nn.Module):
    """Node embeddings (and noise) to parameter tiles.

    A kernel is a combination of learned channel templates T_r (channels x channels), its coefficients a
    function of
    the embedding x at each kernel position s::

        W[:, :, s] = gain(x) * sum_r c_r(x, s) T_r

    Only the channels and kernel positions asked for are computed.
    """

    def __init__(
        self, width: int, noise: int, hidden: int, rank: int, channels: int, kernel: int, classes: int
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.classes = channels, kernel, classes
        self.mix = 64
        self.trunk = nn.Sequential(nn.Linear(width + noise, hidden), nn.GELU())
        self.positions = nn.Linear(hidden, self.mix * kernel * kernel)
        self.coefficients = nn.Linear(self.mix, rank)
        self.templates = nn.Parameter(torch.randn(rank, channels, channels) * rank**-0.5)
        self.gain = nn.Linear(hidden, 1)
        self.vector_weight = nn.Linear(hidden, channels)
        self.vector_bias = nn.Linear(hidden, channels)
        self.head_coefficients = nn.Linear(hidden, rank // 4)
        self.head_templates = nn.Parameter(torch.randn(rank // 4, classes, channels) * (rank // 4) ** -0.5)
        self.head_bias = nn.Linear(hidden, classes)
        for layer in (self.gain, self.vector_weight, self.vector_bias, self.head_bias):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def kernels(self, u: Tensor, shape: Shape) -> Tensor:
        """Decode (L, hidden) to (L, O, I, kh, kw) tiles of unit scale; ``shape`` is the tile's."""
        rows, columns, height, width = shape
        grid = torch.arange(self.kernel**2, device=u.device).view(self.kernel, self.kernel)
        top, left = (self.kernel - height) // 2, (self.kernel - width) // 2
        chosen = grid[top : top + height, left : left + width].reshape(-1)
        weight = self.positions.weight.view(-1, self.mix, u.shape[1])[chosen].flatten(0, 1)
        bias = self.positions.bias.view(-1, self.mix)[chosen].flatten()
        mixed = F.gelu(F.linear(u, weight, bias).view(len(u), len(chosen), self.mix))
        coefficients = self.coefficients(mixed)
        templates = self.templates[:, :rows, :columns].flatten(1)
        scaled: Tensor = (coefficients * self.gain(u).exp()[:, :, None]) @ templates
        return scaled.view(len(u), height, width, rows, columns).permute(0, 3, 4, 1, 2)

    def heads(self, u: Tensor, columns: int) -> Tensor:
        """Decode (L, hidden) to (L, classes, I) classifier tiles of unit scale."""
        coefficients: Tensor = self.head_coefficients(u)
        templates = self.head_templates[:, :, :columns].flatten(1)
        tiles: Tensor = (coefficients @ templates).view(len(u), self.classes, columns)
        return tiles


class GraphHyperNetwork(WeightGenerator):
    """Predict the parameters of a network from its graph.

    Card entries read here: ``sizes`` (width, rounds, noise, hidden, rank, channels, kernel), ``classes``,
    ``trained`` (primitives, kernel sizes, local patterns and ranges seen in training), ``kernel_scale``:
    factor on
    convolutions that only BatchNorm reads. It leaves the function as it is and divides their effective
    learning rate, lr / |w|^2, by its square, so it is chosen for training, not for prediction.
    """

    kind = "ghn"

    def __init__(self, card: Mapping[str, Any]) -> None:
        super().__init__(card)
        sizes = card["sizes"]
        self.classes = len(card["classes"])
        self.noise_width = int(sizes["noise"])
        self.kernel_scale = float(card.get("kernel_scale", 1.0))
        self.encoder = Encoder(sizes["width"], sizes["rounds"])
        self.decoder = Decoder(
            sizes["width"],
            self.noise_width,
            sizes["hidden"],
            sizes["rank"],
            sizes["channels"],
            sizes["kernel"],
            self.classes,
        )

    def forward(
        self,
        architecture: Architecture,
        names: Sequence[str],
        *,
        features: NodeFeatures | None = None,
        noise: Callable[[int], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Predict tiles for the parameters ``names``; differentiable.

        ``noise(index)`` returns the (noise_width,) noise of the node at ``index``; without it noise is zero.
        """
        features = features or node_features(architecture)
        embedding = self.encoder(features)
        uses = {name: architecture.uses[name] for name in names}
        order = sorted({index for index, _ in uses.values()})
        x = embedding[order]
        if self.noise_width:
            if noise is None:
                values = x.new_zeros(len(order), self.noise_width)
            else:
                values = torch.stack([noise(index) for index in order]).to(x)
            x = torch.cat([x, values], 1)
        hidden = self.decoder.trunk(x)
        row = {index: position for position, index in enumerate(order)}
        groups: dict[tuple[str, Shape], list[str]] = defaultdict(list)
        head = head_node(architecture)
        normalised = normalised_kernels(architecture)
        for name, (index, use) in uses.items():
            groups[self._group(architecture.nodes[index], use, index == head)].append(name)
        tiles: dict[str, Tensor] = {}
        for (part, shape), members in groups.items():
            u = hidden[[row[uses[name][0]] for name in members]]
            for name, values in zip(members, self._decode(part, shape, u), strict=True):
                full = uses[name][1].shape
                if part in ("kernel", "head"):
                    fan_in = full[1] * (shape[2] * shape[3] if part == "kernel" else 1)
                    if name in normalised:
                        # BatchNorm hides a kernel's scale from the loss, so training would let it drift to
                        # where the first steps of SGD, whose effective rate is lr / |w|^2, wreck the network.
                        values = values / values.square().mean().clamp(min=1e-12).sqrt()
                    values = values * (2 / fan_in) ** 0.5
                tiles[name] = values.view(tile_shape(full, values.shape))
        return tiles

    def _group(self, node: Node, use: ParameterUse, head: bool) -> tuple[str, Shape]:
        """Parameters that are decoded together: the part of the decoder and the shape it is asked for."""
        limit = self.decoder.channels
        if head and use.shape[0] == self.classes:
            if use.role == "bias":
                return "head_bias", (self.classes,)
            return "head", (self.classes, min(use.shape[1], limit))
        if len(use.shape) == 1:
            return f"vector_{use.role}", (min(use.shape[0], limit),)
        height, width = use.shape[2:] if len(use.shape) == 4 else (1, 1)
        return "kernel", (min(use.shape[0], limit), min(use.shape[1], limit), height, width)

    def _decode(self, part: str, shape: Shape, u: Tensor) -> Tensor:
        decoder = self.decoder
        if part == "kernel":
            return decoder.kernels(u, shape)
        if part == "head":
            return decoder.heads(u, shape[1])
        if part == "head_bias":
            return decoder.head_bias(u)  # type: ignore[no-any-return]
        if part == "vector_weight":
            return 2 * torch.sigmoid(decoder.vector_weight(u)[:, : shape[0]])
        return decoder.vector_bias(u)[:, : shape[0]]  # type: ignore[no-any-return]

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        if architecture is None or entry.node is None:
            return "not reached by any operation of the graph"
        node = architecture.nodes[entry.node]
        trained = self.card["trained"]
        if node.op not in trained["primitives"] or entry.role not in ("weight", "bias"):
            return f"never trained on {node.op} layers ({entry.role})"
        if node.op == "conv":
            kernel = "x".join(map(str, entry.shape[2:])) if len(entry.shape) > 2 else ""
            if entry.role == "weight" and kernel not in trained["kernels"]:
                known = ", ".join(trained["kernels"])
                return f"never trained on {kernel} kernels (trained on {known})"
            if node.attribute("groups", 1) > 1 and not trained.get("grouped", False):
                return "never trained on grouped convolutions"
        return None

    def verdict(self, plan: Plan) -> Verdict:
        return judge(plan, self.card["trained"])

    @torch.no_grad()
    def predict(self, plan: Plan, *, seed: int | None = None, noise_scale: float = 1.0) -> dict[str, Tile]:
        architecture = plan.architecture
        if architecture is None:
            raise ValueError("a graph hypernetwork needs the graph of the network; the plan has none")
        # A node's noise goes by its first parameter, whether or not that one is generated itself.
        canonical = {entry.name: entry.canonical for entry in plan.entries}

        def draw(index: int) -> Tensor:
            first = architecture.nodes[index].parameters[0]
            stream = noise_stream(seed or 0, canonical[first.name])
            return noise_scale * torch.randn(self.noise_width, generator=stream)

        noisy = bool(self.noise_width) and seed is not None
        names = [entry.name for entry in plan.generated]
        tiles = self(architecture, names, noise=draw if noisy else None)
        normalised = normalised_kernels(architecture)
        return {
            entry.name: Tile(
                tiles[entry.name].contiguous(),
                entry.shape,
                scale=self.kernel_scale if entry.name in normalised else 1.0,
                amplitude=AMPLITUDE,
                name=entry.canonical,
            )
            for entry in plan.generated
        }


def head_node(architecture: Architecture) -> int | None:
    """Return the index of the classifier: the last node with a matrix or kernel, None if there is none."""
    for index in reversed(range(len(architecture.nodes))):
        if any(len(use.shape) > 1 for use in architecture.nodes[index].parameters):
            return index
    return None


def normalised_kernels(architecture: Architecture) -> set[str]:
    """Return names of kernels whose output goes to BatchNorm alone, so that their scale does not matter."""
    readers: dict[int, set[str]] = defaultdict(set)
    for source, target in architecture.edges:
        readers[source].add(architecture.nodes[target].op)
    return {
        use.name
        for index, node in enumerate(architecture.nodes)
        if node.op == "conv" and readers[index] == {"batch_norm"}
        for use in node.parameters
        if use.role == "weight"
    }


def tile_shape(full: Shape, decoded: Shape) -> Shape:
    """Shape of a tile with the parameter's number of dimensions."""
    if len(full) == 1:
        return tuple(decoded)
    return (decoded[0], decoded[1], *full[2:])
