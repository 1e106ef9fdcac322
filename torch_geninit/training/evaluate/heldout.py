"""Measure a hypernetwork over networks that training never saw, without a training step."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.planning.choose import Pretrained
from torch_geninit.planning.trust import interval
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import score
from torch_geninit.training.networks.blocks import Style
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.resnet import ResNet, resnet20
from torch_geninit.training.networks.search_space import WEIGHTS, Space, multiplications, sample_unseen
from torch_geninit.training.networks.specification import Specification

MOST_MACS = 200_000_000
"""Multiplications of the largest unseen network: a ResNet-110 has 255 million."""

CALIBRATION_IMAGES = 2000

NORMS = {nn.BatchNorm2d: "batch", nn.GroupNorm: "group", nn.LayerNorm: "layer"}


def resnet50_for_small_images(classes: int) -> nn.Module:
    """Build torchvision's ResNet-50 with a 3x3 stem of stride 1 and no pooling behind it."""
    from torchvision.models import resnet50

    model: nn.Module = resnet50(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def small_vit(classes: int) -> nn.Module:
    """Build a ViT of six blocks, width 128, four heads, patches of 4 x 4 pixels."""
    style = Style(norm="layer", activation="gelu")
    return Spec("transformer", (6,), (128,), style, 4, heads=4, positions="table").build(classes)


REFERENCE_MODELS: Mapping[str, Callable[[int], nn.Module]] = {
    "resnet20": resnet20,
    "resnet20 (option B)": lambda classes: resnet20(classes, "B"),
    "resnet56": lambda classes: ResNet((9, 9, 9), (16, 32, 64), classes),
    "resnet50 (3x3 stem)": resnet50_for_small_images,
    "small ViT": small_vit,
}
"""Networks that people know, none of them in training."""


def unseen_specs(
    count: int, families: Mapping[str, float] = WEIGHTS, most_macs: int = MOST_MACS
) -> Iterator[Specification]:
    """Yield ``count`` different unseen networks of the space, always the same ones."""
    space = Space(10, torch.zeros(1, 3, 32, 32))
    seen: set[Specification] = set()
    number = 0
    while len(seen) < count:
        drawn = space.within(lambda r: sample_unseen(r, families), f"unseen/{number}", most_macs).spec
        number += 1
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


def name_of(spec: Specification) -> str:
    """Name a network for people: family, blocks, widths, norm; or whatever else its specification says."""
    if not isinstance(spec, Spec):
        return repr(spec)
    blocks, widths = ("-".join(map(str, sizes)) for sizes in (spec.blocks, spec.widths))
    norm = "no" if spec.style.norm == "none" else spec.style.norm
    return f"{spec.family} {blocks}, widths {widths}, {norm} norm"


def norm_of(spec: Specification) -> str:
    """Return which normalisation a network has: of several the most frequent, of none ``"none"``."""
    if isinstance(spec, Spec):
        return spec.style.norm
    with torch.device("meta"):
        model = spec.build(10, 32)
    found = Counter(kind for m in model.modules() for norm, kind in NORMS.items() if isinstance(m, norm))
    return found.most_common(1)[0][0] if found else "none"


def measure(model: nn.Module, pretrained: Pretrained, train: Split, measured: Split) -> dict[str, Any]:
    """Fill ``model``, trusted or not, calibrate BatchNorm, and measure it; ``model`` is changed.

    ``generator`` is the one that was chosen, ``expected`` what its probe tells of the accuracy, with the ends
    of the interval, ``generated`` the share of weights that were generated.
    """
    example = train.normalise(train.images[:1])
    graph = geninit.trace(model, example)
    plan = geninit.plan(model, pretrained=pretrained, graph=graph, untrusted="generate")
    probed = plan.verdict.measured if plan.verdict else None
    expected = None
    if probed is not None and probed.right is not None:
        low, high = interval(probed.right, probed.images)
        expected = {"accuracy": probed.right / probed.images, "low": low, "high": high}
    plan.write_(model)
    geninit.recalibrate_bn_(model, (x for x, _ in train.spread(CALIBRATION_IMAGES).batches()))
    accuracy, nll = score(model, measured)
    generated = sum(torch.Size(entry.shape).numel() for entry in plan.generated)
    return {
        "accuracy": accuracy,
        "nll": nll,
        "generator": plan.source,
        "trusted": bool(plan.verdict and plan.verdict.trusted),
        "expected": expected,
        "generated": generated / sum(p.numel() for p in model.parameters()),
        "macs": multiplications(graph),
        "nodes": len(graph.nodes),
    }


def survey_space(
    pretrained: Pretrained, train: Split, measured: Split, specs: Iterable[Specification]
) -> Iterator[dict[str, Any]]:
    """Measure networks of the space, one record each."""
    for spec in specs:
        torch.manual_seed(spec.digest)  # what is not generated keeps its standard initialisation
        model = spec.build(len(train.classes), train.images.shape[-1])
        found = measure(model, pretrained, train, measured)
        layers = {"layers": sum(spec.blocks)} if isinstance(spec, Spec) else {}
        yield {"family": spec.family, "norm": norm_of(spec), **layers, **found}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and best accuracy, over all and by family and norm."""
    groups: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for group in ("all", record["family"], f"norm: {record['norm']}"):
            groups[group].append(record["accuracy"])
    return {
        group: {
            "networks": len(values),
            "mean": statistics.mean(values),
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "best": max(values),
        }
        for group, values in groups.items()
    }
