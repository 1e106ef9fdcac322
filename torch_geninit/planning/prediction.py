"""Prediction: what a generator answered for a plan, and its way into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, TypeVar
from warnings import warn

from torch import nn

from torch_geninit.errors import GenInitWarning, StrictError
from torch_geninit.parameters import transformers
from torch_geninit.parameters.named import Slot
from torch_geninit.parameters.reset import stale_buffers, to_reset
from torch_geninit.parameters.targets import Targets
from torch_geninit.parameters.write import Assignment, check_writable, write

if TYPE_CHECKING:
    from torch_geninit.generators.compact import Compact
    from torch_geninit.planning.plan import Plan

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Unfilled = Literal["keep", "reset", "error"]


@dataclass(frozen=True)
class Prediction:
    """A generator's compact predictions for a plan, expanded as they are written.

    Attributes:
        plan: what was predicted for.
        compact: entry's name -> its prediction.
    """

    plan: Plan
    compact: Mapping[str, Compact]

    def __repr__(self) -> str:
        return f"Prediction of {len(self.compact)} parameters of {self.plan.model} by {self.plan.source}"

    def write_(self, module: ModuleT, *, prefix: str | None = None, unfilled: Unfilled = "keep") -> ModuleT:
        """Fill ``module``, the planned model or a part of it, in place; as :meth:`Plan.write_`."""
        return self.apply(module, self.plan.match(module, prefix, keep_loaded=True), unfilled)

    def apply(self, module: ModuleT, targets: Targets, unfilled: Unfilled) -> ModuleT:
        """Write to parameters that were matched before, and mark them where transformers reads marks."""
        self._warn_of_loaded(module, targets)
        self.fill(module, targets, unfilled)
        if transformers.reads_marks(chain((module,), self.plan.modules)):
            transformers.mark(targets.written())
        return module

    def fill(self, module: ModuleT, targets: Targets, unfilled: Unfilled) -> ModuleT:
        """Write to parameters that were matched before."""
        refuse_unfilled(unfilled, targets.left)
        resets: list[nn.Module] = []
        if unfilled == "reset":
            check_writable(targets.left, targets.gathered)
            resets = to_reset(module, targets.left)
            if stale := stale_buffers(module):
                warn(
                    f"unfilled='reset' leaves {len(stale)} buffers as they are, whose modules have no "
                    f"reset_parameters(): {', '.join(stale[:4])}{', ...' if len(stale) > 4 else ''}",
                    GenInitWarning,
                    stacklevel=4,
                )
        write(
            [Assignment(slot, self.compact[entry]) for slot, entry in targets.filled.values()],
            resets,
        )
        return module

    def _warn_of_loaded(self, module: nn.Module, targets: Targets) -> None:
        if targets.loaded and targets.whole and transformers.pass_is_over(module):
            warn(
                f"write_ keeps {len(targets.loaded)} parameters of {self.plan.model} that were loaded from a "
                f"checkpoint, first {targets.loaded[0].name!r}; {self.plan.method}_ writes to all",
                GenInitWarning,
                stacklevel=4,
            )


def refuse_unfilled(unfilled: Unfilled, left: Sequence[Slot]) -> None:
    """Check the option ``unfilled``; with ``"error"`` refuse to leave any parameter as it is."""
    if unfilled not in ("keep", "reset", "error"):
        raise ValueError(f"unfilled: expected 'keep', 'reset' or 'error', got {unfilled!r}")
    if unfilled == "error" and left:
        names = ", ".join(slot.name for slot in left[:10])
        raise StrictError(
            f"unfilled='error', and {len(left)} parameters are not generated: {names}"
            f"{', ...' if len(left) > 10 else ''}. Use unfilled='keep' or 'reset'; nothing was changed"
        )
