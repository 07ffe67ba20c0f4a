"""What type checkers and readers of annotations find."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

from scripts.check_types import public_objects


def annotated() -> Iterator[tuple[str, object]]:
    """The functions and classes among them, with the methods of those."""
    for name, each in public_objects():
        if inspect.isclass(each):
            for attribute, member in inspect.getmembers_static(each):
                if attribute.startswith("_") and attribute != "__init__":
                    continue
                function = member.fget if isinstance(member, property) else member
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function):
                    yield f"{name}.{attribute}", function
        if inspect.isclass(each) or inspect.isfunction(each):
            yield name, each


def test_annotations_of_each_public_function_can_be_read() -> None:
    found = dict(annotated())
    assert {"open_etcd", "ActionsClient.enqueue", "errors.NotFound"} <= set(found)
    for name, each in found.items():
        hints = typing.get_type_hints(each)
        if inspect.isfunction(each) and not name.endswith(".__init__"):
            assert "return" in hints, name
