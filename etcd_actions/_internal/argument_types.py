"""Checks of arguments by annotations: a wrong type is named before the argument is used."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from weakref import WeakKeyDictionary

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError, WrongType

P = ParamSpec("P")
R = TypeVar("R")

_UNIONS: Final = (Union, UnionType)
# Of the dataclasses that were checked.
_hints: Final[WeakKeyDictionary[type, Mapping[str, Any]]] = WeakKeyDictionary()


def checks_types(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function, not an async one, raise WrongType for arguments of wrong types.

    The annotations are compared. A value that is none of a ``Literal`` raises ConfigError. Elements
    of collections are not checked, and of a protocol only whether the members exist.
    """

    # At the first call, since annotations may name what is defined later.
    @functools.cache
    def read() -> tuple[inspect.Signature, Mapping[str, Any]]:
        return inspect.signature(function), get_type_hints(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        signature, hints = read()
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            pass  # the call itself raises a TypeError with the function's name
        else:
            _check(given.arguments, hints)
        return function(*args, **kwargs)

    return checked


def check_fields(settings: object) -> None:
    """Do the same for the fields of a dataclass."""
    kind = type(settings)
    if (hints := _hints.get(kind)) is None:
        hints = _hints[kind] = get_type_hints(kind)
    _check(vars(settings), hints)


def _check(values: Mapping[str, object], hints: Mapping[str, Any]) -> None:
    for name, value in values.items():
        hint = hints.get(name, Any)
        if _allows(hint, value):
            continue
        if get_origin(hint) is Literal and isinstance(value, str):
            raise ConfigError(f"{name}: {quoted(value)} is unknown: give {_text(hint)}")
        kind = type(value).__name__
        raise WrongType(name, f"{quoted(value)} is of type {kind}: give {_text(hint)}")


def _allows(hint: Any, value: object) -> bool:
    origin = get_origin(hint)
    if origin in _UNIONS:
        return any(_allows(each, value) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in _members(kind))
    if isinstance(value, bool):
        return kind in {bool, object}
    return isinstance(value, (int, float) if kind is float else kind)


def _members(protocol: type) -> set[str]:
    bases = [each for each in protocol.__mro__ if getattr(each, "_is_protocol", False)]
    return {name for each in bases for name in vars(each) if not name.startswith("_")}


def _text(hint: Any) -> str:
    if get_origin(hint) in _UNIONS:
        return " or ".join(map(_text, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return "None" if hint is NoneType else getattr(get_origin(hint) or hint, "__name__", str(hint))
