"""Try a hypernetwork on the models of torchvision, timm or transformers; write docs/results/coverage.md.

Each model is traced, planned, predicted and written with the trust check off, then run once. Sections of
suites whose library is not installed here stay as they are.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.generators.entry import Route
from torch_geninit.graph.tracer.clone import tensors_in
from torch_geninit.graph.tracer.inputs import guesses
from torch_geninit.planning.choose import Pretrained
from torch_geninit.planning.plan import Plan
from torch_geninit.training.report import coverage_models as data
from torch_geninit.training.report import sections
from torch_geninit.training.report.coverage_page import INTRODUCTION, Row, section

SUITES = ("torchvision", "timm", "transformers")


@dataclass(frozen=True)
class Subject:
    """A model to try.

    Attributes:
        name: the library's name.
        section: heading of docs/results/coverage.md that it belongs to.
        build: makes it, randomly initialised.
        inputs: ``example_inputs=``; None where the tracer has to guess.
    """

    name: str
    section: str
    build: Callable[[], nn.Module]
    inputs: Any = None


def _from_config(kind: Any, options: Mapping[str, Any]) -> nn.Module:
    """Build a model of transformers from options of its configuration, with random weights."""
    built: nn.Module = kind(kind.config_class(**options))
    return built


def subjects(suite: str) -> Iterator[Subject]:
    """List the models of a suite; building them is left to whoever asks.

    Raises:
        ImportError: if the suite's library is not installed.
    """
    library = importlib.import_module(suite)
    if suite == "torchvision":
        models = library.models
        for family, facts in data.TORCHVISION.items():
            module = models if family == "classification" else getattr(models, family)
            for name in models.list_models(module=module):
                options = {**facts["options"], **data.OWN_OPTIONS.get(name, {})}
                sizes = (
                    [data.TORCHVISION_INPUTS[name]]
                    if name in data.TORCHVISION_INPUTS
                    else facts.get("inputs")
                )
                inputs: Any = None if sizes is None else tuple(map(tensor, sizes))
                if "list" in facts:
                    inputs = ([tensor(size) for size in facts["list"]],)

                def build(name: str = name, options: dict[str, Any] = options) -> nn.Module:
                    built: nn.Module = models.get_model(name, weights=None, **options)
                    return built

                yield Subject(name, f"torchvision {family}", build, inputs)
    elif suite == "timm":
        for name in data.TIMM:
            yield Subject(name, suite, partial(library.create_model, name, num_classes=10))
    elif suite == "transformers":
        library.logging.set_verbosity_error()
        for name, (options, sizes) in data.TRANSFORMERS.items():
            kind = getattr(library, name)
            inputs = sizes and {key: tensor(size) for key, size in sizes.items()}
            yield Subject(name, suite, partial(_from_config, kind, options), inputs)
    else:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")


def tensor(size: data.Input) -> Tensor:
    """Make an input of the data file: standard normal floats, or tokens from 1 to 7."""
    shape, kind = size
    stream = torch.Generator().manual_seed(0)
    if kind == "tokens":
        return torch.randint(1, 8, shape, generator=stream)
    return torch.randn(shape, generator=stream)


@contextmanager
def peak_memory() -> Iterator[Callable[[], int | None]]:
    """Yield a function: most resident memory inside the block so far over that at its start (Linux only)."""

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    gc.collect()
    try:
        # What was freed before must not be used again unnoticed.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    except (OSError, AttributeError):
        yield lambda: None
        return
    yield lambda: resident("VmHWM") - before


def measure(subject: Subject, pretrained: Pretrained) -> Row:
    """Fill a fresh model and check it; an exception becomes the row's failure."""
    row = Row(subject.name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            _fill(subject, pretrained, row)
        except Exception as error:  # noqa: BLE001 - a model may raise anything, and the table shows it
            row.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return row


def _fill(subject: Subject, pretrained: Pretrained, row: Row) -> None:
    model = subject.build()
    row.bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    before = {name: sample(p) for name, p in model.named_parameters()}
    with peak_memory() as peak:
        times = [time.process_time()]
        graph = geninit.trace(model, subject.inputs)
        times.append(time.process_time())
        plan = geninit.plan(model, pretrained=pretrained, graph=graph, untrusted="generate")
        times.append(time.process_time())
        prediction = plan.predict()
        times.append(time.process_time())
        prediction.write_(model)
        times.append(time.process_time())
        row.extra_bytes = peak()
    row.milliseconds = tuple(1e3 * (b - a) for a, b in zip(times, times[1:], strict=False))
    row.nodes = len(graph.nodes)
    account(plan, row)
    row.failure = broken_promises(model, plan, before)
    inputs = subject.inputs if subject.inputs is not None else _guessed(model, graph.notes)
    row.finite = finite_output(model, inputs)
    if row.finite is False and not row.failure:
        row.failure = "outputs are not finite"


def account(plan: Plan, row: Row) -> None:
    """Count a plan's routes and reasons into a row."""
    filled = (Route.GENERATED, Route.TIED)
    matrices = [entry for entry in plan.entries if len(entry.shape) > 1]
    row.total, row.all_matrices = len(plan.entries), len(matrices)
    row.generated = sum(entry.route in filled for entry in plan.entries)
    row.matrices = sum(entry.route in filled for entry in matrices)
    # One tied to another is kept for the other's reason.
    reasons = {entry.name: entry.reason for entry in plan.entries}
    row.kept = Counter(
        reasons[entry.tied_to or entry.name] for entry in plan.entries if entry.route not in filled
    )


def sample(parameter: Tensor) -> Tensor:
    """Copy a thousand values of a parameter, spread over all of it."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 1000)].clone()


def broken_promises(model: nn.Module, plan: Plan, before: dict[str, Tensor]) -> str:
    """Say which parameters are not what the plan promised, in a few words; empty if all is well."""
    problems: dict[str, list[str]] = {}
    entries = {entry.name: entry for entry in plan.entries}
    for name, parameter in model.named_parameters():
        entry = entries.get(name)
        if entry is None:
            problems.setdefault("not in the plan", []).append(name)
            continue
        if not bool(torch.isfinite(parameter.detach().sum())) and not bool(torch.isfinite(parameter).all()):
            problems.setdefault("not finite", []).append(name)
        same = torch.equal(sample(parameter), before[name])
        if entry.route is Route.GENERATED and same and parameter.ndim > 1:
            problems.setdefault("said to be generated, but unchanged", []).append(name)
        if entry.route in (Route.KEPT, Route.SKIPPED):
            if not same:
                problems.setdefault("said to be kept, but changed", []).append(name)
            if not entry.reason:
                problems.setdefault("kept without a reason", []).append(name)
    return "; ".join(f"{what}: {len(names)}, first {names[0]}" for what, names in problems.items())


def _guessed(model: nn.Module, notes: Sequence[str]) -> Any:
    """Return with data, in a batch of two, the inputs that the tracer guessed."""
    for one, two in zip(guesses(model), guesses(model, batch=2), strict=True):
        if any(f"inputs guessed: {guess.text}" in notes for guess in (one, two)):
            values = [
                tensor((tuple(x.shape), "image" if x.is_floating_point() else "tokens")) for x in two.args
            ]
            return tuple(values) if two.args else dict(two.kwargs)
    return None


@torch.no_grad()
def finite_output(model: nn.Module, inputs: Any) -> bool | None:
    """Run a model, with statistics of the batch where it can, and look at the floating outputs."""
    if inputs is None:
        return None
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    detects = isinstance(inputs, tuple) and isinstance(inputs[0], list)  # training needs targets
    try:
        output = model.train(not detects)(*args, **kwargs)
    finally:
        model.eval()
    values = [x for x in tensors_in(output) if x.is_floating_point()]
    return all(bool(torch.isfinite(x).all()) for x in values) if values else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, required=True, help="library that the models come from")
    parser.add_argument("--family", help="only this family of torchvision, as 'video'")
    parser.add_argument("--only", default="*", help="glob pattern of model names; prints instead of writing")
    parser.add_argument("--pretrained", default="auto", help="hypernetwork: a name or a file")
    parser.add_argument("--out", type=Path, default=Path("docs/results/coverage.md"), help="page to rewrite")
    parser.set_defaults(threads=1)  # one small image each


def main(options: argparse.Namespace) -> None:
    wanted = f"torchvision {options.family}" if options.family else "*"
    chosen = [
        s
        for s in subjects(options.suite)
        if fnmatchcase(s.section, wanted) and fnmatchcase(s.name, options.only)
    ]
    if not chosen:
        sys.exit("no model of that name")
    warm_up(options.pretrained)
    rows: dict[str, list[Row]] = {}
    for subject in chosen:
        row = measure(subject, options.pretrained)
        rows.setdefault(subject.section, []).append(row)
        print(
            f"{row.name}: {row.failure or f'{row.generated}/{row.total}, {100 * row.share:.1f} %'}",
            flush=True,
        )
    library = importlib.import_module(options.suite)
    version = f"{options.suite} {library.__version__}, torch {torch.__version__.partition('+')[0]}"
    version += f", Python {platform.python_version()}, {options.pretrained}"
    for heading, found in rows.items():
        text = section(found, heading, version)
        if options.only == "*":
            sections.replace_section(options.out, heading, text, INTRODUCTION)
        else:
            print(text)
    if any(row.failure for found in rows.values() for row in found):
        sys.exit("some models failed")


def warm_up(pretrained: Pretrained) -> None:
    """Pay for imports and first calls before anything is timed."""
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *pool, nn.Linear(8, 10))
    geninit.plan(model, pretrained=pretrained, untrusted="generate").predict().write_(model)
