"""What a graph says of layers, and of parameters that are no layer's weight and bias."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.support.tracing import check, image, operations

# Parameters that are not simply weight and bias.


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "roles"),
    [
        (parametrizations.weight_norm, {"weight_g", "weight_v", "bias"}),
        (nn.utils.weight_norm, {"weight_g", "weight_v", "bias"}),
        (parametrizations.spectral_norm, {"weight", "bias"}),
        (nn.utils.spectral_norm, {"weight", "bias"}),
        (parametrizations.orthogonal, {"weight", "bias"}),
        (functools.partial(prune.l1_unstructured, name="weight", amount=0.5), {"weight", "bias"}),
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 4), lambda: nn.Conv2d(3, 8, 3)])
def test_a_computed_weight_is_still_the_layers(
    change: Callable[[nn.Module], nn.Module], roles: set[str], make: Callable[[], nn.Module]
) -> None:
    layer = make()
    op = "linear" if isinstance(layer, nn.Linear) else "conv"
    architecture = check(nn.Sequential(change(layer), nn.ReLU()))
    assert operations(architecture) == ["input", op, "relu", "output"]
    assert {use.role for use in architecture.nodes[1].parameters} == roles


def test_low_rank_updates_of_a_frozen_layer() -> None:
    class LoRA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 6).requires_grad_(False)
            self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    assert operations(check(LoRA())) == ["input", "linear", "linear", "linear", "add", "output"]

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(2, 8)), nn.Parameter(torch.ones(6, 2))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.b @ self.a

    layer = nn.Linear(8, 6)
    parametrize.register_parametrization(layer, "weight", Merged())
    architecture = check(layer)
    assert operations(architecture) == ["input", "linear", "output"]
    assert {use.name.rpartition(".")[2]: use.role for use in architecture.nodes[1].parameters} == {
        "original": "weight",
        "a": "other",
        "b": "other",
        "bias": "bias",
    }


class Tokens(nn.Module):
    """A vision transformer in small: every kind of parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.table = nn.Parameter(torch.zeros(25, 2))
        self.register_buffer("index", torch.arange(25).view(5, 5))
        self.qkv = nn.Linear(8, 24, bias=False)
        self.qkv_bias = nn.Parameter(torch.zeros(24))
        self.project = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        q, k, v = (self.qkv(x) + self.qkv_bias).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * 0.5 + self.table[self.index].permute(2, 0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, 5, 8) @ self.project
        return x + self.scale * y


def test_tokens_tables_and_scales() -> None:
    architecture = check(Tokens(), image())
    assert operations(architecture) == [
        "input",
        "conv",
        "token",
        "concat",
        "bias",
        "linear",
        "attention",
        "linear",
        "scale",
        "add",
        "output",
    ]
    roles = {use.name: use.role for node in architecture.nodes for use in node.parameters}
    assert roles == {
        "patches.weight": "weight",
        "patches.bias": "bias",
        "token": "weight",
        "position": "bias",
        "qkv.weight": "weight",
        "qkv_bias": "bias",
        "table": "bias",
        "project": "weight",
        "scale": "weight",
    }
    assert architecture.nodes[7].attribute("transposed_weight") == 1
    assert architecture.nodes[5].attribute("transposed_weight") is None


def test_scale_and_shift_in_one_operation() -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addcmul(self.beta, self.alpha, x)

    (node,) = [node for node in check(Affine(), torch.zeros(2, 4)).nodes if node.parameters]
    assert node.op == "scale"
    assert {use.name: use.role for use in node.parameters} == {"alpha": "weight", "beta": "bias"}


# Layers.


