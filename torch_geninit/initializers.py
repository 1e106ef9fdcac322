"""The initialisers and their plan: signatures and what they promise; the steps are planning/fill.py's."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import nn

from torch_geninit.graph.architecture import Architecture
from torch_geninit.hub.download import HubOptions
from torch_geninit.planning.choose import DEFAULTS, Pretrained
from torch_geninit.planning.fill import fill, make_plan
from torch_geninit.planning.filters import Patterns
from torch_geninit.planning.options import Head, PlanOptions, Untrusted
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.prediction import StatisticsOption, Unfilled

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def vae_(
    module: ModuleT,
    *,
    pretrained: Pretrained = DEFAULTS["vae"],
    generator: torch.Generator | None = None,
    seed: int | None = None,
    name: str = "",
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ModuleT:
    """Fill the convolutions of ``module`` with kernels that slice VAEs draw, in place.

    Each k x k slice of a convolution's weight is the decoding of its own latent, by the VAE that was trained
    on slices of layers of that kernel size nearest in relative depth (Harder et al., 2023), depthwise layers
    by one of depthwise layers. A first layer's filters may be drawn whole:

        W[o, i] = decode(z[o, i]),   z[o, i] ~ N(0, I)

    Biases, norms and linear layers keep the values they have.

    Args:
        module: a network or a single convolution.
        pretrained: a name from ``list_pretrained``, a path to a .safetensors file, or what ``load``
            returned.
        generator: random source from which one seed is drawn.
        seed: the seed itself. With neither, one is drawn from torch's global random state, as torch.nn.init
            does; none if there is nothing to fill.
        name: where ``module`` belongs in a larger network, as ``"layer1.0.conv1"``. Noise goes by parameter
            names: two equal layers filled with the same seed and name are equal. It says nothing of depth: a
            layer on its own counts as half-way down, but as a first one if it has as many inputs as images
            have channels.
        include: names or glob patterns of the only parameters to fill; one that fills none is reported.
        exclude: names or glob patterns of parameters to leave as they are; any name of a tied one will do.
        strict: raise instead of warning if a convolution can't be filled.
        revision, cache_dir, local_files_only, token: of the Hugging Face Hub, used if the file is not here
            yet.

    Returns:
        ``module`` itself.

    Raises:
        StrictError: with ``strict=True``, names the parameters that can't be filled.
        ValueError: if a parameter to fill is on the meta device, lazy, quantised or not of a floating type.
        HubError: if the generator can't be loaded. After any error the module is as it was.

    Warns:
        GenInitWarning: once, if convolutions are left as they are because no VAE was trained on their kernel
            size, or on depthwise ones of that size alone; if nothing is written at all; and if a layer on its
            own gets the very draws of another one, for the same seed and no ``name``.

    Examples:
        >>> layer = torch.nn.Conv2d(16, 16, 3)
        >>> layer is geninit.vae_(layer, seed=0)
        True
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator: expected a torch.Generator, got {type(generator).__name__}; "
                "learned weights are chosen with pretrained="
            )
        if seed is not None:
            raise ValueError("expected generator= or seed=, got both")
    return fill(
        module,
        "vae",
        pretrained,
        HubOptions(revision, cache_dir, local_files_only, token),
        PlanOptions(name=name, include=include, exclude=exclude),
        seed=seed,
        generator=generator,
        strict=strict,
    )


