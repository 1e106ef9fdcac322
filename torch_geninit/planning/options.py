"""What the user asks of a plan besides a generator: what to read, and what to fill."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch_geninit._utils.near import did_you_mean
from torch_geninit.graph.architecture import Architecture
from torch_geninit.planning.filters import Patterns
from torch_geninit.planning.plan import Method

Head = Literal["auto", "keep", "generate"]
Untrusted = Literal["keep", "generate"]
METHODS: tuple[Method, ...] = get_args(Method)


def _not_one_of(option: str, expected: Iterable[str], got: object) -> str:
    near = did_you_mean(got, expected)
    text = f"{option}: expected one of {', '.join(map(repr, expected))}, got {got!r}"
    return f"{text}; {near}" if near else text


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanOptions:
    """Options of a plan, passed on as one; :func:`torch_geninit.plan` says what each means."""

    example_inputs: Any = None
    graph: Architecture | None = None
    head: Head = "auto"
    untrusted: Untrusted = "keep"
    name: str = ""
    include: Patterns = None
    exclude: Patterns = None
    traced: bool = False
    """Whether the graph was read off the very model, not passed."""

    def with_graph(self, graph: Architecture | None) -> PlanOptions:
        """Return the options with a graph that was read off the model, unless one was passed."""
        return replace(self, graph=graph, traced=self.traced or self.graph is None)

    def check(self, method: Method) -> None:
        """Raise a TypeError or ValueError that names the option which can't be, or not with ``method``."""
        if method not in METHODS:
            raise ValueError(_not_one_of("method", METHODS, method))
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a dotted module name as 'layer1.0.conv1', got {self.name!r}")
        if self.graph is not None:
            if not isinstance(self.graph, Architecture):
                raise TypeError(f"graph: expected what trace() returns, got {type(self.graph).__name__}")
            self.graph.check()
        if self.head not in get_args(Head):
            raise ValueError(_not_one_of("head", get_args(Head), self.head))
        if self.untrusted not in get_args(Untrusted):
            raise ValueError(_not_one_of("untrusted", get_args(Untrusted), self.untrusted))
        if method != "vae":
            if self.name:
                raise TypeError(f"a {method} plan is of a whole model: it takes no name=")
        elif (
            self.example_inputs is not None
            or self.graph is not None
            or self.head != "auto"
            or self.untrusted != "keep"
        ):
            raise TypeError(
                "a vae plan goes layer by layer: it takes no example_inputs=, graph=, head= or untrusted="
            )
