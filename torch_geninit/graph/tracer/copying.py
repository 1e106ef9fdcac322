"""Copy what a model owns, in one file because each kind of object is met inside of the others.

Not ``copy.deepcopy``: that shares what it can't copy, leaves out closures and weak references, brings hooks
along, and calls ``__deepcopy__`` and ``__reduce__`` of anyone's, which may hand back the object itself.
"""

from __future__ import annotations

import _thread
import contextvars
import copy
import enum
import functools
import io
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.graph.tracer.stand_ins import StandIn, StandInCopies
from torch_geninit.graph.tracer.structure import ATOMS, CONTAINERS, Structures
from torch_geninit.graph.tracer.uncopied import Uncopied

# What is told by identity, and may have attributes that change.
_NAMED = (type, types.ModuleType, enum.Enum, BaseException)
# What only names something of the process, or can't change.
_SHARED = (
    *(logging.Logger, logging.Handler),
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType),
    types.WrapperDescriptorType,
)
_IN_PYTHON = 1 << 9
"""Flag of classes that a class statement made."""
_LOCK, _RLOCK, _LOCAL = _thread.allocate_lock, threading.RLock, threading.local
# Python's, and what torch brings along.
_LIBRARIES = sys.stdlib_module_names | {
    *("torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2"),
    *("markupsafe", "fsspec", "filelock", "typing_extensions", "setuptools"),
}
_HANDLES = ("torch.distributed", "torch._dynamo", "torch._subclasses", "torch.cuda", "typing")
_FOLLOWED = (types.FunctionType, type, types.ModuleType)
# What a function may close over without having a state of its own.
_NAMES = (type, types.ModuleType, types.BuiltinFunctionType, str)


def is_library(value: Any) -> bool:
    """Whether a class or function belongs to Python, PyTorch or what that needs, whose manners are known."""
    return (getattr(value, "__module__", None) or "").partition(".")[0] in _LIBRARIES


