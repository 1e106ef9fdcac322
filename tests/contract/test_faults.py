"""Whatever fails, wherever: a model is as it was, or, once the writes have begun, as it would be without."""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import torch_geninit as geninit
from tests.support.contract import Net, same, state, values
from tests.support.toy_generator import record
from torch_geninit._utils import determinism
from torch_geninit._utils.interrupts import deferred, never_while_switching
from torch_geninit.generators.compact import Compact
from torch_geninit.hub import manifest

VERBS = {"vae": "vae", "ghn": "ghn", "noise_ghn": "noise-ghn"}
PACKAGE = str(Path(geninit.__file__).parent)

File = Callable[[str], Path]
Call = Callable[..., nn.Module]


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest, tiny_file: File) -> Call:
    name = request.param
    path = tiny_file(VERBS[name])

    def call(model: nn.Module, pretrained: Any = path, **options: Any) -> nn.Module:
        if name == "vae":
            return geninit.vae_(model, pretrained=pretrained, seed=7, **options)
        if name == "ghn":
            return geninit.ghn_(model, pretrained=pretrained, **options)
        return geninit.noise_ghn_(model, 7, pretrained=pretrained, **options)

    return call


def fresh() -> Net:
    torch.manual_seed(1)
    return Net()


def process() -> list[Any]:
    """What a failure must not leave behind in the process, besides the states in ``state``."""
    return [
        [type(mode) for mode in _get_current_function_mode_stack()],
        [type(mode) for mode in _get_current_dispatch_mode_stack()],
        lock_is_free(),
    ]


def lock_is_free() -> bool:
    """Whether another thread can take the lock on the state of the process."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(determinism._lock.acquire(timeout=5))
        if taken[0]:
            determinism._lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


class At:
    """Call ``fault`` when a function of the package is entered, or a call into C returns, for the n-th time.

    That is where Python itself looks for signals. Whatever else runs below a verb counts too: torch, the
    standard library.
    """

    def __init__(self, n: int, fault: Callable[[], None], *, package_only: bool = False) -> None:
        self.n, self.fault, self.package_only = n, fault, package_only
        self.count, self.where, self.last_write = 0, "", 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        # A generator is entered once more to be closed, where Python ignores errors.
        entered = event == "call" and not code.co_flags & inspect.CO_GENERATOR
        if self.package_only:
            if not entered or not code.co_filename.startswith(PACKAGE):
                return
        elif not (entered or event == "c_return"):
            return
        self.count += 1
        if code.co_name == "write_to":
            self.last_write = self.count
        if self.count == self.n:
            self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
            self.fault()


@contextlib.contextmanager
def profiled(at: At) -> Iterator[At]:
    gc.disable()  # Python ignores errors in callbacks of the collector, such as hypothesis has
    sys.setprofile(at)
    try:
        yield at
    finally:
        sys.setprofile(None)
        gc.enable()


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def no_memory() -> None:
    raise MemoryError("on purpose")


def places(total: int, count: int) -> list[int]:
    """Choose ``count`` of the events 1 ... total, spread over all, a different lot for each total."""
    return sorted(random.Random(total).sample(range(1, total + 1), min(count, total)))


class TestInterrupts:
    """Ctrl-C at any instant."""

    @pytest.mark.parametrize("count", [12, pytest.param(4000, marks=pytest.mark.full)])
    def test_all_or_nothing_and_no_trace(self, verb: Call, count: int) -> None:
        torch.set_num_threads(2)  # so that there is something to put back
        try:
            verb(fresh())  # the first call imports and caches
            expected = values(verb(fresh()))
            with profiled(At(0, interrupt)) as counted:
                verb(fresh())
            chosen = [*places(counted.count, count), counted.last_write]
            results = [self.one(verb, n, expected) for n in chosen]
        finally:
            torch.set_num_threads(1)
        assert {"old", "new"} <= set(results), "the test would prove nothing"

    @staticmethod
    def one(verb: Call, n: int, expected: dict[str, Tensor]) -> str:
        model = fresh()
        before, untouched, clean = values(model), state(model), process()
        at = At(n, interrupt)
        with contextlib.suppress(KeyboardInterrupt), profiled(at):
            verb(model)
            sys.setprofile(None)
            if at.where:
                time.sleep(1)  # what had to wait for the end of an __exit__ arrives here
                pytest.fail(f"not interrupted: {at.where}")
        after = values(model)
        assert state(model) == untouched, at.where
        assert process() == clean, at.where
        assert same(after, before) or same(after, expected), at.where
        return "old" if same(after, before) else "new"

    def test_a_state_is_put_back_however_the_block_is_left(self) -> None:
        """Each place in the machinery of ``with`` alone, none left out."""
        torch.set_num_threads(2)
        try:
            for n in itertools.count(1):
                before = torch.get_num_threads(), signal.getsignal(signal.SIGINT), process()
                at = At(n, interrupt)
                with contextlib.suppress(KeyboardInterrupt), profiled(at):
                    with determinism.fixed():
                        pass
                    sys.setprofile(None)
                    if not at.where:
                        break
                    time.sleep(1)
                    pytest.fail(f"not interrupted: {at.where}")
                after = torch.get_num_threads(), signal.getsignal(signal.SIGINT), process()
                assert after == before, at.where
            assert n > 100
        finally:
            torch.set_num_threads(1)

    def test_the_body_is_interrupted_at_once(self) -> None:
        """Also when the block stands inside somebody's ``__enter__``, and inside another such block."""

        class Outer:
            def __enter__(self) -> None:
                with never_while_switching(), never_while_switching():
                    interrupt()
                    pytest.fail("not interrupted")

            def __exit__(self, *_: object) -> None:
                pass

        with pytest.raises(KeyboardInterrupt), Outer():
            pass

    def test_deferred_once_however_often(self) -> None:
        calls = []
        with pytest.raises(KeyboardInterrupt), deferred():
            for _ in range(3):
                interrupt()
                calls.append(1)
        assert len(calls) == 3

    def test_other_threads_are_left_alone(self) -> None:
        handlers: list[Any] = []

        def work() -> None:
            with deferred(), never_while_switching():
                handlers.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert handlers == [signal.getsignal(signal.SIGINT)]

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_handlers_that_are_no_functions(self, verb: Call, handler: Any) -> None:
        before = signal.signal(signal.SIGINT, handler)
        try:
            verb(fresh())
            assert signal.getsignal(signal.SIGINT) == handler
        finally:
            signal.signal(signal.SIGINT, before)


