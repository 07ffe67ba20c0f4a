"""Checks objects by the models that lightkube-models generates from Kubernetes' own OpenAPI.

The models are dataclasses. Their base class is in the client lightkube, which is not needed here:
an empty one takes its place.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

_SIMPLE: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (int, float),
}


def model(module: str, name: str) -> Any:
    """A model, such as ``apps_v1``, ``Deployment``."""
    pytest.importorskip("lightkube.models", reason="scripts/_venv installs lightkube-models")
    if "lightkube.core.schema" not in sys.modules:
        schema = types.ModuleType("lightkube.core.schema")
        schema.DictMixin = type("DictMixin", (), {})  # type: ignore[attr-defined]
        schema.field = dataclasses.field  # type: ignore[attr-defined]
        schema.dataclass = dataclasses.dataclass  # type: ignore[attr-defined]
        sys.modules["lightkube.core"] = types.ModuleType("lightkube.core")
        sys.modules["lightkube.core.schema"] = schema
    return getattr(importlib.import_module(f"lightkube.models.{module}"), name)


def mistakes(value: object, kind: Any, path: str = "") -> Iterator[str]:
    """The fields of a value that are unknown, missing, or of another type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        kinds = [each for each in arguments if each is not type(None)]
        found = [list(mistakes(value, each, path)) for each in kinds]
        if all(found):
            yield from found[0]
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: no list"
            return
        for number, each in enumerate(value):
            yield from mistakes(each, arguments[0], f"{path}[{number}]")
    elif origin is dict or kind is dict:
        if not isinstance(value, dict):
            yield f"{path}: no map"
            return
        for name, each in value.items():
            yield from mistakes(each, arguments[1] if arguments else Any, f"{path}.{name}")
    elif dataclasses.is_dataclass(kind):
        yield from _mistakes_of_object(value, kind, path)
    elif kind in _SIMPLE:
        # A bool is an int for Python.
        if not isinstance(value, _SIMPLE[kind]) or (kind is not bool and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {kind.__name__}"
    elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
        yield f"{path}: {value!r} is no text or number"


def _mistakes_of_object(value: object, kind: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: no object"
        return
    hints = typing.get_type_hints(kind)
    fields = {each.name.removesuffix("_"): each for each in dataclasses.fields(kind)}
    for name in sorted(value.keys() - fields.keys()):
        yield f"{path}.{name}: unknown"
    for name, field in fields.items():
        if name in value:
            yield from mistakes(value[name], hints[field.name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield f"{path}.{name}: missing"
