"""Drawings of graphs: every box and wire is there, nothing hides anything, and it takes linear time."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse
from torch_geninit.graph.drawing.draw import COLOURS, Drawing
from torch_geninit.graph.drawing.layout import Box, Edge, Layout, Point, arrange
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.resnet import resnet20

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[Edge]]:
    """Sizes of boxes, and edges of a directed acyclic graph; most nodes read the one before."""
    count = draw(st.integers(1, 18))
    sizes = draw(st.lists(st.tuples(st.floats(96, 300), st.floats(20, 80)), min_size=count, max_size=count))
    edges = set()
    for target in range(1, count):
        if draw(st.integers(0, 3)):
            edges.add((target - 1, target))
        for source in draw(st.lists(st.integers(0, target - 1), max_size=3)):
            edges.add((source, target))
    return sizes, sorted(edges)


def segments(layout: Layout) -> list[tuple[Edge, Point, Point]]:
    return [(edge, a, b) for edge, path in layout.wires.items() for a, b in pairwise(path) if a != b]


def inside(box: Box, a: Point, b: Point) -> bool:
    """Whether a horizontal or vertical segment runs through the interior of a box."""
    low_x, high_x = sorted((a[0], b[0]))
    low_y, high_y = sorted((a[1], b[1]))
    e = 1e-6
    return (
        low_x < box.x + box.width - e
        and high_x > box.x + e
        and low_y < box.y + box.height - e
        and high_y > box.y + e
    )


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_boxes_lie_apart_and_within_the_picture(
    graph: tuple[list[tuple[float, float]], list[Edge]],
) -> None:
    layout = arrange(*graph, frozenset({0}))
    assert [(box.width, box.height) for box in layout.boxes] == graph[0]
    for i, a in enumerate(layout.boxes):
        assert 0 <= a.x and a.x + a.width <= layout.width + 1e-6
        assert 0 <= a.y and a.y + a.height <= layout.height + 1e-6
        for b in layout.boxes[:i]:
            beside = a.x >= b.x + b.width or b.x >= a.x + a.width
            assert beside or a.y >= b.y + b.height or b.y >= a.y + a.height


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_wires_run_downwards_from_box_to_box_and_through_none(
    graph: tuple[list[tuple[float, float]], list[Edge]],
) -> None:
    layout = arrange(*graph, frozenset({0}))
    assert set(layout.wires) == set(graph[1])
    for (source, target), path in layout.wires.items():
        start, end = layout.boxes[source], layout.boxes[target]
        assert start.x < path[0][0] < start.x + start.width and path[0][1] == start.y + start.height
        assert end.x < path[-1][0] < end.x + end.width and path[-1][1] == end.y
        assert all(a[1] <= b[1] + 1e-6 for a, b in pairwise(path))
        assert all(min(abs(a[0] - b[0]), abs(a[1] - b[1])) < 1e-6 for a, b in pairwise(path))
    for _, a, b in segments(layout):
        assert 0 <= min(a[0], b[0]) and max(a[0], b[0]) <= layout.width
        assert not any(inside(box, a, b) for box in layout.boxes)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_wires_of_different_sources_meet_only_where_they_enter_the_same_box(
    graph: tuple[list[tuple[float, float]], list[Edge]],
) -> None:
    layout = arrange(*graph, frozenset({0}))
    found = segments(layout)
    for i, (one, a, b) in enumerate(found):
        for other, c, d in found[:i]:
            if one[0] == other[0] or one[1] == other[1]:
                continue
            for axis in (0, 1):  # 0: both vertical
                if abs(a[axis] - b[axis]) + abs(c[axis] - d[axis]) + abs(a[axis] - c[axis]) < 1e-6:
                    first = sorted((a[1 - axis], b[1 - axis]))
                    second = sorted((c[1 - axis], d[1 - axis]))
                    assert min(first[1], second[1]) <= max(first[0], second[0]) + 1e-6, (one, other)


def test_a_chain_is_a_straight_column_and_a_skip_stays_beside_it() -> None:
    layout = arrange([(100.0, 20.0)] * 5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3)], frozenset({0}))
    assert len({box.middle for box in layout.boxes}) == 1
    assert [len(layout.wires[edge]) for edge in ((0, 1), (2, 3), (3, 4))] == [2, 2, 2]
    assert max(x for x, _ in layout.wires[0, 3]) > layout.boxes[0].x + 100


def test_a_token_stands_right_above_its_reader() -> None:
    layout = arrange([(100.0, 20.0)] * 5, [(0, 1), (1, 2), (2, 4), (3, 4)], frozenset({0}))
    assert layout.boxes[3].y == layout.boxes[2].y


def test_layout_takes_linear_time() -> None:
    def seconds(count: int) -> float:
        edges = [(i, i + 1) for i in range(count - 1)] + [(i, i + 4) for i in range(0, count - 4, 4)]
        start = time.process_time()
        arrange([(100.0, 20.0)] * count, sorted(edges), frozenset({0}))
        return time.process_time() - start

    gc.collect()
    gc.disable()  # its passes over everything else would be counted too
    try:
        assert min(seconds(8000) for _ in range(2)) < 10 * min(seconds(2000) for _ in range(3))
    finally:
        gc.enable()


# The picture.


def drawn(model: nn.Module, route: str = "generated", example: torch.Tensor | None = None) -> Drawing:
    architecture = trace(model, example)
    return Drawing.of(architecture, dict.fromkeys(architecture.uses, (route, "a <reason> & more")), "A & B")


def root(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg())


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(text.itertext()) for text in element.iter(f"{SVG}text"))


def test_every_operation_and_parameter_is_named() -> None:
    drawing = drawn(resnet20())
    boxes = [g for g in root(drawing).iter(f"{SVG}g") if g.get("class") == "node"]
    assert len(boxes) == len(drawing.nodes)
    for node, box in zip(drawing.nodes, boxes, strict=True):
        text = words(box)
        assert node.op.replace("_", " ") in text
        assert "×".join(map(str, node.shape)) in text
        for use in node.parameters:
            assert use.name.rpartition(".")[2] in text and "×".join(map(str, use.shape)) in text
            assert use.name in (box.findtext(f"{SVG}title") or "")


def test_there_is_an_arrow_for_every_edge() -> None:
    drawing = drawn(resnet20())
    lines, heads = [path.get("d") or "" for path in root(drawing).iter(f"{SVG}path")]
    assert lines.count("M") == heads.count("M") == len(drawing.edges)


@pytest.mark.parametrize("route", COLOURS)
def test_boxes_are_coloured_by_route(route: str) -> None:
    drawing = drawn(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), route)
    fills = [
        r.get("fill") for g in root(drawing).iter(f"{SVG}g") if g.get("class") for r in g.iter(f"{SVG}rect")
    ]
    assert fills.count(COLOURS[route].fill) == 1
    assert f"2 {route}" in words(root(drawing))
    assert COLOURS[route].fill in drawing.dot()


def test_hostile_names_are_escaped() -> None:
    name = 'a"]; <script>&\\ b'
    node = Node("linear", (1, 2), (ParameterUse(f"{name}.weight", "weight", (2, 3)),))
    architecture = Architecture((Node("input", (1, 3)), node, Node("output", (1, 2))), ((0, 1), (1, 2)), 1)
    drawing = Drawing.of(architecture, {f"{name}.weight": ("kept", name)}, name)
    assert f"{name}.weight" in words(root(drawing))
    assert re.search(r'1 \[label="linear  1×2\\na\\"\]; <script>&\\\\ b\.weight', drawing.dot())


def test_long_names_are_cut_at_a_dot_and_fit_their_box() -> None:
    name = "encoder.layers.encoder_layer_11.self_attention.out_proj.weight"
    drawing = Drawing((Node("linear", (1, 9), (ParameterUse(name, "weight", (9, 9)),)),), (), 1)
    (box,) = (g for g in root(drawing).iter(f"{SVG}g") if g.get("class"))
    assert words(box) == "linear 1×9 ….self_attention.out_proj.weight 9×9"
    width = float(box.find(f"{SVG}rect").get("width"))  # type: ignore[union-attr,arg-type]
    assert 6 * len("….self_attention.out_proj.weight 9×9") < width < 400


def test_the_text_is_graphviz() -> None:
    drawing = drawn(resnet20())
    text = str(drawing)
    assert len(re.findall(r"^  \d+ \[label=", text, re.MULTILINE)) == len(drawing.nodes)
    found = [(int(a), int(b)) for a, b in re.findall(r"^  (\d+) -> (\d+);$", text, re.MULTILINE)]
    assert tuple(found) == drawing.edges
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tplain"], input=text, capture_output=True, text=True, check=True)
        assert done.stdout.count("\nedge ") == len(drawing.edges)


def test_a_drawing_is_the_architecture() -> None:
    architecture = trace(resnet20())
    drawing = Drawing.of(architecture)
    assert drawing.fingerprint == architecture.fingerprint and drawing.uses == architecture.uses
    assert drawing._repr_svg_() == drawing.svg() == replace(drawing).svg()


def test_empty_and_disconnected_graphs() -> None:
    for nodes in ((), (Node("input", (1,)), Node("output", ()))):
        assert root(Drawing.of(Architecture(nodes, (), 1))).tag == f"{SVG}svg"
