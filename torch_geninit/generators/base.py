"""What every generator shares: its config, and the questions that it must answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules import module as _module

from torch_geninit.generators.compact import Compact
from torch_geninit.generators.entry import Entry
from torch_geninit.generators.probe import Probe
from torch_geninit.generators.request import Request
from torch_geninit.graph.architecture import Architecture

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


class WeightGenerator(nn.Module):
    """Base of the networks that make weights.

    A generator is built from its config's ``sizes``, is asked a request and returns compact predictions; it
    never sees a module, nor the plan of one. It is asked in this order: :meth:`trace` once for each model,
    :meth:`refusal` for each parameter, and :meth:`predict` for what is to be generated. Whether that is to be
    trusted is measured by who plans, on its :attr:`probe`.

    A subclass sets :attr:`kind` and overrides :meth:`refusal` and :meth:`predict`. Overrides
    draw from no global random state and change nothing of the generator: one that is loaded once serves many
    models, by turns.

    Attributes:
        config: the JSON object of the file's header.
    """

    kind: ClassVar[str]
    unread: ClassVar[str] = "the forward pass doesn't reach it"
    """Why a parameter may be missing from the graph that :meth:`trace` returns."""
    taken_on_trust: ClassVar[str] = ""
    """Why its prediction is never judged; empty where it is."""
    source: str = ""
    """What it was loaded by: a name, a path; empty for one that was built."""
    probe: Probe | None = None
    """Images to measure its predictions on, where its file has some; no part of the state dict."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Compute without the hooks that others registered for all modules of the process."""
        modules = list(self.modules()) if any(getattr(_module, name, None) for name in _GLOBAL_HOOKS) else []
        before = [module.__dict__.get("_compiled_call_impl") for module in modules]
        try:
            for module in modules:
                module._compiled_call_impl = module.forward
            yield
        finally:
            for module, call in zip(modules, before, strict=True):
                module.__dict__["_compiled_call_impl"] = call

    def trace(self, model: nn.Module, example_inputs: Any = None) -> Architecture:
        """Read ``model`` as this generator was trained to see networks; the model itself is never called.

        An override answers with the graph that this generator's encoder reads, whose nodes name parameters
        as ``model.named_parameters()`` does.

        Raises:
            TraceError: if the model can't be run on these (or the guessed) inputs.
        """
        from torch_geninit.graph.tracer.trace import trace

        return trace(model, example_inputs)

    def check_unchanged(self, source: str) -> None:
        """Raise a ValueError if the generator was cast or moved: values must not depend on the machine."""
        for name, tensor in self.named_parameters():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ValueError(
                    f"the generator {source} was changed after loading: expected its {name} as torch.float32 "
                    f"on the CPU, got {tensor.dtype} on {tensor.device}. Load it again; the model may be "
                    "anywhere and of any type"
                )

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        """Say why this generator can't fill ``entry``, or None if it can.

        An override must refuse whatever :meth:`predict` would fail on: a refused parameter keeps its values,
        a failed prediction fails the whole call. The reason goes into the plan, in a few words and without a
        full stop.
        """
        raise NotImplementedError

    def predict(
        self, request: Request, *, seed: int | None = None, noise_scale: float = 1.0
    ) -> Mapping[str, Compact]:
        """Return a compact prediction for every entry of ``request`` that is to be generated.

        An override runs in float32 on one CPU thread without autograd, and draws noise from
        :func:`~torch_geninit.generators.rng.noise_stream` alone, one stream a parameter: so the values of one
        don't depend on which others are asked for.

        Args:
            request: what to predict for.
            seed: of the noise; None where the method takes none.
            noise_scale: factor on the noise, 0 for the same network with every seed.

        Returns:
            The name of each of ``request.generated`` -> its prediction, of the entry's shape.
        """
        raise NotImplementedError
