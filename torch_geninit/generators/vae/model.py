"""Slice VAEs: a small variational autoencoder for the kernel slices of each convolution of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Compact, blocks_of_rows, runs
from torch_geninit.generators.entry import Entry
from torch_geninit.generators.request import Request
from torch_geninit.generators.rng import noise_stream
from torch_geninit.generators.vae.decoders import PaperDecoder, SliceDecoder
from torch_geninit.graph.architecture import Architecture, Shape

CHUNK = 8192
"""Slices decoded at once. Noise is drawn chunk by chunk, so this number is part of the sampling algorithm."""


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution whose slices a VAE was trained on.

    Attributes:
        name: of its weight in the network it comes from.
        kernel_size: one extent for each spatial dimension.
        fan_in: inputs of one of its filters.
        depth: relative position among the convolutions of that network, 0 is the first, 1 the last.
        std: root mean square of its trained weights; a record without it means He's scale.
        inputs: input channels that one draw covers: 1 for a slice, all of the layer's for a whole filter.
        depthwise: whether each of its filters sees one channel alone.
    """

    name: str
    kernel_size: Shape
    fan_in: int
    depth: float
    std: float
    inputs: int = 1
    depthwise: bool = False

    @property
    def positions(self) -> int:
        """Values of one draw."""
        return self.inputs * math.prod(self.kernel_size)


@dataclass(frozen=True)
class SliceDraws(Compact):
    """A convolution's weights as slices still to be drawn: nothing is stored but who draws them.

    Attributes:
        decoder: law of a slice, or of a whole filter.
        shape: of the weight; slices (o, i) follow each other row by row.
        gain: factor on all values.
        seed, name: of the noise stream.
        noise_scale: factor on all noise.
        inputs: input channels that one draw covers.
    """

    decoder: SliceDecoder | PaperDecoder
    shape: Shape
    gain: float
    seed: int
    name: str
    noise_scale: float
    inputs: int = 1

    def finite(self) -> bool:
        """Return whether all draws will be finite, by :meth:`bound`."""
        return math.isfinite(self.bound())

    def bound(self) -> float:
        """Return a bound on the draws' magnitude, from the decoder's weights."""
        return abs(self.gain) * self.decoder.bound(self.noise_scale)

    def slices(self) -> SliceStream:
        """Return the slices, to be read from the first on."""
        stream = noise_stream(self.seed, self.name)
        count = self.shape[0] * self._draws_a_row
        return SliceStream(self.decoder, count, stream, self.gain, self.noise_scale)

    @property
    def _draws_a_row(self) -> int:
        return self.shape[1] // self.inputs

    @property
    def _draw_shape(self) -> Shape:
        return (self.inputs, *self.shape[2:])

    def _expand(self, out: Tensor, start: int) -> None:
        if out.dtype == torch.float32 and out.device.type == "cpu" and out.is_contiguous():
            self.slices().read(start * self._draws_a_row, out.view(-1, *self._draw_shape))
        else:
            self._expand_at([torch.arange(start, start + len(out)), *map(torch.arange, self.shape[1:])], out)

    def _expand_at(self, indices: Sequence[Tensor], out: Tensor) -> None:
        rows, *others = indices
        slices = self.slices()
        for low, high in blocks_of_rows(len(rows), math.prod(self.shape[1:])):
            block = torch.empty(high - low, *self.shape[1:])
            for start, stop in runs(rows[low:high].tolist()):
                first = int(rows[low + start]) * self._draws_a_row
                slices.read(first, block[start:stop].view(-1, *self._draw_shape))
            for axis, chosen in enumerate(others, start=1):
                if len(chosen) != self.shape[axis]:
                    block = block.index_select(axis, chosen)
            out[low:high].copy_(block)


class SliceStream:
    """Slices of one weight in their order, drawn in chunks, each chunk once.

    Args:
        decoder: law of a slice.
        count: number of slices; the last chunk may be a shorter one.
        stream: of the noise.
        gain: factor on all values.
        noise_scale: factor on all noise.
    """

    def __init__(
        self,
        decoder: SliceDecoder | PaperDecoder,
        count: int,
        stream: torch.Generator,
        gain: float = 1.0,
        noise_scale: float = 1.0,
    ) -> None:
        with torch.no_grad():
            self.sample = decoder.sampler(gain)
        self.count, self.stream, self.noise_scale = count, stream, noise_scale
        # The next chunk starts at `end`; `kept` holds slices just before it that may still be wanted.
        self.end, self.kept = 0, torch.empty(0)

    @torch.no_grad()
    def read(self, first: int, out: Tensor) -> None:
        """Fill ``out`` (slices, kernel extents) with slices from ``first`` on, which never goes back."""
        flat = out.view(len(out), -1)
        stop = first + len(out)
        while True:
            begin = self.end - len(self.kept)
            low, high = max(first, begin), min(stop, self.end)
            if low < high:
                flat[low - first : high - first] = self.kept[low - begin : high - begin]
            if stop <= self.end:
                return
            begin, self.end = self.end, min(self.end + CHUNK, self.count)
            if first <= begin and self.end <= stop:
                self.sample(flat[begin - first : self.end - first], self.stream, self.noise_scale)
                self.kept = flat[:0]
            else:
                self.kept = flat.new_empty(self.end - begin, flat.shape[1])
                self.sample(self.kept, self.stream, self.noise_scale)


