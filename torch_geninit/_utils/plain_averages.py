"""Running statistics as plain averages, at the operations that update them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def memory(tensor: Tensor) -> Hashable:
    """Tell tensors apart by where their values are."""
    return tensor.data_ptr() or id(tensor) if type(tensor) is Tensor else id(tensor)


class PlainAverages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Turn every update of running statistics into one of a plain average.

    Python, TorchScript and exported graphs all end in the same operations, which get the momentum 1 / n in
    their n-th call, and the mode of training. A traced graph has momentum and mode built in, and a layer's
    own forward may hand on what it likes: neither listens to the layer's attributes.

    Args:
        counters: running means, each with what is called before an update of it and returns n.
    """

    EVALUATION: ClassVar[Mapping[str, Any]] = {
        "aten::_native_batch_norm_legit_no_training": torch.ops.aten.native_batch_norm.default,
        "aten::_batch_norm_no_update": torch.ops.aten._batch_norm_with_update.default,
    }
    """Operations that have no mode of training, and those that return the same from batch statistics."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # What would keep the compiler out of the mode imports it first, which takes more than a second.
        return False

    def __init__(self, counters: Iterable[tuple[Tensor, Callable[[], int]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counters = {memory(mean): count for mean, count in counters}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "batch_norm" not in func._schema.name:
            return func(*_tensors(func, args), **kwargs)
        given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
        mean = given.get("running_mean")
        count_update = self.counters.get(memory(mean)) if isinstance(mean, Tensor) else None
        if count_update is None:
            return func(*args, **kwargs)
        factor = 1 / count_update()
        given.update((name, factor) for name in ("momentum", "exponential_average_factor") if name in given)
        if "training" in given:
            given["training"] = True
        if func._schema.name in self.EVALUATION:
            func = self.EVALUATION[func._schema.name]
            if "training" in {a.name for a in func._schema.arguments}:
                given["training"] = True
        return func(**given)


def _tensors(func: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Undo what TorchScript does to constants that it compares: they arrive as numbers."""
    if any(isinstance(arg, Tensor) for arg in args):
        return args
    wanted = [str(argument.type) == "Tensor" for argument in func._schema.arguments]
    return [
        torch.tensor(arg) if tensor and isinstance(arg, bool | int | float) else arg
        for arg, tensor in zip(args, wanted, strict=False)
    ]
