"""Models that break other tracers: each is traced, every parameter is seen, and nothing about it changes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import random
import threading
import time
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.trace import TraceError, trace
from torch_geninit.training.networks import resnet20


def seen(architecture: Architecture) -> set[str]:
    return set(architecture.uses)


def operations(architecture: Architecture) -> list[str]:
    return [node.op for node in architecture.nodes]


def node_of(architecture: Architecture, parameter: str) -> str:
    return architecture.nodes[architecture.uses[parameter][0]].op


def check(model: nn.Module, example_inputs: Any = None) -> Architecture:
    architecture = trace(model, example_inputs)
    assert seen(architecture) == {name for name, _ in model.named_parameters()}
    return architecture


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.zeros(1, channels, size, size)


class Net(nn.Module):
    """Two layers, and a forward pass given as a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.forward_function = forward

    def forward(self, x: Tensor) -> Any:
        if self.forward_function is not None:
            return self.forward_function(self, x)
        return self.second(self.first(x).relu())


# The contract: nothing changes.


class Busy(nn.Module):
    """Does everything to itself that a forward pass can do, and draws from every random state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: dict[str, Any] = {}
        self.log: list[Tensor] = [torch.ones(2)]
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        import numpy as np

        self.calls += 1
        self.cache["x"] = x
        self.last = x
        self.log.append(x)
        self.log[0].mul_(2)
        self.conv.weight.data.mul_(0.5)
        with self.lock:
            x = F.dropout(self.norm(self.conv(x)), 0.5, training=True)
        return x + torch.randn(x.shape) + random.random() + float(np.random.rand())  # noqa: NPY002


def everything_about(model: nn.Module) -> Any:
    def bits(tensor: Tensor | None) -> Any:
        return (
            None
            if tensor is None
            else (tensor.numpy(force=True).tobytes(), tensor.data_ptr(), tensor._version)
        )

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return bits(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else repr(value)

    parameters = [(id(p), bits(p.grad), p.requires_grad, p.stride()) for p in model.parameters()]
    return parameters, {name: plain(vars(module)) for name, module in model.named_modules()}


def every_random_state() -> Any:
    import numpy as np

    states = [torch.get_rng_state()] + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [state.tolist() for state in states], random.getstate(), (name, keys.tolist(), rest)


@pytest.mark.parametrize("make", [Busy, lambda: Busy().train(), lambda: Busy().eval(), resnet20])
def test_nothing_about_the_model_or_the_process_changes(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before, random_before = everything_about(model), every_random_state()
    ambient = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
    check(model, image(size=32))
    trace(model)
    assert everything_about(model) == before
    assert every_random_state() == random_before
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()) == ambient


def test_a_failed_trace_changes_nothing_either() -> None:
    model = Busy()
    before, random_before = everything_about(model), every_random_state()
    with pytest.raises(TraceError):
        trace(model, torch.zeros(7, 7))
    assert everything_about(model) == before and every_random_state() == random_before


def test_the_example_inputs_are_not_written_to() -> None:
    x = torch.ones(1, 4)
    check(Net(lambda self, y: self.second(self.first(y.mul_(2)) * float(y.sum() > 0))), x)
    assert torch.equal(x, torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_tensor_of_the_recording_outlives_it() -> None:
    def count() -> int:
        gc.collect()
        return sum(isinstance(item, Tensor) for item in gc.get_objects())

    model = Busy()
    check(model, image())
    before = count()
    check(model, image())
    assert count() == before


def test_no_hook_runs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    everywhere = [
        nn.modules.module.register_module_forward_hook(lambda *_: calls.append("global")),
        nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append("global before")),
    ]
    try:
        check(model, image())
    finally:
        for handle in everywhere:
            handle.remove()
    assert calls == []


def test_the_users_modules_are_not_called_through_references_to_them() -> None:
    called: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            called.append(id(self))
            return super().forward(x)

    model = Net()
    model.first, model.second = Watched(4, 6), Watched(6, 5)
    reference = weakref.ref(model.second)
    closures = [lambda x, layer=None: model.first(x)]
    model.partial = functools.partial(lambda layer, x: layer(x), model.first)  # type: ignore[assignment]
    model.forward_function = lambda self, x: reference()(closures[0](x))  # type: ignore[misc]
    check(model, torch.zeros(1, 4))
    model.forward_function = lambda self, x: self.second(self.partial(x))
    check(model, torch.zeros(1, 4))
    model.forward = types.MethodType(lambda self, x: self.second(self.first(x)), model)  # type: ignore[method-assign]
    check(model, torch.zeros(1, 4))
    assert called and not {id(model.first), id(model.second)} & set(called)


def test_references_are_shared_as_in_the_model_and_unregistered_modules_have_no_hooks() -> None:
    calls: list[str] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        self.shared.append(self.hidden[0](x))
        return self.second(self.first.shared.pop())

    model = Net(forward)
    model.first.shared = model.shared = []  # type: ignore[assignment]
    model.hidden = [nn.Linear(4, 6)]  # type: ignore[assignment]
    model.hidden[0].register_forward_hook(lambda *_: calls.append("forward"))  # type: ignore[union-attr,index]
    assert seen(trace(model, torch.zeros(1, 4))) == {"second.weight", "second.bias"}
    assert model.shared == [] and calls == []


def test_an_error_holds_no_copy_of_the_model() -> None:
    model = Net(lambda self, x: self.second(x))
    with pytest.raises(TraceError) as error:
        trace(model)
    gc.collect()
    assert [item for item in gc.get_objects() if type(item) is Net] == [model]
    assert "mat1 and mat2" in str(error.value)


# The same graph in all circumstances.


class Various(nn.Module):
    """Layers that torch runs by other kernels in other circumstances."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.BatchNorm2d(16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(16, 8, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = x + torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
        x, _ = self.recurrent(self.encoder(x))
        return self.head(x.mean(1))


