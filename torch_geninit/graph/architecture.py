"""An architecture as data: frozen nodes, edges and shapes; JSON in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

Shape = tuple[int, ...]


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
        op: name of the primitive, one of :data:`torch_geninit.graph.vocabulary.PRIMITIVES`.
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
        return dict(self.attributes).get(key, default)


@dataclass(frozen=True)
class Architecture:
    """A network as a directed acyclic graph of primitive operations.

    Attributes:
        nodes: in topological order; the first is ``input`` (one node for each input), the last ``output``.
        edges: (source, target) node indices with source < target, sorted, without repetition.
        vocabulary: version of the vocabulary that named the primitives.
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

    def to_json(self) -> str:
        """Serialise; :meth:`from_json` gives an equal architecture back."""
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
    def from_json(cls, text: str) -> Architecture:
        """Read what :meth:`to_json` wrote."""
        data = json.loads(text)
        return cls(
            nodes=tuple(_node(record) for record in data["nodes"]),
            edges=tuple((int(source), int(target)) for source, target in data["edges"]),
            vocabulary=int(data["vocabulary"]),
            notes=tuple(data["notes"]),
        )


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