class SliceVAEs(WeightGenerator):
    r"""Weights of convolutions, drawn slice by slice from VAEs of trained kernels.

    A layer is served by the VAE of its kernel size that is nearest in relative depth. Each slice (o, i) gets
    its own noise. Where the inputs are the same in every network, the colours of an image, a draw may be a
    whole filter: such a VAE serves first convolutions of as many inputs, and no others. Slices of depthwise
    convolutions are whole filters as well, and of another law: their VAEs serve depthwise convolutions, and
    these are served by others only if there is none for their kernel size.

    Draws x of the VAE have the trained layer's scale; a new layer gets either the same scale relative to He's
    law, std = sqrt(2 / fan_in), so that it carries over to other widths, or He's scale:

    .. math:: W = x \sqrt{\text{fan\_in}_\text{trained} / \text{fan\_in}}
        \quad\text{or}\quad W = x \sqrt{2 / \text{fan\_in}} / \text{std}_\text{trained}

    Config entries read here: ``sizes`` with ``decoder`` ("slice" or "paper"), ``latent``, ``hidden`` and
    ``layers``, a list of objects with the fields of :class:`TrainedLayer`; ``scale``, "learned" or "he".
    """

    kind = "vae"
    taken_on_trust = "slices are drawn layer by layer, whatever the network around them"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        sizes = config["sizes"]
        self.layers = tuple(_trained_layer(record) for record in sizes["layers"])
        if not self.layers:
            raise ValueError("sizes.layers is empty; expected a record for each trained convolution")
        self.scale = config.get("scale", "learned")
        if self.scale not in ("learned", "he"):
            raise ValueError(f"scale: expected 'learned' or 'he', got {self.scale!r}")
        self.decoders = nn.ModuleList(_decoder(sizes, layer) for layer in self.layers)

    def choose(
        self, kernel_size: Shape, depth: float, inputs: int = 0, *, depthwise: bool = False
    ) -> int | None:
        """Return the index of the VAE for a convolution, or None if none fits it.

        A VAE of whole filters goes before one of slices; among VAEs equally near in depth the shallower one
        serves.

        Args:
            kernel_size, depth: of the layer.
            inputs: of its filters, if it is the first convolution and not grouped, else 0.
            depthwise: whether its filters see one of several channels each.
        """

        def order(index: int) -> tuple[int, bool, float, float]:
            layer = self.layers[index]
            return -layer.inputs, depthwise and not layer.depthwise, abs(layer.depth - depth), layer.depth

        known = [
            index
            for index, layer in enumerate(self.layers)
            if layer.kernel_size == tuple(kernel_size)
            and layer.inputs in (1, inputs)
            and (depthwise or not layer.depthwise)
        ]
        return min(known, key=order, default=None)

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        """Refuse whatever is no convolution weight, and kernel sizes without a VAE."""
        layer = entry.layer
        if layer is None or entry.role != "weight":
            return "VAEs make weights of convolutions only"
        if layer.op != "conv":
            return f"no VAE for {layer.op} layers, trained on convolutions"
        if self._serving(entry) is None:
            slices = {t.kernel_size for t in self.layers if t.inputs == 1 and not t.depthwise}
            filters = sorted({(t.inputs, t.kernel_size) for t in self.layers if t.inputs > 1})
            channels = {t.kernel_size for t in self.layers if t.depthwise} - slices
            known = [_times(size) for size in sorted(slices)]
            known += [f"{_times(size)} of first layers with {inputs} inputs" for inputs, size in filters]
            known += [f"{_times(size)} of depthwise layers" for size in sorted(channels)]
            return f"no VAE for kernel size {_times(layer.kernel_size)}, trained on {', '.join(known)}"
        return None

    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> dict[str, SliceDraws]:
        """Say how every parameter is drawn; the same seed and name give the same values.

        Args:
            request: whose generated entries are convolution weights that :meth:`refusal` lets pass.
            seed: of all noise; required, since a VAE without noise would make every slice the same.
            noise_scale: factor on all noise.

        Raises:
            ValueError: if ``seed`` is None.
        """
        if seed is None:
            raise ValueError("slice VAEs draw random weights: expected a seed, got None; pass seed=")
        return {entry.name: self._draws(entry, seed, noise_scale) for entry in request.generated}

    def _draws(self, entry: Entry, seed: int, noise_scale: float) -> SliceDraws:
        index = self._serving(entry)
        if index is None:
            raise ValueError(f"{entry.name}: {self.refusal(entry, None)}; the plan must not ask for it")
        trained = self.layers[index]
        if self.scale == "he":
            gain = math.sqrt(2 / entry.fan_in) / trained.std
        else:
            gain = math.sqrt(trained.fan_in / entry.fan_in)
        return SliceDraws(
            self.decoder(index), entry.shape, gain, seed, entry.canonical, noise_scale, trained.inputs
        )

    def _serving(self, entry: Entry) -> int | None:
        layer = entry.layer
        if layer is None:
            return None
        # A group of three channels of nine is no image.
        first = layer.index == 0 and layer.groups == 1
        return self.choose(
            layer.kernel_size,
            layer.depth,
            entry.shape[1] if first else 0,
            # A first filter of a grey image sees one channel too, but is no depthwise one.
            depthwise=entry.shape[1] == 1 and layer.groups > 1,
        )

    def decoder(self, index: int) -> SliceDecoder | PaperDecoder:
        """Return the law of the VAE ``index``."""
        decoder: SliceDecoder | PaperDecoder = self.decoders[index]  # type: ignore[assignment]
        return decoder

    def draw(
        self, index: int, count: int, stream: torch.Generator, gain: float = 1.0, noise_scale: float = 1.0
    ) -> Tensor:
        """Draw ``count`` slices, or filters, (count, positions) from the VAE ``index``, times ``gain``."""
        slices = torch.empty(count, self.layers[index].positions)
        SliceStream(self.decoder(index), count, stream, gain, noise_scale).read(0, slices)
        return slices


