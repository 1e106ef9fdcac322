"""What can't be copied: a stand-in that refuses to be used, and the error that says so."""

from __future__ import annotations

from typing import NoReturn


class CannotFollow(NotImplementedError):
    """Says in words what the tracer can't follow; other inputs would not help."""


class Uncopied:
    """Stands in a copy for an object that can't be copied; refuses to be used."""

    __slots__ = ("_refuse",)

    def __init__(self, value: object, error: BaseException) -> None:
        kind = type(value)
        text = (
            f"forward uses a {kind.__module__}.{kind.__qualname__}, which can't be copied "
            f"({type(error).__name__}: {str(error)[:200]}), and the model's own must not change. Put "
            "something that can be copied in its place for the trace, and pass the graph with graph="
        )

        def refuse(*_: object, **__: object) -> NoReturn:
            raise CannotFollow(text)

        object.__setattr__(self, "_refuse", refuse)

    def __bool__(self) -> bool:
        return True


def _refuse(self: Uncopied, *_: object) -> NoReturn:
    object.__getattribute__(self, "_refuse")()
    raise AssertionError


for _name in """__getattr__ __setattr__ __delattr__ __call__ __enter__ __exit__ __iter__ __next__ __len__
        __getitem__ __setitem__ __delitem__ __contains__ __index__ __int__ __float__""".split():
    setattr(Uncopied, _name, _refuse)
