"""Checks that fields of a request are set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd_actions.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message


def require(message: Message, *fields: str, where: str = "") -> None:
    """Raise InvalidArgument for the first field that is not set, or empty."""
    for field in fields:
        is_message = message.DESCRIPTOR.fields_by_name[field].message_type is not None
        if not (message.HasField(field) if is_message else getattr(message, field)):
            raise InvalidArgument(f"{where}.{field}" if where else field, "it is missing")
