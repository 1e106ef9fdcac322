"""Published hypernetworks against what the originals predict, over all of torchvision, through the verb."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.support.published_networks import ResNet20A, network, predict, tiny, torchvision
from torch_geninit.convert.__main__ import build
from torch_geninit.convert.archives import read as read_checkpoint
from torch_geninit.generators.published.features import distances
from torch_geninit.generators.published.model import PublishedGHN
from torch_geninit.generators.published.reader.read import read
from torch_geninit.generators.published.reader.vocabulary import PRIMITIVES

pytestmark = pytest.mark.system

FIXTURES = Path(os.environ.get("GENINIT_FIXTURES", "absent"))
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="no predictions of the originals; name their folder in GENINIT_FIXTURES"
)
NETWORKS = ("resnet20A", "resnet18", "mobilenet_v3_small")
FAMILIES = {"ghn2": "ghn2", "ghn3tm8": "ghn3"}


# --- the originals' predictions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original() -> Callable[[str], PublishedGHN]:
    loaded: dict[str, PublishedGHN] = {}

    def load(family: str) -> PublishedGHN:
        if family not in loaded:
            loaded[family] = build(*read_checkpoint(FIXTURES / f"{family}_seed0.safetensors"))
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
        tiles = plan.predict().compact
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


VARIANTS: dict[str, dict[str, object]] = {
    "GHN-1": {"family": 2, "virtual_edges": False, "layer_norm": False, "weight_norm": False},
    "GHN-2": {"family": 2},
    "MLP": {"family": 2, "hypernet": "mlp", "virtual_edges": False},
    "GHN-2, flat decoder": {"family": 2, "decoder": "mlp"},
    "GHN-3": {"family": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ghn_writes_what_the_generator_predicts(variant: str) -> None:
    generator = tiny(**VARIANTS[variant])  # type: ignore[arg-type]
    model = network("mobilenet_v3_small", 10, meta=False)
    untouched = {name: value.clone() for name, value in model.named_buffers()}
    expected = predict(generator, model)
    assert geninit.ghn_(model, pretrained=generator, strict=True) is model
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-7)
    for name, value in model.named_buffers():
        assert torch.equal(value, untouched[name])


def test_warning_says_that_the_hypernetwork_and_not_the_model_leaves_parameters_out() -> None:
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=10)
    with pytest.warns(geninit.GenInitWarning, match=r"published hypernetworks don't see.*class_token"):
        geninit.ghn_(model, pretrained=tiny(3))


def test_head_of_other_size_is_kept() -> None:
    model = network("squeezenet1_1", 7, meta=False)
    plan = geninit.plan(model, "ghn", pretrained=tiny(3))
    kept = {entry.name for entry in plan.entries if str(entry.route) == "kept"}
    assert kept == {"classifier.1.weight", "classifier.1.bias"}


def test_graph_of_our_own_tracer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))
    with pytest.raises(ValueError, match="not made for this generator"):
        geninit.ghn_(model, pretrained=tiny(3), graph=geninit.trace(model, torch.zeros(1, 3, 32, 32)))
