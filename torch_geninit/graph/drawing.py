"""A graph as Graphviz text, and as a picture where Graphviz is installed."""

from __future__ import annotations

import html
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape


class Colours(NamedTuple):
    """Fill, line and text."""

    fill: str
    line: str
    text: str


COLOURS: Mapping[str, Colours] = {
    "generated": Colours("#e3f5ec", "#17845c", "#0b4f36"),
    "tied": Colours("#e7effd", "#3767c9", "#1d3f86"),
    "kept": Colours("#eff1f4", "#7d8794", "#414a55"),
    "skipped": Colours("#fdeedc", "#cf6a0b", "#7d3f05"),
}
"""Of the routes that a plan gives to parameters."""
NO_PICTURE = (
    "For a picture: pip install graphviz (or torch-geninit's extra 'draw'), and Graphviz itself, whose "
    "program dot it calls (https://graphviz.org/download)"
)
FAR = 10_000
"""Sum of the nodes that edges pass from which dot, left to itself, takes minutes: DenseNets have more."""
_PLAIN = Colours("#ffffff", "#c9ced6", "#414a55")
_END = Colours("#343b45", "#343b45", "#ffffff")
_EDGE = "#8a93a0"
_LONGEST = 34


class NoPictureError(RuntimeError):
    """The package graphviz or the program dot is not there; the message says how to get it."""


@dataclass(frozen=True, repr=False)
class Drawing(Architecture):
    """An architecture that prints as Graphviz text; notebooks show the picture if Graphviz is installed.

    A box is an operation with the shape of its output and its parameters, coloured by what happens to them.

    Attributes:
        routes: parameter -> route and reason, as ``("kept", "frozen (requires_grad=False)")``.
        title: what it is.

    Examples:
        >>> drawing = Drawing.of(geninit.trace(torch.nn.Linear(2, 3)))
        >>> drawing.dot().startswith("digraph")
        True
        >>> Path("net.svg").write_text(drawing.svg())                            # doctest: +SKIP
    """

    routes: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)
    title: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        routes: Mapping[str, tuple[str, str]] | None = None,
        title: str = "",
    ) -> Drawing:
        """Make a drawing of an architecture."""
        a = architecture
        return cls(a.nodes, a.edges, a.vocabulary, a.notes, dict(routes or {}), title)

    def dot(self) -> str:
        """Return Graphviz text, for ``dot -Tpdf`` and other programs that lay graphs out."""
        lines = [
            "digraph architecture {",
            f"  graph [label={self._heading()}, labelloc=t, fontname=Helvetica, fontsize=12];",
            '  node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=10];',
            f'  edge [color="{_EDGE}", arrowsize=0.6];',
        ]
        if sum(target - source for source, target in self.edges) > FAR:
            lines.append("  graph [nslimit=0.1, nslimit1=0.1, mclimit=0.1, splines=line];")
        lines += [self._box(index, node) for index, node in enumerate(self.nodes)]
        lines += [f"  {source} -> {target};" for source, target in self.edges]
        return "\n".join([*lines, "}"])

    __str__ = dot

    def __repr__(self) -> str:
        try:
            _program()
        except NoPictureError:
            return f"// {NO_PICTURE}\n{self.dot()}"
        return self.dot()

    def svg(self) -> str:
        """Return the picture as an SVG document.

        Raises:
            NoPictureError: without the package ``graphviz`` or Graphviz's program ``dot``.
        """
        picture: str = _program().pipe_string("dot", "svg", self.dot(), encoding="utf-8")
        return picture

    def _repr_html_(self) -> None:
        """Leave notebooks no table: they would show it instead of the picture."""

    def _repr_svg_(self) -> str | None:
        try:
            return self.svg()
        except NoPictureError:
            return None  # the text is shown instead

    # One operation.

    def _box(self, index: int, node: Node) -> str:
        head = f"{_operation(node)}  {_shape(node.shape)}".rstrip()
        fill, line, text = self._colours(node)
        attributes = {
            "label": "\n".join([head, *self._rows(node)]),
            "tooltip": self._tooltip(index, node),
            "fillcolor": fill,
            "color": line,
            "fontcolor": text,
        }
        return f"  {index} [{', '.join(f'{name}={_quoted(value)}' for name, value in attributes.items())}];"

    def _route(self, name: str) -> str:
        return self.routes.get(name, ("", ""))[0]

    def _colours(self, node: Node) -> Colours:
        if node.op in ("input", "output"):
            return _END
        routes = [self._route(use.name) for use in node.parameters]
        return COLOURS.get(routes[0], _PLAIN) if routes else _PLAIN

    def _rows(self, node: Node) -> list[str]:
        """Parameters of one layer, shape and route share a row."""
        rows = []
        for (owner, shape, route), uses in groupby(node.parameters, key=self._kin):
            leaves = ", ".join(use.name.rpartition(".")[2] for use in uses)
            name = f"{owner}.{leaves}" if owner else leaves
            rows.append(f"{_short(name)}  {_shape(shape)}  {route}".rstrip())
        return rows

    def _kin(self, use: ParameterUse) -> tuple[str, Shape, str]:
        return use.name.rpartition(".")[0], use.shape, self._route(use.name)

    def _tooltip(self, index: int, node: Node) -> str:
        lines = [f"{index}: {_operation(node)} {_shape(node.shape)}"]
        for use in node.parameters:
            route, reason = self.routes.get(use.name, ("", ""))
            what = f": {route}" + (f", {reason}" if reason else "") if route else ""
            lines.append(f"{use.name} ({use.role}) {_shape(use.shape)}{what}")
        return "\n".join(lines)

    def _heading(self) -> str:
        """Title and legend, in the markup that Graphviz puts between angle brackets."""
        names = {use.name for node in self.nodes for use in node.parameters}
        counts = Counter(self._route(name) for name in names)
        legend = [
            f'<FONT COLOR="{colours.line}">■ {counts[route]} {route}</FONT>'
            for route, colours in COLOURS.items()
            if counts[route]
        ]
        title = html.escape(_printable(self.title)).replace("\\", "\\\\")
        lines = [title, " ".join(legend)]
        return f"<{'<BR/>'.join(line for line in lines if line)}>" if any(lines) else '""'


