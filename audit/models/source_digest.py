"""SHA-256 of a function that was given in Python, where its source and its settings say all that it does."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torchvision import transforms as tv

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype)
ADDRESS = " at 0x"  # what the repr of an object that has none of its own holds
INSTALLED = ("site-packages", "dist-packages")  # folders of libraries, whose version says what they do
SUPER = {"__class__"}  # a variable that methods have for ``super()``
Said = Any  # what is hashed, as JSON


class _UnsaidError(Exception):
    """Something decides what is done that neither source nor settings say."""


def digest_of(fn: Callable[..., Any]) -> str | None:
    """Return the SHA-256 of a function, of an object that can be called, or of a ``Compose`` of them.

    Hashed are sources and settings, constants and functions that they read, and versions of libraries.

    Returns
    -------
    str or None
        None where that might not tell two of them apart: lambdas, partial functions, closures, methods, objects whose
        ``repr`` is Python's own, and what reads a variable that is no constant.
    """
    steps = fn.transforms if isinstance(fn, tv.Compose) and type(fn) is tv.Compose else [fn]
    try:
        said = [_function(step, set()) if isinstance(step, FunctionType) else _object(step) for step in steps]
    except (_UnsaidError, RecursionError):
        return None
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _function(function: FunctionType, seen: set[object]) -> Said:
    if function.__name__ == "<lambda>":
        raise _UnsaidError
    settings = [function.__defaults__, function.__kwdefaults__, vars(function)]
    return [_source(function), _value(settings), _read(function, seen | {function})]


def _read(function: FunctionType, seen: set[object]) -> Said:
    """Return what a function reads of the variables of its module."""
    if set(function.__code__.co_freevars) - SUPER:
        raise _UnsaidError
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    there = function.__globals__
    return {name: _global(there[name], seen) for name in sorted(names & set(there))}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _global(value: Any, seen: set[object]) -> Said:
    if not (isinstance(value, ModuleType | type) or inspect.isroutine(value)):
        return _value(value)
    place = value.__name__ if isinstance(value, ModuleType) else value.__module__
    version = _version(place)
    if version is not None or value in seen:
        return [place, getattr(value, "__qualname__", ""), version]
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, type):
        return _class(value, seen)
    raise _UnsaidError


def _version(place: str | None) -> str | None:
    """Return the version of the library that a module is of; None of a module of one's own."""
    root = (place or "").partition(".")[0]
    if root in sys.stdlib_module_names:
        return sys.version
    module = sys.modules.get(root)
    version = getattr(module, "__version__", None)
    installed = any(folder in str(getattr(module, "__file__", "")) for folder in INSTALLED)
    return version if isinstance(version, str) and installed else None


def _class(kind: type, seen: set[object]) -> Said:
    if (version := _version(kind.__module__)) is not None:
        return [kind.__module__, kind.__qualname__, version]
    seen = seen | {kind}
    methods = {name: _read(m, seen) for name, m in sorted(vars(kind).items()) if isinstance(m, FunctionType)}
    return [_source(kind), methods, [_class(base, seen) for base in kind.__bases__]]


def _object(step: Any) -> Said:
    """Return class, repr and settings of a step."""
    text = repr(step)
    if ADDRESS in text or isinstance(step, functools.partial | tv.Lambda) or not hasattr(step, "__dict__"):
        raise _UnsaidError
    return [_class(type(step), set()), text, _value(vars(step))]


def _value(value: Any) -> Said:
    if isinstance(value, Enum | np.generic) or type(value) in PLAIN:
        return repr(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return ["array", str(value.dtype), value.tolist()]
    if isinstance(value, Mapping):
        return [[_value(key), _value(kept)] for key, kept in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_value, value)]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_value(kept)) for kept in value)
    if isinstance(value, type | ModuleType) or inspect.isroutine(value):
        raise _UnsaidError
    return _object(value)


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        raise _UnsaidError from None
