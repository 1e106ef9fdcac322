"""Plans of VAEs: layer by layer, without a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.support.plans import net, routes
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Layer
from torch_geninit.planning import messages

Generators = Callable[[str], WeightGenerator]


class TestLayerRoutes:
    def test_convolutions_that_the_user_keeps_are_no_reason_to_warn_of_other_layers(
        self, tiny: Generators
    ) -> None:
        assert not geninit.plan(net(), "vae", pretrained=tiny("vae"), exclude="0.*").skipped
        linear = nn.Sequential(nn.Linear(3, 3))
        assert messages.warning(geninit.plan(linear, "vae", pretrained=tiny("vae"))) is not None

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