@pytest.mark.parametrize(
    ("layer", "shape", "op", "roles"),
    [
        (nn.Conv1d(3, 4, 3), (1, 3, 9), "conv", ["weight", "bias"]),
        (nn.Conv3d(3, 4, 3), (1, 3, 9, 9, 9), "conv", ["weight", "bias"]),
        (nn.Conv2d(4, 4, 3, padding="same", groups=2), (1, 4, 9, 9), "conv", ["weight", "bias"]),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (1, 4, 9, 9), "conv", ["weight", "bias"]),
        (nn.ConvTranspose1d(3, 4, 3), (1, 3, 9), "conv_transpose", ["weight", "bias"]),
        (nn.ConvTranspose2d(3, 4, 3, 2), (1, 3, 9, 9), "conv_transpose", ["weight", "bias"]),
        (nn.ConvTranspose3d(3, 4, 3), (1, 3, 5, 5, 5), "conv_transpose", ["weight", "bias"]),
        (nn.Linear(4, 5), (2, 3, 4), "linear", ["weight", "bias"]),
        (nn.Linear(4, 5, bias=False), (2, 3, 4), "linear", ["weight"]),
        (nn.Bilinear(4, 4, 5), None, "linear", ["weight", "bias"]),
        (nn.Embedding(7, 4, padding_idx=0, max_norm=1.0), None, "embedding", ["weight"]),
        (nn.EmbeddingBag(7, 4), None, "embedding", ["weight"]),
        (nn.BatchNorm1d(4), (2, 4), "batch_norm", ["weight", "bias"]),
        (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 3, 3), "batch_norm", ["weight", "bias"]),
        (nn.BatchNorm3d(4), (2, 4, 3, 3, 3), "batch_norm", ["weight", "bias"]),
        (nn.SyncBatchNorm(4), (2, 4, 3, 3), "batch_norm", ["weight", "bias"]),
        (nn.LayerNorm(4), (2, 3, 4), "layer_norm", ["weight", "bias"]),
        (nn.LayerNorm(4, bias=False), (2, 3, 4), "layer_norm", ["weight"]),
        (nn.GroupNorm(2, 4), (2, 4, 3, 3), "group_norm", ["weight", "bias"]),
        (nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 3), "instance_norm", ["weight", "bias"]),
        (nn.InstanceNorm1d(4, affine=True), (1, 4, 3), "instance_norm", ["weight", "bias"]),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (1, 4, 3, 3), None, ["weight", "bias"]),
        (nn.RMSNorm(4), (2, 3, 4), "rms_norm", ["weight"]),
        (nn.PReLU(4), (2, 4, 3), "activation", ["weight"]),
        (nn.LSTMCell(4, 5), (2, 4), "recurrent", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]),
        (nn.GRUCell(4, 5), (2, 4), "recurrent", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]),
        (nn.RNNCell(4, 5), (2, 4), "recurrent", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]),
    ],
)
@pytest.mark.parametrize("real", [False, True])
def test_a_layer_is_one_node(
    layer: nn.Module, shape: tuple[int, ...] | None, op: str | None, roles: list[str], real: bool
) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args: Tensor) -> Any:
            if real:
                args[0].sum().item()
            return self.layer(*args)

    if shape is not None:
        inputs: tuple[Tensor, ...] = (torch.zeros(shape),)
    elif isinstance(layer, nn.Bilinear):
        inputs = (torch.zeros(2, 4), torch.zeros(2, 4))
    else:
        inputs = (torch.zeros(2, 3, dtype=torch.int64),)
    architecture = check(Alone(), inputs)
    nodes = [node for node in architecture.nodes if node.parameters]
    assert [[use.role for use in node.parameters] for node in nodes] == [roles]
    assert op is None or nodes[0].op == op
    if op in ("conv", "conv_transpose"):
        assert nodes[0].attribute("kernel_size") == layer.kernel_size
        assert nodes[0].attribute("stride") == layer.stride
        assert nodes[0].attribute("groups") == layer.groups
        assert (
            len(nodes[0].attribute("padding"))
            == len(nodes[0].attribute("dilation"))
            == len(layer.kernel_size)
        )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_a_recurrent_layer_is_one_node(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    model = nn.Sequential(OrderedDict(layer=kind(4, 5, **options)))
    architecture = check(model)
    assert operations(architecture) == ["input", "recurrent", "output"]
    for use in architecture.nodes[1].parameters:
        assert use.name.startswith(f"layer.{use.role}_l")


def test_packed_sequences_and_projections() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 5, proj_size=3, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, [3, 2], batch_first=True)
            return self.layer(packed)[0].data

    architecture = check(Packed(), torch.zeros(2, 3, 4))
    assert operations(architecture) == ["input", "recurrent", "output"]
    assert "weight_hr" in {use.role for use in architecture.nodes[1].parameters}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(separate: bool, need_weights: bool) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"kdim": 6, "vdim": 10} if separate else {}
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=separate, **sizes)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(q, k, v, need_weights=need_weights)[0]

    sizes = (8, 6, 10) if separate else (8, 8, 8)
    architecture = check(Attends(), tuple(torch.zeros(1, 5, size) for size in sizes))
    assert operations(architecture).count("attention") == 1
    assert operations(architecture).count("linear") == 4
    (attends,) = [i for i, node in enumerate(architecture.nodes) if node.op == "attention"]
    assert len({source for source, target in architecture.edges if target == attends}) == 3


