"""Slice VAEs: sampling against the slow twin, which VAE serves a layer, training on a zoo of known law."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torch_geninit.coverage import plan_layers
from torch_geninit.generators import compact, vae
from torch_geninit.generators.file import read, write
from torch_geninit.generators.noise import noise_stream
from torch_geninit.generators.vae import SliceDraws, SliceVAEs
from torch_geninit.training import encoders
from torch_geninit.training import vae as training
from torch_geninit.training.networks import resnet20
from torch_geninit.training.run import Run
from torch_geninit.training.slices import read_other_slices, read_slices, split_networks, zoo_networks
from torch_geninit.training.vae_report import evaluate_vaes, markdown_table

_path = Path(__file__).parent / "reference/vae_reference.py"
_spec = importlib.util.spec_from_file_location("vae_reference", _path)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def record(name="conv", kernel_size=(3, 3), fan_in=36, depth=0.5, std=0.5, inputs=1):
    sizes = {"kernel_size": list(kernel_size), "fan_in": fan_in, "inputs": inputs}
    return {"name": name, "depth": depth, "std": std, **sizes}


def random_vaes(*layers, decoder="slice", latent=3, hidden=5, seed=0, **card):
    """VAEs with random tensors, so that every one of them matters."""
    sizes = {"decoder": decoder, "latent": latent, "hidden": hidden, "layers": list(layers) or [record()]}
    generator = SliceVAEs({"sizes": sizes, **card}).requires_grad_(False).eval()
    noise = torch.Generator().manual_seed(seed)
    for name, tensor in generator.state_dict().items():
        tensor.normal_(generator=noise).mul_(0.5)
        if name.endswith("std"):
            tensor.abs_().add_(0.1)
    return generator


def tensors_of(generator, index=0):
    prefix = f"decoders.{index}."
    return {k.removeprefix(prefix): v for k, v in generator.state_dict().items() if k.startswith(prefix)}


def drawn(generator, module, seed=0, noise_scale=1.0, name=""):
    plan = plan_layers(module, generator, "test", name=name)
    return {k: t.expand() for k, t in generator.predict(plan, seed=seed, noise_scale=noise_scale).items()}


# --- sampling against the slow twin -------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [(3, 3), (5,), (2, 3)])
def test_slice_samples_equal_the_slow_twin(kernel_size, monkeypatch):
    monkeypatch.setattr(vae, "CHUNK", 7)
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
    monkeypatch.setattr(vae, "CHUNK", chunk)
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


# --- noise belongs to (seed, name) --------------------------------------------------------------------------


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


# --- which VAE serves which layer ---------------------------------------------------------------------------


def test_scale_follows_fan_in():
    """Same stream and as many slices: only sqrt(fan_in) differs, relative to He's law."""
    generator = random_vaes(record(fan_in=36))
    wide = drawn(generator, nn.Conv2d(16, 2, 3))["weight"]
    narrow = drawn(generator, nn.Conv2d(2, 16, 3))["weight"]
    torch.testing.assert_close(wide.view(32, 9) * math.sqrt(16 / 2), narrow.view(32, 9))
    same = drawn(generator, nn.Conv2d(4, 8, 3))["weight"].view(32, 9)
    torch.testing.assert_close(same, generator.draw(0, 32, noise_stream(0, "weight")))
    depthwise = drawn(generator, nn.Conv2d(32, 32, 3, groups=32))["weight"].view(32, 9)
    torch.testing.assert_close(depthwise, same * 2)


def test_he_scale_needs_only_the_trained_layers_std():
    generator = random_vaes(record(fan_in=999, std=0.25), scale="he")
    raw = generator.draw(0, 32, noise_stream(0, "weight"))
    for module in (nn.Conv2d(16, 2, 3), nn.Conv2d(4, 8, 3)):
        expected = raw / 0.25 * math.sqrt(2 / (9 * module.in_channels))
        torch.testing.assert_close(drawn(generator, module)["weight"].view(32, 9), expected)


def test_nearest_depth_of_the_same_kernel_size_serves():
    generator = random_vaes(
        record("a", depth=0.0), record("b", (5, 5), depth=0.1), record("c", depth=0.5), record("d", depth=1.0)
    )
    assert [generator.choose((3, 3), d) for d in (0.0, 0.24, 0.26, 0.74, 0.9)] == [0, 0, 2, 2, 3]
    assert generator.choose((3, 3), 0.25) == 0, "the shallower one of two equally near"
    assert generator.choose((5, 5), 0.9) == 1
    assert generator.choose((1, 1), 0.9) is None