class TestErrors:
    """MemoryError on entry to any function of the package: the one error that no check can foresee."""

    @pytest.mark.parametrize("count", [12, pytest.param(4000, marks=pytest.mark.full)])
    def test_all_or_nothing_before_the_first_write(
        self, verb: Call, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writing: list[int] = []
        write_to = Compact.write_to

        def noted(compact: Compact, out: Tensor, start: int = 0) -> None:
            writing.append(1)
            write_to(compact, out, start)

        monkeypatch.setattr(Compact, "write_to", noted)
        expected = values(verb(fresh()))
        with profiled(At(0, no_memory, package_only=True)) as counted:
            verb(fresh())
        early = 0
        for n in places(counted.count, count):
            model = fresh()
            before = values(model)
            writing.clear()
            at = At(n, no_memory, package_only=True)
            with contextlib.suppress(MemoryError), profiled(at):
                verb(model)
                pytest.fail(f"the error was lost: {at.where}")
            assert writing or same(values(model), before), at.where
            early += not writing
            if writing:  # calling again completes what was begun
                assert same(values(verb(model)), expected), at.where
        assert early > count / 3 or early > counted.count / 3


STAGES = {
    "resolve": ["hub.manifest.read", "hub.registry.locate"],
    "verify": ["hub.registry.sha256", "hub.file.read_header", "hub.file.check_config"],
    "load": ["hub.file._build", "hub.file._compare", "generators.base.WeightGenerator.eval"],
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

    def test_an_interrupt_waits_for_the_last(self, verb: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = values(verb(fresh()))
        total = self.count(verb, monkeypatch)
        for n in range(total):
            for late in (False, True):
                model = fresh()
                with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
                    patch.setattr(Compact, "write_to", at_write(n, interrupt, late=late))
                    verb(model)
                assert same(values(model), expected), (n, late)

    def test_a_failure_leaves_whole_parameters_and_calling_again_completes(
        self, verb: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = values(verb(fresh()))
        total = self.count(verb, monkeypatch)
        for n in range(total):
            model = fresh()
            before, untouched = values(model), state(model)
            with pytest.raises(MemoryError), monkeypatch.context() as patch:
                patch.setattr(Compact, "write_to", at_write(n, no_memory))
                verb(model)
            after = values(model)
            done = [not torch.equal(after[name], before[name]) for name in before]
            assert sum(done) == n, "earlier parameters are written, later ones are not"
            assert all(
                torch.equal(after[k], (expected if d else before)[k])
                for k, d in zip(after, done, strict=True)
            )
            assert state(model) == untouched
            assert same(values(verb(model)), expected)

    @staticmethod
    def count(verb: Call, monkeypatch: pytest.MonkeyPatch) -> int:
        written: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(Compact, "write_to", at_write(10**6, interrupt, written))
            verb(fresh())
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
