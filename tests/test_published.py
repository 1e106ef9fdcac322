"""Published hypernetworks against their originals' predictions, and part by part against slow twins."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from tests.reference import ghn2_reference, ghn3_reference
from torch_geninit.convert import build
from torch_geninit.generators.base import Tile, noise_stream
from torch_geninit.generators.published import PublishedGHN
from torch_geninit.generators.published_decoders import scale
from torch_geninit.generators.published_encoders import distances
from torch_geninit.graph.architecture import Architecture, Node
from torch_geninit.graph.autograd import AutogradReadError, read
from torch_geninit.graph.autograd_rules import PRIMITIVES

torchvision = pytest.importorskip("torchvision")

FIXTURES = Path(os.environ.get("GENINIT_FIXTURES", "absent"))
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="no predictions of the originals; name their folder in GENINIT_FIXTURES"
)
NETWORKS = ("resnet20A", "resnet18", "mobilenet_v3_small")
FAMILIES = {"ghn2": "ghn2", "ghn3tm8": "ghn3"}


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet20A(nn.Module):
    expected_input_sz = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


class MetaStorage(torch.overrides.TorchFunctionMode):
    """Build modules without storage, computing what constructors compute (RegNet's widths) for real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def network(name: str, classes: int = 1000, meta: bool = True) -> nn.Module:
    if name == "resnet20A":
        return ResNet20A()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with MetaStorage() if meta else warnings.catch_warnings():
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def tiny(family: int, seed: int = 0, **changes: Any) -> PublishedGHN:
    """Build a small generator with random weights of a size that makes its values differ."""
    sizes = {"width": 8, "channels": [16, 16], "kernel": 11 if family == 2 else 16}
    sizes |= {"layers": 2, "heads": 4} if family == 3 else {"layers": 0, "heads": 0}
    sizes |= {"virtual_edges": family == 2, "layer_norm": True, "weight_norm": True}
    card = {
        "kind": "published-ghn",
        "sizes": {"family": family, **sizes, **changes},
        "classes": [str(i) for i in range(10)],
    }
    generator = PublishedGHN(card)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.5, generator=stream)
    return generator.eval().requires_grad_(False)


def predict(generator: PublishedGHN, model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    architecture = generator.trace(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in architecture.uses}
    values = generator.decode(architecture, shapes, lambda name: noise_stream(seed, name))
    factors = {n: scale(s) if len(s) > 1 and generator.weight_norm else 1.0 for n, s in shapes.items()}
    return {name: Tile(values[name], shapes[name], factors[name]).expand() for name in shapes}


# --- the originals' predictions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original() -> Callable[[str], PublishedGHN]:
    loaded: dict[str, PublishedGHN] = {}

    def load(family: str) -> PublishedGHN:
        if family not in loaded:
            from torch_geninit.convert import _read

            loaded[family] = build(*_read(FIXTURES / f"{family}_seed0.safetensors"))
        return loaded[family]

    return load


def classes_of(family: str, name: str) -> int:
    return 10 if family == "ghn2" or name == "resnet20A" else 1000


@needs_fixtures
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_graph_is_the_originals(family: str, name: str) -> None:
    expected = json.loads((FIXTURES / f"{family}_{name}_graph.json").read_text())
    graph = read(network(name, classes_of(family, name)), dialect=FAMILIES[family])
    owners = {node.attribute("bias_node"): node for node in graph.nodes if node.attribute("bias_node")}
    found = []
    for index, node in enumerate(graph.nodes[:-1]):
        names = [use.name for use in owners[index].parameters[1:]] if index in owners else []
        names = names or [use.name for use in node.parameters[:1]]
        shape = list(node.shape) or [list(use.shape) for use in node.parameters[:1]]
        found.append(
            (PRIMITIVES[node.attribute("primitive")], *names, *(shape if not node.shape else [shape]))
        )
    wanted = []
    for record in expected["nodes"]:
        named = record["shape"] is not None and record["prim"] not in ("max_pool", "avg_pool")
        wanted.append((record["prim"], *([record["name"], record["shape"]] if named else [])))
    assert found == wanted
    d = distances(graph)
    pairs = [[s, t, int(d[s, t])] for s, t in d.nonzero().tolist()]
    assert pairs == sorted(expected["edges_src_dst_dist"])


@needs_fixtures
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_the_originals(
    family: str, name: str, original: Callable[[str], PublishedGHN]
) -> None:
    expected = json.loads((FIXTURES / f"{family}_{name}_params.json").read_text())["predicted"]
    values = predict(original(family), network(name, classes_of(family, name)))
    assert set(values) == {record[0] for record in expected}
    for parameter, shape, total, size, first, last in expected:
        value = values[parameter]
        assert list(value.shape) == shape
        assert float(value.double().sum()) == pytest.approx(total, rel=1e-4, abs=1e-5 * size)
        assert float(value.double().abs().sum()) == pytest.approx(size, rel=1e-5)
        near = {"rtol": 0, "atol": 1e-5 * float(value.abs().max())}
        torch.testing.assert_close(value.flatten()[:8], torch.tensor(first), **near)
        torch.testing.assert_close(value.flatten()[-8:], torch.tensor(last), **near)


@needs_fixtures
@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_resnet20_is_the_originals(
    family: str, original: Callable[[str], PublishedGHN]
) -> None:
    import safetensors.torch

    expected = safetensors.torch.load_file(FIXTURES / f"{family}_resnet20A_params.safetensors")
    values = predict(original(family), ResNet20A())
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))


