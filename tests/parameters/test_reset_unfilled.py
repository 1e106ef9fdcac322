"""What is not generated gets the initialisation of its own module, and a failing one undoes itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

import torch_geninit as geninit
from tests.support.fake_ranks import mesh_of, net, rank_of
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.parameters.reset import reset

Generators = Callable[[str], WeightGenerator]


class TestReset:
    def test_what_is_not_generated_gets_its_own_initialisation(self, tiny: Generators) -> None:
        expected = net()
        geninit.ghn_(expected, pretrained=tiny("ghn"), head="keep")
        with torch.device("meta"):
            model = net()
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().fill_(torch.nan if tensor.is_floating_point() else -1)
        torch.manual_seed(3)
        geninit.ghn_(model, pretrained=tiny("ghn"), head="keep", unfilled="reset")
        torch.manual_seed(3)
        head = nn.Linear(18, 10)
        assert torch.equal(model[5].weight, head.weight)  # type: ignore[index]
        assert torch.equal(model[5].bias, head.bias)  # type: ignore[index]
        assert torch.equal(model[0].weight, expected[0].weight)  # type: ignore[index]
        # The norm's parameters are generated, its buffers are not.
        assert torch.equal(model[1].weight, expected[1].weight)  # type: ignore[index]
        assert all(map(torch.equal, model.buffers(), expected.buffers()))

    def test_a_failing_reset_undoes_all(self, tiny: Generators) -> None:
        class Failing(nn.Linear):
            armed = False

            def reset_parameters(self) -> None:
                super().reset_parameters()
                if self.armed:
                    raise ZeroDivisionError("on purpose")

        model = nn.Sequential(*list(net())[:4], nn.Flatten(), Failing(18, 7))  # type: ignore[call-overload]
        Failing.armed = True
        model[1].running_mean.fill_(5.0)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(RuntimeError, match=r"reset_parameters\(\) of a Failing failed: on purpose"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_a_module_that_cannot_reset_is_named(self, tiny: Generators) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = net()
                self.scale = nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.body(x)
                return out

        model = Scaled()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with (
            pytest.warns(geninit.GenInitWarning),
            pytest.raises(ValueError, match="'scale' is not generated.*Scaled, has no reset_parameters"),
        ):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_buffers_that_nobody_resets_are_told(self, tiny: Generators) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = net()
                self.register_buffer("scale", torch.ones(()), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.body(x) * self.scale
                return out

        with pytest.warns(geninit.GenInitWarning, match=r"leaves 1 buffers .*: scale$") as warned:
            geninit.ghn_(Scaled(), pretrained=tiny("ghn"), unfilled="reset")
        assert [w.filename for w in warned] == [__file__]

    def test_a_buffer_without_data_is_refused_by_name(self, tiny: Generators) -> None:
        model = net()
        model[1].running_var = torch.empty(18, device="meta")  # type: ignore[index]
        before = {k: v.clone() for k, v in model.named_parameters()}
        with pytest.raises(ValueError, match=r"'1\.running_var' can't be reset.*meta device.*to_empty"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    def test_a_sharded_module_that_resets_only_a_part_is_refused_and_undone(self) -> None:
        class Partly(nn.Linear):
            def reset_parameters(self) -> None:
                nn.init.zeros_(self.weight[0])

        with rank_of(1, 2):
            module = Partly(4, 4)
            for name, p in list(module.named_parameters()):
                shard = distribute_tensor(p.detach().fill_(1.0), mesh_of(2), [Shard(0)], src_data_rank=None)
                module.register_parameter(name, nn.Parameter(shard))
            with pytest.raises(RuntimeError, match=r"Partly failed: it sets only a part of 'weight'"):
                reset([module])
            assert torch.equal(module.weight.to_local(), torch.ones(2, 4))  # type: ignore[attr-defined]

    def test_attention_is_reset_as_its_constructor_does(self, tiny: Generators) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 2)

        model = Model()
        plan = geninit.plan(model, "vae", pretrained=tiny("vae"))
        torch.manual_seed(1)
        plan.write_(model, seed=0, unfilled="reset")
        assert torch.equal(model.attention.out_proj.bias, torch.zeros(8))
        torch.manual_seed(1)
        expected = nn.MultiheadAttention(8, 2)
        assert torch.equal(model.attention.out_proj.weight, expected.out_proj.weight)
        assert torch.equal(model.attention.in_proj_weight, expected.in_proj_weight)

    def test_error_names_what_would_be_left(self, tiny: Generators) -> None:
        model = net()
        with pytest.raises(geninit.StrictError, match=r"2 parameters are not generated: 5\.weight, 5\.bias"):
            geninit.ghn_(model, pretrained=tiny("ghn"), head="keep", unfilled="error")
        geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="error")
        with pytest.raises(ValueError, match="'keep', 'reset' or 'error', got 'drop'"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="drop")  # type: ignore[arg-type]
