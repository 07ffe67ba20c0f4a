"""Decodes parts of a stored object for a message that can omit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import DecodeError

T = TypeVar("T")

_log = get_logger(__name__)


class Stored(Protocol):
    """An object, or a state of it, with its key."""

    @property
    def key(self) -> bytes:
        """The etcd key."""

    @property
    def revision(self) -> int:
        """The ``mod_revision``."""


def readable(stored: Stored, decode: Callable[[], T], *, event: str) -> T | None:
    """The result of ``decode``; None, logged as ``event``, if that raises DecodeError."""
    try:
        return decode()
    except DecodeError as error:
        key = stored.key.decode(errors="backslashreplace")
        _log.error(event, key=key, revision=stored.revision, reason=error.reason)
        return None
