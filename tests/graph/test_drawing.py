"""Drawings of graphs: the text is Graphviz, says all that it should, and lets no name say something else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse
from torch_geninit.graph.drawing import COLOURS, Drawing, NoPictureError
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.resnet import resnet20

SVG = "{http://www.w3.org/2000/svg}"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's program dot")
HOSTILE = [
    'a"]; x [label=b]; //',
    "ends with \\",
    "\\N \\G \\",
    "&lt; &amp;",
    "<script>&</script>",
    "a\x00b",
    "é\u202e",
]


def drawn(model: nn.Module, route: str = "generated", example: torch.Tensor | None = None) -> Drawing:
    architecture = trace(model, example)
    return Drawing.of(architecture, dict.fromkeys(architecture.uses, (route, "a <reason> & more")), "A & B")


def named(name: str) -> Drawing:
    """Draw a linear layer under this name, with the same name as title and reason."""
    node = Node("linear", (1, 2), (ParameterUse(f"{name}.weight", "weight", (2, 3)),))
    architecture = Architecture((Node("input", (1, 3)), node, Node("output", (1, 2))), ((0, 1), (1, 2)), 1)
    return Drawing.of(architecture, {f"{name}.weight": ("kept", name)}, name)


def parsed(drawing: Drawing) -> Mapping[str, Any]:
    """Return what Graphviz itself reads in the text."""
    done = subprocess.run(
        ["dot", "-Tdot_json"],
        input=drawing.dot(),
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert not done.stderr, done.stderr
    read: dict[str, Any] = json.loads(done.stdout, strict=False)
    return read


@needs_dot
def test_graphviz_reads_a_box_for_every_operation_and_an_arrow_for_every_edge() -> None:
    drawing = drawn(resnet20())
    read = parsed(drawing)
    assert [box["name"] for box in read["objects"]] == [str(index) for index in range(len(drawing.nodes))]
    assert sorted((edge["tail"], edge["head"]) for edge in read["edges"]) == sorted(drawing.edges)


@needs_dot
def test_every_operation_and_parameter_is_named() -> None:
    drawing = drawn(resnet20())
    for node, box in zip(drawing.nodes, parsed(drawing)["objects"], strict=True):
        assert node.op.replace("_", " ") in box["label"]
        assert "×".join(map(str, node.shape)) in box["label"]
        for use in node.parameters:
            shape = "×".join(map(str, use.shape))
            assert use.name.rpartition(".")[2] in box["label"] and shape in box["label"]
            assert f"{use.name} ({use.role}) {shape}: generated, a <reason> &amp; more" in box["tooltip"]


@needs_dot
@pytest.mark.parametrize("route", COLOURS)
def test_boxes_and_the_legend_are_coloured_by_route(route: str) -> None:
    read = parsed(drawn(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), route))
    filled = [box["label"] for box in read["objects"] if box["fillcolor"] == COLOURS[route].fill]
    assert len(filled) == 1 and filled[0].startswith("linear")
    assert "A &amp; B" in read["label"] and f"2 {route}" in read["label"]


def test_the_text_says_what_tells_operations_apart() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, dilation=2, groups=2), nn.MaxPool2d((1, 2)))
    text = drawn(model, example=torch.zeros(1, 4, 9, 9)).dot()
    assert "conv 3×3 /2 dilated 2 2 groups  1×8×3×3" in text
    assert "0.weight  8×2×3×3  generated" in text


def test_long_names_are_cut_at_a_dot() -> None:
    name = "encoder.layers.encoder_layer_11.self_attention.out_proj.weight"
    text = Drawing((Node("linear", (1, 9), (ParameterUse(name, "weight", (9, 9)),)),), (), 1).dot()
    assert '[label="linear  1×9\\n….self_attention.out_proj.weight  9×9"' in text
    assert f"{name} (weight)" in text


@needs_dot
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name: str) -> None:
    drawing = named(name)
    read = parsed(drawing)
    assert [box["name"] for box in read["objects"]] == ["0", "1", "2"] and len(read["edges"]) == 2
    root = ElementTree.fromstring(drawing.svg())
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    expected = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    # Graphviz writes spaces that can't be broken.
    assert f"{expected}.weight  2×3  kept" in [text.replace("\xa0", " ") for text in texts]
    assert expected in [text.replace("\xa0", " ") for text in texts]


@needs_dot
@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), max_size=20))
def test_no_name_breaks_the_text(name: str) -> None:
    read = parsed(named(name))
    assert [box["name"] for box in read["objects"]] == ["0", "1", "2"]


@needs_dot
def test_the_picture_is_svg_and_a_notebook_shows_it() -> None:
    pytest.importorskip("graphviz")
    drawing = drawn(resnet20())
    assert drawing._repr_svg_() == drawing.svg()
    root = ElementTree.fromstring(drawing.svg())
    kinds = [group.get("class") for group in root.iter(f"{SVG}g")]
    assert kinds.count("node") == len(drawing.nodes) and kinds.count("edge") == len(drawing.edges)
    assert repr(drawing) == str(drawing) == drawing.dot()


@needs_dot
@pytest.mark.full
def test_a_graph_that_joins_everything_is_laid_out_too() -> None:
    """Of a DenseNet's length; without limits dot takes more than two minutes."""
    nodes = tuple(Node("add", (1, 8)) for _ in range(300))
    edges = tuple((i, j) for i in range(300) for j in range(i + 1, min(i + 40, 300), 3))
    drawing = Drawing(nodes, tuple(sorted(edges)), 1)
    assert "nslimit" in drawing.dot() and "nslimit" not in drawn(resnet20()).dot()
    assert drawing.svg()


@pytest.mark.parametrize("missing", ["package", "program"])
def test_without_graphviz_the_text_says_how_to_get_a_picture(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "package":
        monkeypatch.setitem(sys.modules, "graphviz", None)
    else:
        pytest.importorskip("graphviz")
        monkeypatch.setenv("PATH", "")
    drawing = drawn(nn.Linear(3, 2))
    first, rest = repr(drawing).split("\n", 1)
    assert first.startswith("// For a picture: pip install graphviz") and rest == str(drawing)
    assert drawing._repr_svg_() is None
    with pytest.raises(NoPictureError, match="pip install graphviz.*program dot"):
        drawing.svg()


def test_a_drawing_is_the_architecture() -> None:
    architecture = trace(resnet20())
    drawing = Drawing.of(architecture)
    assert drawing.fingerprint == architecture.fingerprint and drawing.uses == architecture.uses


@needs_dot
def test_empty_and_disconnected_graphs() -> None:
    assert not parsed(Drawing.of(Architecture((), (), 1))).get("objects")
    apart = Architecture((Node("input", (1,)), Node("output", ())), (), 1)
    assert len(parsed(Drawing.of(apart))["objects"]) == 2
