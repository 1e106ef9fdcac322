"""The contract of the verbs as properties: what holds of a call, and in each variant of it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.conftest import ghn_config, vae_config
from tests.support.contract import AMBIENT, Broken, ambient, same, settings_of_torch, state, values
from tests.support.random_networks import Recipe, permute
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Compact, Tile
from torch_geninit.generators.entry import Route
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.request import Request
from torch_geninit.generators.rng import noise_stream
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.planning.choose import DEFAULTS
from torch_geninit.planning.plan import Plan

WRITTEN = (Route.GENERATED, Route.TIED)


class Anything(WeightGenerator):
    """Fill every parameter that a verb offers, from tiles smaller than it, and trust itself always."""

    taken_on_trust = "trusts itself"

    def __init__(self, kind: str) -> None:
        super().__init__({**(vae_config() if kind == "vae" else ghn_config(4)), "kind": kind})

    def refusal(self, entry: Any, architecture: Any) -> str | None:
        return None

    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> dict[str, Compact]:
        tiles = {}
        for entry in request.generated:
            limits = [5, 3] + [10**9] * len(entry.shape)
            extents = [min(a, b) for a, b in zip(entry.shape, limits, strict=False)]
            block = torch.randn(extents, generator=noise_stream(seed or 0, entry.canonical))
            tiles[entry.name] = Tile(block, entry.shape, scale=0.5, amplitude=0.1, name=entry.canonical)
        return tiles


class All(list[str]):
    """A list of everything."""

    def __contains__(self, item: object) -> bool:
        return True


def hypernetwork(noise: int) -> GraphHyperNetwork:
    """A small real one with every part of the decoder, trusted with all that it can decode."""
    config = ghn_config(noise)
    config["sizes"] |= {"linear_rank": 4, "depthwise_rank": 4, "basis": 3}
    config["trained"]["kinds"] = All()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphHyperNetwork(config).eval().requires_grad_(False)


def slices() -> SliceVAEs:
    """One VAE for each kernel size, so that none is chosen by depth."""
    config = vae_config()
    record = config["sizes"]["layers"][0]
    kernels = [[k] * dims for k in (1, 3) for dims in (1, 2, 3)]
    config["sizes"]["layers"] = [record | {"name": f"{k}", "kernel_size": k} for k in kernels]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SliceVAEs(config).eval().requires_grad_(False)


GENERATORS: dict[str, dict[str, WeightGenerator]] = {
    "vae": {"anything": Anything("vae"), "own": slices()},
    "ghn": {"anything": Anything("ghn"), "own": hypernetwork(0)},
    "noise_ghn": {"anything": Anything("noise-ghn"), "own": hypernetwork(4)},
}
SHIPPED = {verb: geninit.load("ghn-cifar10" if name == "auto" else name) for verb, name in DEFAULTS.items()}


class Subject:
    """A verb, a generator and a network, and what the verb made of it."""

    def __init__(self, verb: str, generator: WeightGenerator, recipe: Recipe) -> None:
        self.verb, self.generator, self.recipe = verb, generator, recipe
        self.random = random.Random(repr(recipe.choose.made))

    def __call__(self, model: nn.Module, **options: Any) -> nn.Module:
        options.setdefault("pretrained", self.generator)
        if self.verb == "vae":
            return geninit.vae_(model, seed=7, **options)
        options.setdefault("example_inputs", self.recipe.inputs)
        options.setdefault("statistics", "keep")
        options.setdefault("untrusted", "keep" if self.generator is SHIPPED[self.verb] else "generate")
        if self.verb == "ghn":
            return geninit.ghn_(model, **options)
        return geninit.noise_ghn_(model, 7, **options)

    def quietly(self, model: nn.Module, **options: Any) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", geninit.GenInitWarning)
            self(model, **options)
        return values(model)

    def plan(self, model: nn.Module) -> Plan:
        options: dict[str, Any] = {}
        if self.verb != "vae":
            untrusted = "keep" if self.generator is SHIPPED[self.verb] else "generate"
            options = {"example_inputs": self.recipe.inputs, "untrusted": untrusted}
        return geninit.plan(model, self.verb, pretrained=self.generator, **options)  # type: ignore[arg-type]

    def check(self) -> None:
        """Points 2, 3, 4 and 6, and finite values."""
        model = self.model = self.recipe.first
        plan = self.made = self.plan(model)
        self.before, untouched = values(model), state(model)
        model.register_forward_pre_hook(_called)
        hooked = state(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert self(model) is model
        assert state(model) == hooked
        model._forward_pre_hooks.clear()
        assert state(model) == untouched
        self.after = values(model)
        self.written = {entry.name for entry in plan.entries if entry.route in WRITTEN}
        changed = {name for name in self.before if not torch.equal(self.before[name], self.after[name])}
        assert changed == self.written
        assert {entry.name for entry in plan.entries} == self.before.keys()
        assert all(torch.isfinite(self.after[name]).all() for name in changed)
        assert all(entry.reason for entry in plan.entries if entry.route is not Route.GENERATED)
        messages = [w for w in caught if issubclass(w.category, geninit.GenInitWarning)]
        untrusted = plan.verdict is not None and not plan.verdict.trusted
        nothing = bool(plan.entries) and not plan.generated
        assert len(messages) == (bool(plan.skipped) or untrusted or nothing)
        assert all(len(str(w.message).splitlines()) <= 3 for w in messages)
        assert all(w.filename == __file__ for w in messages)
        frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        assert not frozen & changed
        if plan.verdict is not None and self.generator is SHIPPED[self.verb] and not plan.verdict.trusted:
            assert not changed

    def same_as_before(self, found: Mapping[str, Tensor], strip: str = "") -> None:
        for name in self.written:
            assert torch.equal(found[strip + name], self.after[name]), name


def _called(module: nn.Module, args: Any) -> None:
    pytest.fail("the user's module was called")


# Point 5, one way at a time: the same input, the same values. Then point 1.


def again(subject: Subject) -> None:
    subject.same_as_before(subject.quietly(subject.model))


def permuted(subject: Subject) -> None:
    if any(entry.tied_to for entry in subject.made.entries):
        return  # a tied parameter goes by the name that is registered first
    if subject.generator is SHIPPED["vae"]:
        return  # which of its VAEs serves a layer goes by the order of registration
    model = permute(subject.recipe.build(), subject.random.randrange)
    subject.same_as_before(subject.quietly(model))


def wrapped(subject: Subject) -> None:
    model = subject.recipe.build()
    how = subject.random.choice(["parallel", "compiled", "compiled in place", "twice"])
    if how == "compiled in place":
        model.compile(backend="eager")
        subject.same_as_before(subject.quietly(model))
        return
    outer: nn.Module = torch.compile(model, backend="eager") if how == "compiled" else nn.DataParallel(model)
    if how == "twice":
        outer = torch.compile(outer, backend="eager")  # type: ignore[assignment]
    subject.quietly(outer)
    subject.same_as_before(values(model))


def in_another_state(subject: Subject) -> None:
    model = subject.recipe.build()
    with ambient(subject.random.choice(AMBIENT)):
        before = settings_of_torch()
        found = subject.quietly(model)
        assert settings_of_torch() == before
    subject.same_as_before(found)


def as_float32(subject: Subject) -> None:
    dtypes = {name: value.dtype for name, value in subject.after.items()}
    found = subject.quietly(subject.recipe.build().float())
    norms = _normalised(subject.model)
    for name in subject.written - norms:
        assert torch.equal(found[name].to(dtypes[name]), subject.after[name]), name


def _normalised(model: nn.Module) -> set[str]:
    """Weight normalisation stores a norm, which is taken of the rounded weight."""
    return {name for name in values(model) if name.endswith(("_g", "original0"))}


def scripted(subject: Subject) -> None:
    """A part that TorchScript took over."""
    model = subject.recipe.build()
    for name, part in list(model.named_children()):
        if isinstance(part, nn.Sequential | nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            if any("parametrizations" in n or n.endswith("_g") for n, _ in part.named_parameters()):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is deprecated, in a warning of another kind by version
                try:
                    model._modules[name] = torch.jit.script(part)
                except RuntimeError:  # not in TorchScript's subset of Python
                    continue
            break
    if subject.verb == "vae":
        return  # a scripted convolution is of no class that says so
    scripts = [part for part in model.modules() if isinstance(part, torch.jit.ScriptModule)]
    if any(part.original_name in ("LSTM", "GRU", "RNN") for part in scripts):
        with pytest.raises(geninit.TraceError, match=r"TorchScript took over.*before torch\.jit\.script"):
            subject.quietly(model)
        subject.same_as_before(subject.quietly(model, graph=subject.made.architecture))
        return
    subject.same_as_before(subject.quietly(model))


def on_meta(subject: Subject) -> None:
    if any("parametrizations" in name for name in subject.after):
        return  # some of them can't be registered without data
    with torch.device("meta"):
        model = subject.recipe.build()
    plan = subject.plan(model)
    assert plan.entries == subject.plan(subject.recipe.build()).entries
    if plan.generated:
        with pytest.raises(ValueError, match="can't be written"):
            subject.quietly(model)


def part_by_part(subject: Subject) -> None:
    model = subject.recipe.build()
    plan = subject.plan(model)
    prediction = plan.predict(seed=None if subject.verb == "ghn" else 7)
    parts = list(model.children())
    subject.random.shuffle(parts)
    for part in parts:
        prediction.write_(part)
    subject.same_as_before(values(model))


def broken(subject: Subject) -> None:
    if not subject.made.generated:
        return
    chosen = subject.random.choice(subject.made.generated).name

    how = subject.random.choice(["nan", "lost", "shape", "raises"])

    def spoil(tiles: dict[str, Compact]) -> None:
        if how == "raises":
            raise MemoryError("on purpose")
        if how == "lost":
            del tiles[chosen]
        elif how == "shape":
            tiles[chosen] = Tile(torch.zeros(2, 2, 2, 2, 2, 2), (2,) * 6)
        else:
            whole = tiles[chosen].expand()
            whole.view(-1)[0] = math.nan
            tiles[chosen] = Tile(whole, tuple(whole.shape))

    model = subject.recipe.build()
    before, untouched = values(model), state(model)
    with pytest.raises((RuntimeError, MemoryError)):
        subject.quietly(model, pretrained=Broken(subject.generator, spoil))
    assert same(values(model), before)
    assert state(model) == untouched


def strict(subject: Subject) -> None:
    model = subject.recipe.build()
    before = values(model)
    if subject.made.skipped:
        with pytest.raises(geninit.StrictError, match="nothing was changed"):
            subject.quietly(model, strict=True)
        assert same(values(model), before)
    else:
        subject.same_as_before(subject.quietly(model, strict=True))


VARIANTS: list[Callable[[Subject], None]] = [
    again,
    permuted,
    wrapped,
    in_another_state,
    as_float32,
    on_meta,
    part_by_part,
    broken,
    strict,
]