class _DefaultDtype(AbstractContextManager[None]):
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def inference_built(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return type(model)()


SURROUNDINGS: list[Callable[[], AbstractContextManager[Any]]] = [
    torch.no_grad,
    torch.inference_mode,
    functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    functools.partial(torch.device, "meta"),
    _DefaultDtype,
]
CHANGES: list[Callable[[nn.Module], nn.Module]] = [
    nn.Module.train,
    nn.Module.bfloat16,
    nn.Module.half,
    nn.Module.double,
    frozen,
    inference_built,
    lambda model: model.to("meta"),
    lambda model: model.to(memory_format=torch.channels_last),
]


@pytest.mark.parametrize(
    ("surroundings", "change"),
    [
        *[(nullcontext, change) for change in CHANGES],
        *[(surroundings, nn.Module.eval) for surroundings in SURROUNDINGS],
        *[(surroundings, nn.Module.bfloat16) for surroundings in SURROUNDINGS],
    ],
)
def test_the_graph_is_the_same_in_all_circumstances(
    surroundings: Callable[[], AbstractContextManager[Any]], change: Callable[[nn.Module], nn.Module]
) -> None:
    expected = trace(Various(), torch.zeros(1, 3, 16, 16))
    model = change(Various())
    with surroundings():
        found = trace(model, torch.zeros(1, 3, 16, 16, dtype=torch.float16))
    assert found == expected and found.fingerprint == expected.fingerprint
    assert "attention" in operations(found) and operations(found).count("recurrent") == 1


def test_a_real_run_gives_the_same_graph() -> None:
    """Models that ask for values run with data; that must not change what is seen."""

    class Asks(Various):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.sum().item() >= 0 else 2.0)

    expected, found = trace(Various(), image(size=16)), trace(Asks(), image(size=16))
    assert found.nodes == expected.nodes and found.edges == expected.edges


# Wrappers and names.


def test_data_parallel_is_unwrapped_and_names_are_the_models() -> None:
    inner = Net()
    plain, wrapped = check(inner), check(nn.DataParallel(inner))
    assert seen(wrapped) == {f"module.{name}" for name in seen(plain)}
    assert wrapped.fingerprint == plain.fingerprint
    check(nn.Sequential(nn.DataParallel(inner), nn.ReLU()), torch.zeros(1, 4))


def test_an_attribute_called_module_is_no_wrapper() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.stem, self.system, self.cells = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(self.system(self.cells(self.module(x))))

    assert operations(check(Named())).count("linear") == 4


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_not_compiled_again() -> None:
    compilations: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(1)
        return graph.forward

    inner = Net()
    expected = check(inner, torch.zeros(1, 4))
    assert check(torch.compile(inner, backend=backend), torch.zeros(1, 4)).fingerprint == expected.fingerprint
    check(nn.Sequential(torch.compile(Net(), backend=backend)), torch.zeros(1, 4))
    inner.compile(backend=backend)
    check(inner, torch.zeros(1, 4))
    decorated = Net(torch.compile(lambda self, x: self.second(self.first(x)), backend=backend))
    check(decorated, torch.zeros(1, 4))
    assert compilations == []


