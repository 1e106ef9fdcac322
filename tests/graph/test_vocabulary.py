"""The vocabulary: append-only, complete, and what real networks say in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import fx, nn

from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer import recorder as record
from torch_geninit.graph.tracer.rules import RULES_OF_KIND
from torch_geninit.graph.tracer.shape_rules import SHORTCUTS
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.graph.vocabulary import PRIMITIVES, RULES, VERSION

torchvision = pytest.importorskip("torchvision")

FAST = [
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "googlenet",
]
CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
INITIALISERS = tuple(
    f"{law}_" for law in "normal uniform trunc_normal kaiming_normal kaiming_uniform".split()
)
FX_READS = [
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "googlenet",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]
KINDS = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch_norm",
    nn.LayerNorm: "layer_norm",
}


@contextmanager
def no_drawing() -> Iterator[None]:
    """Build a network without drawing its weights, which takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "normal_",
            "uniform_",
            "trunc_normal_",
            "kaiming_normal_",
            "kaiming_uniform_",
            "xavier_uniform_",
        ):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield


def build(name: str) -> nn.Module:
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with no_drawing():
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model.to("meta")


def test_indices_of_version_1_stay_what_they_are() -> None:
    known = {1: (33, "c6c883fa7a306f81")}
    count, digest = known[VERSION]
    assert len(set(PRIMITIVES)) == len(PRIMITIVES) >= count
    assert hashlib.blake2b(" ".join(PRIMITIVES[:count]).encode(), digest_size=8).hexdigest() == digest


def test_every_rule_exists_and_every_name_is_an_operation_of_torch() -> None:
    assert set(RULES.values()) <= {*RULES_OF_KIND, "constant"}
    for name in SHORTCUTS:
        assert hasattr(torch.ops.aten, name.removesuffix("_")), name
    aten = set(dir(torch.ops.aten)) | {
        schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()
    }
    unknown = {name for name in RULES if name not in aten and f"{name}_" not in aten}
    assert not unknown


@pytest.mark.parametrize("name", FAST)
def test_every_parameter_is_read_by_the_kind_of_layer_it_belongs_to(name: str) -> None:
    check_parameters(build(name))


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - set(FAST)))
def test_every_parameter_of_every_other_classifier(name: str) -> None:
    check_parameters(build(name))


@pytest.mark.full
@pytest.mark.parametrize("family", ["segmentation", "video"])
def test_segmentation_and_video(family: str) -> None:
    for name in torchvision.models.list_models(module=getattr(torchvision.models, family)):
        with no_drawing():
            options = {"weights_backbone": None} if family == "segmentation" else {}
            model = torchvision.models.get_model(name, weights=None, **options).to("meta")
        size = (1, 3, 224, 224) if family == "segmentation" else (1, 3, 16, 224, 224)
        check_parameters(model, torch.empty(size, device="meta"))


def check_parameters(model: nn.Module, example_inputs: Any = None) -> Architecture:
    architecture = trace(model, example_inputs)
    roles = {use.name: (node.op, use.role) for node in architecture.nodes for use in node.parameters}
    assert roles.keys() == {name for name, _ in model.named_parameters()}
    for name, _ in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        kind = KINDS.get(type(model.get_submodule(owner)))  # type: ignore[call-overload]
        if kind is not None:
            assert roles[name] == (kind, attribute), name
    assert all(node.op in PRIMITIVES for node in architecture.nodes)
    assert architecture.edges == tuple(sorted(set(architecture.edges)))
    assert all(source < target for source, target in architecture.edges)
    return architecture


def weighted_neighbours(edges: set[tuple[Any, Any]], weighted: dict[Any, str]) -> set[tuple[str, str]]:
    """Return which weighted nodes reach which without passing a third."""
    before: dict[Any, list[Any]] = {}
    for source, target in edges:
        before.setdefault(target, []).append(source)
    found = set()
    for start, name in weighted.items():
        stack, visited = list(before.get(start, [])), set()
        while stack:
            node = stack.pop()
            if node in weighted:
                found.add((weighted[node], name))
            elif node not in visited:
                visited.add(node)
                stack.extend(before.get(node, []))
    return found


@pytest.mark.parametrize("name", [*FX_READS, "efficientnet_b0", "regnet_y_400mf"])
def test_connections_are_those_that_fx_finds_in_the_source(name: str) -> None:
    """torch.fx reads the Python code symbolically, a way that has nothing in common with ours."""
    model = build(name).eval()
    if name == "googlenet":
        model.aux1 = model.aux2 = None
    graph = fx.symbolic_trace(model).graph
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    expected = weighted_neighbours(
        {(source, node) for node in graph.nodes for source in node.all_input_nodes},
        {
            node: node.target
            for node in graph.nodes
            if node.op == "call_module" and isinstance(model.get_submodule(node.target), layers)
        },
    )
    architecture = trace(model)
    found = weighted_neighbours(
        set(architecture.edges),
        {
            index: node.parameters[0].name.rpartition(".")[0]
            for index, node in enumerate(architecture.nodes)
            if node.op in KINDS.values()
        },
    )
    assert found == expected and len(found) > 20


def test_counts_are_those_of_the_published_architectures() -> None:
    def counts(name: str) -> Counter[str]:
        return Counter(node.op for node in trace(build(name)).nodes)

    resnet = counts("resnet50")
    assert (resnet["conv"], resnet["batch_norm"], resnet["add"], resnet["linear"]) == (53, 53, 16, 1)
    assert (resnet["max_pool"], resnet["global_avg_pool"]) == (1, 1)
    vit = counts("vit_b_16")
    assert (vit["attention"], vit["layer_norm"], vit["gelu"], vit["linear"]) == (12, 25, 12, 12 * 4 + 1)
    assert (vit["token"], vit["bias"], vit["matmul"], vit["softmax"]) == (1, 1, 0, 0)
    swin = counts("swin_t")
    assert (swin["attention"], swin["bias"], swin["matmul"]) == (12, 0, 0)
    densenet = counts("densenet121")
    assert (densenet["conv"], densenet["concat"], densenet["avg_pool"]) == (120, 6 + 12 + 24 + 16, 3)
    convnext = counts("convnext_tiny")
    assert (convnext["scale"], convnext["conv"]) == (18, 22)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t", "swin_v2_t", "vit_b_16"]
)
def test_shortcuts_say_what_aten_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that a shortcut makes has the size, type and layout that ATen gives it."""

    def strides(tensor: torch.Tensor) -> list[int]:
        return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]

    taken: Counter[str] = Counter()
    plain = record.Recorder._dispatch

    def both(recorder: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shortcut = SHORTCUTS.get(func._schema.name.rpartition("::")[2])
        expected = None
        if (
            shortcut is not None
            and not func._schema.is_mutable
            and all(t.is_meta for t in args if isinstance(t, torch.Tensor))
        ):
            expected = func(*args, **(kwargs or {}))
        result = plain(recorder, func, types, args, kwargs)
        if expected is not None:
            taken[func._schema.name] += 1
            first, second = (x if isinstance(x, tuple) else (x,) for x in (expected, result))
            assert (first[0].shape, first[0].dtype) == (second[0].shape, second[0].dtype), func
            if func._schema.name != "aten::convolution":
                assert strides(first[0]) == strides(second[0]), func
        return result

    monkeypatch.setattr(record.Recorder, "__torch_dispatch__", both)
    trace(build(name))
    assert sum(taken.values()) > 20
