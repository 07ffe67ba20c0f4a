"""One stream: a request on its way out, and what has come in for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from etcd_actions.http2.errors import CallFailed


class Stream:
    """What is known of one stream. Its ``ClientConnection`` changes it.

    Attributes:
        id: Its number.
        offset: Where its first byte is among all bytes of the connection.
        largest: Bytes of a message that are taken.
        gathers: Whether all is kept until its end, as for a unary call; its window is given
            back as it fills. Else it is given back when the reader has taken what came.
        headers: The first header block, once it is there.
        trailers: The last one; the same as the first where there is only one.
        chunks: What has come and was not taken yet.
        size: Bytes in ``chunks``.
        ended: Whether nothing more comes.
        failure: Why it ended, where the server did not end it by itself.
        wake: Called when it ended, and when a stream that does not gather got something.
            It must not raise.
    """

    __slots__ = (
        "chunks",
        "ended",
        "failure",
        "gathers",
        "headers",
        "id",
        "largest",
        "offset",
        "receive_window",
        "send_window",
        "sent_end",
        "size",
        "taken",
        "trailers",
        "unsent",
        "unsent_end",
        "wake",
    )

    def __init__(
        self,
        id: int,
        *,
        offset: int,
        send_window: int,
        receive_window: int,
        largest: int,
        gathers: bool,
    ) -> None:
        self.id = id
        self.offset = offset
        self.largest = largest
        self.gathers = gathers
        self.headers: Mapping[str, str] | None = None
        self.trailers: Mapping[str, str] | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.ended = False
        self.failure: CallFailed | None = None
        self.wake: Callable[[], None] | None = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.taken = 0
        """Bytes that the reader took and that the server does not know of."""
        self.unsent: list[memoryview] = []
        self.unsent_end = False
        self.sent_end = False
