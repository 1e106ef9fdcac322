"""A graph that draws itself: Graphviz text, and SVG that needs no other program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import NamedTuple
from xml.sax.saxutils import escape

from torch_geninit.graph.architecture import Architecture, Node, ParameterUse, Shape
from torch_geninit.graph.drawing.layout import Box, Layout, Point, arrange


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
_PLAIN = Colours("#ffffff", "#c9ced6", "#414a55")
_END = Colours("#343b45", "#343b45", "#ffffff")
_WIRE = "#8a93a0"
_SANS = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_HEAD, _LINE, _PAD = 20.0, 14.0, 10.0
_LETTER, _SMALL = 7.0, 6.05
"""Widths of a letter in the two sizes of text, at most."""
_LONGEST = 34
_TITLE = 44.0


@dataclass(frozen=True)
class Drawing(Architecture):
    """An architecture that draws itself; notebooks show it, ``print`` gives Graphviz text.

    A box is an operation with the shape of its output and its parameters, coloured by what happens to them.

    Attributes:
        routes: parameter -> route and reason, as ``("kept", "frozen (requires_grad=False)")``.
        title: what it is.

    Examples:
        >>> from torch_geninit.graph.tracer.trace import trace
        >>> architecture = trace(torch.nn.Linear(2, 3))                          # doctest: +SKIP
        >>> Path("net.svg").write_text(Drawing.of(architecture).svg())           # doctest: +SKIP
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
            f"  label={_quoted(self.title)}; labelloc=t; rankdir=TB;",
            '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10];',
            f'  edge [color="{_WIRE}", arrowsize=0.6];',
        ]
        for index, node in enumerate(self.nodes):
            head = f"{_operation(node)}  {_shape(node.shape)}".rstrip()
            label = "\n".join([head, *map(_plain, self._rows(node))])
            fill, line, text = self._colours(node)
            lines.append(
                f'  {index} [label={_quoted(label)}, fillcolor="{fill}", color="{line}", fontcolor="{text}"];'
            )
        lines += [f"  {source} -> {target};" for source, target in self.edges]
        return "\n".join([*lines, "}"])

    __str__ = dot

    def svg(self) -> str:
        """Return a complete SVG document."""
        rows = [self._rows(node) for node in self.nodes]
        inputs = frozenset(i for i, node in enumerate(self.nodes) if node.op == "input")
        sizes = [_size(node, lines) for node, lines in zip(self.nodes, rows, strict=True)]
        layout = arrange(sizes, self.edges, inputs)
        legend = self._legend()
        width = max(layout.width, 2 * _PAD + sum(_LETTER * len(text) + 30 for text, _ in legend))
        width = max(width, 2 * _PAD + 8.4 * len(self.title))
        height = layout.height + _TITLE
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{_SANS}" font-size="11">',
            f"<title>{escape(self.title or 'architecture')}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#fcfcfd"/>',
            *_heading(self.title, legend),
            f'<g transform="translate({(width - layout.width) / 2:.1f} {_TITLE:.0f})">',
            *_wires(layout),
        ]
        for index, (node, box, lines) in enumerate(zip(self.nodes, layout.boxes, rows, strict=True)):
            parts += self._box(index, node, box, lines)
        return "\n".join([*parts, "</g>", "</svg>"])

    def _repr_svg_(self) -> str:
        return self.svg()

    # One operation.

    def _route(self, name: str) -> str:
        return self.routes.get(name, ("", ""))[0]

    def _colours(self, node: Node) -> Colours:
        if node.op in ("input", "output"):
            return _END
        routes = [self._route(use.name) for use in node.parameters]
        return COLOURS.get(routes[0], _PLAIN) if routes else _PLAIN

    def _rows(self, node: Node) -> list[_Row]:
        """Parameters of one layer, shape and route share a row."""
        rows = []
        for (owner, shape, route), uses in groupby(node.parameters, key=self._kin):
            leaves = ", ".join(use.name.rpartition(".")[2] for use in uses)
            name = f"{owner}.{leaves}" if owner else leaves
            rows.append(_Row(_short(name), _shape(shape), route))
        return rows

    def _kin(self, use: ParameterUse) -> tuple[str, Shape, str]:
        return use.name.rpartition(".")[0], use.shape, self._route(use.name)

    def _box(self, index: int, node: Node, box: Box, rows: Sequence[_Row]) -> Iterator[str]:
        fill, line, text = self._colours(node)
        radius = _HEAD / 2 if not rows else 5
        yield (
            f'<g class="node"><title>{escape(self._tooltip(index, node))}</title>'
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
            f'rx="{radius:.0f}" fill="{fill}" stroke="{line}"/>'
        )
        y = box.y + 14
        left, right = box.x + _PAD, box.x + box.width - _PAD
        yield (
            f'<text x="{left:.1f}" y="{y:.1f}" font-weight="600" fill="{text}">'
            f"{escape(_operation(node))}</text>"
        )
        if node.shape:
            yield _mono(right, y, _shape(node.shape), text, end=True)
        for row in rows:
            y += _LINE
            dot = COLOURS.get(row.route, _PLAIN).line
            yield f'<circle cx="{left + 3:.1f}" cy="{y - 3:.1f}" r="3" fill="{dot}"/>'
            yield _mono(left + 10, y, row.name, text)
            yield _mono(right, y, row.shape, text, end=True)
        yield "</g>"

    def _tooltip(self, index: int, node: Node) -> str:
        lines = [f"{index}: {_operation(node)} {_shape(node.shape)}"]
        for use in node.parameters:
            route, reason = self.routes.get(use.name, ("", ""))
            what = f": {route}" + (f", {reason}" if reason else "") if route else ""
            lines.append(f"{use.name} ({use.role}) {_shape(use.shape)}{what}")
        return "\n".join(lines)

    def _legend(self) -> list[tuple[str, Colours]]:
        names = {use.name for node in self.nodes for use in node.parameters}
        counts = Counter(self._route(name) for name in names)
        return [(f"{counts[route]} {route}", colours) for route, colours in COLOURS.items() if counts[route]]