def _program() -> Any:
    """Return the package graphviz, if its program is there too."""
    try:
        import graphviz
    except ImportError as error:
        raise NoPictureError(NO_PICTURE) from error
    if shutil.which("dot") is None:
        raise NoPictureError(NO_PICTURE)
    return graphviz


def _short(name: str) -> str:
    """Cut a long name off at a dot near its beginning."""
    if len(name) <= _LONGEST:
        return name
    end = name[-_LONGEST + 1 :]
    dot = end.find(".")
    return "…" + (end[dot:] if 0 <= dot < _LONGEST // 2 else end)


def _operation(node: Node) -> str:
    """Name an operation with what tells it from others of its kind, as ``"conv 3×3 /2"``."""
    words = [node.op.replace("_", " ")]
    kernel = node.attribute("kernel_size")
    if kernel:
        words.append("×".join(map(str, kernel)))
    stride = node.attribute("stride")
    if stride and set(stride) != {1}:
        words.append("/" + ("×".join(map(str, stride)) if len(set(stride)) > 1 else str(stride[0])))
    dilation = node.attribute("dilation")
    if dilation and set(dilation) != {1}:
        words.append(f"dilated {max(dilation)}")
    if node.attribute("groups", 1) > 1:
        words.append(f"{node.attribute('groups')} groups")
    return " ".join(words)


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) if shape and prod(shape) >= 0 else ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def _quoted(text: str) -> str:
    """Write a text as a Graphviz string, in which backslashes, quotes and ampersands say something else."""
    escaped = _printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return '"' + escaped.replace("\n", "\\n") + '"'