def test_whole_filters_serve_first_convolutions_of_as_many_inputs():
    generator = random_vaes(record("slices", depth=0.0), record("filters", depth=0.0, inputs=3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), nn.Conv2d(3, 8, 3))
    plan = plan_layers(model, generator, "test")
    weights = generator.predict(plan, seed=0)
    assert [weights[f"{i}.weight"].inputs for i in range(3)] == [3, 1, 1]
    # One draw of 27 values a filter: the values of the VAE itself, at the new layer's scale.
    filters = generator.draw(1, 8, noise_stream(0, "0.weight"), gain=math.sqrt(36 / 27))
    torch.testing.assert_close(weights["0.weight"].expand(), filters.view(8, 3, 3, 3))
    grey = plan_layers(nn.Conv2d(1, 8, 3), generator, "test")
    assert generator.predict(grey, seed=0)["weight"].inputs == 1


def test_whole_filters_alone_serve_nothing_else():
    generator = random_vaes(record(inputs=3), record(kernel_size=(5, 5)))
    plan = plan_layers(nn.Conv2d(4, 4, 3), generator, "test")
    assert (
        plan.entries[0].reason
        == "no VAE for kernel size 3x3, trained on 5x5, 3x3 of first layers with 3 inputs"
    )


def test_every_convolution_of_resnet20_gets_its_own_vae(tmp_path):
    model = resnet20()
    make_zoo(tmp_path, 2)
    layers = [s.layer for s in read_slices(tmp_path, ("0",))]
    generator = random_vaes(*(record(s.name, s.kernel_size, s.fan_in, s.depth, s.std) for s in layers))
    plan = plan_layers(model, generator, "test")
    served = {e.name: layers[generator.choose(e.layer.kernel_size, e.layer.depth)] for e in plan.generated}
    assert len(served) == 19
    for entry in plan.generated:
        assert served[entry.name].name == entry.name
        assert served[entry.name].fan_in == entry.fan_in


def test_what_no_vae_makes_is_refused_with_a_reason():
    generator = random_vaes(record(), record(kernel_size=(5, 5)))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 7),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.Linear(4, 4),
    )
    plan = plan_layers(model, generator, "test")
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert [entry.name for entry in plan.generated] == ["0.weight"]
    assert reasons["1.weight"] == "no VAE for kernel size 7x7, trained on 3x3, 5x5"
    assert reasons["2.weight"] == "no VAE for conv_transpose layers, trained on convolutions"
    assert reasons["3.weight"] == "no VAE for kernel size 3, trained on 3x3, 5x5"
    linear = next(entry for entry in plan.entries if entry.name == "4.weight")
    assert generator.refusal(linear, None) == "VAEs make weights of convolutions only"
    assert generator.verdict(plan)[:2] == (True, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "sizes.layers"),
        ({"latent": 0}, "sizes.latent"),
        ({"hidden": 2.5}, "sizes.hidden"),
        ({"decoder": "other"}, "sizes.decoder"),
        ({"layers": [record(depth=1.5)]}, "depth"),
        ({"layers": [record(fan_in=0)]}, "fan_in"),
        ({"layers": [record(std=0.0)]}, "std"),
        ({"layers": [record(kernel_size=(3, -3))]}, "kernel_size"),
        ({"layers": [record(inputs=0)]}, "inputs"),
        ({"layers": [record(inputs=3)], "decoder": "paper"}, "inputs 1"),
    ],
)
def test_a_card_with_impossible_sizes_is_refused(change, message):
    sizes = {"decoder": "slice", "latent": 2, "hidden": 4, "layers": [record()], **change}
    with pytest.raises(ValueError, match=message):
        SliceVAEs({"sizes": sizes})
    with pytest.raises(ValueError, match="scale"):
        random_vaes(scale="xavier")


