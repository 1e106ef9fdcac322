"""Prediction: what a generator answered for a plan, and its way into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal, TypeVar

from torch import Tensor, nn

from torch_geninit.errors import StrictError, warn_caller
from torch_geninit.generators.compact import Compact
from torch_geninit.parameters import transformers
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.parameters.reset import stale_buffers, to_reset
from torch_geninit.parameters.statistics import buffers_to_fill
from torch_geninit.parameters.targets import PlannedParameters, Targets
from torch_geninit.parameters.write import Assignment, check_writable, write
from torch_geninit.planning.measure import statistics_of
from torch_geninit.planning.trial import Trial

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Unfilled = Literal["keep", "reset", "error"]
StatisticsOption = Literal["fill", "keep"]


@dataclass(frozen=True)
class Prediction:
    """A generator's compact predictions for a plan, expanded as they are written.

    Attributes:
        parameters: what was predicted for.
        method: ``"vae"``, ``"ghn"`` or ``"noise_ghn"``.
        source: name of the generator, as it was given.
        compact: entry's name -> its prediction.
        measured: canonical name of a BatchNorm's buffer -> its value on the probe without noise, where that
            ran.
        trial: of a prediction with noise, whose values on the probe are its own; None where ``measured`` has
            them.
    """

    parameters: PlannedParameters
    method: str
    source: str
    compact: Mapping[str, Compact]
    measured: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    trial: Trial | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Prediction of {len(self.compact)} parameters of {self.parameters.model} by {self.source}"

    def write_(
        self,
        module: ModuleT,
        *,
        prefix: str | None = None,
        unfilled: Unfilled = "keep",
        statistics: StatisticsOption = "fill",
    ) -> ModuleT:
        """Fill ``module``, the planned model or a part of it, in place; as :meth:`Plan.write_`."""
        check_statistics(statistics)
        targets = self.parameters.match(module, prefix)
        refuse_unfilled(unfilled, targets.left)
        prefix = self.parameters.modules.prefix(module) if prefix is None else prefix
        return self.fill(module, targets, unfilled, statistics, prefix)

    def fill(
        self,
        module: ModuleT,
        targets: Targets,
        unfilled: Unfilled,
        statistics: StatisticsOption = "fill",
        prefix: str = "",
    ) -> ModuleT:
        """Write to ``targets``, parameters of ``module`` that :func:`refuse_unfilled` lets pass."""
        if targets.loaded and targets.whole and transformers.pass_is_over(module):
            warn_caller(
                f"write_ keeps {len(targets.loaded)} parameters of {self.parameters.model} that were loaded "
                f"from a checkpoint, first {targets.loaded[0].name!r}; {self.method}_ writes to all"
            )
        resets: list[nn.Module] = []
        if unfilled == "reset":
            check_writable(targets.left, targets.gathered)
            resets = to_reset(module, targets.left)
            if stale := stale_buffers(module):
                warn_caller(
                    f"unfilled='reset' leaves {len(stale)} buffers as they are, whose modules have no "
                    f"reset_parameters(): {', '.join(stale[:4])}{', ...' if len(stale) > 4 else ''}"
                )
        write(
            [Assignment(ref, self.compact[entry]) for ref, entry in targets.filled.values()],
            resets,
            self._statistics(module, targets, prefix) if statistics == "fill" else (),
        )
        if targets.keeps_loaded and transformers.reads_marks(chain((module,), self.parameters.modules)):
            transformers.mark(targets.written())
        return module

    def _statistics(self, module: nn.Module, targets: Targets, prefix: str) -> list[tuple[Tensor, Tensor]]:
        """Return the running statistics to fill, each with its new value."""
        found = buffers_to_fill(module, prefix, self.measured, targets)
        if self.trial is None or not found:
            return found
        own = statistics_of(self.trial, module, self.compact) if targets.whole else self._of_planned
        return buffers_to_fill(module, prefix, own, targets)

    @cached_property
    def _of_planned(self) -> Mapping[str, Tensor]:
        """Statistics of the planned model, for its parts; none where it is gone."""
        model = self.parameters.modules.root
        return {} if self.trial is None or model is None else statistics_of(self.trial, model, self.compact)


def refuse_unfilled(unfilled: Unfilled, left: Sequence[ParameterRef]) -> None:
    """Check the option ``unfilled``; with ``"error"`` refuse to leave any parameter as it is."""
    if unfilled not in ("keep", "reset", "error"):
        raise ValueError(f"unfilled: expected 'keep', 'reset' or 'error', got {unfilled!r}")
    if unfilled == "error" and left:
        names = ", ".join(ref.name for ref in left[:10])
        raise StrictError(
            f"unfilled='error', and {len(left)} parameters are not generated: {names}"
            f"{', ...' if len(left) > 10 else ''}. Use unfilled='keep' or 'reset'; nothing was changed"
        )


def check_statistics(statistics: StatisticsOption) -> None:
    """Check the option ``statistics``."""
    if statistics not in ("fill", "keep"):
        raise ValueError(f"statistics: expected 'fill' or 'keep', got {statistics!r}")
