"""VAEs trained on zoos of known law reproduce it, resume, and tell how good they are."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.reference import vae_reference as reference
from tests.support.vaes import drawn, make_other, make_zoo, random_vaes, tensors_of
from torch_geninit.generators.rng import noise_stream
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.planning.build import plan_layers
from torch_geninit.training.data.kernels import read_slices
from torch_geninit.training.loops import vae as training
from torch_geninit.training.loops import vae_encoders
from torch_geninit.training.loops.vae_encoders import VAERecipe
from torch_geninit.training.loops.vae_validation import evaluate_vaes, markdown_table, nearest_ratio
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.runs.checkpoint import Run

QUICK = VAERecipe("slice", 2, 8, standardise=True, variance=None, epochs=(2, 1), batch_size=2048)


@pytest.mark.full
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
        assert r["nearest_ratio"] == pytest.approx(1, abs=0.1), "what is drawn is no nearer than new slices"
    # The config's scale is that of the slices: a ResNet-20 at He's scale has He's standard deviation.
    he = SliceVAEs({**trained.generator.config, "scale": "he"})
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


def test_copies_are_near_what_they_were_copied_from():
    torch.manual_seed(0)
    seen, unseen = torch.randn(3000, 9), torch.randn(800, 9)
    copies = seen[::2] + 0.01 * torch.randn(1500, 9)
    assert nearest_ratio(copies, unseen, seen) < 0.05
    assert nearest_ratio(torch.randn(1500, 9), unseen, seen) == pytest.approx(1, abs=0.05)
    # Of single values, as of 1x1 kernels, the nearest is very near.
    assert nearest_ratio(torch.randn(1500, 1), unseen[:, :1], seen[:, :1]) == pytest.approx(1, abs=0.15)


@pytest.mark.full
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


def test_evidence_is_a_bound_of_the_exact_density():
    generator = random_vaes(latent=1, hidden=3)
    torch.manual_seed(0)
    encoder = vae_encoders.Encoder(9, 1)
    x = torch.randn(3, 9)
    exact = torch.tensor([reference.log_marginal(tensors_of(generator), row, steps=401) for row in x])
    with torch.no_grad():
        draws = [vae_encoders.evidence(generator.decoders[0], encoder, x, None) for _ in range(4_000)]
    elbo = torch.stack([t.log_likelihood - t.divergence for t in draws]).mean(0)
    estimate = torch.stack([t.log_weight for t in draws]).logsumexp(0) - math.log(len(draws))
    assert (elbo <= exact.float() + 0.05).all()
    torch.testing.assert_close(estimate, exact.float(), rtol=0, atol=0.15)


def test_fixed_variance_density_is_a_normal_law():
    generator = random_vaes(decoder="paper")
    z, x = torch.randn(6, 3), torch.randn(6, 9)
    got = vae_encoders.log_density(generator.decoders[0], x, z, 1e-3)
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
    assert [r["layer"] for r in records[19:]] == [
        "1x1, part 1 of 3",
        "1x1, part 3 of 3",
        "3x3 depthwise, part 3 of 3",
        "5x5, part 1 of 3",
    ]
    assert all(math.isfinite(v) for r in records for v in r.values() if not isinstance(v, str))
