"""An architecture prints short, and shows all of itself when asked."""

from __future__ import annotations

import torch
from torch import nn

from torch_geninit.graph.architecture import WIDEST, Architecture, Node, ParameterUse
from torch_geninit.graph.drawing import Drawing
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.resnet import resnet20


def test_it_prints_short_whatever_the_depth() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(50)]
    architecture = trace(nn.Sequential(*blocks), torch.empty(1, 4, 8, 8))
    assert len(architecture.nodes) > 100
    assert len(repr(architecture).splitlines()) < 12


def test_it_counts_nodes_parameters_and_operations() -> None:
    model = resnet20()
    architecture = trace(model)
    parameters = list(model.parameters())
    head, *_ = repr(architecture).splitlines()
    assert f"{len(architecture.nodes)} nodes" in head
    assert f"{len(parameters)} parameters ({sum(p.numel() for p in parameters):,} numbers)" in head
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert ["conv", str(convolutions), str(convolutions)] in [
        line.split() for line in repr(architecture).splitlines()
    ]


def test_a_tied_parameter_is_counted_once() -> None:
    tied = nn.Linear(4, 4, bias=False)
    text = repr(trace(nn.Sequential(tied, nn.ReLU(), tied), torch.empty(1, 4)))
    assert "1 parameters (16 numbers)" in text
    assert ["linear", "2", "1"] in [line.split() for line in text.splitlines()]


def test_a_long_note_is_cut_in_print_and_whole_in_the_table() -> None:
    note = "not reached by the forward pass: " + ", ".join(f"layer{i}.weight" for i in range(100))
    graph = Architecture((Node("input", (1, 3)), Node("output", (1, 3))), ((0, 1),), 1, (note,))
    assert max(map(len, repr(graph).splitlines())) <= WIDEST
    assert note in str(graph.table())


def test_the_table_has_every_node_and_what_it_reads() -> None:
    architecture = trace(resnet20())
    rows = architecture.table().rows
    assert [row[1] for row in rows] == [node.op for node in architecture.nodes]
    edges = {(int(source), int(row[0])) for row in rows for source in row[3].split(", ") if source}
    assert edges == set(architecture.edges)
    shown = ", ".join(row[4] for row in rows if row[4])
    assert all(
        f"{name} {'x'.join(map(str, use.shape))}" in shown for name, (_, use) in architecture.uses.items()
    )


def test_a_notebook_shows_the_same_rows_and_escapes_names() -> None:
    node = Node("linear", (1, 2), (ParameterUse("<b>", "weight", (2, 3)),))
    graph = Architecture((Node("input", (1, 3)), node, Node("output", (1, 2))), ((0, 1), (1, 2)), 1)
    html = graph._repr_html_()
    assert html is not None and "<td>linear</td><td>1</td><td>1</td>" in html
    assert "&lt;b&gt; 2x3" in graph.table()._repr_html_()


def test_a_drawing_leaves_notebooks_its_picture() -> None:
    assert Drawing.of(trace(nn.Linear(2, 3)))._repr_html_() is None
