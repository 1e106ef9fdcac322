"""A layer on its own: no hypernetwork can read it, and VAEs draw the same for each that goes by no name."""

from __future__ import annotations

from weakref import WeakValueDictionary

from torch import nn

from torch_geninit.planning.plan import Method, Plan


def is_lone_layer(module: nn.Module) -> bool:
    """Return whether ``module`` is a single layer of torch.nn with parameters, parametrized or not."""
    kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
    of_torch = any(kind.__module__.startswith("torch.nn.modules.") for kind in kinds)
    attention = isinstance(module, nn.MultiheadAttention)  # with a linear layer of its own
    alone = attention or all(name == "parametrizations" for name, _ in module.named_children())
    return (
        of_torch
        and alone
        and not isinstance(module, nn.ParameterList | nn.ParameterDict)
        and next(module.parameters(), None) is not None
    )


def refuse_lone_layer(module: nn.Module, method: Method) -> None:
    """Raise a ValueError if a hypernetwork is asked for a single layer, as ``model.apply(ghn_)`` does."""
    if is_lone_layer(module):
        raise ValueError(
            f"{method}_ wants the whole network, got a single {type(module).__name__}: a hypernetwork "
            "predicts weights from the architecture around them.\n"
            f"Instead of model.apply({method}_), call {method}_(model) once. For a layer on its own there is "
            "vae_(layer). For parts of a network:\n"
            f'  prediction = geninit.plan(model, "{method}").predict()\n'
            "  prediction.write_(model.layer1)\n"
            "Nothing was changed"
        )


class EqualDraws:
    """Layers that were filled on their own, by all that their draws depend on, as long as they are alive."""

    def __init__(self) -> None:
        self._filled: WeakValueDictionary[tuple[object, ...], nn.Module] = WeakValueDictionary()

    def warning(self, layer: nn.Module, plan: Plan, seed: int) -> str | None:
        """Note ``layer``; say so if another one alive was filled with the same draws."""
        generated = plan.generated
        if not generated or not is_lone_layer(layer):
            return None
        drawn = tuple((entry.canonical, entry.shape, entry.layer) for entry in generated)
        by = plan.pretrained.source or id(plan.pretrained)  # a name is loaded anew for each call
        earlier = self._filled.setdefault((by, seed, drawn), layer)
        if earlier is layer or any(p is q for p in layer.parameters() for q in earlier.parameters()):
            return None
        return (
            f"vae_ gives this {type(layer).__name__} the very weights of another one: noise goes by seed and "
            f"name, and both came with seed={seed} and no name.\n"
            f"Call vae_(model, seed={seed}) on the whole model, which knows the names, or pass name= for "
            "each layer."
        )
