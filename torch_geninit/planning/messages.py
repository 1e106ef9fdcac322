"""What an initialiser says of a plan, in at most three lines: what it leaves, why, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch_geninit.errors import StrictError
from torch_geninit.generators.entry import Entry
from torch_geninit.planning.filters import NAMED
from torch_geninit.planning.measure import ON_META
from torch_geninit.planning.plan import Plan
from torch_geninit.planning.prediction import Unfilled

REASONS = 3
"""How many reasons a message spells out."""


def warning(plan: Plan, *, unfilled: Unfilled = "keep") -> str | None:
    """Say what a user should know of a plan that is carried out; None if it fills all that it is to fill."""
    lines = [
        _filled_without_trust(plan),
        _filled_unmeasured(plan),
        left_out(plan, unfilled=unfilled),
        _nothing_written(plan),
    ]
    return "\n".join(line for line in lines if line is not None) or None


def left_out(plan: Plan, *, unfilled: Unfilled = "keep", strict: bool = False) -> str | None:
    """Say what is skipped and why, and in a second line what to do; None if nothing is."""
    if not plan.skipped:
        return None
    counts = f"{len(plan.skipped)} of {len(plan.entries)} parameters of {plan.model}"
    fate = f"leaves {counts} as they are"
    if unfilled == "reset":
        fate = f"does not generate {counts}, whose modules reset them"
    return f"{plan.method}_ {fate}: {_reasons(plan.skipped)}.\n{_remedy(plan, strict)}"


def refuse_left_out(plan: Plan, strict: bool) -> None:
    """Check the option ``strict``; raise a StrictError with it if anything is skipped."""
    if not isinstance(strict, bool):
        raise TypeError(f"strict: expected True or False, got {strict!r}")
    if strict and (message := left_out(plan, strict=True)) is not None:
        names = ", ".join(entry.name for entry in plan.skipped[:10])
        more = ", ..." if len(plan.skipped) > 10 else ""
        raise StrictError(f"{message}\nThese are {names}{more}; nothing was changed")


def packed(plan: Plan, layers: Sequence[str], strict: bool) -> str | None:
    """Say in a line which layers have weights that are no parameters; an error with ``strict``."""
    if not layers:
        return None
    count = f"{len(layers)} quantised layers" if len(layers) > 1 else "a quantised layer"
    message = (
        f"{plan.method}_ leaves {count} of {plan.model} as they are (first: {layers[0]}): their weights are "
        "no parameters. Fill the model before it is quantised."
    )
    if strict:
        raise StrictError(f"{message} Nothing was changed")
    return message


def _remedy(plan: Plan, strict: bool) -> str:
    by_object = plan.source == plan.pretrained.config.get("kind")  # an object has no name to pass
    chosen = "" if by_object else f", pretrained={plan.source!r}"
    shown = f'geninit.plan(model, "{plan.method}"{chosen}).table() lists them all.'
    if plan.verdict is not None and not plan.verdict.trusted and not plan.generated:
        return f'untrusted="generate" fills it all the same, and it may then start worse than it is; {shown}'
    named = all(entry.reason.startswith(NAMED) for entry in plan.skipped)
    where = "Leave them out of include=" if named else "Name them in exclude="
    error = "" if strict else ", or make it an error with strict=True"
    return f"{where} if that is as it should be{error}; {shown}"


def _filled_without_trust(plan: Plan) -> str | None:
    """Say in a line what ``untrusted="generate"`` did."""
    if plan.verdict is None or plan.verdict.trusted or not plan.generated:
        return None
    return (
        f"{plan.method}_ fills {len(plan.generated)} of {len(plan.entries)} parameters of {plan.model}, "
        f"as asked, although {plan.source} does not trust its prediction: {plan.verdict.reason}."
    )


def _filled_unmeasured(plan: Plan) -> str | None:
    """Say in a line that what is filled could not be tried, where the generator has images to try it on."""
    verdict = plan.verdict
    if verdict is None or verdict.measured is not None or not verdict.trusted or not plan.generated:
        return None
    if plan.pretrained.probe is None or verdict.reason.endswith(ON_META):
        return None
    return (
        f"{plan.method}_ fills {len(plan.generated)} of {len(plan.entries)} parameters of {plan.model} "
        f"{verdict.reason}. Pass example_inputs= of the size of your images if they are smaller, and run "
        "geninit.recalibrate_bn_ before evaluating."
    )


def _nothing_written(plan: Plan) -> str | None:
    """Say in a line why a model is left as it is by design; a layer without parameters is none of a VAE's."""
    if not plan.entries and plan.method != "vae":
        return f"{plan.method}_ writes nothing to {plan.model}, which has no parameters."
    if plan.generated or plan.skipped or not plan.entries:
        return None
    every = f"{len(plan.entries)} parameters" if len(plan.entries) > 1 else "its one parameter"
    return f"{plan.method}_ writes nothing to {plan.model}, since it keeps {every}: {_reasons(plan.kept)}."


def _reasons(entries: Sequence[Entry]) -> str:
    reasons = Counter(entry.reason for entry in entries)
    first = {entry.reason: entry.name for entry in reversed(entries)}
    parts = [f"{count} x {reason} (first: {first[reason]})" for reason, count in reasons.most_common(REASONS)]
    if len(reasons) > REASONS:
        parts.append(f"{len(reasons) - REASONS} more reasons")
    return "; ".join(parts)
