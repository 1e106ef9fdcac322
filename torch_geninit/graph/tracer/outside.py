"""What a forward pass reaches outside of its model, by the names in its code: copied as well, while it runs.

A table in a class attribute, a global or an lru_cache outlives the model's clone. What the clone puts there
would be a trace's: of another type, on another device, or without data.
"""

from __future__ import annotations

import contextvars
import dis
import enum
import functools
import importlib.util
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from torch_geninit.graph.tracer.copying import Copier, is_library
from torch_geninit.graph.tracer.uncopied import Uncopied

_ENTRIES = frozenset(("forward", "setup_context"))
"""What torch calls without being told in the code that is read here."""
_CONSTRUCTION = frozenset(("__init__", "__new__", "__post_init__"))
_UNCALLED = _CONSTRUCTION | frozenset(
    """__init_subclass__ __class_getitem__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __deepcopy__
    __copy__ __repr__ __str__ __del__ __dir__ __sizeof__""".split()
)
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_MISSING = object()


class Names(NamedTuple):
    """The names in a piece of code, nested functions included."""

    read: frozenset[str]
    written: frozenset[str]
    attributes: frozenset[str]
    imported: frozenset[str]


_NAMES: weakref.WeakKeyDictionary[types.CodeType, Names] = weakref.WeakKeyDictionary()
"""What was found in code, which never changes."""