class _Row(NamedTuple):
    name: str
    shape: str
    route: str


def _plain(row: _Row) -> str:
    return f"{row.name}  {row.shape}" + (f"  {row.route}" if row.route else "")


def _short(name: str) -> str:
    """Cut a long name off at a dot near its beginning."""
    if len(name) <= _LONGEST:
        return name
    end = name[-_LONGEST + 1 :]
    dot = end.find(".")
    return "…" + (end[dot:] if 0 <= dot < _LONGEST // 2 else end)


def _size(node: Node, rows: Sequence[_Row]) -> tuple[float, float]:
    """Width and height of a box that holds these lines."""
    head = _LETTER * len(_operation(node)) + _SMALL * len(_shape(node.shape)) + 14
    longest = max((_SMALL * (len(row.name) + len(row.shape) + 2) + 10 for row in rows), default=0.0)
    return max(96.0, head + 2 * _PAD, longest + 2 * _PAD), _HEAD + _LINE * len(rows) + (3 if rows else 0)


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


def _mono(x: float, y: float, text: str, colour: str, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{_MONO}" font-size="10" fill="{colour}"{anchor}>'
        f"{escape(text)}</text>"
    )


def _heading(title: str, legend: Sequence[tuple[str, Colours]]) -> Iterator[str]:
    yield f'<text x="{_PAD}" y="20" font-size="13" font-weight="600" fill="#20262e">{escape(title)}</text>'
    x = _PAD
    for text, colours in legend:
        yield (
            f'<rect x="{x:.1f}" y="30" width="10" height="10" rx="2" fill="{colours.fill}" '
            f'stroke="{colours.line}"/>'
            f'<text x="{x + 15:.1f}" y="39" fill="{colours.text}">{escape(text)}</text>'
        )
        x += _LETTER * len(text) + 30


def _wires(layout: Layout) -> Iterator[str]:
    lines, heads = [], []
    for path in layout.wires.values():
        lines.append(_rounded(path))
        x, y = path[-1]
        heads.append(f"M{x - 3:.1f} {y - 5:.1f}L{x:.1f} {y:.1f}L{x + 3:.1f} {y - 5:.1f}Z")
    yield f'<path d="{"".join(lines)}" fill="none" stroke="{_WIRE}" stroke-width="1.2"/>'
    yield f'<path d="{"".join(heads)}" fill="{_WIRE}"/>'


def _rounded(path: Sequence[Point], radius: float = 4.0) -> str:
    """Draw a line through these corners and round them off."""
    corners = [p for i, p in enumerate(path) if i == 0 or p != path[i - 1]]
    text = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        a, b = _towards(corner, before, radius), _towards(corner, after, radius)
        text += f"L{a[0]:.1f} {a[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
    x, y = corners[-1]
    return f"{text}L{x:.1f} {y - 2:.1f}"


def _towards(corner: Point, other: Point, radius: float) -> Point:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = (dx * dx + dy * dy) ** 0.5
    step = min(radius, length / 2) / length
    return corner[0] + step * dx, corner[1] + step * dy


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