@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_of_torch(masked: bool) -> None:
    model = nn.Transformer(8, 2, 1, 2, 16, batch_first=True)
    inputs: dict[str, Any] = {"src": torch.zeros(1, 5, 8), "tgt": torch.zeros(1, 4, 8)}
    if masked:
        inputs["tgt_mask"] = nn.Transformer.generate_square_subsequent_mask(4)
        inputs["src_key_padding_mask"] = torch.zeros(1, 5, dtype=torch.bool)
    architecture = check(model, inputs)
    assert operations(architecture).count("attention") == 5
    assert operations(architecture).count("layer_norm") == 10
    assert not {"matmul", "softmax"} & set(operations(architecture))


class Flexible(nn.Module):
    """flex_attention with a bias for each head, grouped queries and a causal mask."""

    def __init__(self, *, masked: bool, compiled: bool, real: bool) -> None:
        super().__init__()
        from torch.nn.attention import flex_attention as flex

        self.query, self.key, self.value = nn.Linear(8, 32), nn.Linear(8, 16), nn.Linear(8, 16)
        self.bias = nn.Parameter(torch.zeros(4))
        self.out = nn.Linear(32, 8)
        self.masked, self.mask, self.real = masked, flex.create_block_mask, real
        self.attend = torch.compile(flex.flex_attention) if compiled else flex.flex_attention

    def forward(self, x: Tensor) -> Tensor:
        if self.real:
            x = x * (1.0 if x.sum().item() >= 0 else 2.0)
        q, k, v = (
            layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = None
        if self.masked:
            n = x.shape[1]
            mask = self.mask(lambda b, h, i, j: i >= j, None, None, n, n, device=x.device)
        y, statistic = self.attend(
            q, k, v, lambda score, b, h, i, j: score + self.bias[h] * (i - j).abs(), mask, None, True, True
        )
        return self.out(y.transpose(1, 2).flatten(2)) + 0 * statistic.sum()


@pytest.mark.system
@pytest.mark.parametrize(("masked", "compiled"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_flex_attention(masked: bool, compiled: bool, real: bool) -> None:
    model = Flexible(masked=masked, compiled=compiled, real=real)
    architecture = check(model, torch.zeros(1, 256, 8))
    assert operations(architecture)[:6] == ["input", "linear", "linear", "linear", "attention", "linear"]
    (attends,) = [node for node in architecture.nodes if node.op == "attention"]
    assert [use.role for use in attends.parameters] == ["bias"]
    assert attends.shape == (1, 4, 256, 8)


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.ReLU6(), "relu"),
        (nn.Hardtanh(0, 6), "relu"),
        (nn.Hardtanh(0, 1), "activation"),
        (nn.Hardtanh(), "activation"),
    ],
)
def test_of_clipped_activations_relu6_alone_is_a_relu(layer: nn.Module, op: str) -> None:
    architecture = check(layer, (torch.zeros(2, 4),))
    assert operations(architecture) == ["input", op, "output"]
