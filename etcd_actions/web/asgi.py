"""The types of ASGI, the extensions of this server, and the errors that clients cause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias

import trio

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""
Headers: TypeAlias = list[tuple[bytes, bytes]]


LONG_BODY: Final = "etcd_actions.long_body"
ENDLESS_BODY: Final = "etcd_actions.endless_body"
ON_DISCONNECT: Final = "etcd_actions.on_disconnect"
"""Extensions of a request's scope: see the functions of these names."""


def take_long_body(scope: Message) -> None:
    """Let a request's body take as long as it needs, while it makes progress.

    An application calls this once it accepts the body. The time in which the application does not
    read does not count.
    """
    extension = scope.get("extensions", {}).get(LONG_BODY)
    if extension is not None:
        extension()


def take_endless_body(scope: Message) -> None:
    """Let a request's body last as long as the response, without a limit.

    The application limits how long that is.
    """
    extension = scope.get("extensions", {}).get(ENDLESS_BODY)
    if extension is not None:
        extension()


def on_disconnect(scope: Message, callback: Callable[[], None]) -> None:
    """Call a function when a request's client left, at once if it has.

    It is called when ``receive`` would report that next: the application reads earlier parts of the
    body first. So it needs no task that waits for the client's end. The function must not wait or
    raise.

    Raises:
        KeyError: The server is not this one.
    """
    scope["extensions"][ON_DISCONNECT](callback)


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    kind: str = "text/plain",
    is_head: bool = False,
) -> None:
    """Send a complete response with a content type; the response to HEAD has no body.

    Raises:
        ClientDisconnected: The client has read nothing for too long.
    """
    described = (b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))
    start = {"type": "http.response.start", "status": status, "headers": [*headers, *described]}
    await send(start)
    await send({"type": "http.response.body", "body": b"" if is_head else body})


class ClientDisconnected(ConnectionError):
    """The client left, or reads nothing."""


def is_protocol_error(error: BaseException) -> bool:
    """Whether a client left during a request, or sent invalid HTTP."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_protocol_error(each) for each in error.exceptions)
    module = type(error).__module__.partition(".")[0]
    return module in ("h11", "h2", "hpack", "hyperframe") or isinstance(
        error, (ConnectionError, trio.BrokenResourceError, trio.ClosedResourceError)
    )
