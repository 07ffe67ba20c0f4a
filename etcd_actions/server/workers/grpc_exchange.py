"""One gRPC call over ASGI: its messages, and its status.

connectrpc answers Flyte's methods. It is not used here, since etcd's messages are passed on as
bytes, and a watch reads requests while it sends responses.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Iterable
from typing import Final
from urllib.parse import quote

from connectrpc.code import Code

from etcd_actions.http2 import Code as Status
from etcd_actions.server.error_codes import Refusal
from etcd_actions.web import Message, Receive, Send

# The bytes before each message: whether it is compressed, and its size.
_PREFIX: Final = struct.Struct(">BI")
_HEADERS: Final = ((b"content-type", b"application/grpc"),)
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# The most characters of a reason.
_LONGEST_REASON: Final = 2_000


async def request_messages(receive: Receive, most: int) -> AsyncGenerator[bytes]:
    """The messages of a client, until it ends its side or disconnects.

    Args:
        receive: ASGI's.
        most: The most bytes of one message.

    Raises:
        Refusal: A message is compressed or too large.
    """
    unread = bytearray()
    is_open = True
    while is_open:
        part = await receive()
        if part["type"] != "http.request":
            return
        unread += part.get("body", b"")
        is_open = part.get("more_body", False)
        while len(unread) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(unread)
            if compressed or size > most:
                what = "is compressed" if compressed else f"has more than {most} bytes"
                raise Refusal(Code.INVALID_ARGUMENT, f"a message {what}")
            end = _PREFIX.size + size
            if len(unread) < end:
                break
            yield bytes(unread[_PREFIX.size : end])
            del unread[:end]


class Response:
    """The response to one call.

    Args:
        send: ASGI's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False

    async def send_messages(self, messages: Iterable[bytes]) -> None:
        """Send messages in one frame, after the headers.

        Raises:
            ClientDisconnected: The client has read nothing for too long.
        """
        await self._start()
        parts = [part for each in messages for part in (_PREFIX.pack(0, len(each)), each)]
        await self._send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})

    async def end(self, refusal: Refusal | None) -> None:
        """Send the status: OK, or that of a refusal."""
        await self._start()
        code, reason = Status.OK, ""
        if refusal is not None:
            code = Status.__members__.get(refusal.code.name, Status.UNKNOWN)
            reason = refusal.message[:_LONGEST_REASON]
        trailers = [(b"grpc-status", b"%d" % code)]
        if reason:
            trailers.append((b"grpc-message", quote(reason, safe=_PRINTABLE).encode()))
        await self._send({"type": "http.response.body", "body": b""})
        await self._send({"type": "http.response.trailers", "headers": trailers})

    async def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            start: Message = {"type": "http.response.start", "status": 200, "trailers": True}
            await self._send({**start, "headers": list(_HEADERS)})
