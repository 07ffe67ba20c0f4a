"""The types of ASGI, what this server adds to it, and what is the client's doing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import trio

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""
Headers: TypeAlias = list[tuple[bytes, bytes]]


LONG_BODY: Final = "etcd_actions.long_body"
"""The extension of a request's scope: see :func:`take_long_body`."""

ON_LOST: Final = "etcd_actions.on_lost"
"""The extension of a request's scope: see :func:`on_lost`."""


def take_long_body(scope: Message) -> None:
    """Let a request's body take as long as it needs, while it makes progress.

    An application asks for that once it knows that it wants the body. The time that it takes
    itself does not count.
    """
    extension = scope.get("extensions", {}).get(LONG_BODY)
    if extension is not None:
        extension()


def on_lost(scope: Message, callback: Callable[[], None]) -> None:
    """Have a function called when a request's client is gone, at once where it is already.

    It is called when ``receive`` would say so next: what arrived before is read first. That
    spares an application the task that waits for it. The function must not wait, and must not
    raise.

    Raises:
        KeyError: The server is another one than this.
    """
    scope["extensions"][ON_LOST](callback)


class ClientGone(ConnectionError):
    """The client has left, or takes nothing."""


def is_protocol_error(error: BaseException) -> bool:
    """Whether a client left in the middle, or sent what is no HTTP."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_protocol_error(each) for each in error.exceptions)
    module = type(error).__module__.partition(".")[0]
    return module in ("h11", "h2", "hpack", "hyperframe") or isinstance(
        error, (ConnectionError, trio.BrokenResourceError, trio.ClosedResourceError)
    )
