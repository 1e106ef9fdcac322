"""The structure of Python objects: attributes, slots and items, copied into an empty object of the class."""

from __future__ import annotations

import collections
import re
import types
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

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
    (int, float, complex, bool, str, bytes, type(None), range, slice, type(...), type(NotImplemented))
    + (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
    + (types.CodeType, re.Pattern, property, types.GenericAlias, types.UnionType, object)
)
_POINTER = tuple.__itemsize__
CONTAINERS: tuple[type, ...] = (
    OrderedDict,
    collections.defaultdict,
    dict,
    list,
    set,
    collections.deque,
    bytearray,
)


class Structures(ABC):
    """Copy objects deeply, each once; what refers to one object in the original does so in the copy.

    Attributes:
        memo: id of an original -> its copy.
        modules: copies of modules.
        classes: classes of what was copied.
    """

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}
        self.modules: list[nn.Module] = []
        self.classes: dict[type, None] = {}
        self._alive: list[Any] = []
        self._layouts: dict[type, tuple[Any, tuple[types.MemberDescriptorType, ...]]] = {}

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Return the copy of any object, itself if nothing about it can change."""

    def remember(self, value: Any, copied: Any) -> Any:
        """Say what the copy of an object is."""
        self.memo[id(value)] = copied
        self._alive.append(value)  # its id must not be used again
        return copied

    def shell(self, value: Any) -> Any:
        """Return a new object of the same class with nothing in it.

        Raises:
            TypeError: if the class is written in C.
        """
        kind = type(value)
        base, slots = self._layout(kind)
        if _hidden_bytes(kind, base, len(slots)) > 0:
            raise TypeError(f"{kind.__name__} has a state that Python can't see")
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


def _base_of(kind: type) -> Any:
    """Return the container that a class extends, or object."""
    return next((base for base in CONTAINERS if issubclass(kind, base)), object)


def _hidden_bytes(kind: type, base: type, slots: int) -> int:
    """Count the bytes of an object that are no slot, no dictionary and no list of weak references.

    Classes written in C keep their state there; an object that was made without their constructor would end
    the process.
    """
    own = kind.__basicsize__ - base.__basicsize__
    pointers = slots
    pointers += kind.__dictoffset__ > 0 and base.__dictoffset__ == 0
    pointers += kind.__weakrefoffset__ > 0 and base.__weakrefoffset__ == 0
    return own - pointers * _POINTER


def _slots_of(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    bases = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(slot for base in bases for slot in base.values() if type(slot) is types.MemberDescriptorType)


def makes_weight(hook: Any) -> bool:
    """Whether a forward pre-hook is one of torch.nn.utils: weight_norm, spectral_norm, pruning."""
    return type(hook).__module__.startswith("torch.nn.utils")
