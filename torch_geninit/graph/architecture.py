"""An architecture as data: frozen nodes, edges and shapes; JSON in and out."""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch_geninit._utils import strict_json
from torch_geninit._utils.tables import Table
from torch_geninit.graph.vocabulary import PRIMITIVES, VERSION

Shape = tuple[int, ...]

PER_DIMENSION = frozenset(("kernel_size", "stride", "padding", "dilation"))
"""Attributes with a number for each spatial dimension; all others are one number."""
WIDEST = 110
"""Longest note that a graph prints; ``notes`` has all of it."""


@dataclass(frozen=True, slots=True)
class ParameterUse:
    """A parameter as an operation reads it.

    Attributes:
        name: name in the model's ``named_parameters``; a tied parameter keeps its first name everywhere.
        role: what it is to the operation: ``"weight"``, ``"bias"``, ...
        shape: its shape.
    """

    name: str
    role: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Node:
    """One primitive operation.

    Attributes:
        op: name of the primitive, one of ``torch_geninit.graph.vocabulary.PRIMITIVES``.
        shape: shape of the output, batch dimension first; empty where an operation returns no tensor.
        parameters: parameters that the operation reads, in a fixed order of roles.
        attributes: sorted (key, value) pairs; a convolution has ``kernel_size``, ``stride``, ``padding``,
            ``dilation`` (tuples) and ``groups``; a pooling has ``kernel_size`` and ``stride``.
    """

    op: str
    shape: Shape
    parameters: tuple[ParameterUse, ...] = ()
    attributes: tuple[tuple[str, int | Shape], ...] = ()

    def attribute(self, key: str, default: Any = None) -> Any:
        for name, value in self.attributes:
            if name == key:
                return value
        return default


