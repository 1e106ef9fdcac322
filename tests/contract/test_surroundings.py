"""Same input, same values, whatever other code has switched on; and nobody sees what is computed inside."""

from __future__ import annotations

import cProfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import torch_geninit as geninit
from tests.support.resnets import resnet8
from torch_geninit.generators.base import WeightGenerator

Generators = Callable[[str], WeightGenerator]
SEEN: list[str] = []


class Functions(TorchFunctionMode):
    """Sees every function, and halves what linear layers give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        SEEN.append(str(func))
        result = func(*args, **(kwargs or {}))
        return result * 0.5 if func is torch.nn.functional.linear else result


class Operations(TorchDispatchMode):
    """Sees every operation, and halves what matrix products give."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        SEEN.append(str(func))
        result = func(*args, **(kwargs or {}))
        return result * 0.5 if func is torch.ops.aten.addmm.default else result


def halve(module: nn.Module, *values: Any) -> Any:
    SEEN.append(type(module).__name__)
    if isinstance(values[-1], Tensor):
        return values[-1] * 0.5
    return tuple(v * 0.5 if isinstance(v, Tensor) and v.is_floating_point() else v for v in values[0])


def hooks(register: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def registered() -> Iterator[None]:
        handle = register(halve)
        try:
            yield
        finally:
            handle.remove()

    return registered


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        for name, around in AROUND.items():
            if name not in ("everything", "fake tensors", "old profiler", "python profiler"):
                stack.enter_context(around())
        yield


def see(tensor: Tensor) -> Tensor:
    SEEN.append("saved")
    return tensor


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "forward hook": hooks(modules.register_module_forward_hook),
    "forward pre-hook": hooks(modules.register_module_forward_pre_hook),
    "backward hook": hooks(modules.register_module_full_backward_hook),
    "backward pre-hook": hooks(modules.register_module_full_backward_pre_hook),
    "function mode": Functions,
    "dispatch mode": Operations,
    "default dtype": default_dtype,
    "default device": default_device,
    "device block": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomalies": torch.autograd.detect_anomaly,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(see, see),
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "old profiler": torch.autograd.profiler.profile,
    "python profiler": cProfile.Profile,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "everything": everything,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("method", ["ghn", "noise_ghn", "vae"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_no_surroundings_change_a_value_or_see_how_it_is_made(
    method: str, around: str, tiny_file: Callable[[str], Any]
) -> None:
    """The generator's file is read inside, too."""
    path = tiny_file(method.replace("_", "-"))

    def fill(model: nn.Module) -> nn.Module:
        if method == "vae":
            return geninit.vae_(model, pretrained=path, seed=7)
        if method == "ghn":
            return geninit.ghn_(model, pretrained=path, untrusted="generate")
        return geninit.noise_ghn_(model, 7, pretrained=path, untrusted="generate")

    torch.manual_seed(0)
    expected = fill(resnet8())
    torch.manual_seed(0)
    model = resnet8()
    SEEN.clear()
    with AROUND[around]():
        stacks = [*_get_current_function_mode_stack()], [*_get_current_dispatch_mode_stack()]
        fill(model)
        seen = list(SEEN)
        assert ([*_get_current_function_mode_stack()], [*_get_current_dispatch_mode_stack()]) == stacks
    for (name, got), want in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(got, want), name
    assert [item for item in seen if item in GENERATORS_OWN] == []


GENERATORS_OWN = {"Linear", "GRUCell", "Embedding", "LayerNorm", "Sequential", "saved"} | {
    f"aten.{name}.default" for name in ("addmm", "mm", "embedding", "convolution", "native_layer_norm")
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_the_graph_is_the_same_and_the_trace_unseen(around: str) -> None:
    model = resnet8()
    expected = geninit.trace(model)
    with AROUND[around]():
        SEEN.clear()
        found = geninit.trace(model)
        seen = list(SEEN)
    assert found.fingerprint == expected.fingerprint and found == expected
    assert seen == []


def test_a_model_of_fake_tensors_is_planned_and_its_writing_refused_in_words(tiny: Generators) -> None:
    weights = tiny("ghn")
    with FakeTensorMode():
        model = resnet8()
        plan = geninit.plan(model, pretrained=weights, untrusted="generate")
        with pytest.raises(ValueError, match=r"(?s)parameter '.*weight' can't be written:.*FakeTensor"):
            geninit.ghn_(model, pretrained=weights, untrusted="generate")
    assert [entry.name for entry in plan] == [name for name, _ in model.named_parameters()]


def test_a_file_is_read_where_somebody_moves_every_parameter_to_meta(
    tiny_file: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    register = nn.Module.register_parameter

    def without_memory(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, parameter)
        if parameter is not None:
            self._parameters[name] = nn.Parameter(parameter.to("meta"))

    path = tiny_file("ghn")
    expected = geninit.load(path).state_dict()
    monkeypatch.setattr(nn.Module, "register_parameter", without_memory)
    found = geninit.load(path)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    assert model[0].weight.is_meta
    assert len(geninit.plan(model, pretrained=path).entries) == 4
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.filterwarnings("ignore")
def test_inside_a_function_being_compiled_a_call_is_refused_in_a_sentence(tiny: Generators) -> None:
    weights = tiny("ghn")
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    before = [parameter.clone() for parameter in layer.parameters()]

    def build(x: Tensor) -> Any:
        return geninit.ghn_(layer, pretrained=weights, untrusted="generate")(x)

    with pytest.raises(RuntimeError, match=r"can't run inside of a function that torch\.compile compiles"):
        torch.compile(build, backend="eager")(torch.zeros(2, 3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before, strict=True))
    geninit.ghn_(layer, pretrained=weights, untrusted="generate")


def test_noise_hypernetworks_measure_apart_from_the_modes_of_others() -> None:
    expected = geninit.noise_ghn_(resnet8(), 3).state_dict()
    model = resnet8()
    with torch.device("meta"):
        geninit.noise_ghn_(model, 3)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@contextmanager
def flushed_denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
        assert not float(torch.full((1,), 1e-38) * 0.1)
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def without_onednn() -> Iterator[None]:
    backend: Any = torch.backends.mkldnn
    backend.enabled = False
    try:
        yield
        assert not backend.enabled
    finally:
        backend.enabled = True


@pytest.mark.parametrize("ambient", [flushed_denormals, without_onednn])
def test_arithmetic_of_the_process_is_no_matter(ambient: Callable[[], AbstractContextManager[None]]) -> None:
    expected = geninit.ghn_(resnet8()).state_dict()
    with ambient():
        model = geninit.ghn_(resnet8())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def under_vmap(call: Callable[[], object]) -> None:
    torch.vmap(lambda x: (call(), x)[1])(torch.zeros(2))


def under_grad(call: Callable[[], object]) -> None:
    torch.func.grad(lambda x: (call(), x)[1])(torch.zeros(()))


def under_jit(call: Callable[[], object]) -> None:
    torch.jit.trace(lambda x: (call(), x + 1)[1], torch.zeros(2))


def under_fx(call: Callable[[], object]) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            call()
            return x

    torch.fx.symbolic_trace(Root())


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
@pytest.mark.parametrize("around", [under_vmap, under_grad, under_jit, under_fx])
@pytest.mark.parametrize("which", ["vae_", "ghn_", "recalibrate_bn_"])
def test_inside_of_what_is_traced_or_transformed_the_refusal_is_one_sentence(
    around: Callable[[Callable[[], object]], None], which: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls: dict[str, Callable[[], object]] = {
        "vae_": lambda: geninit.vae_(model, seed=0),
        "ghn_": lambda: geninit.ghn_(model),
        "recalibrate_bn_": lambda: geninit.recalibrate_bn_(model, [torch.zeros(2, 3, 8, 8)]),
    }
    with pytest.raises(
        RuntimeError, match=r"^torch-geninit can't run inside of a function .* initialise before"
    ):
        around(calls[which])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