def _trained_layer(record: Mapping[str, Any]) -> TrainedLayer:
    kernel_size, fan_in, depth = tuple(record["kernel_size"]), record["fan_in"], float(record["depth"])
    if not kernel_size or not all(type(extent) is int and extent > 0 for extent in kernel_size):
        raise ValueError(f"layer {record['name']!r}: kernel_size {kernel_size} has no positive whole extents")
    if type(fan_in) is not int or fan_in < 1:
        raise ValueError(f"layer {record['name']!r}: expected a positive whole fan_in, got {fan_in!r}")
    if not 0 <= depth <= 1:
        raise ValueError(f"layer {record['name']!r}: expected a depth from 0 to 1, got {depth}")
    std = float(record.get("std", math.sqrt(2 / fan_in)))
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"layer {record['name']!r}: expected a positive std, got {std}")
    inputs = record.get("inputs", 1)
    if type(inputs) is not int or inputs < 1:
        raise ValueError(f"layer {record['name']!r}: expected positive whole inputs, got {inputs!r}")
    depthwise = record.get("depthwise", False)
    if type(depthwise) is not bool or (depthwise and inputs > 1):
        raise ValueError(
            f"layer {record['name']!r}: expected depthwise true or false, and 1 input if it is, "
            f"got {depthwise!r} and {inputs}"
        )
    return TrainedLayer(str(record["name"]), kernel_size, fan_in, depth, std, inputs, depthwise)


def _decoder(sizes: Mapping[str, Any], layer: TrainedLayer) -> SliceDecoder | PaperDecoder:
    latent, hidden, name = sizes["latent"], sizes["hidden"], sizes["decoder"]
    for key, value in (("latent", latent), ("hidden", hidden)):
        if type(value) is not int or value < 1:
            raise ValueError(f"sizes.{key}: expected a positive whole number, got {value!r}")
    if name == "slice":
        return SliceDecoder(latent, hidden, layer.positions)
    if name == "paper" and layer.inputs == 1:
        return PaperDecoder(latent, hidden, layer.kernel_size)
    if name == "paper":
        raise ValueError(f"layer {layer.name!r}: the paper's decoder makes slices; expected inputs 1")
    raise ValueError(f"sizes.decoder: expected 'slice' or 'paper', got {name!r}")


def _times(kernel_size: Shape) -> str:
    return "x".join(str(extent) for extent in kernel_size)
