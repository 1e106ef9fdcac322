"""VAEs draw weights: against the slow twin, by seed and name, whole or in parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.support.reference import vae_reference as reference
from tests.support.vaes import drawn, random_vaes, record, tensors_of
from torch_geninit.generators import compact
from torch_geninit.generators.rng import noise_stream
from torch_geninit.generators.vae import model
from torch_geninit.generators.vae.model import SliceDraws
from torch_geninit.planning.build import plan_layers


@pytest.mark.parametrize("kernel_size", [(3, 3), (5,), (2, 3)])
def test_slice_samples_equal_the_slow_twin(kernel_size, monkeypatch):
    monkeypatch.setattr(model, "CHUNK", 7)
    generator = random_vaes(record(kernel_size=kernel_size, fan_in=40))
    count, positions, latent = 18, math.prod(kernel_size), 3
    got = generator.draw(0, count, noise_stream(5, "w"), gain=0.5)
    stream, expected = noise_stream(5, "w"), []
    for size in (7, 7, 4):
        noise = torch.empty(positions, size).normal_(generator=stream)
        z = torch.empty(latent, size).normal_(generator=stream)
        expected += [
            0.5 * reference.slice_sample(tensors_of(generator), z[:, i].double(), noise[:, i].double())
            for i in range(size)
        ]
    torch.testing.assert_close(got.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_paper_decoder_equals_the_slow_twin_and_samples_its_mean():
    generator = random_vaes(decoder="paper", latent=4, hidden=3)
    got = generator.draw(0, 11, noise_stream(1, "w"), gain=2.0)
    z = torch.empty(11, 4).normal_(generator=noise_stream(1, "w")).double()
    expected = torch.stack([2 * reference.paper_sample(tensors_of(generator), row, (3, 3)) for row in z])
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("decoder", "inputs"), [("slice", 1), ("paper", 1), ("slice", 5)])
@pytest.mark.parametrize("chunk", [7, 24, 8192])
def test_any_part_of_a_weight_is_drawn_as_the_whole_is(decoder, inputs, chunk, monkeypatch):
    """Rows, columns, other layouts and dtypes: the same values, wherever the chunks end."""
    monkeypatch.setattr(model, "CHUNK", chunk)
    generator = random_vaes(record(inputs=inputs), decoder=decoder)
    draws = SliceDraws(generator.decoder(0), (12, 5, 3, 3), 0.5, 3, "w", 1.0, inputs)
    whole = generator.draw(0, 60 // inputs, noise_stream(3, "w"), 0.5).view(12, 5, 3, 3)
    assert torch.equal(draws.expand(), whole)
    for start, stop in [(0, 1), (3, 9), (11, 12)]:
        part = torch.empty(stop - start, 5, 3, 3)
        draws.write_to(part, start)
        assert torch.equal(part, whole[start:stop])
    turned = torch.empty(12, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    draws.write_to(turned)
    assert torch.equal(turned, whole)
    half = torch.empty(12, 5, 3, 3, dtype=torch.bfloat16)
    draws.write_to(half)
    assert torch.equal(half, whole.bfloat16())
    for block in (1, 130, 10**6):
        monkeypatch.setattr(compact, "GATHERED_ELEMENTS", block)
        rows, columns = torch.tensor([1, 2, 3, 8, 11]), torch.tensor([0, 4])
        part = torch.empty(5, 2, 3, 3)
        draws.write_at([rows, columns, torch.arange(3), torch.arange(3)], part)
        assert torch.equal(part, whole[rows][:, columns])


@pytest.mark.parametrize("decoder", ["slice", "paper"])
@pytest.mark.parametrize("noise_scale", [0.0, 1.0, 30.0])
def test_bound_holds_for_every_value(decoder, noise_scale):
    generator = random_vaes(decoder=decoder, seed=int(noise_scale))
    draws = SliceDraws(generator.decoder(0), (64, 64, 3, 3), 0.5, 0, "w", noise_scale)
    assert draws.finite()
    assert draws.expand().abs().max() <= draws.bound()


@pytest.mark.parametrize("decoder", ["slice", "paper"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_broken_tensor_hides_from_the_check(decoder, bad):
    for name in random_vaes(decoder=decoder).decoders[0].state_dict():
        generator = random_vaes(decoder=decoder)
        generator.decoders[0].state_dict()[name].view(-1)[-1] = bad
        draws = SliceDraws(generator.decoder(0), (2, 2, 3, 3), 0.5, 0, "w", 1.0)
        assert not draws.finite() or torch.isfinite(draws.expand()).all(), name
        if not name.endswith("spread") or bad != -math.inf:
            assert not draws.finite(), name


def test_training_and_sampling_share_one_decoder():
    generator = random_vaes(latent=2)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    shape, log_scale = generator.decoders[0](z)
    for row in range(4):
        expected_shape, expected_scale = reference.slice_decoder(tensors_of(generator), z[row].double())
        torch.testing.assert_close(shape[row].double(), expected_shape, rtol=1e-5, atol=1e-6)
        assert log_scale[row].item() == pytest.approx(expected_scale, rel=1e-4, abs=1e-6)
    expected_factor = reference.cholesky_factor(tensors_of(generator))
    torch.testing.assert_close(generator.decoders[0].factor().double(), expected_factor)


def test_without_noise_every_slice_is_the_same():
    weight = drawn(random_vaes(), nn.Conv2d(4, 6, 3), noise_scale=0.0)["weight"].view(24, 9)
    torch.testing.assert_close(weight, weight[:1].expand_as(weight))
    assert weight.abs().max() > 0


def test_values_depend_on_seed_and_name_but_not_on_other_layers():
    generator = random_vaes()
    two = nn.ModuleDict({"a": nn.Conv2d(4, 8, 3), "b": nn.Conv2d(4, 8, 3)})
    turned = nn.ModuleDict({"b": nn.Conv2d(4, 8, 3), "a": nn.Conv2d(4, 8, 3)})
    first, second = drawn(generator, two), drawn(generator, turned)
    assert torch.equal(first["a.weight"], second["a.weight"])
    assert torch.equal(first["b.weight"], second["b.weight"])
    assert not torch.equal(first["a.weight"], first["b.weight"])
    assert not torch.equal(first["a.weight"], drawn(generator, two, seed=1)["a.weight"])
    alone = drawn(generator, nn.Conv2d(4, 8, 3), name="a")
    assert torch.equal(alone["weight"], first["a.weight"])


def test_global_random_state_is_left_alone():
    generator, module = random_vaes(), nn.Conv2d(4, 8, 3)
    before = torch.get_rng_state()
    drawn(generator, module)
    assert torch.equal(before, torch.get_rng_state())


def test_no_seed_is_an_error():
    generator = random_vaes()
    with pytest.raises(ValueError, match="seed"):
        generator.predict(plan_layers(nn.Conv2d(3, 3, 3), generator, "test"))
