"""Plans: every parameter's route and reason, heads, given graphs, names, the table."""

from __future__ import annotations

import copy
import html
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ghn_card
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.entry import Layer, Route
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn import GraphHyperNetwork
from torch_geninit.graph.landmarks import head_nodes
from torch_geninit.plan import Plan
from torch_geninit.survey import canonical, survey

Generators = Callable[[str], WeightGenerator]


def net(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


class Aliased(nn.Module):
    """The first layer under a second name."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.again = body[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def routes(plan: Plan) -> dict[str, str]:
    return {entry.name: entry.route.value for entry in plan.entries}


@pytest.fixture
def ghn(tiny: Generators) -> WeightGenerator:
    return tiny("ghn")


class TestHead:
    def test_auto_generates_a_head_of_as_many_classes_and_keeps_another(self, ghn: WeightGenerator) -> None:
        assert set(routes(geninit.plan(net(10), pretrained=ghn)).values()) == {"generated"}
        plan = geninit.plan(net(7), pretrained=ghn)
        assert routes(plan)["5.weight"] == routes(plan)["5.bias"] == "kept"
        assert plan.entries[-1].reason == "head of other size: 7 outputs, ghn has 10 classes"
        assert plan.complaint() is None

    def test_a_model_that_is_all_head_is_not_kept_in_silence(self, ghn: WeightGenerator) -> None:
        probe = nn.Sequential(nn.Flatten(), nn.Linear(8, 7))
        inputs = torch.zeros(1, 8)
        with pytest.warns(geninit.GenInitWarning, match="2 of 2 parameters.*head of other size"):
            geninit.ghn_(probe, pretrained=ghn, example_inputs=inputs)
        assert geninit.plan(probe, pretrained=ghn, example_inputs=inputs, head="keep").complaint() is None

    def test_keep(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(10), pretrained=ghn, head="keep")
        assert [e.name for e in plan.kept] == ["5.weight", "5.bias"]

    def test_generate_needs_as_many_classes(self, ghn: WeightGenerator) -> None:
        assert not geninit.plan(net(10), pretrained=ghn, head="generate").kept
        with pytest.raises(ValueError, match=r"'5.weight'.*\n.*expected: 10 classes\n.*got:      7"):
            geninit.plan(net(7), pretrained=ghn, head="generate")

    def test_other_words_are_refused(self, ghn: WeightGenerator) -> None:
        with pytest.raises(ValueError, match="'auto', 'keep' or 'generate', got 'drop'"):
            geninit.plan(net(), pretrained=ghn, head="drop")  # type: ignore[arg-type]

    def test_heads_are_found_behind_pooling_and_softmax_but_not_behind_norms_or_joins(self) -> None:
        images = torch.zeros(1, 3, 8, 8)

        class TwoHeads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk = nn.Conv2d(3, 4, 3)
                self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 6)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                x = self.trunk(x).relu().mean((2, 3))
                return {"a": self.a(x), "b": self.b(x).softmax(1)}

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.conv(x)

        def sizes(model: nn.Module) -> list[int]:
            return sorted(head_nodes(geninit.trace(model, images)).values())

        assert sizes(net(9)) == [9]
        convolutional = nn.Sequential(nn.Conv2d(3, 9, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert sizes(convolutional) == [9]
        assert sizes(TwoHeads()) == [5, 6]
        assert sizes(net(9)[:2]) == []
        assert sizes(Residual()) == []


class TestGraphRoutes:
    def test_unreached_and_unsupported_are_skipped_with_their_reasons(self, ghn: WeightGenerator) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = net()
                self.spare = nn.BatchNorm1d(3)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.body(x)
                return out

        plan = geninit.plan(Model(), pretrained=ghn)
        skipped = {entry.name: entry.reason for entry in plan.skipped}
        assert skipped == dict.fromkeys(("spare.weight", "spare.bias"), "the forward pass doesn't reach it")
        assert len(plan.generated) == 6
        assert "2 of 8 parameters" in str(plan.complaint())

    def test_without_trust_everything_is_skipped_and_the_head_still_kept(self) -> None:
        card = ghn_card()
        card["trained"]["threshold"] = 0.0
        generator = GraphHyperNetwork(card)
        plan = geninit.plan(net(7), pretrained=generator)
        assert plan.verdict is not None and not plan.verdict.trusted
        assert routes(plan) == {
            **dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), "skipped"),
            **dict.fromkeys(("5.weight", "5.bias"), "kept"),
        }
        assert all(plan.verdict.reason in entry.reason for entry in plan.skipped)
        model = net(7)
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.warns(geninit.GenInitWarning, match=r"(?s)not trusted: distance.*untrusted="):
            geninit.ghn_(model, pretrained=generator)
        assert all(map(torch.equal, before, model.parameters()))

    def test_an_untrusted_network_is_filled_if_asked_for(self, recwarn: pytest.WarningsRecorder) -> None:
        card = ghn_card()
        card["trained"]["threshold"] = 0.0
        generator = GraphHyperNetwork(card)
        plan = geninit.plan(net(), pretrained=generator, untrusted="generate")
        assert plan.verdict is not None and not plan.verdict.trusted
        assert set(routes(plan).values()) == {"generated"}
        model, trusting = net(), copy.deepcopy(generator)
        geninit.ghn_(model, pretrained=generator, untrusted="generate")
        assert not recwarn.list
        trusting.card["trained"]["threshold"] = 1e9
        expected = geninit.ghn_(net(), pretrained=trusting)
        assert all(map(torch.equal, expected.parameters(), model.parameters()))
        with pytest.raises(ValueError, match="untrusted: expected 'keep' or 'generate', got True"):
            geninit.ghn_(model, pretrained=generator, untrusted=True)  # type: ignore[arg-type]

    def test_one_layer_it_was_never_trained_on_makes_it_trust_nothing(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 5), *net()[1:])
        plan = geninit.plan(model, pretrained=ghn)
        assert plan.verdict is not None and not plan.verdict.trusted
        assert not plan.generated
        assert "never trained on a 5x5 convolution" in plan.entries[0].reason

    def test_an_alias_of_a_skipped_parameter_is_skipped_too(self, ghn: WeightGenerator) -> None:
        model = Aliased(nn.Sequential(nn.Conv2d(3, 8, 5), *net()[1:]))
        plan = geninit.plan(model, pretrained=ghn)
        entry = next(e for e in plan.entries if e.name == "again.weight")
        assert entry.route is Route.SKIPPED and entry.tied_to == "body.0.weight"

    def test_nothing_to_fill_is_not_traced(self, ghn: WeightGenerator) -> None:
        class NoIdea(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.zeros(3), requires_grad=False)

        assert routes(geninit.plan(NoIdea(), pretrained=ghn)) == {"w": "kept"}

    def test_a_noise_ghn_without_noise_serves_ghn_(self, tiny: Generators) -> None:
        generator = tiny("noise-ghn")
        models = [net() for _ in range(4)]
        geninit.ghn_(models[0], pretrained=generator)
        geninit.noise_ghn_(models[1], 5, pretrained=generator, noise_scale=0.0)
        geninit.noise_ghn_(models[2], 5, pretrained=generator)
        geninit.noise_ghn_(models[3], 6, pretrained=generator)
        weights = [m[0].weight for m in models]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert not torch.equal(weights[2], weights[3])


class TestGivenGraph:
    def test_saves_tracing_and_gives_the_same(
        self, ghn: WeightGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        graph = geninit.trace(net())
        expected = geninit.plan(net(), pretrained=ghn)
        monkeypatch.setattr(
            type(ghn), "trace", lambda *_: pytest.fail("traced although a graph was given"), raising=False
        )
        assert geninit.plan(net(), pretrained=ghn, graph=graph).entries == expected.entries

    def test_of_the_bare_model_serves_every_wrapping(self, ghn: WeightGenerator) -> None:
        graph = geninit.trace(net())
        torch.manual_seed(0)
        bare, wrapped = net(), nn.DataParallel(torch.compile(net()))  # type: ignore[arg-type]
        geninit.ghn_(bare, pretrained=ghn)
        geninit.ghn_(wrapped, pretrained=ghn, graph=graph)
        assert all(map(torch.equal, bare.parameters(), wrapped.parameters()))

    @pytest.mark.parametrize(
        "other, message",
        [
            (nn.Sequential(nn.ReLU(), net()), r"reads '0\.weight', a parameter that it doesn't have"),
            (net(11), r"'5.weight' differs:\n.*\(10, 8\)"),
            (nn.Sequential(*[nn.GroupNorm(2, 8) if i == 1 else m for i, m in enumerate(net())]), "GroupNorm"),
        ],
    )
    def test_of_another_model_is_refused(self, ghn: WeightGenerator, other: nn.Module, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            geninit.plan(other, pretrained=ghn, graph=geninit.trace(net()))

    def test_of_a_smaller_model_says_what_is_missing(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(*net(), nn.ReLU(), nn.Linear(10, 10))
        plan = geninit.plan(model, pretrained=ghn, graph=geninit.trace(net()))
        entry = next(entry for entry in plan.entries if entry.name == "7.weight")
        assert (entry.route, entry.reason) == (Route.SKIPPED, "the graph that was passed doesn't have it")

    def test_weight_norm_looks_like_the_layer_itself(self, ghn: WeightGenerator) -> None:
        model = net()
        nn.utils.parametrizations.weight_norm(model[0])
        architecture = geninit.plan(model, pretrained=ghn).architecture
        assert architecture is not None
        assert architecture.fingerprint == geninit.trace(net()).fingerprint


class TestLayerRoutes:
    def test_convolutions_that_the_user_keeps_are_kept_in_silence(self, tiny: Generators) -> None:
        model = net()
        assert geninit.plan(model, "vae", pretrained=tiny("vae"), exclude="0.*").complaint() is None
        linear = nn.Sequential(nn.Linear(3, 3))
        assert geninit.plan(linear, "vae", pretrained=tiny("vae")).complaint() is not None

    def test_tensors_without_elements_are_left_alone(self, tiny: Generators) -> None:
        conv = nn.Conv2d(3, 1, 3)
        conv.weight = nn.Parameter(torch.zeros(0, 3, 3, 3))
        assert geninit.plan(conv, "vae", pretrained=tiny("vae")).entries[0].reason == "has no elements"
        assert geninit.vae_(conv, pretrained=tiny("vae"), seed=0) is conv

    def test_depth_and_kernel_of_each_convolution(self, tiny: Generators) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, (3, 1))
        )
        entries = {e.name: e for e in geninit.plan(model, "vae", pretrained=tiny("vae")).entries}
        assert entries["0.weight"].layer == Layer("conv", (3, 3), 0.0, 0)
        assert entries["1.weight"].layer == Layer("conv", (1,), 0.5, 1)
        assert entries["3.weight"].layer == Layer("conv", (3, 1), 1.0, 2)
        assert [e.route.value for e in entries.values()] == [
            "generated", "kept", "skipped", "kept", "kept", "kept", "skipped", "kept",
        ]  # fmt: skip

    def test_other_parameters_of_a_convolution_are_no_kernels(self, tiny: Generators) -> None:
        class Scaled(nn.Conv2d):
            def __init__(self) -> None:
                super().__init__(3, 4, 3)
                self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

        assert routes(geninit.plan(Scaled(), "vae", pretrained=tiny("vae"))) == {
            "weight": "generated",
            "bias": "kept",
            "gain": "kept",
        }

    def test_transposed_convolutions_are_skipped_by_name(self, tiny: Generators) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3))
        (skipped,) = geninit.plan(model, "vae", pretrained=tiny("vae")).skipped
        assert skipped.name == "1.weight" and "conv_transpose" in skipped.reason

    def test_a_layer_on_its_own_has_the_noise_of_its_name(self, tiny: Generators) -> None:
        def layer(**options: Any) -> Tensor:
            conv = nn.Conv2d(8, 8, 3)
            geninit.vae_(conv, pretrained=tiny("vae"), seed=0, **options)
            return conv.weight.detach()

        assert torch.equal(layer(), layer())
        assert not torch.equal(layer(), layer(name="layer1.conv"))
        assert torch.equal(layer(name="layer1.conv"), layer(name="module.layer1.conv"))
        plan = geninit.plan(nn.Conv2d(8, 8, 3), "vae", pretrained=tiny("vae"), name="layer1.conv")
        assert plan.entries[0].canonical == "layer1.conv.weight"
        assert plan.entries[0].layer == Layer("conv", (3, 3), 0.5, 0)

    def test_seeds(self, tiny: Generators) -> None:
        def weight(**options: Any) -> Tensor:
            conv = nn.Conv2d(8, 8, 3)
            geninit.vae_(conv, pretrained=tiny("vae"), **options)
            return conv.weight.detach()

        torch.manual_seed(3)
        first, second = weight(), weight()
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(weight(), first)
        before = torch.get_rng_state()
        source = torch.Generator().manual_seed(5)
        drawn, next_drawn = weight(generator=source), weight(generator=source)
        assert not torch.equal(drawn, next_drawn)
        assert torch.equal(weight(generator=torch.Generator().manual_seed(5)), drawn)
        weight(seed=2)
        # nn.Conv2d itself draws: compare with what it alone would have left.
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        for _ in range(4):
            nn.Conv2d(8, 8, 3)
        assert torch.equal(torch.get_rng_state(), after)

    def test_one_number_is_drawn_from_the_global_state(self, tiny: Generators) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        torch.manual_seed(3)
        geninit.vae_(model, pretrained=tiny("vae"))
        after = torch.get_rng_state()
        torch.manual_seed(3)
        torch.randint(2**31 - 1, ())
        assert torch.equal(torch.get_rng_state(), after)

    def test_two_sources_and_a_mistaken_one_are_refused(self, tiny: Generators) -> None:
        with pytest.raises(ValueError, match="got both"):
            geninit.vae_(nn.Conv2d(3, 3, 3), generator=torch.Generator(), seed=1)
        with pytest.raises(TypeError, match="pretrained="):
            geninit.vae_(nn.Conv2d(3, 3, 3), generator=tiny("vae"))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            geninit.vae_(nn.Conv2d(3, 3, 3), pretrained=tiny("vae"), seed=0.5)  # type: ignore[arg-type]

    def test_options_without_use_are_refused(self, tiny: Generators) -> None:
        with pytest.raises(TypeError, match="layer by layer"):
            geninit.plan(net(), "vae", pretrained=tiny("vae"), head="keep")
        with pytest.raises(TypeError, match="takes no name="):
            geninit.plan(net(), "ghn", pretrained=tiny("ghn"), name="a")
        with pytest.raises(ValueError, match="'vae', 'ghn', 'noise_ghn', got 'ghn_'"):
            geninit.plan(net(), "ghn_")  # type: ignore[arg-type]

    def test_seeds_of_predictions(self, tiny: Generators) -> None:
        with pytest.raises(TypeError, match="needs seed="):
            geninit.plan(net(), "noise_ghn", pretrained=tiny("noise-ghn")).predict()
        with pytest.raises(TypeError, match="takes no seed="):
            geninit.plan(net(), "ghn", pretrained=tiny("ghn")).predict(seed=1)


class TestNames:
    @pytest.mark.parametrize(
        "name, expected",
        [
            ("weight", "weight"),
            ("module.weight", "weight"),
            ("_orig_mod.module.layer1.0.weight", "layer1.0.weight"),
            ("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.weight", "a.b.weight"),
            ("conv.parametrizations.weight.original", "conv.weight"),
            ("conv.parametrizations.weight.original1", "conv.weight"),
            ("parametrizations.weight.original0", "weight"),
            ("conv.parametrizations.weight.0.lora_a", "conv.parametrizations.weight.0.lora_a"),
            ("modules.weight", "modules.weight"),
            ("a.module", "a.module"),
        ],
    )
    def test_canonical(self, name: str, expected: str) -> None:
        assert canonical(name) == expected

    def test_names_that_collide_keep_their_noise_apart(self, tiny: Generators) -> None:
        model = nn.Module()
        model.conv, model.module = nn.Conv2d(8, 8, 3), nn.Module()
        model.module.conv = nn.Conv2d(8, 8, 3)
        names = [entry.canonical for entry in geninit.plan(model, "vae", pretrained=tiny("vae")).entries]
        assert names == ["conv.weight", "conv.bias", "module.conv.weight", "module.conv.bias"]

    def test_entries_have_the_names_of_named_parameters(self, tiny: Generators) -> None:
        model = Aliased(net())
        nn.utils.parametrizations.weight_norm(model.body[5])
        expected = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        assert sorted(slot.name for slot in survey(model)) == sorted(expected)
        assert sorted(routes(geninit.plan(model, pretrained=tiny("ghn")))) == sorted(expected)


class TestText:
    def test_table_lines_up_and_adds_up(self, ghn: WeightGenerator) -> None:
        text = str(geninit.plan(net(7), pretrained=ghn))
        lines = text.splitlines()
        assert lines[0].split() == ["parameter", "shape", "route", "He", "std", "source", "or", "reason"]
        column = lines[0].index("route")
        assert {line[column:].split()[0] for line in lines[2:8]} == {"generated", "kept"}
        assert "8x3x3x3" in lines[2] and "0.272" in lines[2]  # sqrt(2 / 27)
        total = sum(p.numel() for p in net(7)[:2].parameters())
        assert f"4 generated ({total:,} numbers), 2 kept (63 numbers)" in text
        assert "trusted, distance" in lines[-1]

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
            plan.verb = "vae"  # type: ignore[misc]
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
