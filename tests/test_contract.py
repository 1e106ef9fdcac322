"""The contract that every verb keeps, once for all of them."""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import torch_geninit as geninit
from torch_geninit.entry import Route
from torch_geninit.generators.base import Verdict, WeightGenerator
from torch_geninit.generators.compact import Compact, Tile
from torch_geninit.plan import Plan


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(x)))


class Net(nn.Module):
    """Wider than the tiny generators' tiles, so that writing repeats them."""

    def __init__(self, classes: int = 10, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(self.drop(x.mean((2, 3))))


@dataclass(frozen=True)
class Verb:
    """A verb with everything chosen that makes it deterministic."""

    name: str
    kind: str
    generator: Callable[[str], WeightGenerator]
    file: Callable[[str], Path]

    def __call__(self, model: nn.Module, **options: Any) -> Any:
        options.setdefault("pretrained", self.generator(self.kind))
        if self.name == "vae":
            options.setdefault("seed", 7)
            return geninit.vae_(model, **options)
        if self.name == "ghn":
            return geninit.ghn_(model, **options)
        return geninit.noise_ghn_(model, options.pop("seed", 7), **options)

    def plan(self, model: nn.Module, **options: Any) -> Plan:
        options.setdefault("pretrained", self.generator(self.kind))
        return geninit.plan(model, self.name, **options)  # type: ignore[arg-type]

    @property
    def seed(self) -> int | None:
        return None if self.name == "ghn" else 7


@pytest.fixture(params=[("vae", "vae"), ("ghn", "ghn"), ("noise_ghn", "noise-ghn")], ids=lambda p: p[0])
def verb(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], WeightGenerator],
    tiny_file: Callable[[str], Path],
) -> Verb:
    return Verb(*request.param, tiny, tiny_file)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def fresh(**options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options)


def state(model: nn.Module) -> list[Any]:
    """Everything a verb must leave alone, as comparable values."""
    modules = []
    for name, module in model.named_modules():
        attributes = {
            key: _comparable(value)
            for key, value in vars(module).items()
            if key not in ("_modules", "_parameters", "_buffers")
        }
        modules.append((name, id(module), sorted(attributes.items(), key=lambda item: item[0])))
    buffers = [(name, id(b), b.tolist()) for name, b in model.named_buffers()]
    parameters = [
        (n, id(p), p.data_ptr(), p.dtype, p.shape, p.stride(), p.device, p.requires_grad, id(p.grad))
        for n, p in model.named_parameters(remove_duplicate=False)
    ]
    return [modules, buffers, parameters, *random_state(), *settings_of_torch()]


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value)
    if isinstance(value, list | tuple):  # as the weights that recurrent layers list
        return [_comparable(item) for item in value]
    return repr(value)


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def settings_of_torch() -> list[Any]:
    default_threads: list[int] = []
    thread = threading.Thread(target=lambda: default_threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        default_threads,
        signal.getsignal(signal.SIGINT),
    ]


class Broken(WeightGenerator):
    """A generator that fails in a chosen way; everything else is a real one's."""

    def __init__(self, inner: WeightGenerator, spoil: Callable[[dict[str, Compact]], Any]) -> None:
        super().__init__(inner.card)
        self.inner, self.spoil = inner, spoil

    def refusal(self, entry: Any, architecture: Any) -> str | None:
        return self.inner.refusal(entry, architecture)

    def verdict(self, plan: Plan) -> Verdict:
        return self.inner.verdict(plan)

    def predict(self, plan: Plan, *, seed: int | None = None, noise_scale: float = 1.0) -> dict[str, Compact]:
        tiles = self.inner.predict(plan, seed=seed, noise_scale=noise_scale)
        self.spoil(tiles)
        return tiles


def last(tiles: dict[str, Compact]) -> str:
    return list(tiles)[-1]


def dense(compact: Compact, factor: float = 1.0, shift: float = 0.0, **rule: Any) -> Tile:
    """The same prediction as one block of all its values, times a factor, plus a shift."""
    return Tile(compact.expand() * factor + shift, compact.shape, **rule)


def _nan(tiles: dict[str, Compact]) -> None:
    broken = dense(tiles[last(tiles)])
    broken.values.view(-1)[-1] = torch.nan
    tiles[last(tiles)] = broken


def _missing(tiles: dict[str, Compact]) -> None:
    del tiles[last(tiles)]


