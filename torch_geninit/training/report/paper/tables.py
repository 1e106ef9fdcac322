"""Tables of a report, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_geninit.training.report.paper import literature as claims
from torch_geninit.training.report.paper.budget import THRESHOLDS
from torch_geninit.training.report.paper.cost import (
    WATTS_PER_CORE,
    kilowatt_hours,
    networks_until_paid,
    reached,
)
from torch_geninit.training.report.paper.found import Found, Row, interval
from torch_geninit.training.report.paper.initialisations import label
from torch_geninit.training.report.paper.pictures import MEASURES, layer_leads

NONE = "–"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; all columns but the first are aligned to the right if they hold numbers."""
    numeric = [all(not row[i] or row[i][0] in "+-–0123456789" for row in rows) for i in range(len(header))]
    rule = ["---:" if right and index else "---" for index, right in enumerate(numeric)]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float, digits: int = 1) -> str:
    """Return a share in per cent, a dash if it is not finite."""
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else NONE


def with_interval(mean: float, half: float | None, factor: float = 100, digits: int = 1) -> str:
    """Return a mean and half the width of its interval, if it has one."""
    if not math.isfinite(mean):
        return NONE
    text = f"{factor * mean:.{digits}f}"
    return text if half is None else f"{text} ± {factor * half:.{digits}f}"


def initialisations(found: Found) -> str:
    """Test accuracy and NLL, the grid of rates, and epochs and seconds to each threshold."""
    return "\n\n".join(
        [
            f"Means of {found.seeds} seeds with 95 % intervals (Student's t). "
            "Each initialisation has the rate of the grid that did best on validation images.",
            _after_training(found),
            "## Learning rates",
            "Validation accuracy after training, first seed, in per cent.",
            _grid(found),
            "## How soon",
            "Epochs, and seconds with loading, generating and calibrating, until the validation accuracy is "
            "reached. 0 epochs: before training. Where some seeds don't reach it, how many do.",
            _thresholds(found),
            "## What a start costs",
            "Seconds, means over the seeds.",
            _start_seconds(found),
            "## By epoch",
        ]
    )


def _after_training(found: Found) -> str:
    rows = []
    for row in found.rows.values():
        lead = NONE
        if found.reference and row is not found.reference:
            mean, half = row.lead(found.reference).interval()
            lead = ("+" if mean >= 0 else "") + with_interval(mean, half)
        rows.append(
            (
                row.label,
                f"{row.lr:g}",
                with_interval(*interval(row.values("validation", 0))),
                with_interval(*interval(row.values("test"))),
                lead,
                with_interval(*interval(row.values("test_nll")), factor=1, digits=3),
            )
        )
    header = (
        "initialisation",
        "rate",
        "before training, validation (%)",
        "test (%)",
        "lead over He, paired (points)",
        "test NLL (nats)",
    )
    return markdown(header, rows)


def _grid(found: Found) -> str:
    rates = sorted({lr for row in found.rows.values() for lr in row.rates})
    rows = [
        (row.label, *(percent(row.rates[lr]) if lr in row.rates else NONE for lr in rates))
        for row in found.rows.values()
    ]
    return markdown(("initialisation", *(f"{lr:g}" for lr in rates)), rows)


def _thresholds(found: Found) -> str:
    rows = []
    for row in found.rows.values():
        cells = []
        for threshold in THRESHOLDS:
            when = reached(list(row.results.values()), threshold)
            if when.epochs is None or when.seconds is None:
                cells.append(f"{when.seeds} of {when.of} seeds")
            else:
                cells.append(f"{when.epochs:.1f} epochs, {when.seconds:.0f} s")
        rows.append((row.label, *cells))
    return markdown(("initialisation", *(f"to {percent(t, 0)} %" for t in THRESHOLDS)), rows)


def _start_seconds(found: Found) -> str:
    keys = ("load_and_generate_seconds", "calibration_seconds")
    rows = [
        (row.label, *(f"{interval(row.values(key))[0]:.2f}" for key in keys)) for row in found.rows.values()
    ]
    return markdown(("initialisation", "load and generate", "calibrate BatchNorm"), rows)


