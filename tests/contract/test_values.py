"""Every verb fills in place, does what its plan says, and gives the same values for the same input."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.support.contract import (
    AMBIENT,
    Verb,
    ambient,
    equal,
    fresh,
    same,
    settings_of_torch,
    state,
    values,
)


def test_returns_the_very_object_and_does_what_the_plan_says(verb: Verb) -> None:
    model = fresh()
    plan = verb.plan(model)
    before = values(model)
    assert same(before, values(model)), "planning writes nothing"
    assert verb(model) is model
    after = values(model)
    changed = {name for name in before if not equal(before[name], after[name])}
    assert changed == {entry.name for entry in plan.generated}
    assert changed, "the test would prove nothing"
    assert not plan.skipped


def test_keeps_every_object_and_leaves_no_trace(verb: Verb) -> None:
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
    verb: Verb, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    expected = {name: v.to(dtype) for name, v in values(verb(fresh())).items()}
    model = fresh().to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    strides = {name: p.stride() for name, p in model.named_parameters()}
    plan = verb.plan(model)
    verb(model)
    generated = {entry.name for entry in plan.generated}
    assert all(equal(v, expected[n]) for n, v in values(model).items() if n in generated)
    assert {name: p.stride() for name, p in model.named_parameters()} == strides


@pytest.mark.gpu
def test_cuda_gets_the_same_bits(verb: Verb) -> None:
    expected = values(verb(fresh()))
    model = fresh().cuda()
    before = torch.cuda.get_rng_state()
    verb(model)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert same({n: v.cpu() for n, v in values(model).items()}, expected)


def test_views_of_one_flat_buffer_stay_views(verb: Verb) -> None:
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


@pytest.mark.parametrize("name", AMBIENT)
def test_ambient_state_changes_nothing_and_is_not_changed(verb: Verb, name: str) -> None:
    # Wide enough for matrix products that depend on the thread count.
    expected = values(verb(fresh(width=96)))
    model = fresh(width=96)
    with ambient(name):
        before = settings_of_torch()
        verb(model)
        assert settings_of_torch() == before
    assert same(values(model), expected)


def test_same_call_twice_gives_the_same_values(verb: Verb) -> None:
    model = fresh()
    first = values(verb(model))
    assert same(values(verb(model)), first)


def test_file_and_loaded_object_give_the_same(verb: Verb) -> None:
    expected = values(verb(fresh()))
    path = verb.file(verb.kind)
    assert same(values(verb(fresh(), pretrained=path)), expected)
    assert same(values(verb(fresh(), pretrained=str(path))), expected)
    assert same(values(verb(fresh(), pretrained=geninit.load(path))), expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, nn.Sequential])
def test_wrappers_change_no_value(verb: Verb, wrap: Callable[[nn.Module], nn.Module]) -> None:
    expected = values(verb(fresh()))
    model = fresh()
    wrapped = wrap(model)
    if wrap is nn.Sequential:
        wrapped = nn.Sequential()
        wrapped.add_module("module", model)
    assert verb(wrapped) is wrapped
    assert same(values(model), expected)


def test_already_compiled_in_place(verb: Verb) -> None:
    expected = values(verb(fresh()))
    model = fresh()
    model.compile(backend="eager")
    assert same(values(verb(model)), expected)


def test_eight_threads_give_what_one_gives(verb: Verb) -> None:
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
