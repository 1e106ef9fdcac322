"""Measure what initialisation and a training step cost; write docs/results/benchmarks.md.

Ratios are taken in one process, on a fresh model object each time: medians of CPU time, one thread.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit._utils.tables import Table
from torch_geninit.hub import registry
from torch_geninit.planning.choose import DEFAULTS
from torch_geninit.training.arguments import at_least
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.report import sections
from torch_geninit.training.report.coverage import peak_memory, warm_up
from torch_geninit.training.report.step import step

T = TypeVar("T")

MODELS = ("resnet50", "resnet20", "densenet121", "swin_t", "efficientnet_b0")
CHAINS = (100, 1000, 5000)
SECTIONS = ("initialisation", "chains", "meta", "step")
BESIDE_KAIMING = (
    *("model", "generator", "weights", "generated", "kaiming", "everything", "graph=", "graph=, loaded"),
    *("auto", "trace", "extra memory", "of weights"),
)
OF_VAE = ("model", "drawn", "`vae_`", "over the drawn", "over all")


@dataclass(frozen=True)
class Row:
    """One model's figures.

    Attributes:
        model: its name.
        generator: name or file of the hypernetwork.
        weights: numbers in all of its parameters.
        generated: share of them that ``ghn_`` fills.
        drawn: share of them that ``vae_`` fills.
        milliseconds: what was timed -> median of CPU time.
        extra_bytes: peak memory of ``ghn_`` over the process that holds model and generator; None where the
            system doesn't tell.
    """

    model: str
    generator: str
    weights: int
    generated: float
    drawn: float
    milliseconds: Mapping[str, float]
    extra_bytes: int | None

    def ratio(self, what: str, base: str) -> float:
        return self.milliseconds[what] / self.milliseconds[base]


def build(name: str) -> nn.Module:
    """Build a network of ten classes, as shipped generators have."""
    if name == "resnet20":
        return resnet20()
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, num_classes=10)
    return model


def kaiming_(model: nn.Module, names: Iterable[str]) -> None:
    """Fill those of the named parameters that He initialisation is for: of two or more dimensions."""
    for name in names:
        parameter = model.get_parameter(name)
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)


def timed(call: Callable[..., T], *args: Any, **kwargs: Any) -> tuple[T, float]:
    """Call, and return the result with the CPU milliseconds that it took."""
    gc.collect()
    start = time.process_time()
    result = call(*args, **kwargs)
    return result, 1e3 * (time.process_time() - start)


def compare(name: str, pretrained: str, vae: str, repeats: int) -> Row:
    """Time every way of filling one model, in turns so that a busy spell hits them all."""
    model = build(name)
    graph = geninit.trace(model)
    automatic = pretrained == registry.AUTO
    if automatic:
        chosen = geninit.plan(model, pretrained=pretrained, graph=graph, untrusted="generate")
        pretrained = chosen.source
    generator = geninit.load(pretrained)
    by_ghn = geninit.plan(model, pretrained=generator, graph=graph, untrusted="generate").generated
    by_vae = geninit.plan(model, "vae", pretrained=vae).generated
    filled = [entry.name for entry in by_ghn]
    drawn = [entry.name for entry in by_vae]

    def ghn_(model: nn.Module, *, loaded: bool = False, given: bool = False) -> None:
        geninit.ghn_(
            model,
            pretrained=generator if loaded else pretrained,
            graph=graph if given else None,
            untrusted="generate",
        )

    ways: dict[str, Callable[[nn.Module], object]] = {
        "kaiming": lambda model: kaiming_(model, filled),
        "ghn_": ghn_,
        "graph": lambda model: ghn_(model, given=True),
        "graph, loaded": lambda model: ghn_(model, given=True, loaded=True),
        "trace": geninit.trace,
        "kaiming of drawn": lambda model: kaiming_(model, drawn),
        "vae_": lambda model: geninit.vae_(model, pretrained=vae),
    }
    if automatic:
        ways["auto"] = lambda model: geninit.ghn_(model, pretrained="auto", untrusted="generate")
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, call in ways.items():
            _, spent = timed(call, build(name))
            if turn:  # the first turn warms up
                seen[way].append(spent)
    model = build(name)
    with peak_memory() as peak:
        ghn_(model, loaded=True)
        extra = peak()
    total = sum(parameter.numel() for parameter in model.parameters())
    return Row(
        name,
        pretrained,
        total,
        sum(math.prod(entry.shape) for entry in by_ghn) / total,
        sum(math.prod(entry.shape) for entry in by_vae) / total,
        {way: statistics.median(times) for way, times in seen.items()},
        extra,
    )


def initialisation(pretrained: str, vae: str, repeats: int) -> str:
    rows = []
    for name in MODELS:
        rows.append(row := compare(name, pretrained, vae, repeats))
        print(
            f"{name}: {row.ratio('ghn_', 'kaiming'):.2f} x, {row.ratio('graph', 'kaiming'):.2f} x", flush=True
        )
    lines = [
        "## Beside kaiming_normal_",
        "",
        "`ghn_`, its trust check not obeyed, against `nn.init.kaiming_normal_` over those of the same "
        "weights that have two or more dimensions. *Everything* reads the generator's file, traces, plans, "
        "predicts and writes; *graph=* saves tracing, *loaded* reading the file too, as for an ensemble; "
        f"*auto* also chooses the generator. Medians of {repeats} on a fresh model each, CPU ms of one "
        "thread.",
        "",
        Table(BESIDE_KAIMING, [_beside_kaiming(row) for row in rows], numbers=range(2, 12)).markdown(),
        "",
        f"`vae_` with {Path(vae).stem}, file read each time, against `kaiming_normal_` over the weights that "
        "it draws, and over those that `ghn_` fills:",
        "",
        Table(OF_VAE, [_of_vae(row) for row in rows if row.drawn], numbers=range(1, 5)).markdown(),
    ]
    return "\n".join(lines)


def _beside_kaiming(row: Row) -> tuple[str, ...]:
    times = row.milliseconds
    each = [
        f"{times[w]:.0f} ({row.ratio(w, 'kaiming'):.2f} x)" if w in times else "-"
        for w in ("ghn_", "graph", "graph, loaded", "auto")
    ]
    return (
        row.model,
        Path(row.generator).stem,
        f"{row.weights / 1e6:.1f} M",
        f"{100 * row.generated:.1f} %",
        f"{times['kaiming']:.1f}",
        *each,
        f"{times['trace']:.0f}",
        "-" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:.0f} MB",
        f"{4 * row.weights / 1e6:.0f} MB",
    )


def _of_vae(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        f"{100 * row.drawn:.1f} %",
        f"{row.milliseconds['vae_']:.0f}",
        f"{row.ratio('vae_', 'kaiming of drawn'):.2f} x",
        f"{row.ratio('vae_', 'kaiming'):.2f} x",
    )


def chain(length: int) -> nn.Module:
    """Build ``length`` convolutions with BatchNorm and ReLU, one after the other."""
    body = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        for _ in range(length)
    ]
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *body, *pool)


def chains(pretrained: str, repeats: int) -> str:
    """Time the stages on longer and longer chains: cost for each layer must stay the same."""
    generator = geninit.load(pretrained)
    rows = []
    for length in CHAINS:
        turns = []
        for _ in range(repeats):
            model = chain(length)
            graph, tracing = timed(geninit.trace, model)
            plan, planning = timed(
                geninit.plan, model, pretrained=generator, graph=graph, untrusted="generate"
            )
            prediction, predicting = timed(plan.predict)
            _, writing = timed(prediction.write_, model)
            turns.append((tracing, planning, predicting, writing))
        each = [1e3 * statistics.median(stage) / length for stage in zip(*turns, strict=True)]
        rows.append((str(length), str(len(graph.nodes)), *(f"{value:.0f}" for value in each)))
        print(*rows[-1], flush=True)
    header = ("layers", "nodes", "trace", "plan", "predict", "write")
    lines = [
        "## Chains of layers",
        "",
        "Convolution, BatchNorm and ReLU, over and over: CPU microseconds **for each layer**, medians of "
        f"{repeats}; what is linear stays level.",
        "",
        Table(header, rows, numbers=range(len(header))).markdown(),
    ]
    return "\n".join(lines)


def seven_billion() -> nn.Module:
    """Build a transformer with 7.1 billion parameters on the meta device."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(4096, 32, 16384, batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoder(layer, 34, enable_nested_tensor=False)
        return nn.Sequential(nn.Embedding(32000, 4096), encoder, nn.Linear(4096, 32000))


