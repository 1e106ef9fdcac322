"""Tracing leaves no trace: the model, its tensors and the process are as before, and no hook has run."""

from __future__ import annotations

import functools
import gc
import logging
import random
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.tracing import Net, check, image, seen
from torch_geninit.graph.tracer.trace import TraceError, trace
from torch_geninit.training.networks.resnet import resnet20


class Busy(nn.Module):
    """Does everything to itself that a forward pass can do, and draws from every random state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: dict[str, Any] = {}
        self.log: list[Tensor] = [torch.ones(2)]
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        import numpy as np

        self.calls += 1
        self.cache["x"] = x
        self.last = x
        self.log.append(x)
        self.log[0].mul_(2)
        self.conv.weight.data.mul_(0.5)
        with self.lock:
            x = F.dropout(self.norm(self.conv(x)), 0.5, training=True)
        return x + torch.randn(x.shape) + random.random() + float(np.random.rand())  # noqa: NPY002


def everything_about(model: nn.Module) -> Any:
    def bits(tensor: Tensor | None) -> Any:
        return (
            None
            if tensor is None
            else (tensor.numpy(force=True).tobytes(), tensor.data_ptr(), tensor._version)
        )

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return bits(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else repr(value)

    parameters = [(id(p), bits(p.grad), p.requires_grad, p.stride()) for p in model.parameters()]
    return parameters, {name: plain(vars(module)) for name, module in model.named_modules()}


def every_random_state() -> Any:
    import numpy as np

    states = [torch.get_rng_state()] + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [state.tolist() for state in states], random.getstate(), (name, keys.tolist(), rest)


@pytest.mark.parametrize("make", [Busy, lambda: Busy().train(), lambda: Busy().eval(), resnet20])
def test_nothing_about_the_model_or_the_process_changes(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before, random_before = everything_about(model), every_random_state()
    ambient = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
    check(model, image(size=32))
    trace(model)
    assert everything_about(model) == before
    assert every_random_state() == random_before
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()) == ambient


def test_a_failed_trace_changes_nothing_either() -> None:
    model = Busy()
    before, random_before = everything_about(model), every_random_state()
    with pytest.raises(TraceError):
        trace(model, torch.zeros(7, 7))
    assert everything_about(model) == before and every_random_state() == random_before


def test_the_example_inputs_are_not_written_to() -> None:
    x = torch.ones(1, 4)
    check(Net(lambda self, y: self.second(self.first(y.mul_(2)) * float(y.sum() > 0))), x)
    assert torch.equal(x, torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_tensor_of_the_recording_outlives_it() -> None:
    def count() -> int:
        gc.collect()
        return sum(isinstance(item, Tensor) for item in gc.get_objects())

    model = Busy()
    check(model, image())
    before = count()
    check(model, image())
    assert count() == before


def test_no_hook_runs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    everywhere = [
        nn.modules.module.register_module_forward_hook(lambda *_: calls.append("global")),
        nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append("global before")),
    ]
    try:
        check(model, image())
    finally:
        for handle in everywhere:
            handle.remove()
    assert calls == []


def settings() -> list[Any]:
    backends: Any = torch.backends
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        *(torch.is_anomaly_enabled(), backends.cudnn.benchmark, torch.get_num_threads()),
        *(operation.fp32_precision for operation in (backends.mkldnn.matmul, backends.cuda.matmul)),
        len(torch.overrides._get_current_function_mode_stack()),
    ]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_settings_that_a_forward_pass_changes_are_put_back() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("cpu")
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(torch.get_num_threads() + 1)
        y: Tensor = self.second(self.first(x))
        return y

    before = settings()
    check(Net(forward), torch.zeros(1, 4))
    assert settings() == before


class Watched(nn.Linear):
    """Says who was called in a log, which is of the process and so not copied."""

    def forward(self, x: Tensor) -> Tensor:
        logging.getLogger(__name__).warning("%s", id(self))
        return super().forward(x)


def test_the_users_modules_are_not_called_through_references_to_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Net()
    model.first, model.second = Watched(4, 6), Watched(6, 5)
    reference = weakref.ref(model.second)
    closures = [lambda x, layer=None: model.first(x)]
    model.partial = functools.partial(lambda layer, x: layer(x), model.first)  # type: ignore[assignment]
    model.forward_function = lambda self, x: reference()(closures[0](x))  # type: ignore[misc]
    check(model, torch.zeros(1, 4))
    model.forward_function = lambda self, x: self.second(self.partial(x))
    check(model, torch.zeros(1, 4))
    model.forward = types.MethodType(lambda self, x: self.second(self.first(x)), model)  # type: ignore[method-assign]
    check(model, torch.zeros(1, 4))
    assert len(caplog.messages) == 6
    assert not {str(id(model.first)), str(id(model.second))} & set(caplog.messages)


def test_references_are_shared_as_in_the_model_and_unregistered_modules_have_no_hooks() -> None:
    calls: list[str] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        self.shared.append(self.hidden[0](x))
        return self.second(self.first.shared.pop())

    model = Net(forward)
    model.first.shared = model.shared = []  # type: ignore[assignment]
    model.hidden = [nn.Linear(4, 6)]  # type: ignore[assignment]
    model.hidden[0].register_forward_hook(lambda *_: calls.append("forward"))  # type: ignore[union-attr,index]
    assert seen(trace(model, torch.zeros(1, 4))) == {"second.weight", "second.bias"}
    assert model.shared == [] and calls == []


def test_an_error_holds_no_copy_of_the_model() -> None:
    model = Net(lambda self, x: self.second(x))
    with pytest.raises(TraceError) as error:
        trace(model)
    gc.collect()
    assert [item for item in gc.get_objects() if type(item) is Net] == [model]
    assert "mat1 and mat2" in str(error.value)