def ensembles(found: Found) -> str:
    """Every measure of every size, as it is and after temperature scaling, clean and by severity."""
    parts = [
        "Members' logits are averaged. Temperatures are chosen on clean validation images. Ensembles share "
        "members, so no interval is given. Corruptions are CIFAR-10-C style, seeded, of our own make."
    ]
    severities = sorted({s for one in found.ensembles for s in one["result"]["sizes"]["1"]}, key=int)
    for severity in severities:
        parts.append("## Clean images" if severity == "0" else f"## Severity {severity}")
        rows = []
        for one in found.ensembles:
            for size, conditions in sorted(one["result"]["sizes"].items(), key=lambda item: int(item[0])):
                for suffix, scaled in (("", "as it is"), (" scaled", "scaled")):
                    values = conditions[severity]
                    cells = [
                        f"{factor * values[measure + suffix]:.{1 if factor == 100 else 3}f}"
                        for measure, (_, factor) in MEASURES.items()
                    ]
                    rows.append((label(one["settings"]["initialisation"]), size, scaled, *cells))
        header = ("initialisation", "networks", "temperature", *(title for title, _ in MEASURES.values()))
        parts.append(markdown(header, rows))
    parts += ["## Members", "Means over pairs, clean test images.", _members(found)]
    parts += ["## Pictures", "Dashed and hollow: after temperature scaling."]
    return "\n\n".join(parts)


def _members(found: Found) -> str:
    rows = []
    for one in found.ensembles:
        result = one["result"]
        count = len(result["cosine"])
        upper = [(i, j) for i in range(count) for j in range(i)]
        cosine, apart = (
            sum(result[key][i][j] for i, j in upper) / len(upper) for key in ("cosine", "disagreement")
        )
        scale = result["temperature"]["1"]
        rows.append(
            (label(one["settings"]["initialisation"]), f"{cosine:.3f}", percent(apart), f"{scale:.2f}")
        )
    header = ("initialisation", "cosine of logits", "disagreement (%)", "temperature, one network")
    return markdown(header, rows)


def noise(found: Found) -> str:
    """Accuracy and diversity of each amplitude, before and after training."""
    rows = []
    for one in found.noise:
        cells = [f"{one['settings']['scale']:g}"]
        for moment in ("before", "after"):
            values = one["result"][moment]
            cells += [percent(values[key]) for key in ("member", "together", "disagreement")]
            cells.append(f"{values['cosine']:.3f}")
        rows.append(cells)
    settings = found.noise[0]["settings"]
    columns = ("mean member (%)", "together (%)", "disagreement (%)", "cosine")
    header = ("amplitude", *(f"{moment}: {name}" for moment in ("before", "after") for name in columns))
    return "\n\n".join(
        [
            f"{settings['members']} networks of `noise_ghn_` each, before training and after "
            f"{settings['epochs']} epochs, lr {settings['lr']:g}, test images.",
            markdown(header, rows),
        ]
    )


def layers(found: Found) -> str:
    """Reconstruction error of each layer beside the lead that generating it alone gives."""
    leads = layer_leads(found.layers)
    rows = [
        (f"`{layer}`", NONE if error is None else f"{error:.3f}", _signed(lead, half))
        for layer, error, lead, half in leads
    ]
    parts = [
        "One layer by `vae_`, all others by He initialisation, one epoch, validation images. "
        "The error is that of the VAE of the layer's name, in units of the variance, on networks held out.",
        markdown(("layer", "reconstruction error", "lead over He (points)"), rows),
    ]
    known = [(error, lead) for _, error, lead, _ in leads if error is not None]
    if len(known) > 2:
        from scipy.stats import spearmanr

        rank, p = spearmanr(*zip(*known, strict=True))
        parts.append(f"Spearman's rank correlation of the two: {rank:.2f} (p = {p:.2f}).")
    return "\n\n".join(parts)


def _signed(mean: float, half: float | None) -> str:
    return ("+" if mean >= 0 else "") + with_interval(mean, half)


