"""Plans of hypernetworks: every parameter's route and reason, heads, given graphs, names."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.conftest import ghn_config
from tests.support.plans import Aliased, net, routes
from tests.support.probes import with_probe
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Route
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.graph.queries import head_nodes
from torch_geninit.parameters.named import canonical, list_parameters
from torch_geninit.planning import messages
from torch_geninit.planning.build import OTHER_GRAPH

Generators = Callable[[str], WeightGenerator]


class TestHead:
    def test_auto_generates_a_head_of_as_many_classes_and_keeps_another(self, ghn: WeightGenerator) -> None:
        assert set(routes(geninit.plan(net(10), pretrained=ghn)).values()) == {"generated"}
        plan = geninit.plan(net(7), pretrained=ghn)
        assert routes(plan)["5.weight"] == routes(plan)["5.bias"] == "kept"
        assert plan.entries[-1].reason == "head of other size: 7 outputs, ghn has 10 classes"
        assert messages.warning(plan) is None

    def test_a_model_that_is_all_head_is_not_kept_in_silence(self, ghn: WeightGenerator) -> None:
        probe = nn.Sequential(nn.Flatten(), nn.Linear(8, 7))
        inputs = torch.zeros(1, 8)
        with pytest.warns(geninit.GenInitWarning, match="2 of 2 parameters.*head of other size"):
            geninit.ghn_(probe, pretrained=ghn, example_inputs=inputs)
        made = geninit.plan(probe, pretrained=ghn, example_inputs=inputs, head="keep")
        assert "writes nothing" in str(messages.warning(made)) and not made.skipped

    def test_keep(self, ghn: WeightGenerator) -> None:
        plan = geninit.plan(net(10), pretrained=ghn, head="keep")
        assert [e.name for e in plan.kept] == ["5.weight", "5.bias"]

    def test_generate_needs_as_many_classes(self, ghn: WeightGenerator) -> None:
        assert not geninit.plan(net(10), pretrained=ghn, head="generate").kept
        with pytest.raises(ValueError, match=r"'5.weight'.*\n.*expected: 10 classes\n.*got:      7"):
            geninit.plan(net(7), pretrained=ghn, head="generate")

    def test_other_words_are_refused(self, ghn: WeightGenerator) -> None:
        with pytest.raises(ValueError, match="'auto', 'keep', 'generate', got 'drop'"):
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
        assert "2 of 8 parameters" in str(messages.warning(plan))

    def test_without_trust_everything_is_skipped_and_the_head_still_kept(self) -> None:
        generator = with_probe(GraphHyperNetwork(ghn_config()))
        plan = geninit.plan(net(7), pretrained=generator)
        assert plan.verdict is not None and not plan.verdict.trusted
        assert routes(plan) == {
            **dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), "skipped"),
            **dict.fromkeys(("5.weight", "5.bias"), "kept"),
        }
        assert all(plan.verdict.reason in entry.reason for entry in plan.skipped)
        model = net(7)
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.warns(geninit.GenInitWarning, match=r"(?s)not trusted: .*probe images right.*untrusted="):
            geninit.ghn_(model, pretrained=generator)
        assert all(map(torch.equal, before, model.parameters()))

    def test_an_untrusted_network_is_filled_if_asked_for(self, recwarn: pytest.WarningsRecorder) -> None:
        generator = with_probe(GraphHyperNetwork(ghn_config()))
        plan = geninit.plan(net(), pretrained=generator, untrusted="generate")
        assert plan.verdict is not None and not plan.verdict.trusted
        assert set(routes(plan).values()) == {"generated"}
        model, trusting = net(), copy.deepcopy(generator)
        geninit.ghn_(model, pretrained=generator, untrusted="generate")
        (said,) = (str(w.message) for w in recwarn.list)
        assert said.startswith("ghn_ fills 6 of 6 parameters of Sequential, as asked, although ")
        assert plan.verdict.reason in said and "\n" not in said
        recwarn.clear()
        trusting.probe = None
        expected = geninit.ghn_(net(), pretrained=trusting)
        assert all(map(torch.equal, expected.parameters(), model.parameters()))
        with pytest.raises(ValueError, match="untrusted: expected one of 'keep', 'generate', got True"):
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
        assert (entry.route, entry.reason) == (Route.SKIPPED, OTHER_GRAPH)

    def test_weight_norm_looks_like_the_layer_itself(self, ghn: WeightGenerator) -> None:
        model = net()
        nn.utils.parametrizations.weight_norm(model[0])
        architecture = geninit.plan(model, pretrained=ghn).architecture
        assert architecture is not None
        assert architecture.fingerprint == geninit.trace(net()).fingerprint


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
        assert sorted(ref.name for ref in list_parameters(model)) == sorted(expected)
        assert sorted(routes(geninit.plan(model, pretrained=tiny("ghn")))) == sorted(expected)
