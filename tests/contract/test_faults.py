"""Whatever fails, wherever: a model is as it was, or, once the writes have begun, as it would be without."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.support.contract import same, state, values
from tests.support.interruptions import (
    VERBS,
    At,
    Call,
    File,
    fresh,
    interrupt,
    no_memory,
    places,
    process,
    profiled,
)
from tests.support.toy_generator import record
from torch_geninit.generators.compact import Compact
from torch_geninit.hub import manifest


class TestErrors:
    """MemoryError on entry to any function of the package: the one error that no check can foresee."""

    @pytest.mark.parametrize("count", [12, pytest.param(4000, marks=pytest.mark.full)])
    def test_all_or_nothing_before_the_first_write(
        self, initialise: Call, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writing: list[int] = []
        write_to = Compact.write_to

        def noted(compact: Compact, out: Tensor, start: int = 0) -> None:
            writing.append(1)
            write_to(compact, out, start)

        monkeypatch.setattr(Compact, "write_to", noted)
        expected = values(initialise(fresh()))
        with profiled(At(0, no_memory, package_only=True)) as counted:
            initialise(fresh())
        early = 0
        for n in places(counted.count, count):
            model = fresh()
            before = values(model)
            writing.clear()
            at = At(n, no_memory, package_only=True)
            with contextlib.suppress(MemoryError), profiled(at):
                initialise(model)
                pytest.fail(f"the error was lost: {at.where}")
            assert writing or same(values(model), before), at.where
            early += not writing
            if writing:  # calling again completes what was begun
                assert same(values(initialise(model)), expected), at.where
        assert early > count / 3 or early > counted.count / 3


STAGES = {
    "resolve": ["hub.manifest.read", "hub.registry.locate"],
    "verify": ["hub.registry.sha256", "hub.file.read_header", "hub.file.check_config"],
    "load": ["hub.file.build", "hub.file.compare", "generators.base.WeightGenerator.eval"],
    "trace": ["graph.tracer.trace._run", "graph.tracer.trace.assemble"],
    "plan": [
        "planning.fill.list_parameters",
        "planning.build._entries",
        "planning.build.with_verdict",
        "parameters.targets.check_writable",
    ],
    "predict": ["generators.vae.model.SliceVAEs.predict", "generators.ghn.model.GraphHyperNetwork.predict"],
    "check": ["planning.plan.check_prediction", "parameters.write._check_range"],
}
"""Every stage before the writes, and functions that it is made of."""


class TestStages:
    """The same by name, so that a stage that is lost or moves is noticed."""

    @pytest.mark.parametrize("target", [t for targets in STAGES.values() for t in targets])
    def test_a_failure_changes_nothing(self, target: str, tiny_file: File, tmp_path: Path) -> None:
        reached = 0
        for name, kind in VERBS.items():
            for error in (MemoryError("on purpose"), KeyboardInterrupt("on purpose")):
                with pytest.MonkeyPatch.context() as patch:
                    publish(tiny_file(kind), kind, tmp_path, patch)
                    reached += self.fails(name, target, error, patch)
        assert reached, f"no verb calls {target}"

    @staticmethod
    def fails(name: str, target: str, error: BaseException, patch: pytest.MonkeyPatch) -> bool:
        called: list[int] = []

        def fault(*_: Any, **__: Any) -> Any:
            called.append(1)
            raise error

        model = fresh()
        before, untouched, clean = values(model), state(model), process()
        patch.setattr(*_owner(target), fault)
        try:
            if name == "vae":
                geninit.vae_(model, pretrained="tiny", seed=7)
            elif name == "ghn":
                geninit.ghn_(model, pretrained="tiny")
            else:
                geninit.noise_ghn_(model, 7, pretrained="tiny")
        except (MemoryError, KeyboardInterrupt) as caught:
            assert caught is error
            assert same(values(model), before)
            assert (state(model), process()) == (untouched, clean)
        else:
            assert not called, "the error was lost"
        return bool(called)


def _owner(target: str) -> tuple[Any, str]:
    """Return the module or class below the package that has the function, and its name there."""
    path, _, name = f"torch_geninit.{target}".rpartition(".")
    if path in sys.modules:
        return sys.modules[path], name
    module, _, cls = path.rpartition(".")
    return getattr(sys.modules[module], cls), name


def publish(file: Path, kind: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make ``file`` the shipped generator "tiny"."""
    entry = record(file.read_bytes(), name="tiny", kind=kind, filename=file.name)
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "generators": [entry]}))
    patch.setattr(manifest, "locate", lambda: folder / "manifest.json")
    patch.setattr(manifest, "SHIPPED", file.parent)


class TestWrites:
    """Every single write, from the first to the last."""

    def test_an_interrupt_waits_for_the_last(self, initialise: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = values(initialise(fresh()))
        total = self.count(initialise, monkeypatch)
        for n in range(total):
            for late in (False, True):
                model = fresh()
                with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
                    patch.setattr(Compact, "write_to", at_write(n, interrupt, late=late))
                    initialise(model)
                assert same(values(model), expected), (n, late)

    def test_a_failure_leaves_whole_parameters_and_calling_again_completes(
        self, initialise: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = values(initialise(fresh()))
        total = self.count(initialise, monkeypatch)
        for n in range(total):
            model = fresh()
            before, untouched = values(model), state(model)
            with pytest.raises(MemoryError), monkeypatch.context() as patch:
                patch.setattr(Compact, "write_to", at_write(n, no_memory))
                initialise(model)
            after = values(model)
            done = [not torch.equal(after[name], before[name]) for name in before]
            assert sum(done) == n, "earlier parameters are written, later ones are not"
            assert all(
                torch.equal(after[k], (expected if d else before)[k])
                for k, d in zip(after, done, strict=True)
            )
            assert state(model) == untouched
            assert same(values(initialise(model)), expected)

    @staticmethod
    def count(initialise: Call, monkeypatch: pytest.MonkeyPatch) -> int:
        written: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(Compact, "write_to", at_write(10**6, interrupt, written))
            initialise(fresh())
        assert len(written) > 2
        return len(written)


def at_write(
    n: int, fault: Callable[[], None], written: list[int] | None = None, *, late: bool = False
) -> Callable[..., None]:
    """Return a ``Compact.write_to`` that calls ``fault`` before or after the n-th write."""
    write_to, done = Compact.write_to, [] if written is None else written

    def write(compact: Compact, out: Tensor, start: int = 0) -> None:
        done.append(1)
        if len(done) == n + 1 and not late:
            fault()
        write_to(compact, out, start)
        if len(done) == n + 1 and late:
            fault()

    return write


def test_no_memory_while_tracing_never_gives_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracer tries several inputs; to go on to the next after this failure would change the graph."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
    geninit.trace(model)
    for error in (MemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")):
        failures = [error]

        def once(layer: nn.Conv2d, x: Tensor, failures: list[Exception] = failures) -> Tensor:
            if failures:
                raise failures.pop()
            return layer._conv_forward(x, layer.weight, layer.bias)

        with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
            patch.setattr(nn.Conv2d, "forward", once)
            geninit.trace(model)
        assert caught.value is error