def meta(pretrained: str) -> str:
    """Trace and plan a model of seven billion parameters."""
    generator = geninit.load(pretrained)
    model = seven_billion()
    count = sum(parameter.numel() for parameter in model.parameters())
    with peak_memory() as peak:
        graph, tracing = timed(geninit.trace, model)
        _, planning = timed(geninit.plan, model, pretrained=generator, graph=graph)
        extra = peak()
    memory = "not measured" if extra is None else f"{max(extra, 0) / 1e6:.0f} MB"
    return "\n".join(
        [
            "## Seven billion parameters on meta",
            "",
            f"A transformer of 34 layers, {count / 1e9:.1f} G parameters on the meta device, "
            f"{len(graph.nodes)} nodes: `trace` {tracing / 1e3:.2f} s, `plan` with that graph "
            f"{planning / 1e3:.2f} s of CPU time; extra memory {memory}.",
        ]
    )


INTRODUCTION = """# Benchmarks

`python -m torch_geninit.training benchmark` measures and rewrites the first sections. Compare ratios, not
absolutes: they are taken in one process.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", default="auto", help="hypernetwork: a name or a file")
    parser.add_argument("--vae", default="vae-cifar10", help="slice VAEs: a name or a file")
    parser.add_argument("--repeats", type=at_least(1), default=9, help="runs of which the median counts")
    parser.add_argument("--only", choices=SECTIONS, help="measure one section")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/benchmarks.md"), help="page to rewrite"
    )
    parser.set_defaults(threads=1)  # times with two are bimodal


def main(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore", geninit.GenInitWarning)
    warm_up(options.pretrained)
    automatic = options.pretrained == registry.AUTO
    one = DEFAULTS["ghn"] if automatic else options.pretrained
    write: dict[str, Callable[[], str]] = {
        "initialisation": lambda: initialisation(options.pretrained, options.vae, options.repeats),
        "chains": lambda: chains(one, min(options.repeats, 5)),
        "meta": lambda: meta(one),
        "step": step,
    }
    machine = (
        f"{_processor()}, torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"
    )
    for section in SECTIONS if options.only is None else (options.only,):
        text = f"{write[section]()}\n\n{machine}."
        sections.replace_section(options.out, section, text, INTRODUCTION)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