class Copier(Structures):
    """Copy objects of every kind.

    Args:
        stand_in: what takes the place of a tensor.

    Attributes:
        functions: functions that came along as they are.
        named: classes, modules, members of enumerations and exceptions that did.
        variables: context variables that did, and copies of what they hold.
    """

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in
        self.functions: dict[types.FunctionType, None] = {}
        self.named: dict[int, Any] = {}
        self.variables: dict[contextvars.ContextVar[Any], Any] = {}
        self._rules: dict[type, Callable[[Copier, Any], Any]] = {}

    def __call__(self, value: Any) -> Any:
        """Return the copy of any object, itself if nothing about it can change."""
        kind = type(value)
        if kind in ATOMS:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        rule = self._rules.get(kind)
        if rule is None:
            rule = self._rules[kind] = _rule_of(kind)
        try:
            copied = rule(self, value)
        except Exception as error:
            if isinstance(error, MemoryError) or issubclass(kind, nn.Module | Tensor):
                raise
            copied = Uncopied(value, error)
        return copied if copied is value else self.remember(value, copied)

    # One rule for each kind of object.

    def _itself(self, value: Any) -> Any:
        return value

    def _name(self, value: Any) -> Any:
        self.named[id(value)] = value
        return value

    def _variable(self, value: contextvars.ContextVar[Any]) -> Any:
        if value not in self.variables:
            with suppress(LookupError):
                content = value.get()
                self.variables[value] = content
                self.variables[value] = self(content)
        return value

    def _stream(self, value: Any) -> Any:
        shown = sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, sys.__stderr__, sys.__stdin__
        return value if any(value is stream for stream in shown) else self._container(value)

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if is_library(kind) and hasattr(kind, "__deepcopy__"):
            return self._protocol(value)
        if is_library(kind) and _is_bare(value):
            return value  # it may be told by identity, as dataclasses.MISSING
        return self._container(value)

    def _container(self, value: Any) -> Any:
        if hasattr(type(value), "__del__"):  # the copy's end would free what the original has
            if _root(value) == "torch":
                return value
            raise TypeError("it has a __del__, which would run for the copy, too")
        try:
            shell = self.shell(value)
        except TypeError:
            return self._reduced(value)
        return self.fill(value, shell)

    def _module(self, value: Any) -> Any:
        if not isinstance(value, torch.jit.ScriptModule):
            return self.fill(value, self.shell(value))
        with StandInCopies(self.stand_in):
            return copy.deepcopy(value, self.memo)

    def _tensor(self, value: Any) -> Any:
        copied = self.remember(value, self.stand_in(value))
        if value.__dict__:
            copied.__dict__.update(self(dict(value.__dict__)))
        return copied

    def _frozen(self, value: Any) -> Any:
        items = [self(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        base: Any = tuple if isinstance(value, tuple) else frozenset
        copied = base.__new__(type(value), items)
        if getattr(value, "__dict__", None):
            vars(copied).update(self(value.__dict__))
        return copied

    def _function(self, value: types.FunctionType) -> Any:
        inner = value.__dict__.get("_torchdynamo_orig_callable")
        if inner is not None:  # a compiled implementation
            return self(inner)
        if is_library(value) or not self._stateful(value):
            self.functions[value] = None
            for cell in value.__closure__ or ():  # what a decorator wraps
                if not is_library(value) and isinstance(cell.cell_contents, _FOLLOWED):
                    self(cell.cell_contents)
            return value
        cells = tuple(map(self._cell, value.__closure__ or ()))
        copied = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
        self.remember(value, copied)
        copied.__defaults__ = self(value.__defaults__)
        copied.__kwdefaults__ = self(value.__kwdefaults__)
        copied.__dict__.update(self(value.__dict__))
        copied.__qualname__, copied.__module__ = value.__qualname__, value.__module__
        self.functions[copied] = None
        return copied

    def _stateful(self, function: types.FunctionType) -> bool:
        """Whether a function closes over something, or carries something, that may change."""
        if any(not _is_name(cell) for cell in function.__closure__ or ()):
            return True
        carried = *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()
        return any(self(item) is not item for item in (*carried, *function.__dict__.values()))

    def _cell(self, value: types.CellType) -> types.CellType:
        copied: types.CellType
        if id(value) in self.memo:
            copied = self.memo[id(value)]
            return copied
        copied = self.remember(value, types.CellType())
        try:
            content = value.cell_contents
        except ValueError:  # not assigned yet
            return copied
        copied.cell_contents = self(content)
        return copied

    def _method(self, value: types.MethodType) -> Any:
        owner, function = self(value.__self__), self(value.__func__)
        if owner is value.__self__ and function is value.__func__:
            return value
        return types.MethodType(function, owner)

    def _builtin(self, value: types.BuiltinMethodType) -> Any:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType | type):
            return value
        copied = self(owner)
        return value if copied is owner else getattr(copied, value.__name__)

    def _partial(self, value: functools.partial[Any]) -> Any:
        copied = type(value)(self(value.func), *map(self, value.args), **self(value.keywords))
        copied.__dict__.update(self(value.__dict__))
        return copied

    def _cached(self, value: Any) -> Any:
        """Give the copy a cache of its own, still empty."""
        make = functools.lru_cache(**value.cache_parameters())
        copied: Any = self.remember(value, make(self(value.__wrapped__)))
        copied.__dict__.update(
            (key, self(item)) for key, item in value.__dict__.items() if key not in copied.__dict__
        )
        return copied

    def _reference(self, value: Any) -> Any:
        target = value()
        if target is None:
            return value
        copied = self(target)  # kept alive by the memo
        return value if copied is target else weakref.ref(copied)

    def _proxy(self, value: Any) -> Any:
        try:
            target = value.__repr__.__self__
        except ReferenceError:
            return value
        copied = self(target)
        return value if copied is target else weakref.proxy(copied)

    def _weak_mapping(self, value: Any) -> Any:
        copied = self.remember(value, type(value)())
        copied.update({self(key): self(item) for key, item in value.items()})
        return copied

    def _weak_set(self, value: Any) -> Any:
        copied = self.remember(value, type(value)())
        copied.update([self(item) for item in value])
        return copied

    def _view(self, value: Any) -> Any:
        return types.MappingProxyType(self(dict(value)))

    def _lock(self, value: Any) -> Any:
        return _LOCK()

    def _rlock(self, value: Any) -> Any:
        return _RLOCK()

    def _local(self, value: Any) -> Any:
        kind: Any = type(value)
        copied = self.remember(value, kind.__new__(kind))
        vars(copied).update(self(dict(vars(value))))
        return copied

    def _generator(self, value: torch.Generator) -> Any:
        copied = torch.Generator()
        if value.device.type == "cpu":
            return copied.set_state(value.get_state())
        return copied.manual_seed(value.initial_seed())

    def _reduced(self, value: Any) -> Any:
        """Copy an object of a class written in C as pickle would, its parts by the rules here."""
        try:
            reduced = value.__reduce_ex__(4)
            if isinstance(reduced, str):  # the name of something of the process
                return value
            make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
            copied = make(*map(self, arguments))
            if copied is value:
                return value
            self.remember(value, copied)
            if state is not None:
                self._set_state(copied, self(state))
            if items is not None:
                copied.extend([self(item) for item in items])
            for key, item in pairs or ():
                copied[self(key)] = self(item)
        except Exception:
            # A stream or a process group of torch is a handle; nothing that a forward pass fills.
            if _root(value) == "torch":
                return value
            raise
        return copied

    def _set_state(self, copied: Any, state: Any) -> None:
        if hasattr(copied, "__setstate__"):
            copied.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        vars(copied).update(attributes or {})
        for name, item in (slots or {}).items():
            setattr(copied, name, item)

    def _protocol(self, value: Any) -> Any:
        try:
            with StandInCopies(self.stand_in):
                return copy.deepcopy(value, self.memo)
        except Exception:
            if _root(value) == "torch":
                return value
            raise


def _is_bare(value: Any) -> bool:
    """Whether an object has no state at all: of a class in Python, without slots, and with nothing set."""
    if getattr(value, "__dict__", None):
        return False
    bases = type(value).__mro__[:-1]
    return all(base.__flags__ & _IN_PYTHON and not vars(base).get("__slots__") for base in bases)


def _is_name(cell: types.CellType) -> bool:
    try:
        content = cell.cell_contents
    except ValueError:
        return False
    if isinstance(content, types.FunctionType):
        return is_library(content) or not (content.__closure__ or content.__defaults__ or content.__dict__)
    return isinstance(content, _NAMES)


def _rule_of(kind: type) -> Callable[[Copier, Any], Any]:
    """Find the rule for the objects of a class."""
    handle = kind.__module__.startswith(_HANDLES) and not issubclass(kind, nn.Module | Tensor)
    if issubclass(kind, _NAMED):
        return Copier._name
    if handle or issubclass(kind, _SHARED):
        return Copier._itself
    if kind in _RULES:
        return _RULES[kind]
    return next((rule for base, rule in _RULES_OF_BASES if issubclass(kind, base)), Copier._object)


def _root(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


_RULES: Mapping[type, Callable[[Copier, Any], Any]] = {
    types.FunctionType: Copier._function,
    types.MethodType: Copier._method,
    types.BuiltinMethodType: Copier._builtin,
    types.MethodWrapperType: Copier._builtin,
    types.CellType: Copier._cell,
    types.MappingProxyType: Copier._view,
    type(functools.lru_cache(maxsize=1)(len)): Copier._cached,
    weakref.ref: Copier._reference,
    weakref.ProxyType: Copier._proxy,
    weakref.CallableProxyType: Copier._proxy,
    type(_LOCK()): Copier._lock,
    type(_RLOCK()): Copier._rlock,
    contextvars.ContextVar: Copier._variable,
    io.StringIO: Copier._reduced,
    io.BytesIO: Copier._reduced,
}
_RULES_OF_BASES: tuple[tuple[Any, Callable[[Copier, Any], Any]], ...] = (
    (nn.Module, Copier._module),
    (Tensor, Copier._tensor),
    (CONTAINERS, Copier._container),
    ((tuple, frozenset), Copier._frozen),
    (functools.partial, Copier._partial),
    ((weakref.WeakKeyDictionary, weakref.WeakValueDictionary), Copier._weak_mapping),
    (weakref.WeakSet, Copier._weak_set),
    (weakref.ref, Copier._reference),
    (threading.local, Copier._local),
    (torch.Generator, Copier._generator),
    (io.IOBase, Copier._stream),
)