# --- part by part -------------------------------------------------------------------------------------------


def random_graph(count: int, seed: int) -> Architecture:
    stream = torch.Generator().manual_seed(seed)
    edges = {(i, i + 1) for i in range(count - 1)}
    for _ in range(count // 2):
        source, target = sorted(torch.randint(count, (2,), generator=stream).tolist())
        edges |= {(source, target)} if source < target else set()
    # nodes that hang beside the path, as weights without predecessor do
    edges -= {(4, 5), (9, 10)}
    primitive = torch.randint(len(PRIMITIVES), (count,), generator=stream).tolist()
    nodes = [Node("add", (), (), (("primitive", p),)) for p in primitive]
    return Architecture((*nodes, Node("output", ())), (*sorted(edges), (count - 1, count)), 1)


def floyd(graph: Architecture) -> Tensor:
    count = len(graph.nodes) - 1
    far = 10**6
    d = [[far] * count for _ in range(count)]
    for source, target in graph.edges:
        if target < count:
            d[source][target] = 1
    for k in range(count):
        for i in range(count):
            for j in range(count):
                d[i][j] = min(d[i][j], d[i][k] + d[k][j])
    return torch.tensor([[x if x <= 50 else 0 for x in row] for row in d])


def test_distances_are_shortest_paths_up_to_fifty() -> None:
    graph = random_graph(60, seed=1)
    expected = floyd(graph)
    assert int(expected.max()) > 20
    assert torch.equal(distances(graph), expected)


def test_long_chain_has_virtual_edges_up_to_fifty_only() -> None:
    nodes = tuple(Node("add", (), (), (("primitive", 0),)) for _ in range(60))
    chain = Architecture((*nodes, Node("output", ())), tuple((i, i + 1) for i in range(60)), 1)
    assert distances(chain)[0].tolist() == [0, *range(1, 51), *[0] * 9]


@pytest.mark.parametrize("kernel", [11, 16])
@pytest.mark.parametrize("classes", [5, 10, 1000])
def test_shape_encoder_is_the_twin(kernel: int, classes: int) -> None:
    generator = tiny(2 if kernel == 11 else 3)
    generator = PublishedGHN({**generator.card, "classes": [str(i) for i in range(classes)]})
    state = {name: value.detach() for name, value in generator.state_dict().items()}
    shapes: list[tuple[int, ...] | None] = [None]
    shapes += [(n, m, 1, 1) for n in range(1, 80) for m in (1, 2, 3, 6, 60, 4090, 4100, 9000, classes)]
    shapes += [(8, 8, h, w) for h in range(1, 20) for w in (1, 2, 16, 30)]
    rows = generator.shape_enc(shapes).detach()
    for shape, row in zip(shapes, rows, strict=True):
        expected = ghn2_reference.shape_features(state, shape, classes, kernel)
        torch.testing.assert_close(row, expected, rtol=0, atol=0)


@pytest.mark.parametrize("virtual", [True, False])
def test_gated_network_is_the_twin(virtual: bool) -> None:
    generator = tiny(2, virtual_edges=virtual)
    d = distances(random_graph(40, seed=2))
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    expected = ghn2_reference.gated_gnn(generator.state_dict(), x, d)
    torch.testing.assert_close(generator.gnn(x, d), expected, rtol=1e-4, atol=1e-5)


def test_transformer_is_the_twin() -> None:
    generator = tiny(3)
    d = distances(random_graph(70, seed=4))
    x = torch.randn(70, 8, generator=torch.Generator().manual_seed(5))
    expected = ghn3_reference.transformer(generator.state_dict(), x.clone(), d)
    torch.testing.assert_close(generator.gnn(x, d), expected, rtol=1e-4, atol=1e-5)


SHAPES = [
    (o, i, *k) for o in (1, 3, 6, 7, 8, 12, 16, 40) for i in (1, 2, 3, 4, 8, 16, 50) for k in ((1, 1), (3, 3))
]
SHAPES += [(16, 4, 5, 7), (16, 1, 11, 11), (20, 20, 1, 9), (1, 1, 13, 13), (16, 3, 14, 14), (16, 3, 20, 20)]


@pytest.mark.parametrize("family", [2, 3])
def test_kernels_are_the_twins_decoded_tiled_and_normalised(family: int) -> None:
    generator = tiny(family)
    twin = ghn2_reference if family == 2 else ghn3_reference
    state, kernel = generator.state_dict(), generator.decoder.kernel
    stream = torch.Generator().manual_seed(6)
    for shape in SHAPES:
        if family == 2 and max(shape[2:]) > kernel and min(shape[1], 16) > 4:
            continue  # the original fails
        x = torch.randn(8, generator=stream)
        block = twin.decode_kernel(state, x, shape, (16, 16), kernel)
        expected = ghn2_reference.normalise(twin.tile(block, shape), "weight")
        values = generator.decoder.kernels(x[None], [shape])[0]
        found = Tile(values, shape, scale(shape)).expand()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if shape[2:] == (1, 1):
            flat = twin.tile(block, shape[:2])
            torch.testing.assert_close(
                Tile(values[:, :, 0, 0], shape[:2]).expand(), flat, rtol=1e-4, atol=1e-5
            )


def test_kernels_decoded_together_are_those_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny(3)
    shapes = [(16, 3, 3, 3), (8, 8, 3, 3), (40, 16, 3, 3), (16, 3, 3, 3), (8, 8, 3, 3)]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))
    alone = [generator.decoder.kernels(row[None], [shape])[0] for row, shape in zip(x, shapes, strict=True)]
    for chunk in (1, 1000, 1 << 24):
        monkeypatch.setattr("torch_geninit.generators.published_decoders.CHUNK", chunk)
        for found, expected in zip(generator.decoder.kernels(x, shapes), alone, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", [2, 3])
@pytest.mark.parametrize("columns", [4, 16, 100])
def test_classifier_is_the_twin(family: int, columns: int) -> None:
    generator = tiny(family)
    twin = ghn2_reference if family == 2 else ghn3_reference
    x = torch.randn(8, generator=torch.Generator().manual_seed(8))
    block = twin.decode_kernel(
        generator.state_dict(), x, (10, columns, 1, 1), (16, 16), generator.decoder.kernel, head=True
    )
    found = Tile(generator.decoder.classifier(x[None], columns), (10, columns)).expand()
    torch.testing.assert_close(found, twin.tile(block, (10, columns)), rtol=1e-4, atol=1e-5)


def test_vectors_are_the_twins() -> None:
    generator, model = tiny(3), nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 10, 1))
    state, values = generator.state_dict(), predict(generator, model)
    x = generator.embeddings(generator.trace(model))
    # input, conv, its bias, norm, conv, its bias
    expected = {
        "0.bias": (ghn2_reference.decode_vectors(state, x[2])[1], "bias"),
        "1.weight": (ghn2_reference.decode_vectors(state, x[3])[0], "weight"),
        "1.bias": (ghn2_reference.decode_vectors(state, x[3])[1], "bias"),
        "2.bias": (ghn2_reference.decode_vectors(state, x[5], head=True)[1], "bias"),
    }
    for name, (vector, role) in expected.items():
        tiled = ghn2_reference.tile(vector, values[name].shape)
        torch.testing.assert_close(values[name], ghn2_reference.normalise(tiled, role), rtol=1e-4, atol=1e-5)