def test_a_generator_file_gives_the_same_weights(tmp_path):
    generator = random_vaes()
    generator.card |= {
        "kind": "vae",
        "vocabulary": {"version": 1, "graphs": {}},
        "trained": {},
        "input": {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        "classes": ["cat", "dog"],
        "licence": "MIT",
    }
    write(generator, tmp_path / "vae.safetensors", torch.float32)
    again = read(tmp_path / "vae.safetensors")
    module = nn.Conv2d(3, 8, 3)
    assert torch.equal(drawn(again, module)["weight"], drawn(generator, module)["weight"])


# --- training -----------------------------------------------------------------------------------------------


def make_zoo(folder, networks, seed=0):
    """Networks of one law: smooth slices, Student-t with six degrees of freedom, one scale."""
    stream = torch.Generator().manual_seed(seed)
    place = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    covariance = torch.exp(-torch.cdist(place, place))
    root = torch.linalg.cholesky(covariance)
    for network in range(networks):
        state = {}
        for name, module in resnet20().named_modules():
            if isinstance(module, nn.Conv2d):
                shape = module.weight.shape
                normal = torch.randn(shape[0] * shape[1], 9, generator=stream) @ root.T
                chi = torch.randn(len(normal), 6, generator=stream).square().mean(1, keepdim=True)
                state[f"{name}.weight"] = (0.1 * normal / chi.sqrt()).view(shape).contiguous()
        save_file(state, folder / f"{network}.safetensors")
    return covariance


QUICK = training.VAERecipe("slice", 2, 8, standardise=True, variance=None, epochs=(2, 1), batch_size=2048)


def test_trained_vaes_reproduce_scale_correlation_and_tails(tmp_path):
    covariance = make_zoo(tmp_path, 5)
    recipe = replace(QUICK, hidden=16, epochs=(30, 5), batch_size=512)
    trained = training.train_vaes(tmp_path, tmp_path / "run", recipe=recipe)
    assert len(trained.train) == 4
    records = {r["layer"]: r for r in evaluate_vaes(tmp_path, trained)}
    assert len(records) == 19
    large = [r for r in records.values() if r["train_slices"] >= 4 * 4096]
    assert len(large) == 5
    for r in large:
        assert r["std_ratio"] == pytest.approx(1, abs=0.05)
        assert r["correlation_difference"] < r["correlation_train"] + 0.04
        assert r["kurtosis"] > 3.5, "a normal law has 3, this one 6"
        assert r["log_likelihood"] > r["covariance"] > r["normal"]
        assert r["elbo"] <= r["log_likelihood"] + 0.02
        assert r["spectral_ratio"] == pytest.approx(1, abs=0.05), "these slices were drawn independently"
    # The card's scale is that of the slices: a ResNet-20 at He's scale has He's standard deviation.
    he = SliceVAEs({**trained.generator.card, "scale": "he"})
    he.load_state_dict(trained.generator.state_dict())
    for name, weight in drawn(he, resnet20()).items():
        law = math.sqrt(2 / math.prod(weight.shape[1:]))
        if weight.numel() > 5000:
            assert weight.std().item() == pytest.approx(law, rel=0.1), name
    # Against the law itself: variance of a t with 6 degrees of freedom is 6/4.
    index = [layer.name for layer in trained.generator.layers].index("layer3.1.conv1.weight")
    slices = trained.generator.draw(index, 50_000, noise_stream(0, "x"))
    torch.testing.assert_close(slices.T.cov() / 0.1**2 / 1.5, covariance, rtol=0, atol=0.12)
    table = markdown_table(list(records.values()))
    assert table.count("\n") == 2 + 19 + 1
    assert "| layer3.2.conv2 |" in table


def test_whole_filters_of_the_first_layer_keep_what_their_inputs_have_in_common(tmp_path):
    """Every filter of this zoo is nearly the same slice for all three colours."""
    stream = torch.Generator().manual_seed(0)
    make_zoo(tmp_path, 5)
    for path in tmp_path.glob("*.safetensors"):
        state = load_file(path)
        one = 0.1 * torch.randn(16, 1, 3, 3, generator=stream)
        state["conv1.weight"] = (one + 0.03 * torch.randn(16, 3, 3, 3, generator=stream)).contiguous()
        save_file(state, path)
    recipe = replace(QUICK, hidden=16, epochs=(60, 1), batch_size=32, whole_first=True)
    trained = training.train_vaes(tmp_path, tmp_path / "run", recipe=recipe)
    assert [layer.inputs for layer in trained.generator.layers] == [3] + [1] * 18
    correlation = trained.generator.draw(0, 20_000, noise_stream(0, "x")).T.corrcoef()
    # The true one is 1 / (1 + 0.3^2).
    assert all(correlation[i, i + 9] > 0.8 for i in range(9))
    assert correlation[0, 10].abs() < 0.3
    weight = drawn(trained.generator, resnet20())["conv1.weight"]
    assert torch.corrcoef(weight.transpose(0, 1).flatten(1))[0, 1] > 0.6
    first = evaluate_vaes(tmp_path, trained)[0]
    assert (first["train_slices"], first["held_out_slices"]) == (4 * 16, 16)


def test_filters_are_learned_with_their_mirror_images(tmp_path):
    make_zoo(tmp_path, 2)
    whole, slices = (read_slices(tmp_path, ("0", "1"), whole_first=w)[0] for w in (True, False))
    weight = load_file(tmp_path / "1.safetensors")["conv1.weight"]
    assert torch.equal(whole.training[:32], whole.all) and torch.equal(slices.training, slices.all)
    assert torch.equal(whole.training[32 + 16 + 4].view(3, 3, 3), weight[4].flip(-1))


def test_evidence_is_a_bound_of_the_exact_density():
    generator = random_vaes(latent=1, hidden=3)
    torch.manual_seed(0)
    encoder = encoders.Encoder(9, 1)
    x = torch.randn(3, 9)
    exact = torch.tensor([reference.log_marginal(tensors_of(generator), row, steps=401) for row in x])
    with torch.no_grad():
        draws = [encoders.evidence(generator.decoders[0], encoder, x, None) for _ in range(4_000)]
    elbo = torch.stack([t.log_likelihood - t.divergence for t in draws]).mean(0)
    estimate = torch.stack([t.log_weight for t in draws]).logsumexp(0) - math.log(len(draws))
    assert (elbo <= exact.float() + 0.05).all()
    torch.testing.assert_close(estimate, exact.float(), rtol=0, atol=0.15)


def test_fixed_variance_density_is_a_normal_law():
    generator = random_vaes(decoder="paper")
    z, x = torch.randn(6, 3), torch.randn(6, 9)
    got = encoders.log_density(generator.decoders[0], x, z, 1e-3)
    mean, _ = generator.decoders[0](z)
    expected = torch.distributions.Normal(mean, math.sqrt(1e-3)).log_prob(x).sum(1)
    torch.testing.assert_close(got, expected)


def test_papers_recipe_trains_and_draws_too_narrow(tmp_path):
    make_zoo(tmp_path, 2)
    recipe = replace(QUICK, decoder="paper", hidden=4, standardise=False, variance=1e-3)
    generator = training.train_vaes(tmp_path, tmp_path / "run", recipe=recipe).generator
    slices = read_slices(tmp_path, ("0",))[-1].all
    drawn_std = generator.draw(18, 4096, noise_stream(0, "x")).std()
    assert 0 < drawn_std < 0.9 * slices.std(), "the decoder's mean leaves out the likelihood's variance"


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    make_zoo(tmp_path, 2)
    whole = training.train_vaes(tmp_path, tmp_path / "whole", recipe=QUICK)
    original, saved = Run.save, []

    def save_then_stop(self, state):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(state["done"])
        original(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            training.train_vaes(tmp_path, tmp_path / "stopped", recipe=QUICK)
    assert saved == [1, 2, 3]
    with pytest.raises(ValueError, match="no finished run"):
        training.load_vaes(tmp_path / "stopped")
    training.train_vaes(tmp_path, tmp_path / "stopped", recipe=QUICK)
    resumed = training.load_vaes(tmp_path / "stopped")
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[key]), key
    logged = []
    for name in ("whole", "stopped"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        logged.append([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    assert logged[0] == logged[1]
    with pytest.raises(ValueError, match="another zoo, recipe or seed"):
        training.train_vaes(tmp_path, tmp_path / "stopped", recipe=QUICK, seed=1)


def test_epochs_run_from_150_to_4_between_the_smallest_and_the_largest_layer():
    counts = [48, 256, 512, 1024, 2048, 4096]
    epochs = [training.epochs_for(n, 48, 4096, (150, 4)) for n in counts]
    assert (epochs[0], epochs[-1]) == (150, 4)
    assert epochs == sorted(epochs, reverse=True)
    assert training.epochs_for(10, 10, 10, (150, 4)) == 150


def test_networks_are_split_whole_and_by_seed(tmp_path):
    names = tuple(str(i) for i in range(20))
    train, held_out = split_networks(names, 0)
    assert len(held_out) == 4
    assert sorted(train + held_out) == sorted(names)
    assert split_networks(names, 0) == (train, held_out)
    assert split_networks(names, 1)[1] != held_out
    with pytest.raises(ValueError, match="at least 2"):
        split_networks(names[:1], 0)


def test_slices_are_kernels_in_order_and_a_foreign_network_is_refused(tmp_path):
    make_zoo(tmp_path, 11)
    assert zoo_networks(tmp_path) == tuple(str(i) for i in range(11))
    layers = read_slices(tmp_path, ("3",))
    names = [s.layer.name for s in layers]
    assert names[:3] == ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    kernels = sum(p.numel() for p in resnet20().parameters() if p.ndim == 4)
    assert sum(s.values.numel() for s in layers) == kernels
    weight = load_file(tmp_path / "3.safetensors")["layer2.0.conv1.weight"]
    slices = next(s for s in layers if s.layer.name == "layer2.0.conv1.weight")
    assert torch.equal(slices.values[0, 5 * 16 + 7].view(3, 3), weight[5, 7])
    save_file({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "3.safetensors")
    with pytest.raises(ValueError, match="lacks"):
        read_slices(tmp_path, ("3",))


# --- other networks -----------------------------------------------------------------------------------------


def make_other(folder, name="0"):
    """A network of two 1x1, one 5x5 and one 3x3 convolution, the second 1x1 twice He's scale."""
    torch.manual_seed(0)
    layers = {
        "a": torch.randn(64, 16, 1, 1) * math.sqrt(2 / 16),
        "b": torch.randn(16, 64, 5, 5),
        "c": torch.randn(16, 16, 3, 3),
        "d": torch.randn(16, 64, 1, 1) * math.sqrt(2 / 64) * 2,
    }
    order = json.dumps([f"{key}.weight" for key in layers])
    state = {f"{key}.weight": value for key, value in layers.items()}
    save_file(state | {"norm.weight": torch.ones(3)}, folder / f"{name}.safetensors", {"convolutions": order})
    return layers


def test_slices_of_other_networks_are_sorted_by_size_and_depth(tmp_path):
    layers = make_other(tmp_path)
    seen, kept = (read_other_slices(tmp_path, {(3, 3)}, held_out=h) for h in (False, True))
    found = [(s.layer.kernel_size, round(s.layer.depth, 2), s.layer.fan_in) for s in seen]
    assert found == [((1, 1), 0.17, 2), ((1, 1), 0.83, 2), ((5, 5), 0.5, 2)]
    # In units of He's standard deviation.
    assert [round(s.layer.std, 1) for s in seen[:2]] == [1.0, 2.0]
    raw = layers["b"].flatten(0, 1).flatten(1) * math.sqrt(64 * 25 / 2)
    together = torch.cat([seen[2].all, kept[2].all])
    assert len(kept[2].all) == 205 and torch.equal(together.sort(0).values, raw.sort(0).values)


def test_kernel_sizes_of_other_networks_are_served(tmp_path):
    zoo, others = tmp_path / "zoo", tmp_path / "others"
    zoo.mkdir(), others.mkdir()
    make_zoo(zoo, 2), make_other(others)
    trained = training.train_vaes(zoo, tmp_path / "run", recipe=QUICK, others=others)
    model = nn.Sequential(nn.Conv2d(8, 400, 1), nn.Conv2d(400, 8, 5), nn.Conv2d(8, 400, 1))
    plan = plan_layers(model, trained.generator, "test")
    assert [entry.name for entry in plan.generated] == ["0.weight", "1.weight", "2.weight"]
    weights = drawn(trained.generator, model)
    he = [math.sqrt(2 / math.prod(weights[f"{i}.weight"].shape[1:])) for i in (0, 2)]
    assert weights["0.weight"].std() / he[0] == pytest.approx(1, abs=0.2)
    assert weights["2.weight"].std() / he[1] == pytest.approx(2, abs=0.4)
    with pytest.raises(ValueError, match="the others that they were trained on"):
        evaluate_vaes(zoo, trained)
    with pytest.raises(ValueError, match="other networks besides"):
        training.train_vaes(zoo, tmp_path / "run", recipe=QUICK)
    records = evaluate_vaes(zoo, trained, others=others)
    assert [r["layer"] for r in records[19:]] == ["1x1, part 1 of 3", "1x1, part 3 of 3", "5x5, part 2 of 3"]
    assert all(math.isfinite(v) for r in records for v in r.values() if not isinstance(v, str))


def test_a_network_that_does_not_list_its_convolutions_is_refused(tmp_path):
    make_zoo(tmp_path, 1)
    with pytest.raises(ValueError, match="0.safetensors doesn't list its convolutions"):
        read_other_slices(tmp_path, set(), held_out=False)
