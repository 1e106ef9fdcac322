"""A plan as an object: printed, copied, sent to other processes, applied to another model or too late."""

from __future__ import annotations

import copy
import html
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.support.plans import net
from tests.support.probes import with_probe
from tests.support.resnets import resnet8
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.encoder import Encoder

Generators = Callable[[str], WeightGenerator]


class TestUse:
    def test_table_lines_up_and_adds_up(self, ghn: WeightGenerator) -> None:
        text = str(geninit.plan(net(7), pretrained=ghn).table())
        total = sum(p.numel() for p in net(7)[:2].parameters())
        summary, verdict, _, *lines = text.splitlines()
        assert f"4 generated ({total:,} numbers), 2 kept (63 numbers)" in summary
        assert "trusted, unmeasured, judged by its layers alone" in verdict
        assert lines[0].split() == ["parameter", "shape", "route", "He", "std", "source", "or", "reason"]
        column = lines[0].index("route")
        assert {line[column:].split()[0] for line in lines[2:8]} == {"generated", "kept"}
        assert "8x3x3x3" in lines[2] and "0.272" in lines[2]  # sqrt(2 / 27)

    @pytest.mark.parametrize("layers, more", [(10, ""), (11, "… 2 more: plan.table()")])
    def test_printed_are_the_summary_and_twenty_rows(self, tiny: Generators, layers: int, more: str) -> None:
        plan = geninit.plan(nn.Sequential(*[nn.Linear(3, 3)] * layers), "vae", pretrained=tiny("vae"))
        summary, empty, header, rule, *rows = repr(plan).splitlines()
        assert summary.startswith("vae_ on Sequential: ") and not empty and header.startswith("parameter")
        assert [row.split()[0] for row in rows[:20]] == [entry.name for entry in plan.entries[:20]]
        assert rows[20:] == (["", more] if more else [])
        assert str(plan) == repr(plan)
        assert len(str(plan.table()).splitlines()) == 4 + 2 * layers

    def test_printed_is_how_to_train_what_was_predicted(self, ghn: WeightGenerator) -> None:
        knowing = with_probe(ghn)
        text = str(geninit.plan(resnet8(), pretrained=knowing, untrusted="generate"))
        assert (
            "to train: pixels from 0 to 1, minus 0.5, 0.5, 0.5, divided by 0.25, 0.25, 0.25; SGD at" in text
        )
        for other in (ghn, knowing):  # of the second a network of random answers gets nothing
            assert "to train" not in str(geninit.plan(resnet8(), pretrained=other))

    def test_entries_are_counted_walked_and_found_by_name(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(), pretrained=ghn)
        names = [name for name, _ in net().named_parameters()]
        assert len(plan) == len(names) and [entry.name for entry in plan] == names
        assert all(plan[name].name == name and name in plan for name in names)
        assert plan["0.weight"] in plan and "0.wieght" not in plan
        with pytest.raises(KeyError, match="no parameter '0.wieght'; did you mean '0.weight'"):
            plan["0.wieght"]
        with pytest.raises(KeyError, match="no parameter 'qqq'; its 6 names"):
            plan["qqq"]
        with pytest.raises(
            TypeError, match="by the name of a parameter, got int 0; by position: plan.entries"
        ):
            plan[0]  # type: ignore[index]

    def test_a_plan_without_entries_is_still_a_plan(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(nn.ReLU(), pretrained=ghn)
        assert len(plan) == 0 and plan

    def test_a_prediction_prints_in_a_line(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(), pretrained=ghn)
        assert repr(plan.predict()) == f"Prediction of 6 parameters of Sequential by {plan.source}"

    def test_tied_numbers_count_once(self, ghn: WeightGenerator) -> None:
        model = net()
        model.add_module("again", model[5])
        plan = geninit.plan(model, pretrained=ghn, graph=geninit.trace(net()))
        total = sum(p.numel() for p in net().parameters())
        assert f"6 generated ({total:,} numbers), 2 tied (0 numbers)" in str(plan)

    def test_html_escapes(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential()
        model.add_module("<script>", net())
        made = geninit.plan(model, pretrained=ghn)._repr_html_()
        assert "<script>" not in made and html.escape("<script>.0.weight") in made

    def test_no_parameters(self, ghn: WeightGenerator) -> None:
        assert str(geninit.plan(nn.ReLU(), pretrained=ghn)).endswith("ghn_ on ReLU: no parameters")

    def test_plans_are_frozen_and_comparable(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(), pretrained=ghn)
        with pytest.raises(AttributeError):
            plan.method = "vae"  # type: ignore[misc]
        assert plan == geninit.plan(net(), pretrained=ghn)
        assert plan != geninit.plan(net(), pretrained=ghn, head="keep")
        assert copy.copy(plan) == plan and copy.copy(plan).modules is plan.modules

    def test_a_deep_copy_still_knows_the_parts_of_the_model(self, ghn: WeightGenerator) -> None:
        model, other = net(), net()
        plan = geninit.plan(model, pretrained=ghn)
        again = copy.deepcopy(plan)
        assert again == plan and again.pretrained is not plan.pretrained
        name, part = next((n, m) for n, m in model.named_modules() if n and list(m.parameters()))
        again.write_(part)
        plan.write_(other.get_submodule(name), prefix=name)
        for mine, expected in zip(part.parameters(), other.get_submodule(name).parameters(), strict=True):
            assert torch.equal(mine, expected)

    def test_a_plan_goes_to_other_processes(self, ghn: WeightGenerator) -> None:
        model, other = net(), net()
        plan = geninit.plan(model, pretrained=ghn)
        again = pickle.loads(pickle.dumps(plan))
        assert again == plan and str(again) == str(plan)
        assert all(
            torch.equal(a, b)
            for a, b in zip(again.write_(other).parameters(), plan.write_(model).parameters(), strict=True)
        )

    def test_what_was_tied_after_the_plan_is_refused(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(*net(), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
        plan = geninit.plan(model, pretrained=ghn, untrusted="generate")
        model[9].bias = model[7].bias
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=r"'7\.bias' and '9\.bias' were tied after the plan"):
            plan.write_(model)
        assert all(map(torch.equal, before, model.parameters()))

    def test_what_was_excluded_is_not_written_through_a_later_tie(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(*net(), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
        plan = geninit.plan(model, pretrained=ghn, untrusted="generate", exclude="9.bias")
        model[7].bias = model[9].bias
        with pytest.raises(ValueError, match=r"'7\.bias' and '9\.bias' were tied after the plan"):
            plan.write_(model)

    def test_a_later_tie_of_what_is_loaded_is_nobody_s_business(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(*net(), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
        plan = geninit.plan(model, pretrained=ghn, untrusted="generate")
        model[9].bias = model[7].bias
        model[7].bias._is_hf_initialized = True
        before = model[7].bias.detach().clone()
        plan.write_(model)
        assert torch.equal(model[9].bias, before)

    @pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, lambda g: g.to("meta")])
    def test_a_generator_that_was_changed_is_refused(self, ghn: WeightGenerator, change: Any) -> None:
        changed = change(copy.deepcopy(ghn))
        model = net()
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(ValueError, match="was changed after loading: expected"):
            geninit.ghn_(model, pretrained=changed)
        assert all(map(torch.equal, before, model.parameters()))

    @pytest.mark.parametrize("verb", ["plan", "write"])
    def test_a_changed_generator_is_refused_before_a_seed_is_drawn(self, tiny: Generators, verb: str) -> None:
        changed, model = copy.deepcopy(tiny("vae")), net()
        plan = geninit.plan(model, "vae", pretrained=changed)
        changed.half()
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match="was changed after loading: expected"):
            plan.predict() if verb == "write" else geninit.vae_(model, pretrained=changed)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("scale", [0, -1, float("nan"), "2", True])
    def test_a_kernel_scale_is_a_positive_number(self, ghn: WeightGenerator, scale: Any) -> None:
        changed = copy.deepcopy(ghn)
        changed.kernel_scale = scale
        with pytest.raises(ValueError, match="kernel_scale: expected a positive number"):
            geninit.ghn_(net(), pretrained=changed)

    def test_what_is_no_module_is_refused(self, ghn: WeightGenerator) -> None:
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
            geninit.plan(net(), pretrained=ghn).write_(3)  # type: ignore[type-var]

    def test_what_was_frozen_after_the_plan_is_not_touched(self, ghn: WeightGenerator) -> None:
        model = net()
        plan = geninit.plan(model, pretrained=ghn)
        frozen = plan.generated[0].name
        model.get_parameter(frozen).requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=f"1 parameters of .*{frozen}.*frozen after the plan"):
            plan.write_(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_seven_billion_parameters_on_meta(ghn: WeightGenerator) -> None:
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(16384, 16384, bias=False) for _ in range(26)])
    plan = geninit.plan(model, pretrained=ghn, example_inputs=torch.empty(1, 16384, device="meta"))
    assert "numbers" in str(plan) and sum(e.shape[0] * e.shape[1] for e in plan.entries) > 6.9e9


@pytest.mark.parametrize(
    ("given", "meant"), [("ghn_", "ghn"), ("GHN", "ghn"), ("noise-ghn", "noise_ghn"), ("VAE_", "vae")]
)
def test_a_method_that_does_not_exist_is_met_with_one_that_does(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"got '{given}'; did you mean '{meant}'"):
        geninit.plan(nn.Conv2d(3, 4, 3), given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one of 'vae', 'ghn', 'noise_ghn', got 'kaiming'$"):
        geninit.plan(nn.Conv2d(3, 4, 3), "kaiming")  # type: ignore[arg-type]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of nodes of all graphs that are read."""
    found: list[int] = []
    plain = Encoder.forward

    def forward(self: Encoder, features: Any) -> Any:
        found.append(len(features.values))
        return plain(self, features)

    monkeypatch.setattr(Encoder, "forward", forward)
    return found


class TestReplace:
    """``dataclasses.replace`` of a plan: what was read off the network stays, if it is still the same."""

    def test_the_graph_is_not_read_again(self, ghn: WeightGenerator, encoded: list[int]) -> None:
        plan = geninit.plan(net(), pretrained=ghn)
        expected = plan.write_(net())
        again = replace(plan, verdict=None, source="another").write_(net())
        assert len(encoded) == 1
        assert all(map(torch.equal, again.parameters(), expected.parameters()))

    def test_other_entries_are_read_anew(self, ghn: WeightGenerator) -> None:
        whole, part = (geninit.plan(net(), pretrained=ghn, include=include) for include in (None, "0.*"))
        whole.predict()
        assert replace(whole, entries=part.entries).predict().compact.keys() == {"0.weight", "0.bias"}

    def test_another_graph_is_read_anew(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(), pretrained=ghn)
        assert plan.architecture is not None
        nodes = tuple(replace(n, op="gelu") if n.op == "relu" else n for n in plan.architecture.nodes)
        before = plan.predict().compact
        after = replace(plan, architecture=replace(plan.architecture, nodes=nodes)).predict().compact
        assert not torch.equal(before["0.weight"].expand(), after["0.weight"].expand())


def test_members_of_an_ensemble_read_the_graph_once(encoded: list[int]) -> None:
    generator = geninit.load("noise-ghn-cifar10")
    made = geninit.plan(resnet8(), "noise_ghn", pretrained=generator)
    members = [made.write_(resnet8(), seed=seed) for seed in (1, 2)]
    assert len(encoded) == 1, "by the verdict"
    for seed, member in zip((1, 2), members, strict=True):
        alone = geninit.noise_ghn_(resnet8(), seed, pretrained=generator)
        assert all(map(torch.equal, member.parameters(), alone.parameters()))
    # What was read of it goes by the generator's values, too.
    with torch.no_grad():
        generator.get_parameter("encoder.norm.bias").add_(0.1)
    changed, fresh = made.write_(resnet8(), seed=1), geninit.noise_ghn_(resnet8(), 1, pretrained=generator)
    assert all(map(torch.equal, changed.parameters(), fresh.parameters()))
    assert not all(map(torch.equal, changed.parameters(), members[0].parameters()))
