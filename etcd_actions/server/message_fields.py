"""Reads the fields of requests that name something, such as a project, however deep they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

# The definition of a task, and values: names in them are labels, by which nothing is found.
_OPAQUE: Final = ("flyteidl2.core.", "flyteidl2.task.TaskSpec", "google.protobuf.")


class NamingFields:
    """The fields of messages that name something.

    Args:
        fields: Returns the names of such fields of a type, without those of messages in it.
    """

    def __init__(self, fields: Callable[[Descriptor], tuple[str, ...]]) -> None:
        self._fields = cache(fields)
        self._inner = cache(self._find_inner)

    def may_name(self, descriptor: Descriptor, above: frozenset[str] = frozenset()) -> bool:
        """Whether messages of a type, or messages in them, have such a field."""
        name = descriptor.full_name
        if name in above or name.startswith(_OPAQUE) or descriptor.GetOptions().map_entry:
            return False
        return bool(self._fields(descriptor)) or any(
            self.may_name(field.message_type, above | {name})
            for field in descriptor.fields
            if field.message_type is not None
        )

    def read(self, message: Message) -> Iterator[tuple[str, str]]:
        """The path and the value of each such field."""
        for path, each in self.messages(message):
            for name in self._fields(each.DESCRIPTOR):
                yield path + name, getattr(each, name)

    def messages(self, message: Message, path: str = "") -> Iterator[tuple[str, Message]]:
        """The message, and those in it that may have such a field, with their paths."""
        yield path, message
        for field in self._inner(message.DESCRIPTOR):
            if field.is_repeated:
                for number, each in enumerate(getattr(message, field.name)):
                    yield from self.messages(each, f"{path}{field.name}[{number}].")
            elif message.HasField(field.name):
                yield from self.messages(getattr(message, field.name), f"{path}{field.name}.")

    def _find_inner(self, descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
        return tuple(
            field
            for field in descriptor.fields
            if field.message_type is not None and self.may_name(field.message_type)
        )
