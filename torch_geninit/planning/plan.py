"""Plan: every parameter of a model, who fills it or why not; no values, immutable, legal on meta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Literal, TypeVar

import torch
from torch import nn

from torch_geninit._utils.checks import check_seed
from torch_geninit._utils.determinism import fixed
from torch_geninit._utils.near import did_you_mean
from torch_geninit._utils.surroundings import undisturbed
from torch_geninit._utils.tables import Table
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Compact
from torch_geninit.generators.entry import Entry
from torch_geninit.generators.request import Request
from torch_geninit.graph.drawing import Drawing
from torch_geninit.parameters.named import ModuleNames
from torch_geninit.parameters.targets import PlannedParameters
from torch_geninit.parameters.write import check_prediction
from torch_geninit.planning import table
from torch_geninit.planning.prediction import (
    Prediction,
    StatisticsOption,
    Unfilled,
    check_statistics,
    refuse_unfilled,
)
from torch_geninit.planning.trial import Trial
from torch_geninit.planning.trust import Candidate, Verdict

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Method = Literal["vae", "ghn", "noise_ghn"]

MAX_NOISE = 1e6
"""Largest noise_scale: far beyond any use, far below what float32 holds."""
RATES = "SGD at 0.05 or less, up to 0.1 after a warm-up; Adam at 1e-3 or less"
"""Under which ResNet-20 from `ghn-cifar10` keeps most of its start; of the others SGD alone was tried."""


@dataclass(frozen=True, kw_only=True)
class Plan(Request):
    """What a method does to each parameter of a model.

    It is what its generator is asked, and what only the way back into the model needs besides. It prints as a
    table, iterates over its entries, and is indexed by the name of a parameter.

    Attributes:
        method: ``"vae"``, ``"ghn"`` or ``"noise_ghn"``.
        model: class name of the model.
        source: name of the generator, as it was given.
        pretrained: the generator itself.
        verdict: whether the prediction is to be trusted, and what was measured; None where it was not asked.
        automatic: whether ``pretrained="auto"`` chose the generator.
        candidates: every generator that ``"auto"`` asked, with what it measured or why it was not run.
        modules: where the modules of the model stand in it.
        trial: how members with noise are run on the probe, each of which has running statistics of its own;
            None where there is no noise or the probe did not run.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> plan = geninit.plan(model, "vae")
        >>> plan
        vae_ on Sequential: 2 generated (792 numbers), 2 kept (16 numbers)
        vae-cifar10: trusted, slices are drawn layer by layer, whatever the network around them
        <BLANKLINE>
        parameter  shape    route      He std  source or reason
        ---------  -------  ---------  ------  ------------------------------------------------------
        0.weight   8x3x3x3  generated  0.272   vae-cifar10
        0.bias     8        kept               vae_ draws the weights of torch.nn's convolutions only
        1.weight   8x8x3x3  generated  0.167   vae-cifar10
        1.bias     8        kept               vae_ draws the weights of torch.nn's convolutions only
        >>> plan["0.bias"].route.value
        'kept'
        >>> layer = plan.predict(seed=0).write_(model[1])
    """

    method: Method
    model: str
    source: str
    pretrained: WeightGenerator = field(repr=False, compare=False)
    verdict: Verdict | None = None
    automatic: bool = field(default=False, repr=False, compare=False)
    candidates: tuple[Candidate, ...] = field(default=(), repr=False, compare=False)
    modules: ModuleNames = field(default_factory=ModuleNames, repr=False, compare=False)
    trial: Trial | None = field(default=None, repr=False, compare=False)

    @property
    def _title(self) -> str:
        return f"{self.method}_ on {self.model}"

    @property
    def _said(self) -> list[str]:
        """Say what the verdict was, and that of the other generators which were asked."""
        if self.verdict is None:
            return []
        trusted = "trusted" if self.verdict.trusted else "not trusted"
        others = [f"  {name}: {verdict.reason}" for name, verdict in self.candidates if name != self.source]
        return [f"{self.source}: {trusted}, {self.verdict.reason}", *others, *self._advice]

    @property
    def _advice(self) -> list[str]:
        """Say how to train what a hypernetwork of known images makes: on which pixels, at which rates."""
        if self.pretrained.probe is None or not self.generated:
            return []
        images = self.pretrained.config["input"]
        mean, std = (", ".join(f"{value:g}" for value in images[name]) for name in ("mean", "std"))
        return [f"to train: pixels from 0 to 1, minus {mean}, divided by {std}; {RATES}"]

    @cached_property
    def graph(self) -> Drawing | None:
        """The architecture, as a drawing with what happens to each parameter; None where there is none.

        It prints as Graphviz text. Where Graphviz is installed (extra ``draw``) a notebook shows the picture,
        and ``svg`` returns it. It is an ``Architecture`` too, as ``graph=`` takes it.
        """
        if self.architecture is None:
            return None
        routes = {entry.name: (entry.route.value, entry.reason) for entry in self.entries}
        return Drawing.of(self.architecture, routes, f"{self._title}, {self.source}")

    @undisturbed()
    def predict(self, *, seed: int | None = None, noise_scale: float = 1.0) -> Prediction:
        """Ask the generator for compact predictions; nothing is written.

        Args:
            seed: of the noise. ``vae`` draws one from torch's global random state if there is none,
                ``noise_ghn`` needs one, ``ghn`` takes none.
            noise_scale: factor on a hypernetwork's noise.

        Raises:
            RuntimeError: if the generator is broken (values that are not finite, another shape).
            ValueError: if it was cast, or moved from the CPU.
        """
        if self.method == "noise_ghn" and seed is None:
            raise TypeError("a noise_ghn plan needs seed=: each seed gives another network")
        if self.method == "ghn":
            if seed is not None:
                raise TypeError("a ghn plan takes no seed=: its prediction has no noise; see noise_ghn_")
            noise_scale = 0.0
        if seed is not None:
            seed = check_seed(seed)
        if (
            isinstance(noise_scale, bool)
            or not isinstance(noise_scale, Real)
            or not abs(noise_scale) <= MAX_NOISE
        ):
            raise ValueError(
                f"noise_scale: expected a number up to {MAX_NOISE:g} in size, got {str(noise_scale)[:50]!r}"
            )
        self.pretrained.check_unchanged(self.source)
        if self.method == "vae" and seed is None and self.generated:
            seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        compact: Mapping[str, Compact] = {}
        if self.generated:
            with fixed(), self.pretrained.unhooked():
                compact = self.pretrained.predict(self, seed=seed, noise_scale=noise_scale)
                for entry in self.generated:
                    if entry.name not in compact:
                        raise RuntimeError(
                            f"the generator {self.source} made no prediction for {entry.name!r}, which "
                            "it said it would; it is broken, and nothing was changed"
                        )
                    check_prediction(compact[entry.name], entry.name, entry.shape)
        return self._prediction(compact)

    def write_(
        self,
        module: ModuleT,
        *,
        prefix: str | None = None,
        unfilled: Unfilled = "keep",
        statistics: StatisticsOption = "fill",
        seed: int | None = None,
        noise_scale: float = 1.0,
    ) -> ModuleT:
        """Fill ``module``, the planned model or a part of it, in place, and return it.

        Each call predicts anew: to fill a model part by part, call ``predict`` once and its result's
        ``write_`` on each part. The values are the same, bit for bit, as those of the initialiser on
        the whole model; running statistics of a part of a noisy member come from the planned model, and stay
        as they are where that is gone.

        Unlike ``vae_``, ``ghn_`` and ``noise_ghn_``, it keeps weights that transformers loaded from a
        checkpoint (parameters marked ``_is_hf_initialized``), and marks what it wrote to a model of
        transformers: call it from ``_init_weights``, and what the checkpoint lacks is filled.

        Args:
            module: the model this plan was made from, a part of it, or one with the same parameter names.
            prefix: where ``module`` belongs in the planned model; needed only for a part of another object
                than the planned one.
            unfilled, statistics: as in ``ghn_``.
            seed, noise_scale: as in ``predict``.

        Raises:
            ValueError: before anything is changed, if a parameter of ``module`` is not in the plan, has
                another shape, or can't be written.

        Warns:
            GenInitWarning: if loaded weights were kept in a whole model, outside of transformers' own pass.
        """
        check_statistics(statistics)
        targets = self.parameters.match(module, prefix)
        refuse_unfilled(unfilled, targets.left)
        if not targets.filled and unfilled == "keep":
            prediction = self._prediction({})
        else:
            prediction = self.predict(seed=seed, noise_scale=noise_scale)
        prefix = self.modules.prefix(module) if prefix is None else prefix
        return prediction.fill(module, targets, unfilled, statistics, prefix)

    def _prediction(self, compact: Mapping[str, Compact]) -> Prediction:
        measured = self.verdict.measured if self.verdict is not None else None
        statistics = measured.statistics if measured is not None and compact else {}
        return Prediction(self.parameters, self.method, self.source, compact, statistics, self.trial)

    @cached_property
    def parameters(self) -> PlannedParameters:
        """The model's parameters as they were planned, to be found again in it or in a part of it."""
        return PlannedParameters(self.model, self.entries, self.modules)

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name or item in self.entries

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a parameter, by its name in the model's ``named_parameters``."""
        if not isinstance(name, str):
            raise TypeError(
                f"a plan is indexed by the name of a parameter, got {type(name).__name__} "
                f"{str(name)[:50]}; by position: plan.entries"
            )
        if name not in self._by_name:
            hint = did_you_mean(name, self._by_name) or f"its {len(self)} names: plan.table()"
            raise KeyError(f"the plan for {self.model} has no parameter {name!r}; {hint}")
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def table(self) -> Table:
        """Return all of the plan as a table: parameter, shape, route, He's standard deviation, reason.

        It prints as aligned text, and a notebook shows it as HTML; ``repr`` of a plan is its beginning.
        """
        return table.full(self, self._title, self.source, self._said)

    def __repr__(self) -> str:
        return str(table.short(self, self._title, self.source, self._said))

    def _repr_html_(self) -> str:
        return table.short(self, self._title, self.source, self._said)._repr_html_()