def _infinite_scale(tiles: dict[str, Compact]) -> None:
    tiles[last(tiles)] = dense(tiles[last(tiles)], scale=float("inf"))


def _other_shape(tiles: dict[str, Compact]) -> None:
    tiles[last(tiles)] = Tile(torch.zeros(2, 2, 5, 5), (2, 2, 5, 5))


def _other_block(tiles: dict[str, Compact]) -> None:
    shape = tiles[last(tiles)].shape
    tiles[last(tiles)] = Tile(torch.zeros(3, 3, 3, 3, 3), shape)


def _raise(tiles: dict[str, Compact]) -> None:
    raise MemoryError("no room")


@contextlib.contextmanager
def ambient(name: str) -> Iterator[None]:
    """A state of torch that a caller may be in."""
    with contextlib.ExitStack() as stack:
        if name == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        elif name == "float64":
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, torch.float32)
        elif name == "bfloat16":
            torch.set_default_dtype(torch.bfloat16)
            stack.callback(torch.set_default_dtype, torch.float32)
        elif name == "meta device":
            stack.enter_context(torch.device("meta"))
        elif name == "no_grad":
            stack.enter_context(torch.no_grad())
        elif name == "inference_mode":
            stack.enter_context(torch.inference_mode())
        elif name == "matmul precision":
            torch.set_float32_matmul_precision("medium")
            stack.callback(torch.set_float32_matmul_precision, "highest")
        elif name == "threads":
            torch.set_num_threads(4)
            stack.callback(torch.set_num_threads, 1)
        elif name == "deterministic":
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        yield


AMBIENT = [
    "autocast",
    "float64",
    "bfloat16",
    "meta device",
    "no_grad",
    "inference_mode",
    "matmul precision",
    "threads",
    "deterministic",
]


