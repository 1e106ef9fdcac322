"""From node embeddings to parameter values, as the published hypernetworks do it; only what is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isqrt, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.graph.architecture import Shape

CHUNK = 1 << 24
"""Values decoded at once: bounds the memory of a network with many kernels of one size."""


def rounded(channels: int, limit: int) -> int:
    """Return the channel count that the originals decode for ``channels``."""
    channels = min(channels, limit)
    if channels % 3 == 0:
        channels = channels // 3 * 4
    return limit if 2 * channels >= limit else channels


class KernelDecoder(nn.Module):
    """Decode a node embedding to a kernel of up to (out, in, S, S), or to a classifier of (classes, in).

    Args:
        width: of a node embedding.
        channels: (out, in), the most channels that are decoded.
        kernel: S.
        classes: rows of a classifier.
        centred: take the centre of the S x S positions for a smaller kernel (GHN-3), not the corner (GHN-2).
    """

    def __init__(
        self, width: int, channels: tuple[int, int], kernel: int, classes: int, centred: bool
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.centred = channels, kernel, centred
        self.fc = nn.Sequential(nn.Linear(width, 4 * width * kernel * kernel))
        self.conv = nn.Sequential(
            nn.Linear(4 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, prod(channels))
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(channels[0], classes))

    def kernels(self, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Decode a tensor (o, i, h, w) for each row of x, no larger than asked for and than the decoder has.

        All ``shapes`` (out, in, height, width) have the same height and width.
        """
        height, width = (min(self.kernel, side) for side in shapes[0][2:])
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, (out, in_, *_) in enumerate(shapes):
            groups[min(out, self.channels[0]), min(in_, self.channels[1])].append(row)
        u = self._positions(x, height, width)
        result: list[Tensor] = [x] * len(shapes)
        for (out, in_), rows in groups.items():
            step = max(1, CHUNK // (out * in_ * height * width))
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                values = self._project(u[part].flatten(0, 1).T, out, in_)
                values = values.view(out, in_, len(part), height, width).permute(2, 0, 1, 3, 4).contiguous()
                for row, value in zip(part, values.unbind(), strict=True):
                    result[row] = self._resize(value, shapes[row])
        return result

    def classifier(self, x: Tensor, columns: int) -> Tensor:
        """Decode the (classes, min(columns, in)) matrix of a classifier from one embedding (1, width)."""
        u = self._positions(x, 1, 1).view(-1, 1)
        full = self._project(u, self.channels[0], min(columns, self.channels[1]))[:, :, 0]
        logits: Tensor = self.class_layer_predictor(full.T)
        return logits.T.contiguous()

    def _positions(self, x: Tensor, height: int, width: int) -> Tensor:
        """Hidden state (rows, height * width, 8 * width) of the kernel positions asked for."""
        rows = self._crop(height)
        columns = self._crop(width)
        fc = self._linear(self.fc, 0)
        size = (-1, self.kernel, self.kernel)
        weight = fc.weight.view(*size, x.shape[1])[:, rows, columns].flatten(0, 2)
        f = F.relu(F.linear(x, weight, fc.bias.view(size)[:, rows, columns].flatten()))
        hidden = f.view(len(x), -1, height * width).transpose(1, 2)
        return F.relu(self._linear(self.conv, 0)(hidden))

    def _crop(self, side: int) -> slice:
        if not self.centred:
            return slice(0, side)
        start = max(0, self.kernel // 2 - side // 2)
        return slice(start, start + side)

    def _project(self, u: Tensor, out: int, in_: int) -> Tensor:
        """Map hidden states (8 * width, m) to (out, in, m), the first rows and columns of all channels."""
        layer = self._linear(self.conv, 2)
        weight = layer.weight.view(*self.channels, -1)[:out, :in_]
        bias = layer.bias.view(self.channels)[:out, :in_, None]
        if in_ == self.channels[1]:
            return torch.addmm(bias.flatten(0, 1), weight.flatten(0, 1), u).view(out, in_, -1)
        # as a batch, since the rows don't lie together and copying them would take longer than the product
        return torch.bmm(weight, u.expand(out, -1, -1)).add_(bias)

    @staticmethod
    def _linear(layers: nn.Sequential, index: int) -> nn.Linear:
        layer: nn.Linear = layers[index]  # type: ignore[assignment]
        return layer

    def _resize(self, value: Tensor, shape: Shape) -> Tensor:
        """Make a kernel that is larger than the decoder's from the largest that it has."""
        height, width = shape[2:]
        out, in_ = (rounded(n, limit) for n, limit in zip(shape[:2], self.channels, strict=True))
        narrow = 2 * in_ <= self.channels[1] or out < self.channels[0]
        larger = value.shape[2:] != (height, width)
        if larger and not self.centred and narrow and max(height, width) <= 2 * self.kernel:
            return value.repeat(1, 1, 2, 2)[:, :, :height, :width].contiguous()
        return _enlarged(value, shape)


class FlatDecoder(nn.Module):
    """Decode a node embedding to a kernel or a classifier by two linear layers, an ablation of GHN-2.

    The first layer is shared; a kernel smaller than (out, in, S, S) is its first rows, columns and positions.

    Args:
        width: of a node embedding.
        channels: (out, in), the most channels that are decoded, both the same.
        kernel: S.
        classes: rows of a classifier.
    """

    def __init__(self, width: int, channels: tuple[int, int], kernel: int, classes: int) -> None:
        super().__init__()
        self.channels, self.kernel, self.classes = channels, kernel, classes
        self.mlp = nn.Module()
        self.mlp.fc = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, prod(channels) * kernel * kernel)
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, classes * channels[0]))

    def kernels(self, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Decode a tensor (o, i, h, w) for each row of x, as :meth:`KernelDecoder.kernels`."""
        first, relu, second = self.mlp.fc  # type: ignore[misc]
        size = (*self.channels, self.kernel, self.kernel)
        result = []
        for hidden, shape in zip(relu(first(x)), shapes, strict=True):
            part = tuple(slice(min(n, most)) for n, most in zip(shape, size, strict=True))
            weight, bias = second.weight.view(*size, -1)[part], second.bias.view(size)[part]
            value = torch.addmv(bias.flatten(), weight.flatten(0, 3), hidden).view(bias.shape)
            result.append(_enlarged(value, shape))
        return result

    def classifier(self, x: Tensor, columns: int) -> Tensor:
        """Decode the (classes, min(columns, in)) matrix of a classifier from one embedding (1, width)."""
        first, *_ = self.mlp.fc  # type: ignore[misc]
        full: Tensor = self.class_layer_predictor(first(x))
        return full.view(self.classes, -1)[:, :columns].contiguous()


def _enlarged(value: Tensor, shape: Shape) -> Tensor:
    if value.shape[2:] == tuple(shape[2:]):
        return value
    return F.interpolate(value, tuple(shape[2:]), mode="bilinear", align_corners=False)


class VectorDecoder(nn.Module):
    """Decode a node embedding to (weight, bias) vectors."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * length))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pair (..., 2, length) of weight and bias for embeddings (..., width)."""
        pair: Tensor = self.fc(x).unflatten(-1, (2, -1))
        return pair


def table_shape(shape: Shape) -> Shape | None:
    """Return the kernel (1, D, s, s) that a table of positions (1, L, D) is decoded as, else None."""
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        side = isqrt(shape[1])
        return (1, shape[2], side, side)
    return None


def kernel_shape(shape: Shape) -> Shape:
    """Return the kernel that a parameter of two or more dimensions is decoded as."""
    return table_shape(shape) or (*shape, 1, 1)[:4]


def table(value: Tensor, shape: Shape, stream: torch.Generator) -> Tensor:
    """Expand a decoded (1, i, s, s) to a table of positions (1, L, D); rows before it ~ N(0, 0.02^2)."""
    grid = value.flatten(2).transpose(1, 2)
    extra = shape[1] - grid.shape[1]
    drawn = 0.02 * torch.randn(1, extra, grid.shape[2], generator=stream)
    rows = torch.cat([drawn, grid], 1)
    return rows.repeat(1, 1, -(-shape[2] // rows.shape[2]))[:, :, : shape[2]].contiguous()


def scale(shape: Shape) -> float:
    """Return sqrt(beta / fan-in), the originals' factor on a parameter of two or more dimensions.

    beta is 1 for depthwise and wide kernels, else 2; tables of positions and single-filter kernels from 11
    on are as decoded.
    """
    if len(shape) > 2 and shape[0] == 1 and shape[2] >= 11:
        return 1.0
    beta = 1 if len(shape) > 2 and (shape[1] == 1 or shape[2] < (*shape, 0)[3]) else 2
    return float((beta / prod(shape[1:])) ** 0.5)


def squash(value: Tensor, role: str) -> Tensor:
    """Bound a vector: 2 sigmoid(v / 2) of a norm's weight in (0, 2), tanh(v / 5) of a bias in (-1, 1)."""
    return 2 * torch.sigmoid(0.5 * value) if role == "weight" else torch.tanh(0.2 * value)