def test_positions_are_the_twins_and_their_first_row_is_seeded() -> None:
    generator = tiny(3)
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 40, 80, num_classes=10)
    name = "encoder.pos_embedding"
    state = torch.get_rng_state()
    values = predict(generator, model)
    assert torch.equal(torch.get_rng_state(), state)
    architecture = generator.trace(model)
    x = generator.embeddings(architecture)[architecture.uses[name][0]]
    block = ghn3_reference.decode_kernel(generator.state_dict(), x, (1, 40, 4, 4), (16, 16), 16)
    drawn = 0.02 * torch.randn(1, 1, 16, generator=noise_stream(0, name))
    expected = ghn3_reference.table(block, (1, 17, 40), drawn)
    torch.testing.assert_close(values[name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(predict(generator, model, seed=1)[name][:, 0], values[name][:, 0])


def test_without_weight_norm_values_are_as_decoded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 1))
    plain = predict(tiny(2, weight_norm=False), model)
    normed = predict(tiny(2), model)
    for name, value in plain.items():
        expected = ghn2_reference.normalise(value, "weight" if "weight" in name else "bias")
        torch.testing.assert_close(normed[name], expected, rtol=1e-5, atol=1e-6)


# --- the recorder -------------------------------------------------------------------------------------------


def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the recorder run every model on real tensors, where autograd is what the originals walked."""
    from torch_geninit.graph import autograd

    def run(model: nn.Module, example_inputs: Any) -> Any:
        copy, leaves = autograd._clone(model, "cpu")
        args, kwargs = next(autograd._candidates(model, example_inputs, "cpu"))
        return leaves, autograd._forward(copy, args, kwargs, "cpu")

    monkeypatch.setattr(autograd, "_run", run)


SOME = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "googlenet"]


@pytest.mark.parametrize("dialect", ["ghn2", "ghn3"])
@pytest.mark.parametrize("name", SOME)
def test_graph_from_meta_tensors_is_that_from_real_ones(
    name: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = network(name, meta=False), torch.zeros(2, 3, 64, 64)
    found = read(model, inputs, dialect=dialect)
    cpu_only(monkeypatch)
    assert found == read(model, inputs, dialect=dialect)


def test_fused_attention_is_one_node_by_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=10)
    found = read(model)
    assert [node.op for node in found.nodes].count("softmax") == 2
    cpu_only(monkeypatch)
    assert read(model) == found
    math = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(math):
        assert read(model) == found


@pytest.mark.parametrize("family", [2, 3])
def test_graph_does_not_depend_on_the_state_of_the_model(family: int) -> None:
    model = network("mobilenet_v3_small", meta=False)
    generator = tiny(family)
    expected = generator.trace(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    assert generator.trace(model.eval().requires_grad_(False)) == expected
    with torch.inference_mode():
        assert generator.trace(model) == expected
    assert generator.trace(model.to(torch.bfloat16).train()) == expected
    assert generator.trace(network("mobilenet_v3_small")) == expected
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name].to(value.dtype), rtol=0, atol=0)


def test_wrappers_keep_their_names() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    wrapped = torch.compile(nn.DataParallel(plain), backend="eager")
    graph = read(wrapped)
    assert graph.fingerprint == read(plain).fingerprint
    assert set(graph.uses) == {name for name, _ in wrapped.named_parameters()}


def test_layer_used_twice_is_sorted_with_the_head_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.first(x)).relu()).mean((2, 3)))

    graph = read(Twice())
    assert graph.nodes[0].op == "input"
    assert [node.op for node in graph.nodes[-3:]] == ["linear", "bias", "output"]
    assert all(source < target for source, target in graph.edges)


def test_model_that_cannot_be_run_asks_for_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x) + y

    with pytest.raises(AutogradReadError, match="example_inputs"):
        read(Two())
    graph = read(Two(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert set(graph.uses) == {"layer.weight", "layer.bias"}


# --- all of torchvision -------------------------------------------------------------------------------------

UNPREDICTED = ("layer_scale", "relative_position_bias_table", "logit_scale", "class_token")


@pytest.mark.full
@pytest.mark.parametrize("family", [2, 3])
def test_every_parameter_of_every_torchvision_model(family: int) -> None:
    generator, complete = tiny(family), 0
    names = torchvision.models.list_models(torchvision.models)
    assert len(names) == 80
    for name in names:
        model = network(name, classes=10)
        plan = geninit.plan(model, "ghn", pretrained=generator)
        tiles = plan.predict().tiles
        missing = {entry.name for entry in plan.entries} - set(tiles)
        if family == 2 and name in ("googlenet", "inception_v3"):
            # GHN-2 follows the first output only
            assert missing
            assert all("aux" in parameter.lower() for parameter in missing)
        else:
            assert {parameter.rpartition(".")[2] for parameter in missing} <= set(UNPREDICTED), name
        complete += not missing
        for entry in plan.generated:
            tile = tiles[entry.name]
            assert tile.finite(), (name, entry.name)
            assert tile.shape == entry.shape, (name, entry.name)
            extents = zip(tile.values.shape, entry.shape, strict=True)
            assert all(0 < block <= whole for block, whole in extents), (name, entry.name)
        assert plan.architecture is not None
        assert plan.architecture.nodes[0].op == "input"
        assert plan.architecture.nodes[-1].op == "output"
    assert complete == {2: 62, 3: 64}[family]


# --- through the verb ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [2, 3])
def test_ghn_writes_what_the_generator_predicts(family: int) -> None:
    generator = tiny(family)
    model = network("mobilenet_v3_small", 10, meta=False)
    untouched = {name: value.clone() for name, value in model.named_buffers()}
    expected = predict(generator, model)
    assert geninit.ghn_(model, pretrained=generator, strict=True) is model
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-7)
    for name, value in model.named_buffers():
        assert torch.equal(value, untouched[name])


def test_head_of_other_size_is_kept() -> None:
    model = network("squeezenet1_1", 7, meta=False)
    plan = geninit.plan(model, "ghn", pretrained=tiny(3))
    kept = {entry.name for entry in plan.entries if str(entry.route) == "kept"}
    assert kept == {"classifier.1.weight", "classifier.1.bias"}


def test_graph_of_our_own_tracer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))
    with pytest.raises(ValueError, match="not made for this generator"):
        geninit.ghn_(model, pretrained=tiny(3), graph=geninit.trace(model, torch.zeros(1, 3, 32, 32)))