def test_tied_parameters_keep_their_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    architecture = check(Tied())
    assert [[use.name for use in node.parameters] for node in architecture.nodes[1:3]] == [
        ["embed.weight"]
    ] * 2
    assert operations(architecture) == ["input", "embedding", "linear", "output"]


def test_a_reused_module_is_one_node_for_each_use() -> None:
    layer = nn.Linear(4, 4)
    architecture = check(nn.Sequential(layer, nn.ReLU(), layer))
    assert operations(architecture) == ["input", "linear", "relu", "linear", "output"]


def test_a_parameter_outside_of_every_module_is_a_constant() -> None:
    model = Net(lambda self, x: self.second(self.first(x)) @ self.loose[0])
    model.loose = [nn.Parameter(torch.ones(5, 5))]  # type: ignore[assignment]
    assert operations(check(model)) == ["input", "linear", "linear", "matmul", "output"]


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


# What forward takes and returns.


@dataclasses.dataclass
class Batch:
    x: Tensor
    scale: float = 2.0


class Output(NamedTuple):
    logits: Tensor
    extra: dict[str, Any]


class Holder:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("get", "inputs"),
    [
        (lambda x: x, torch.zeros(1, 4)),
        (lambda x: x, (torch.zeros(1, 4),)),
        (lambda x: x, [torch.zeros(1, 4)]),
        (lambda x: x, {"x": torch.zeros(1, 4)}),
        (lambda x: x["a"][0], {"x": {"a": [torch.zeros(1, 4)]}}),
        (lambda x: x.x * x.scale, Batch(torch.zeros(1, 4))),
        (lambda x: x.x, (Batch(torch.zeros(1, 4, device="meta")),)),
        (lambda x: x.value, Holder(torch.zeros(1, 4))),
    ],
)
@pytest.mark.parametrize(
    "put",
    [
        lambda x: x,
        lambda x: {"logits": x},
        lambda x: Output(x, {"a": [x]}),
        lambda x: Batch(x),
        lambda x: Holder(x),
        lambda x: (None, [x], 3),
    ],
)
def test_any_container_goes_in_and_out(
    get: Callable[[Any], Tensor], inputs: Any, put: Callable[[Tensor], Any]
) -> None:
    architecture = check(Net(lambda self, x: put(self.second(self.first(get(x)).relu()))), inputs)
    assert operations(architecture) == ["input", "linear", "relu", "linear", "output"]
    assert architecture.edges == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert architecture.nodes[-1].shape == (1, 5)


def test_several_inputs_and_outputs() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Embedding(9, 3), nn.Linear(3, 2)

        def forward(
            self, x: Tensor, tokens: Tensor, flag: bool = False, *, bias: Tensor | None = None
        ) -> Any:
            h = self.a(x) + self.b(tokens)
            return {"h": h, "out": self.c(h if bias is None else h + bias)}

    tokens = torch.zeros(1, dtype=torch.int64)
    architecture = check(Several(), {"x": torch.zeros(1, 4), "tokens": tokens, "bias": torch.zeros(1, 3)})
    assert operations(architecture) == ["input"] * 3 + [
        "linear",
        "embedding",
        "add",
        "add",
        "linear",
        "output",
    ]
    assert (5, 8) in architecture.edges and (7, 8) in architecture.edges
    assert operations(check(Several(), (torch.zeros(1, 4), tokens))).count("input") == 2


def test_an_unused_input_stays_and_dead_ends_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        (x * x).exp()
        return self.second(self.first(x))

    assert operations(check(Net(forward))) == ["input", "linear", "linear", "output"]


def test_unreached_parameters_are_named_in_the_notes() -> None:
    architecture = trace(Net(lambda self, x: self.first(x)))
    assert seen(architecture) == {"first.weight", "first.bias"}
    assert any("second.bias, second.weight" in note for note in architecture.notes)


def test_auxiliary_heads_are_found_in_train_mode() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.first(x)
        return (self.second(x), x) if self.training else x

    check(Net(forward))