def ghn_(
    model: ModuleT,
    *,
    pretrained: Pretrained = DEFAULTS["ghn"],
    example_inputs: Any = None,
    graph: Architecture | None = None,
    head: Head = "auto",
    untrusted: Untrusted = "keep",
    unfilled: Unfilled = "keep",
    statistics: StatisticsOption = "fill",
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ModuleT:
    """Fill ``model`` with the weights that a graph hypernetwork predicts from its architecture, in place.

        W = H(A; theta)

    where A is the graph of the model's operations and theta was trained on many other networks. Nothing is
    random: the same architecture gets the same weights.

    Whether that is any good is measured first: a private copy of the model with these weights is run on the
    probe, training images in the hypernetwork's file. A network that is not surely better than chance keeps
    all its values, with a warning, unless ``untrusted="generate"`` asks for the prediction all the same.

    Args:
        model: any network. It is not called; its forward pass runs on a copy, and may have effects outside
            of it, such as files that it writes (see ``trace``).
        pretrained: ``"auto"`` for the one that does best on its probe among those whose files are here, a
            name from ``list_pretrained``, a path to a .safetensors file, or what ``load`` returned.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments to trace with; guessed
            for images and tokens.
        graph: what ``trace`` returned for a model with the same parameters, to save tracing again.
        head: ``"auto"`` generates a classifier with the generator's own number of classes and keeps another;
            ``"keep"`` keeps it; ``"generate"`` raises if it has another number of classes.
        untrusted: what happens to a network that is not surely better than chance on the probe
            (``expect``), or has layers that can't be generated: ``"keep"`` leaves it as it is,
            ``"generate"`` fills what can be filled, which may be worse than random numbers.
        unfilled: what happens to parameters that are not generated, excluded and frozen ones among them.
            ``"keep"``: nothing. ``"reset"``: their modules, and modules with buffers, call
            ``reset_parameters()`` first, which draws from torch's global random state; for models that come
            out of ``to_empty``. ``"error"``: raise if there are any.
        statistics: ``"fill"`` gives the BatchNorms that are filled the running statistics of the probe, so
            that ``model.eval()`` is the network that was measured; ``"keep"`` leaves theirs.
        include: names or glob patterns of the only parameters to fill; one that fills none is reported.
        exclude: names or glob patterns of parameters to leave as they are; any name of a tied one will do.
        strict: raise instead of warning if parameters can't be filled.
        revision, cache_dir, local_files_only, token: of the Hugging Face Hub, used if the file is not here
            yet.

    Returns:
        ``model`` itself.

    Raises:
        StrictError: with ``strict=True`` or ``unfilled="error"``, names the parameters that would not be
            filled.
        TraceError: if the architecture can't be read.
        ValueError: if a parameter to fill is on the meta device, lazy, quantised or not of a floating type,
            or if the head or the graph doesn't fit.
        HubError: if the generator can't be loaded. After any error the model is as it was.

    Warns:
        GenInitWarning: once, if parameters are left as they are because they are unsupported, unreached or
            untrusted; if nothing is written at all; or if ``untrusted="generate"`` fills what is not trusted.

    Examples:
        >>> from torch_geninit.training.networks.resnet import resnet20
        >>> model = geninit.ghn_(resnet20())
    """
    return fill(
        model,
        "ghn",
        pretrained,
        HubOptions(revision, cache_dir, local_files_only, token),
        PlanOptions(
            example_inputs=example_inputs,
            graph=graph,
            head=head,
            untrusted=untrusted,
            include=include,
            exclude=exclude,
        ),
        unfilled=unfilled,
        statistics=statistics,
        strict=strict,
    )


def noise_ghn_(
    model: ModuleT,
    seed: int,
    *,
    pretrained: Pretrained = DEFAULTS["noise_ghn"],
    noise_scale: float = 1.0,
    example_inputs: Any = None,
    graph: Architecture | None = None,
    head: Head = "auto",
    untrusted: Untrusted = "keep",
    unfilled: Unfilled = "keep",
    statistics: StatisticsOption = "fill",
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ModuleT:
    """Fill ``model`` with one of many weight sets that a noise hypernetwork predicts, in place.

        W = H(A, sigma * e; theta),   e ~ N(0, I)

    Each seed gives another member of an ensemble; the same seed and architecture give the same weights, and
    no global random state is read. If the generator's config says ``mirror``, members of odd seeds have
    kernels mirrored left to right, so an ensemble is best made of consecutive seeds.

    Args:
        model: any network. It is not called; its forward pass runs on a copy, and may have effects outside
            of it, such as files that it writes (see ``trace``).
        seed: of the noise.
        noise_scale: sigma; 0 gives every seed the same weights, without mirroring, larger values more
            different members.
        pretrained, example_inputs, graph, head, untrusted, unfilled, statistics, include, exclude, strict: as
            ``ghn_``.
        revision, cache_dir, local_files_only, token: as in ``ghn_``.

    Returns:
        ``model`` itself.

    Raises:
        StrictError, TraceError, ValueError, HubError: as ``ghn_``.

    Warns:
        GenInitWarning: as ``ghn_``.

    Examples:
        >>> from torch_geninit.training.networks.resnet import resnet20
        >>> members = [geninit.noise_ghn_(resnet20(), seed) for seed in range(2)]
        >>> torch.equal(members[0].conv1.weight, members[1].conv1.weight)
        False
    """
    return fill(
        model,
        "noise_ghn",
        pretrained,
        HubOptions(revision, cache_dir, local_files_only, token),
        PlanOptions(
            example_inputs=example_inputs,
            graph=graph,
            head=head,
            untrusted=untrusted,
            include=include,
            exclude=exclude,
        ),
        seed=seed,
        noise_scale=noise_scale,
        unfilled=unfilled,
        statistics=statistics,
        strict=strict,
    )


def plan(
    model: nn.Module,
    method: Method = "ghn",
    *,
    pretrained: Pretrained | None = None,
    example_inputs: Any = None,
    graph: Architecture | None = None,
    head: Head = "auto",
    untrusted: Untrusted = "keep",
    name: str = "",
    include: Patterns = None,
    exclude: Patterns = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Plan:
    """Say for every parameter of ``model`` what an initialiser would do with it, and why; write nothing.

    Works on the meta device. The initialiser called with the same arguments does what the plan says, or
    raises if the memory of a parameter can't be written. Seeds and noise belong to ``Plan.write_``.

    Args:
        model: any network. It is not called; its forward pass runs on a copy, and may have effects outside
            of it, such as files that it writes (see ``trace``).
        method: ``"vae"``, ``"ghn"`` or ``"noise_ghn"``.
        pretrained: as the initialiser's; by default its own.
        example_inputs, graph, head, untrusted: as in ``ghn_``; ``"vae"`` has no use for them.
        name: as in ``vae_``.
        include, exclude: as the initialiser's.
        revision, cache_dir, local_files_only, token: as the initialiser's.

    Returns:
        The plan; print it, or apply it with ``Plan.write_``.

    Raises:
        TraceError, ValueError, HubError: as the initialiser.

    Examples:
        >>> plan = geninit.plan(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), "vae")
        >>> [entry.route.value for entry in plan]
        ['generated', 'kept']
    """
    hub = HubOptions(revision, cache_dir, local_files_only, token)
    options = PlanOptions(
        example_inputs=example_inputs,
        graph=graph,
        head=head,
        untrusted=untrusted,
        name=name,
        include=include,
        exclude=exclude,
    )
    return make_plan(model, method, pretrained, hub, options)[0]