def names_in(code: types.CodeType) -> Names:
    """Return globals that code reads and assigns, all names that may be attributes, and what it imports."""
    if code in _NAMES:
        return _NAMES[code]
    read: set[str] = set()
    written: set[str] = set()
    attributes = set(code.co_names)
    imported: set[str] = set()
    before: list[Any] = [None, None]
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if instruction.argval.isidentifier():  # not what a test runner puts into code
                read.add(instruction.argval)
        elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":  # after how many packages up, and what of it
            imported.add("." * before[0] + instruction.argval)
        before = [before[1], instruction.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_in(constant)
            read |= inner.read
            written |= inner.written
            attributes |= inner.attributes
            imported |= inner.imported
    names = Names(frozenset(read), frozenset(written), frozenset(attributes), frozenset(imported))
    _NAMES[code] = names
    return names


@contextmanager
def copied(copier: Copier) -> Iterator[contextvars.Context]:
    """Let the code of a clone find copies of what it names in classes and modules, and put all back.

    Yields a context to run the code in, whose variables hold copies, too.
    """
    reach = _Reach(copier)
    reach.follow()
    context = contextvars.copy_context()
    for variable, new in copier.variables.items():
        context.run(variable.set, new)
    try:
        reach.swap()
        yield context
    finally:
        reach.put_back()


class _Reach:
    """Follow names from what a copier has copied.

    Attributes:
        classes: class -> its attributes before.
        scopes: id of a module's dictionary -> the dictionary, and those of its names that code uses, before.
        functions: function -> its attributes before.
        instances: id of an object told by identity -> its dictionary, and what was in it before.
        swaps: class or dictionary, name, copy.
    """

    def __init__(self, copier: Copier) -> None:
        self.copier = copier
        self.classes: dict[type, dict[str, Any]] = {}
        self.scopes: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.functions: dict[types.FunctionType, dict[str, Any]] = {}
        self.instances: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.swaps: list[tuple[type | dict[str, Any], str, Any]] = []
        self._names = set(_ENTRIES)
        self._modules: dict[types.ModuleType, None] = {}
        self._constructed: set[type] = set()
        self._visited: set[tuple[int, str]] = set()

    def follow(self) -> None:
        """Visit all that is reachable, until nothing new turns up."""
        before = -1
        while before != (before := self._progress()):
            for value in list(self.copier.named.values()):
                self._meet(value)
            for kind in list(self.copier.classes):
                self._enter(kind)
            for function in list(self.copier.functions):
                if function not in self.functions:
                    self._read(function)
            for kind in list(self.classes):
                for name, value in list(vars(kind).items()):
                    special = name.startswith("__") and name.endswith("__")
                    if self._is_implicit(kind, name, value) if special else name in self._names:
                        self._visit(kind, name, value)
            for module in list(self._modules):
                for name in self._names & vars(module).keys():
                    self._use(vars(module), name)

    def _progress(self) -> int:
        found = self._visited, self.functions, self.classes, self.instances, self._modules, self.copier.named
        return sum(map(len, found))

    def _meet(self, value: Any) -> None:
        """Follow what is told by identity: a class, a module, a member of an enumeration, an exception."""
        if isinstance(value, type):
            self._constructed.update(value.__mro__)
            self._enter(value)
        elif isinstance(value, types.ModuleType):
            if not is_library(types.SimpleNamespace(__module__=value.__name__)):
                self._modules[value] = None
        elif id(value) not in self.instances and hasattr(value, "__dict__"):
            state = vars(value)
            self.instances[id(value)] = state, dict(state)
            for name, item in list(state.items()):
                if name == "_value_" or not name.startswith("_"):
                    self._visit(state, name, item)

    def _enter(self, kind: type) -> None:
        metaclass: type = type(kind)
        for base in (*kind.__mro__, *metaclass.__mro__):
            changeable = not base.__flags__ & _IMMUTABLE and not issubclass(base, enum.Enum)
            if base not in self.classes and changeable and not is_library(base):
                self.classes[base] = dict(vars(base))

    def _is_implicit(self, kind: type, name: str, value: Any) -> bool:
        if not isinstance(getattr(value, "__func__", value), types.FunctionType):
            return False
        return name not in _UNCALLED or (name in _CONSTRUCTION and kind in self._constructed)

    def _read(self, function: types.FunctionType) -> None:
        self.functions[function] = dict(function.__dict__)
        names = names_in(function.__code__)
        self._names |= names.attributes
        if is_library(function):  # what it names is the library's own, and may be told by identity
            return
        for name in names.read | names.written:
            self._use(function.__globals__, name)
        for name in names.imported:
            package = function.__globals__.get("__package__")
            with suppress(ImportError):  # a relative import where there is no package
                module = sys.modules.get(importlib.util.resolve_name(name, package))
                if module is not None:
                    self._meet(module)

    def _use(self, scope: dict[str, Any], name: str) -> None:
        _, before = self.scopes.setdefault(id(scope), (scope, {}))
        if name not in before:
            before[name] = scope.get(name, _MISSING)
            if before[name] is not _MISSING:
                self._visit(scope, name, before[name])

    def _visit(self, place: type | dict[str, Any], name: str, value: Any) -> None:
        if (id(place), name) in self._visited:
            return
        self._visited.add((id(place), name))
        if isinstance(value, type | types.ModuleType):
            self._meet(value)
            return
        new = self._copy(value)
        # What can't be copied is not to be used, but a function that is written in C may.
        if new is not value and not (type(new) is Uncopied and _is_function(value)):
            self.swaps.append((place, name, new))

    def _copy(self, value: Any) -> Any:
        if isinstance(value, staticmethod | classmethod):
            inner = self.copier(value.__func__)
            return value if inner is value.__func__ else type(value)(inner)
        if type(value) is property:
            parts = value.fget, value.fset, value.fdel
            new = tuple(map(self.copier, parts))
            return value if all(a is b for a, b in zip(new, parts, strict=True)) else property(*new)
        if isinstance(value, functools.cached_property):
            self.copier(value.func)
            return value
        return self.copier(value)

    def swap(self) -> None:
        """Put the copies in the places of the originals."""
        for place, name, new in self.swaps:
            with suppress(AttributeError, TypeError):  # a class that forbids it
                _put(place, name, new)

    def put_back(self) -> None:
        """Undo the swaps, and whatever code assigned meanwhile."""
        for kind, attributes in self.classes.items():
            _restore(kind, dict(vars(kind)), attributes)
        for scope, used in self.scopes.values():
            _restore(scope, {name: scope.get(name, _MISSING) for name in used}, used)
        for state, had in self.instances.values():
            _restore(state, dict(state), had)
        for function, attributes in self.functions.items():
            _restore(function.__dict__, dict(function.__dict__), attributes)


def _is_function(value: Any) -> bool:
    kind = type(value)
    return hasattr(kind, "__get__") or (callable(value) and "__name__" in vars(kind))


def _restore(place: type | dict[str, Any], now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for name in now.keys() | before.keys():
        old = before.get(name, _MISSING)
        if now.get(name, _MISSING) is not old:
            _put(place, name, old)


def _put(place: type | dict[str, Any], name: str, value: Any) -> None:
    if isinstance(place, dict):
        if value is _MISSING:
            place.pop(name, None)
        else:
            place[name] = value
    elif value is _MISSING:
        type.__delattr__(place, name)
    else:
        type.__setattr__(place, name, value)
