"""Copy what a model owns: its objects, containers and closures, with stand-ins for its tensors.

Not ``copy.deepcopy``: that shares what it can't copy, leaves out closures and weak references, brings hooks
along, and calls ``__deepcopy__`` and ``__reduce__`` of anyone's, which may hand back the object itself.
"""

from __future__ import annotations

import _thread
import collections
import copy
import enum
import functools
import logging
import re
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

StandIn = Callable[[Tensor], Tensor]

HOOKS = frozenset(
    {
        "_backward_pre_hooks",
        "_backward_hooks",
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)
ATOMS = frozenset(
    (int, float, complex, bool, str, bytes, type(None), type, range, slice, type(...), type(NotImplemented))
    + (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
    + (types.ModuleType, types.CodeType, re.Pattern, property, types.GenericAlias, object)
)
# What only names something of the process, or can't change.
_SHARED = (
    *(type, types.ModuleType, enum.Enum, logging.Logger, logging.Handler, BaseException),
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType),
    types.WrapperDescriptorType,
)
_CONTAINERS: tuple[type, ...] = (
    OrderedDict,
    collections.defaultdict,
    dict,
    list,
    set,
    collections.deque,
    bytearray,
)
_LOCK, _RLOCK, _LOCAL = _thread.allocate_lock, threading.RLock, threading.local
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy"}
_HANDLES = ("torch.distributed", "torch._dynamo", "torch.cuda", "typing")
# What a function may close over without having a state of its own.
_NAMES = (type, types.ModuleType, types.BuiltinFunctionType, str)


def is_library(value: Any) -> bool:
    """Whether a class or function belongs to Python, PyTorch or numpy, whose manners are known."""
    return (getattr(value, "__module__", None) or "").partition(".")[0] in _LIBRARIES


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


class Copier:
    """Copy objects deeply, each once; what refers to one object in the original does so in the copy.

    Args:
        stand_in: what takes the place of a tensor.

    Attributes:
        memo: id of an original -> its copy.
        modules: copies of modules.
        classes: classes of what was copied.
        functions: functions that came along as they are.
    """

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.memo: dict[int, Any] = {}
        self.modules: list[nn.Module] = []
        self.classes: dict[type, None] = {}
        self.functions: dict[types.FunctionType, None] = {}
        self._alive: list[Any] = []
        self._rules: dict[type, Callable[[Copier, Any], Any]] = {}
        self._layouts: dict[type, tuple[Any, tuple[types.MemberDescriptorType, ...]]] = {}

    def remember(self, value: Any, copied: Any) -> Any:
        """Say what the copy of an object is."""
        self.memo[id(value)] = copied
        self._alive.append(value)  # its id must not be used again
        return copied

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

    def shell(self, value: Any) -> Any:
        """Return a new object of the same class with nothing in it.

        Raises:
            TypeError: if the class is written in C.
        """
        kind = type(value)
        base, _ = self._layout(kind)
        shell = collections.deque.__new__(kind) if base is collections.deque else base.__new__(kind)
        if base is collections.deque:
            collections.deque.__init__(shell, maxlen=value.maxlen)
        if base is collections.defaultdict:
            shell.default_factory = self(value.default_factory)
        self.classes[kind] = None
        return self.remember(value, shell)

    def fill(self, value: Any, shell: Any) -> Any:
        """Copy an object's attributes, slots and items into its shell."""
        kind = type(value)
        try:
            state = object.__getattribute__(value, "__dict__")
        except AttributeError:
            state = None
        if type(state) is dict:
            copied = object.__getattribute__(shell, "__dict__")
            if issubclass(kind, nn.Module):
                self.modules.append(shell)
                copied.update((key, self._attribute(key, item)) for key, item in list(state.items()))
            elif state:
                copied.update((key, self(item)) for key, item in list(state.items()))
        base, slots = self._layout(kind)
        for slot in slots:
            try:
                item = slot.__get__(value)
            except AttributeError:  # not set
                continue
            slot.__set__(shell, self(item))
        if base is not object:
            self._fill_container(value, shell, base)
        return shell

    def _layout(self, kind: type) -> tuple[Any, tuple[types.MemberDescriptorType, ...]]:
        if kind not in self._layouts:
            self._layouts[kind] = _base_of(kind), _slots_of(kind)
        return self._layouts[kind]

    def _fill_container(self, value: Any, shell: Any, base: Any) -> None:
        if issubclass(base, dict):
            mapping = OrderedDict if base is OrderedDict else dict
            for key, item in list(mapping.items(value)):
                mapping.__setitem__(shell, self(key), self(item))
        elif base is set:
            set.update(shell, [self(item) for item in set.__iter__(value)])
        elif base is bytearray:
            bytearray.extend(shell, value)
        else:  # a list or deque
            base.extend(shell, [self(item) for item in base.__iter__(value)])

    def _attribute(self, key: str, value: Any) -> Any:
        """Copy an attribute of a module; of its hooks only those of torch.nn.utils that compute a weight."""
        if type(value) in ATOMS:
            return value
        if key in HOOKS:
            return OrderedDict()
        if key == "_forward_pre_hooks":
            return OrderedDict((k, self(hook)) for k, hook in value.items() if makes_weight(hook))
        return None if key == "_compiled_call_impl" else self(value)

    # One rule for each kind of object.

    def _itself(self, value: Any) -> Any:
        return value

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if is_library(kind) and hasattr(kind, "__deepcopy__"):
            return self._protocol(value)
        try:
            shell = self.shell(value)
        except TypeError:
            return self._reduced(value)
        return self.fill(value, shell)

    def _container(self, value: Any) -> Any:
        return self.fill(value, self.shell(value))

    def _module(self, value: Any) -> Any:
        if not isinstance(value, torch.jit.ScriptModule):
            return self._container(value)
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
                if not is_library(value) and isinstance(cell.cell_contents, types.FunctionType):
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
    if handle or issubclass(kind, _SHARED):
        return Copier._itself
    if kind in _RULES:
        return _RULES[kind]
    return next((rule for base, rule in _RULES_OF_BASES if issubclass(kind, base)), Copier._object)


def _base_of(kind: type) -> Any:
    """Return the container that a class extends, or object."""
    return next((base for base in _CONTAINERS if issubclass(kind, base)), object)


def _slots_of(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    bases = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(slot for base in bases for slot in base.values() if type(slot) is types.MemberDescriptorType)


def _root(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def makes_weight(hook: Any) -> bool:
    """Whether a forward pre-hook is one of torch.nn.utils: weight_norm, spectral_norm, pruning."""
    return type(hook).__module__.startswith("torch.nn.utils")


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
}
_RULES_OF_BASES: tuple[tuple[Any, Callable[[Copier, Any], Any]], ...] = (
    (nn.Module, Copier._module),
    (Tensor, Copier._tensor),
    (_CONTAINERS, Copier._container),
    ((tuple, frozenset), Copier._frozen),
    (functools.partial, Copier._partial),
    ((weakref.WeakKeyDictionary, weakref.WeakValueDictionary), Copier._weak_mapping),
    (weakref.WeakSet, Copier._weak_set),
    (weakref.ref, Copier._reference),
    (threading.local, Copier._local),
    (torch.Generator, Copier._generator),
)


class StandInCopies(TorchFunctionMode):
    """Make ``copy.deepcopy`` of a tensor return its stand-in."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.stand_in(tensor)
            return memo[id(tensor)]
        if func is Tensor.clone:  # how a Parameter copies itself
            return self.stand_in(args[0])
        return func(*args, **(kwargs or {}))