class TestContract:
    # 2. In place, honestly; 4. what the plan reports is what happens.

    def test_returns_the_very_object_and_does_what_the_plan_says(self, verb: Verb) -> None:
        model = fresh()
        plan = verb.plan(model)
        before = values(model)
        assert same(before, values(model)), "planning writes nothing"
        assert verb(model) is model
        after = values(model)
        changed = {name for name in before if not _equal(before[name], after[name])}
        assert changed == {entry.name for entry in plan.generated}
        assert changed, "the test would prove nothing"
        assert not plan.skipped

    def test_keeps_every_object_and_leaves_no_trace(self, verb: Verb) -> None:
        model = fresh()
        model.blocks[0].eval()
        model.register_forward_hook(lambda *_: pytest.fail("the user's module was called"))
        model.stem.weight.grad = torch.ones_like(model.stem.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        versions = [p._version for p in model.parameters()]
        before = state(model)
        verb(model)
        assert state(model) == before
        assert [p._version for p in model.parameters()] != versions, "autograd must see the write"
        weight = values(model)["stem.weight"]
        optimizer.step()
        assert torch.allclose(model.stem.weight, weight - 0.1)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_every_dtype_and_layout_gets_the_cast_of_the_same_values(
        self, verb: Verb, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        expected = {name: v.to(dtype) for name, v in values(verb(fresh())).items()}
        model = fresh().to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        strides = {name: p.stride() for name, p in model.named_parameters()}
        plan = verb.plan(model)
        verb(model)
        generated = {entry.name for entry in plan.generated}
        assert all(_equal(v, expected[n]) for n, v in values(model).items() if n in generated)
        assert {name: p.stride() for name, p in model.named_parameters()} == strides

    @pytest.mark.gpu
    def test_cuda_gets_the_same_bits(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        model = fresh().cuda()
        before = torch.cuda.get_rng_state()
        verb(model)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        assert same({n: v.cpu() for n, v in values(model).items()}, expected)

    def test_views_of_one_flat_buffer_stay_views(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        flat = torch.zeros(sum(p.numel() for p in model.parameters()))
        offset = 0
        for p in model.parameters():
            part = flat[offset : offset + p.numel()].view_as(p)
            p.data = part.copy_(p.detach())
            offset += p.numel()
        verb(model)
        assert same(values(model), expected)
        assert torch.equal(flat, torch.cat([v.flatten() for v in expected.values()]))

    # 5. Same input, same values.

    @pytest.mark.parametrize("name", AMBIENT)
    def test_ambient_state_changes_nothing_and_is_not_changed(self, verb: Verb, name: str) -> None:
        # Wide enough for matrix products that depend on the thread count.
        expected = values(verb(fresh(width=96)))
        model = fresh(width=96)
        with ambient(name):
            before = settings_of_torch()
            verb(model)
            assert settings_of_torch() == before
        assert same(values(model), expected)

    def test_same_call_twice_gives_the_same_values(self, verb: Verb) -> None:
        model = fresh()
        first = values(verb(model))
        assert same(values(verb(model)), first)

    def test_file_and_loaded_object_give_the_same(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        path = verb.file(verb.kind)
        assert same(values(verb(fresh(), pretrained=path)), expected)
        assert same(values(verb(fresh(), pretrained=str(path))), expected)
        assert same(values(verb(fresh(), pretrained=geninit.load(path))), expected)

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, nn.Sequential])
    def test_wrappers_change_no_value(self, verb: Verb, wrap: Callable[[nn.Module], nn.Module]) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        wrapped = wrap(model)
        if wrap is nn.Sequential:
            wrapped = nn.Sequential()
            wrapped.add_module("module", model)
        assert verb(wrapped) is wrapped
        assert same(values(model), expected)

    def test_already_compiled_in_place(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        model.compile(backend="eager")
        assert same(values(verb(model)), expected)

    def test_eight_threads_give_what_one_gives(self, verb: Verb) -> None:
        expected = [values(verb(fresh(width=8 + i))) for i in range(8)]
        models = [fresh(width=8 + i) for i in range(8)]
        torch.set_num_threads(2)
        try:
            before = settings_of_torch()
            threads = [threading.Thread(target=verb, args=(m,)) for m in models]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert settings_of_torch() == before
        finally:
            torch.set_num_threads(1)
        assert all(same(values(m), e) for m, e in zip(models, expected, strict=True))

    # 1. All or nothing.

    @pytest.mark.parametrize(
        "spoil, error, message",
        [
            (_nan, RuntimeError, "not finite"),
            (_infinite_scale, RuntimeError, "not finite"),
            (_missing, RuntimeError, "made no prediction"),
            (_other_shape, RuntimeError, "another shape"),
            (_other_block, RuntimeError, "another shape"),
            (_raise, MemoryError, "no room"),
        ],
    )
    def test_a_broken_generator_changes_nothing(
        self, verb: Verb, spoil: Callable[[dict[str, Compact]], Any], error: type[Exception], message: str
    ) -> None:
        model = fresh()
        before, untouched = values(model), state(model)
        with pytest.raises(error, match=message):
            verb(model, pretrained=Broken(verb.generator(verb.kind), spoil))
        assert same(values(model), before)
        assert state(model) == untouched

    def test_float16_overflow_is_found_before_the_first_write(self, verb: Verb) -> None:
        def huge(tiles: dict[str, Compact]) -> None:
            tiles[last(tiles)] = dense(tiles[last(tiles)], 1e6, 1e6)

        model = fresh().half()
        before = values(model)
        with pytest.raises(ValueError, match="doesn't fit its float16"):
            verb(model, pretrained=Broken(verb.generator(verb.kind), huge))
        assert same(values(model), before)

    def test_interrupt_during_the_writes_waits_for_the_last(
        self, verb: Verb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        write_to, calls = Compact.write_to, [0]

        def interrupted(compact: Compact, out: Tensor, start: int = 0) -> None:
            calls[0] += 1
            signal.raise_signal(signal.SIGINT)
            write_to(compact, out, start)

        monkeypatch.setattr(Compact, "write_to", interrupted)
        before = settings_of_torch()
        with pytest.raises(KeyboardInterrupt):
            verb(model)
        assert calls[0] > 1
        assert same(values(model), expected)
        assert settings_of_torch() == before

    def test_interrupt_before_the_writes_changes_nothing(self, verb: Verb) -> None:
        model = fresh()
        before = values(model)
        with pytest.raises(KeyboardInterrupt):
            verb(
                model,
                pretrained=Broken(
                    verb.generator(verb.kind), lambda tiles: signal.raise_signal(signal.SIGINT)
                ),
            )
        assert same(values(model), before)

    def test_a_signal_handler_of_the_users_own_is_called_once(
        self, verb: Verb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_to = Compact.write_to
        raised, handled = [], []

        def interrupted(compact: Compact, out: Tensor, start: int = 0) -> None:
            if not raised:
                raised.append(1)
                signal.raise_signal(signal.SIGINT)
                assert not handled, "deferred until the last write"
            write_to(compact, out, start)

        monkeypatch.setattr(Compact, "write_to", interrupted)
        before = signal.signal(signal.SIGINT, lambda *_: handled.append(1))
        try:
            verb(fresh())
        finally:
            signal.signal(signal.SIGINT, before)
        assert handled == [1]

    # 4. Nothing silent.

    def test_meta_is_planned_and_refused(self, verb: Verb) -> None:
        with torch.device("meta"):
            model = Net()
        real = verb.plan(fresh())
        assert verb.plan(model).entries == real.entries
        with pytest.raises(ValueError, match=r"(?s)'stem.weight' can't be written.*meta.*to_empty") as caught:
            verb(model)
        assert "expected" in str(caught.value)

    @pytest.mark.parametrize(
        "dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn]
    )
    def test_dtypes_that_hold_no_weights_are_refused_by_name(self, verb: Verb, dtype: torch.dtype) -> None:
        model = fresh()
        convert(model.stem, "weight", dtype)
        before = values(model)
        with pytest.raises(ValueError, match=r"'stem.weight'"):
            verb(model, include="*.weight")
        assert all(_equal_bytes(v, before[n]) for n, v in values(model).items())

    def test_lazy_parameters_are_refused_by_name(self, verb: Verb) -> None:
        model = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10))
        with pytest.raises((ValueError, geninit.TraceError), match="0.weight.*"):
            verb(model)

    def test_expanded_parameters_are_refused_by_name(self, verb: Verb) -> None:
        model = fresh()
        model.stem.weight = nn.Parameter(torch.zeros(1, 1, 3, 3).expand(12, 3, 3, 3))
        with pytest.raises(ValueError, match="'stem.weight'.*"):
            verb(model)

    def test_inference_tensors(self, verb: Verb) -> None:
        with torch.inference_mode():
            model = fresh()
        with pytest.raises(ValueError, match="inference"):
            verb(model)
        with torch.inference_mode():
            verb(model)
            assert same(values(model), values(verb(fresh())))

    def test_frozen_and_excluded_are_kept_without_a_word(self, verb: Verb) -> None:
        model = fresh()
        model.stem.requires_grad_(False)
        before = values(model)
        plan = verb.plan(model, exclude="blocks.0.*")
        routes = {e.name: e for e in plan.entries}
        assert routes["stem.weight"].reason.startswith("frozen")
        assert routes["blocks.0.conv.weight"].reason == "excluded"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            verb(model, exclude="blocks.0.*", strict=True)
        after = values(model)
        for name in before:
            kept = name.startswith(("stem", "blocks.0"))
            assert not kept or _equal(before[name], after[name])
        assert not _equal(before["blocks.1.conv.weight"], after["blocks.1.conv.weight"])

    def test_all_frozen_is_no_error(self, verb: Verb) -> None:
        model = fresh().requires_grad_(False)
        before = values(model)
        verb(model, strict=True)
        assert same(before, values(model))

    def test_include_and_mistyped_patterns(self, verb: Verb) -> None:
        model = fresh()
        before = values(model)
        verb(model, include=["blocks.1.conv.weight"])
        changed = [n for n, v in values(model).items() if not _equal(v, before[n])]
        assert changed == ["blocks.1.conv.weight"]
        for option in ("include", "exclude"):
            with pytest.raises(ValueError, match="no parameter matches 'block.*'"):
                verb(model, **{option: ["block.*"]})

    def test_tied_parameters_are_written_once_and_reported(self, verb: Verb) -> None:
        model = fresh()
        model.blocks[1].conv = model.blocks[0].conv
        model.blocks[1].bn.weight = model.blocks[0].bn.weight
        plan = verb.plan(model)
        routes = {e.name: e for e in plan.entries}
        assert routes["blocks.1.conv.weight"].route is Route.TIED
        assert routes["blocks.1.conv.weight"].tied_to == "blocks.0.conv.weight"
        verb(model)
        assert model.blocks[1].conv.weight is model.blocks[0].conv.weight
        assert not _equal(values(model)["blocks.0.conv.weight"], values(fresh())["blocks.0.conv.weight"])

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_memory_shared_by_two_parameters_is_one_parameter(self, verb: Verb, device: str) -> None:
        model = fresh().to(device)
        model.blocks[1].conv.weight.data = model.blocks[0].conv.weight.data
        plan = verb.plan(model)
        assert {e.name: e.route for e in plan.entries}["blocks.1.conv.weight"] is Route.TIED

    @pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(), nn.Flatten()])
    def test_no_parameters_is_no_error(self, verb: Verb, module: nn.Module) -> None:
        assert verb(module, strict=True) is module
        assert verb.plan(module).entries == ()

    def test_only_unsupported_parameters_warn_once_or_raise(self, verb: Verb) -> None:
        model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4))
        inputs = {} if verb.name == "vae" else {"example_inputs": torch.zeros(2, 3, dtype=torch.long)}
        before = values(model)
        with pytest.warns(geninit.GenInitWarning) as caught:
            verb(model, **inputs)
        (warning,) = caught
        assert "3 of 3 parameters" in str(warning.message)
        assert warning.filename == __file__, "points at the caller"
        with pytest.raises(geninit.StrictError, match=r"0\.weight, 1\.weight, 1\.bias"):
            verb(model, strict=True, **inputs)
        assert same(before, values(model))

    def test_a_warning_turned_into_an_error_changes_nothing(self, verb: Verb) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 3))
        before = values(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(geninit.GenInitWarning, match="5x5|kernel"):
                verb(model)
        assert same(before, values(model))

    def test_a_wrong_kind_of_generator_is_refused(self, verb: Verb) -> None:
        other = "ghn" if verb.name != "ghn" else "vae"
        with pytest.raises(ValueError, match=r"wrong kind.*\n.*expected.*\n.*got"):
            verb(fresh(), pretrained=verb.generator(other))

    @pytest.mark.parametrize("thing", [torch.zeros(3), None, [nn.Linear(2, 2)]])
    def test_what_is_no_module_is_refused(self, verb: Verb, thing: Any) -> None:
        with pytest.raises(TypeError, match=r"torch.nn.Module"):
            verb(thing)

    # Parametrized tensors.

    def test_weight_norm_is_written_through_both_parameters(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        weight_norm(model.stem)
        weight_norm(model.blocks[0].conv, dim=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(model.blocks[1].conv)
        before = state(model)
        verb(model)
        assert state(model) == before
        torch.testing.assert_close(model.stem.weight, expected["stem.weight"])
        torch.testing.assert_close(model.blocks[0].conv.weight, expected["blocks.0.conv.weight"])
        v, g = model.blocks[1].conv.weight_v, model.blocks[1].conv.weight_g
        torch.testing.assert_close(
            g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1), expected["blocks.1.conv.weight"]
        )

    def test_half_frozen_weight_norm_is_kept_whole(self, verb: Verb) -> None:
        model = fresh()
        weight_norm(model.stem)
        model.stem.parametrizations.weight.original0.requires_grad_(False)
        before = values(model)
        verb(model)
        after = values(model)
        assert all(_equal(before[n], after[n]) for n in before if n.startswith("stem.parametr"))

    def test_spectral_norm_is_refused_by_name(self, verb: Verb) -> None:
        model = fresh()
        spectral_norm(model.stem)
        before = values(model)
        with pytest.warns(geninit.GenInitWarning, match="SpectralNorm"):
            verb(model)
        after = values(model)
        assert _equal(
            after["stem.parametrizations.weight.original"],
            before["stem.parametrizations.weight.original"],
        )

    # Models that do strange things.

    def test_a_forward_that_caches_tensors_keeps_none_of_ours(self, verb: Verb) -> None:
        class Caching(Net):
            cache: Any = None

            def forward(self, x: Tensor) -> Tensor:
                self.cache = self.stem(x)
                self.seen = [x]
                return super().forward(x)

        torch.manual_seed(1)
        model = Caching()
        before = state(model)
        verb(model)
        assert state(model) == before
        assert model.cache is None and not hasattr(model, "seen")

    def test_an_exception_in_the_forward_changes_nothing(self, verb: Verb) -> None:
        class Failing(Net):
            def forward(self, x: Tensor) -> Tensor:
                raise ZeroDivisionError("on purpose")

        model = Failing()
        before, untouched = values(model), state(model)
        if verb.name == "vae":
            verb(model)  # has no need of the graph
        else:
            with pytest.raises(geninit.TraceError, match="on purpose"):
                verb(model)
            assert same(before, values(model))
        assert state(model) == untouched

    # Plans applied to parts.

    def test_part_by_part_equals_whole(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        model = fresh()
        plan = verb.plan(model)
        seed = verb.seed
        for part in (model.head, model.blocks[1], model.stem, model.blocks[0].bn, model.blocks[0].conv):
            assert plan.write_(part, seed=seed) is part
        assert same(values(model), expected)
        model = fresh()
        model.apply(verb.plan(model).predict(seed=seed).write_)
        assert same(values(model), expected)

    def test_plan_on_meta_fills_the_materialised_model(self, verb: Verb) -> None:
        expected = values(verb(fresh(), kept="reset") if verb.name != "vae" else verb(fresh()))
        with torch.device("meta"):
            model = Net()
        plan = verb.plan(model)
        model.to_empty(device="cpu")
        plan.write_(model.blocks, seed=verb.seed)
        for name, value in values(model).items():
            if name.startswith("blocks") and name in {e.name for e in plan.generated}:
                assert _equal(value, expected[name])

    def test_a_part_of_another_object_needs_its_prefix(self, verb: Verb) -> None:
        expected = values(verb(fresh()))
        plan = verb.plan(fresh())
        other = fresh()
        with pytest.raises(ValueError, match="are not in the plan"):
            plan.write_(other.blocks[1], seed=verb.seed)
        plan.write_(other.blocks[1], prefix="blocks.1", seed=verb.seed)
        assert _equal(other.blocks[1].conv.weight.detach(), expected["blocks.1.conv.weight"])

    def test_a_model_changed_since_its_plan_is_refused(self, verb: Verb) -> None:
        model = fresh()
        plan = verb.plan(model)
        model.stem = nn.Conv2d(1, 12, 3)
        before = values(model)
        with pytest.raises(ValueError, match=r"'stem.weight'.*\n.*\(12, 3, 3, 3\).*\n.*\(12, 1, 3, 3\)"):
            plan.write_(model, seed=verb.seed)
        assert same(before, values(model))

    # Any network.

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(data=st.data())
    def test_holds_for_random_networks(self, verb: Verb, data: st.DataObject) -> None:
        model = data.draw(networks())
        plan = verb.plan(model)
        before, untouched = values(model), state(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", geninit.GenInitWarning)
            verb(model)
        assert state(model) == untouched
        after = values(model)
        written = {e.name for e in plan.entries if e.route in (Route.GENERATED, Route.TIED)}
        assert {n for n in before if not _equal(before[n], after[n])} == written
        assert all(torch.isfinite(v).all() for v in after.values())
        # A second, differently initialised and wrapped copy gets the same values.
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", geninit.GenInitWarning)
            verb(nn.DataParallel(other))
        again = values(other)
        assert all(_equal(again[n], after[n]) for n in written)


def convert(module: nn.Module, attribute: str, dtype: torch.dtype) -> None:
    tensor = getattr(module, attribute).detach().to(dtype)
    # Integer parameters can't require a gradient, and what doesn't is frozen: kept by design.
    parameter = nn.Parameter(tensor, requires_grad=False)
    if dtype.is_floating_point or dtype.is_complex:
        parameter.requires_grad_(True)
    else:
        parameter = _Claims(tensor)  # type: ignore[assignment]
    setattr(module, attribute, parameter)


class _Claims(nn.Parameter):
    """An integer parameter that claims to be trained, as quantised ones of some libraries do."""

    def __new__(cls, tensor: Tensor) -> _Claims:
        return super().__new__(cls, tensor, requires_grad=False)  # type: ignore[no-any-return]

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        return True


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Chains of convolutions with norms, activations, residuals, ties, freezing, dtypes and layouts."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels = draw(st.integers(1, 20))
    layers: list[nn.Module] = [nn.Conv2d(3, channels, draw(st.sampled_from([1, 3])), padding=1)]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["conv", "block", "relu", "bn", "pool"]))
        if kind == "conv":
            width = draw(st.integers(1, 20))
            bias = draw(st.booleans())
            layers.append(nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding=1, bias=bias))
            channels = width
        elif kind == "block":
            layers.append(Block(channels))
        else:
            layers.append({"relu": nn.ReLU(), "bn": nn.BatchNorm2d(channels), "pool": nn.MaxPool2d(2)}[kind])
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, draw(st.sampled_from([3, 10])))]
    if draw(st.booleans()):
        layers.insert(1, nn.Sequential(*[Block(int(layers[0].out_channels))] * 2))
    model: nn.Module = nn.Sequential(*layers)
    model.train(draw(st.booleans()))
    for p in model.parameters():
        p.requires_grad_(draw(st.integers(0, 4)) > 0)
        with torch.no_grad():
            p.add_(0.123)  # not a value that a generator would make by chance
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return model.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload, no-any-return]
