"""HTTP/1.1 of one connection, by hypercorn, without what nothing here needs.

A request that asks for another protocol, WebSocket or HTTP/2, is answered in this one, as it
may be. A client that begins with HTTP/2's preface gets HTTP/2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import h11
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol

if TYPE_CHECKING:
    from etcd_actions.serving.connection import Context

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


class Http1(H11Protocol):
    """The protocol of one connection.

    Args:
        context: What it shares with the other protocol.
        send: Takes what is to be sent.
    """

    def __init__(self, context: Context, send: Callable[[Event], Awaitable[None]]) -> None:
        super().__init__(
            context.application,
            context.config,
            context.worker,
            context.requests,  # type: ignore[arg-type]
            context.state,
            context.is_encrypted,
            context.client,
            context.server,
            send,
        )
        self._context = context

    @property
    def is_partial(self) -> bool:
        """Whether the client has begun a request that has not ended."""
        return bool(self.connection.trailing_data[0])

    async def goodbye(self) -> None:
        """There is no word for it."""

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            raise H2ProtocolAssumedError(_PREFACE + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        if (why := _unclear_length(request)) is not None:
            # Without a stream the rest is not looked at.
            self._context.answering.protocol_error(ValueError(why))
            await self._send_error_response(400)
            await self.send(Closed())
            return
        self.stream = self._context.stream(self.stream_send, STREAM_ID)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self._context.state,
            )
        )


def _unclear_length(request: h11.Request) -> str | None:
    """Why a proxy may see another end of a request's body than h11 (RFC 9112, 6.1 and 6.3)."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "a request with Content-Length and Transfer-Encoding"
    if request.http_version != b"1.1":
        return "a request of HTTP/1.0 with Transfer-Encoding"
    return None