@dataclass(frozen=True, repr=False)
class Architecture:
    """A network as a directed acyclic graph of primitive operations.

    It prints as a count of its operations; ``table`` has every node.

    Attributes:
        nodes: in topological order; the first is ``input`` (one node for each input), the last ``output``.
        edges: (source, target) node indices with source < target, sorted, without repetition.
        vocabulary: version of the vocabulary that named the primitives.
        notes: what the tracer had to assume, in words; two graphs that differ in notes alone are equal.

    Examples:
        >>> architecture = geninit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4))
        >>> architecture
        Architecture: 3 nodes, 2 edges, 2 parameters (10 numbers)
        <BLANKLINE>
        operation  nodes  parameters
        ---------  -----  ----------
        input          1           0
        linear         1           2
        output         1           0
        <BLANKLINE>
        every node: table(); as JSON: to_json()
        >>> [node.op for node in architecture.nodes]
        ['input', 'linear', 'output']
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    vocabulary: int
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def uses(self) -> Mapping[str, tuple[int, ParameterUse]]:
        """First use of each parameter: name -> (node index, use)."""
        first: dict[str, tuple[int, ParameterUse]] = {}
        for index, node in enumerate(self.nodes):
            for use in node.parameters:
                first.setdefault(use.name, (index, use))
        return first

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything but parameter names: equal for equal architectures."""
        anonymous = [
            [n.op, n.shape, [[u.role, u.shape] for u in n.parameters], n.attributes] for n in self.nodes
        ]
        text = json.dumps([self.vocabulary, anonymous, self.edges], separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def table(self) -> Table:
        """Return every node as a table: operation, output shape, parameters with shapes, nodes it reads.

        It prints as aligned text, and a notebook shows it as HTML; ``repr`` counts the operations.
        """
        sources: dict[int, list[str]] = defaultdict(list)
        for source, target in self.edges:
            sources[target].append(str(source))
        rows = [
            (
                str(index),
                node.op,
                _times(node.shape),
                ", ".join(sources[index]),
                ", ".join(f"{use.name} {_times(use.shape)}" for use in node.parameters),
            )
            for index, node in enumerate(self.nodes)
        ]
        header = ("node", "operation", "output", "reads", "parameters")
        return Table(header, rows, numbers=(0,), above=[self._counted, *self.notes])

    @property
    def _counted(self) -> str:
        numbers = sum(math.prod(use.shape) for _, use in self.uses.values())
        return (
            f"Architecture: {len(self.nodes)} nodes, {len(self.edges)} edges, "
            f"{len(self.uses)} parameters ({numbers:,} numbers)"
        )

    def _short(self) -> Table:
        """Count the operations, the commonest first, and the parameters that each kind reads."""
        nodes = Counter(node.op for node in self.nodes)
        names: dict[str, set[str]] = defaultdict(set)
        for node in self.nodes:
            names[node.op].update(use.name for use in node.parameters)
        rows = [(op, str(count), str(len(names[op]))) for op, count in nodes.most_common()]
        return Table(
            ("operation", "nodes", "parameters"),
            rows,
            numbers=(1, 2),
            above=[self._counted, *(textwrap.shorten(note, WIDEST, placeholder=" …") for note in self.notes)],
            below=["every node: table(); as JSON: to_json()"],
        )

    def __repr__(self) -> str:
        return str(self._short())

    def _repr_html_(self) -> str | None:
        return self._short()._repr_html_()

    def to_json(self) -> str:
        """Serialise; ``from_json`` gives an equal architecture back."""
        return json.dumps(
            {
                "vocabulary": self.vocabulary,
                "nodes": [asdict(node) for node in self.nodes],
                "edges": self.edges,
                "notes": self.notes,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: says what is wrong with anything else.
        """
        try:
            data = strict_json.parse(text)
            read = cls(
                nodes=tuple(_node(record) for record in data["nodes"]),
                edges=tuple((source, target) for source, target in data["edges"]),
                vocabulary=data["vocabulary"],
                notes=tuple(data["notes"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"expected a graph as Architecture.to_json() writes it ({type(error).__name__}: "
                f"{str(error)[:200]}). Trace the model again"
            ) from error
        read.check()
        return read

    def check(self) -> None:
        """Check that this is what a tracer makes, so that who reads a graph need not doubt it.

        Raises:
            ValueError: names the first thing that is wrong.
        """
        if self.vocabulary != VERSION or isinstance(self.vocabulary, bool):
            raise ValueError(
                f"the graph is of vocabulary {str(self.vocabulary)[:20]}, expected {VERSION}. "
                "Trace the model again"
            )
        for index, node in enumerate(self.nodes):
            if problem := _problem(node):
                raise ValueError(f"node {index} of the graph has {problem}. Trace the model again")
        ops = [node.op for node in self.nodes]
        if "input" not in ops or ops[-1] != "output":
            raise ValueError("the graph has no input, or doesn't end in its output. Trace the model again")
        count = len(self.nodes)
        for edge in self.edges:
            if not (all(type(end) is int for end in edge) and 0 <= edge[0] < edge[1] < count):
                raise ValueError(
                    f"the graph has the edge {str(edge)[:100]}, expected two of its {count} nodes in "
                    "topological order. Trace the model again"
                )
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("the graph's edges are not sorted, or not different. Trace the model again")
        if not all(type(note) is str for note in self.notes):
            raise ValueError("the graph has notes that are no text. Trace the model again")


def _node(record: Mapping[str, Any]) -> Node:
    return Node(
        op=record["op"],
        shape=tuple(record["shape"]),
        parameters=tuple(
            ParameterUse(use["name"], use["role"], tuple(use["shape"])) for use in record["parameters"]
        ),
        attributes=tuple(
            (key, tuple(value) if isinstance(value, list) else value) for key, value in record["attributes"]
        ),
    )


def _problem(node: Node) -> str | None:
    if node.op not in PRIMITIVES:
        return f"the operation {str(node.op)[:100]!r}, which is none of the vocabulary"
    for shape in (node.shape, *(use.shape for use in node.parameters)):
        if not _sizes(shape):
            return f"the shape {str(shape)[:100]}, expected sizes from 0"
    for use in node.parameters:
        if not (type(use.name) is type(use.role) is str):
            return "a parameter whose name or role is no text"
    for key, value in node.attributes:
        if type(key) is not str:
            return f"an attribute called {str(key)[:100]}"
        many = key in PER_DIMENSION
        if isinstance(value, tuple) != many or not _sizes(value if isinstance(value, tuple) else (value,)):
            expected = "a size for each dimension" if many else "a size"
            return f"the attribute {key[:100]!r} of {str(value)[:100]}, expected {expected}"
    if any(a >= b for (a, _), (b, _) in pairwise(node.attributes)):
        return "attributes that are not sorted, or not different"
    return None


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _sizes(values: Shape) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
