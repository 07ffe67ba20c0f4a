"""The state of one HTTP/2 stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from etcd_actions.http2.errors import CallFailed


@dataclass(slots=True, eq=False)
class Stream:
    """One stream. Its ``ClientConnection`` changes it.

    Attributes:
        id: Its number.
        offset: The offset of its first byte among all bytes of the connection.
        send_window: Bytes that the server accepts now.
        receive_window: Bytes that the server may send now.
        largest: Bytes of a message that are accepted.
        gathers: Whether all data is kept until the end, as for a unary call: its window grows as
            data arrives. Otherwise it grows when the reader has consumed the data.
        headers: The first header block, once it has arrived.
        trailers: The last header block; the first one if there is only one.
        chunks: Data that has arrived and was not consumed.
        size: Bytes in ``chunks``.
        consumed: Bytes that the reader consumed and that the server was not granted again.
        unsent: Data that waits for a window.
        unsent_end: Whether the end of the stream follows it.
        sent_end: Whether the end was sent.
        ended: Whether nothing more arrives.
        failure: Why it ended, if the server did not end it itself.
        wake: Called at the end, and when data arrives on a stream that does not gather. It must
            not raise.
    """

    id: int
    offset: int
    send_window: int
    receive_window: int
    largest: int
    gathers: bool
    headers: Mapping[str, str] | None = None
    trailers: Mapping[str, str] | None = None
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    consumed: int = 0
    unsent: list[memoryview] = field(default_factory=list)
    unsent_end: bool = False
    sent_end: bool = False
    ended: bool = False
    failure: CallFailed | None = None
    wake: Callable[[], None] | None = None