# Control flow.


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(self.first(x)) if x.sum() >= 0 else self.first(x),
        lambda self, x: self.second(self.first(x) * x.abs().max().item()),
        lambda self, x: self.second(self.first(x)[x[:, 0] >= 0]),
        lambda self, x: self.second(self.first(x[torch.nonzero(x[:, 0] == 0)[:, 0]])),
        lambda self, x: self.second(self.first(x) * float(x.numpy().sum() + 1)),
        lambda self, x: self.second(self.first(x)) * len(x.tolist()),
    ],
)
def test_a_model_may_ask_for_values(forward: Callable[[Any, Tensor], Any]) -> None:
    check(Net(forward), torch.zeros(2, 4))
    with torch.device("meta"):
        model = Net(forward)
    with pytest.raises(TraceError, match="Net could not be run"):
        trace(model, torch.zeros(2, 4))


def test_constants_have_values_even_without_data() -> None:
    """Masks and rates that don't depend on the input are computed, also for a model on meta."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mask = torch.tensor([True, False, True, True])
        rates = torch.linspace(0, 1, 3, device=x.device)
        if rates[-1].item() != 1.0 or int(mask.sum()) != 3:
            raise ValueError
        buffer = torch.zeros(x.shape[0], 6, device=x.device)
        buffer[:, :3] = self.first(x)[:, :3] * rates
        buffer[:, 3:] = x[:, mask]
        return self.second(buffer)

    with torch.device("meta"):
        model = Net(forward)
    architecture = check(model)
    assert operations(architecture) == ["input", "linear", "concat", "linear", "output"]
    assert architecture.edges == ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x.requires_grad_(), use_reentrant=reentrant))

    assert operations(check(Net(forward))) == ["input", "linear", "linear", "output"]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.sinh(x @ weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


def test_custom_autograd_functions() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = Double.apply(x, self.first.weight.t()) + self.first.bias
        return Double.apply(h, self.second.weight.t()) + self.second.bias

    assert operations(check(Net(forward))) == ["input", *["linear", "activation", "bias"] * 2, "output"]


def test_in_place_operations_are_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        left = h[:, :3]
        left.relu_()
        h.add_(1).mul_(h.sigmoid())
        return self.second(h)

    architecture = check(Net(forward))
    assert operations(architecture) == [
        "input",
        "linear",
        "relu",
        "sigmoid",
        "mul",
        "linear",
        "output",
    ] or operations(architecture) == ["input", "linear", "relu", "silu", "linear", "output"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_may_switch_gradients_off(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    class Frozen(Various):
        def forward(self, x: Tensor) -> Tensor:
            with mode():
                return super().forward(x)

    expected, found = trace(Various(), image(size=16)), trace(Frozen(), image(size=16))
    assert found.nodes == expected.nodes and found.edges == expected.edges


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_traced_submodules() -> None:
    scripted = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.ReLU())), nn.Linear(6, 2))
    expected = ["input", "linear", "relu", "linear", "output"]
    for dtype in (torch.float32, torch.bfloat16):
        assert operations(check(scripted.to(dtype), torch.zeros(1, 4))) == expected
        assert all(parameter.dtype == dtype for parameter in scripted.parameters())
    assert (
        operations(check(torch.jit.script(nn.Sequential(nn.Linear(4, 6))), torch.zeros(1, 4)))[1] == "linear"
    )
    graph = torch.fx.symbolic_trace(Net())
    assert operations(check(graph, torch.zeros(1, 4))) == expected


def test_a_chain_of_two_thousand_layers_takes_linear_time() -> None:
    def seconds(depth: int) -> float:
        with torch.device("meta"):
            model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth)])
        start = time.process_time()
        architecture = check(model)
        elapsed = time.process_time() - start
        assert len(architecture.nodes) == 2 * depth + 2
        return elapsed

    seconds(10)
    short = min(seconds(500) for _ in range(3))
    assert seconds(2000) < 12 * short


# Errors.


def test_a_lazy_model_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"'1\.weight'"):
        trace(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), torch.zeros(1, 4))


def test_nothing_to_guess_from() -> None:
    with pytest.raises(TraceError, match="example_inputs="):
        trace(nn.ReLU())
    assert operations(trace(nn.ReLU(), torch.zeros(2))) == ["input", "relu", "output"]


def test_no_module() -> None:
    with pytest.raises(TypeError, match="torch.nn.Module"):
        trace(lambda x: x)  # type: ignore[arg-type]


def test_a_wrong_example_says_what_it_was() -> None:
    with pytest.raises(
        TraceError, match=r"(?s)float32 tensor of shape \(1, 7\).*mat1 and mat2.*check example_inputs="
    ):
        trace(Net(), torch.zeros(1, 7))


def test_copies_are_traced_like_their_original() -> None:
    model = resnet20()
    assert trace(copy.deepcopy(model)) == trace(model)