def cost(found: Found) -> str:
    """Core-hours and energy of each generator; epochs saved, and networks until it has paid."""
    rows = []
    for one in found.cost:
        result, name = one["result"], one["settings"]["generator"]
        hours = result["core_hours"]
        row = found.rows.get(name)
        cells = [_paid(found, row, hours, threshold) if row else NONE for threshold in THRESHOLDS]
        rows.append((f"`{name}`", f"{hours:.2f}", f"{kilowatt_hours(hours):.3f}", *cells))
    header = ("generator", "core-hours", "kWh", *(f"to {percent(t, 0)} %" for t in THRESHOLDS))
    return "\n\n".join(
        [
            "Core-hours are the manifest's: all that led to the file, earlier stages included. "
            f"Energy is an estimate, at an assumed {WATTS_PER_CORE:g} W for a busy core.",
            "Columns on the right: epochs that a network saves over He initialisation until that accuracy. "
            "Then the number of networks after which the core-hours are saved.",
            markdown(header, rows),
        ]
    )


def _paid(found: Found, row: Row, core_hours: float, threshold: float) -> str:
    if found.reference is None:
        return NONE
    he, own = (reached(list(one.results.values()), threshold) for one in (found.reference, row))
    if he.epochs is None or own.epochs is None or he.seconds is None or own.seconds is None:
        return NONE
    threads = int(next(iter(row.results.values()))["threads"])
    networks = networks_until_paid(core_hours, he.seconds - own.seconds, threads)
    paid = "never" if networks is None else f"{networks} networks"
    return f"{he.epochs - own.epochs:.1f} epochs, {paid}"


def literature(found: Found) -> str:
    """Others' claims, each with its source, beside the nearest number of ours."""
    known = claims.read()
    rows = [
        (
            one.method,
            str(one.year),
            one.data,
            one.claim,
            f"{one.source} ({one.read})",
            _nearest(found, one.nearest),
            one.not_comparable,
        )
        for one in known.claims
    ]
    header = ("method", "year", "on", "claim", "source, and what was read of it", "ours", "what differs")
    return f"Collected in {known.collected}, from where the table says.\n\n{markdown(header, rows)}"


def _nearest(found: Found, nearest: claims.Nearest | None) -> str:
    if nearest is None:
        return NONE
    row = found.rows.get(nearest.initialisation)
    if row is None or found.setup is None:
        return "not measured yet"
    where = f"{label(nearest.initialisation)}, {_network(found)}, {found.setup['data_name']}"
    if nearest.what == "before":
        return f"{with_interval(*interval(row.values('validation', 0)))} %, {where}, not trained"
    when = f"{found.setup['epochs']} epochs"
    if nearest.what == "after":
        return f"{with_interval(*interval(row.values('test')))} %, {where}, {when}"
    if found.reference is None:
        return "not measured yet"
    return f"{_signed(*row.lead(found.reference).interval())} points over He, {where}, {when}"


def _network(found: Found) -> str:
    setup = found.setup or {}
    depth = 2 * sum(setup["blocks"]) + 2
    return f"ResNet-{depth} of widths {'-'.join(map(str, setup['widths']))}"


def settings(found: Found) -> str:
    """What all records share."""
    setup = found.setup or {}
    rows = [
        ("network", _network(found)),
        ("images", f"{setup['data_name']}, file {setup['data']}"),
        ("training, validation, test images", f"{setup['train']}, {setup['validation']}, {setup['test']}"),
        ("epochs", str(setup["epochs"])),
        ("optimizer", "SGD, Nesterov momentum 0.9; the rate rises over the first fifth, then falls to 0"),
        ("batch", str(setup["batch_size"])),
        ("weight decay", f"{setup['weight_decay']:g}"),
        ("BatchNorm calibrated on", f"{setup['calibrate']} training images, all initialisations"),
        ("precision", "bfloat16 autocast" if setup["amp"] else "float32"),
    ]
    return "## Settings\n\n" + markdown(("setting", "value"), rows)
