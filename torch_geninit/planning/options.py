"""What the user asks of a plan besides a generator: what to read, and what to fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from torch_geninit.graph.architecture import Architecture
from torch_geninit.planning.filters import Patterns
from torch_geninit.planning.plan import Method

Head = Literal["auto", "keep", "generate"]
Untrusted = Literal["keep", "generate"]
METHODS: tuple[Method, ...] = get_args(Method)


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
            close = get_close_matches(str(method).lower(), METHODS, n=1)
            raise ValueError(
                f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a dotted module name as 'layer1.0.conv1', got {self.name!r}")
        if self.graph is not None:
            if not isinstance(self.graph, Architecture):
                raise TypeError(f"graph: expected what trace() returns, got {type(self.graph).__name__}")
            self.graph.check()
        if self.head not in get_args(Head):
            raise ValueError(f"head: expected 'auto', 'keep' or 'generate', got {self.head!r}")
        if self.untrusted not in get_args(Untrusted):
            raise ValueError(f"untrusted: expected 'keep' or 'generate', got {self.untrusted!r}")
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
