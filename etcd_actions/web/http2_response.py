"""The answer to one request of HTTP/2, as far as its client takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import h2.exceptions
import trio
from h2.errors import ErrorCodes

from etcd_actions.web.asgi import ClientGone, Headers
from etcd_actions.web.context import Context
from etcd_actions.web.request import Request
from etcd_actions.web.wakeup import Signal

if TYPE_CHECKING:
    from etcd_actions.web.counting import CountingConnection
    from etcd_actions.web.http2_protocol import Sending

# What an answer cannot have in HTTP/2 (RFC 9113, 8.2.2).
_OF_HTTP1: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# Two frames of the default size.
_HIGH_WATER: Final = 2 * 2**14


class Owner(Protocol):
    """What the answers of a connection have in common."""

    is_over: bool

    def acknowledge(self, stream_id: int, count: int) -> None:
        """So many bytes of a body were taken."""

    def note_answer(self) -> None:
        """A request that was not taken back has its answer."""

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream at once."""

    def drop(self, stream_id: int) -> None:
        """A stream is over."""


class Held:
    """What all streams of a connection have yet to send.

    Attributes:
        size: In bytes.
    """

    def __init__(self) -> None:
        self.size = 0


class Outgoing:
    """What a stream has yet to send, and its client does not take yet.

    Args:
        patience: Seconds in which its client must take something.
        held: Where that is counted.
    """

    def __init__(self, patience: float, held: Held) -> None:
        self._held = held
        self._data = bytearray()
        self._patience = patience
        self._taken = Signal()
        self._stuck_since: float | None = None
        self.is_closed = False

    def __bool__(self) -> bool:
        return bool(self._data)

    @property
    def has_room(self) -> bool:
        """Whether there is little, or nobody waits for it any more."""
        return len(self._data) < _HIGH_WATER or self.is_closed

    def push(self, data: bytes) -> None:
        """Add data. What a client would get that has left is dropped.

        Raises:
            ClientGone: The client has taken nothing for too long.
        """
        if self.is_closed:
            return
        now = trio.current_time()
        if self._data and self._stuck_since is not None:
            if now - self._stuck_since > self._patience:
                raise self._given_up()
        else:
            self._stuck_since = now
        self._data += data
        self._held.size += len(data)

    async def wait(self, enough: Callable[[], bool]) -> None:
        """Wait until a client has taken enough, or is gone.

        Raises:
            ClientGone: The client has taken too little for too long.
        """
        with trio.move_on_after(self._patience) as scope:
            while not (enough() or self.is_closed):
                await self._taken.wait()
        if scope.cancelled_caught:
            raise self._given_up()

    def pop(self, most: int) -> bytes:
        """Take what is to be sent now."""
        data = bytes(self._data[:most])
        if data:
            del self._data[:most]
            self._held.size -= len(data)
            self._stuck_since = trio.current_time()
            self._taken.send()
        return data

    def close(self) -> None:
        """Nothing can be sent any more."""
        self.is_closed = True
        self._held.size -= len(self._data)
        self._data.clear()
        self._taken.send()

    def _given_up(self) -> ClientGone:
        return ClientGone(f"it has taken nothing for {self._patience:g} s")


class Exchange:
    """The answer to one request.

    Attributes:
        began_at: When the request came.
        is_begun: Whether the answer has.
        outgoing: What is to be sent when the client takes it.
        takes_trailers: Whether the client wants headers after the body.
        untaken: How much of the request's body the application has not taken yet.
    """

    has_trailers = True
    request: Request

    def __init__(
        self,
        owner: Owner,
        context: Context,
        state: CountingConnection,
        sending: Sending,
        stream_id: int,
    ) -> None:
        self._owner = owner
        self._answering = context.answering
        self._state = state
        self._sending = sending
        self._stream_id = stream_id
        self._end: Headers | None = None
        self._is_ending = False
        self.outgoing = Outgoing(context.answering.limits.stall_timeout, sending.held)
        self.began_at = trio.current_time()
        self.is_begun = False
        self.takes_trailers = False
        self.untaken = 0

    def want_body(self) -> None:
        """The client sends it unasked."""

    def taken(self, count: int) -> None:
        """The application has so many bytes of the body: the client may send as many more."""
        count = min(count, self.untaken)
        self.untaken -= count
        self._owner.acknowledge(self._stream_id, count)

    def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        if self._is_gone:
            return
        sent = [(b":status", b"%d" % status)]
        sent += [field for field in headers if field[0] not in _OF_HTTP1]
        if all(name != b"date" for name, _ in headers):
            sent.append(self._answering.date)
        try:
            self._state.send_headers(self._stream_id, sent)
        except h2.exceptions.ProtocolError:
            self._lost()
            return
        self.is_begun = True
        self._owner.note_answer()
        self._sending.note(0)

    def body(self, data: bytes) -> bool:
        """Send a part of the body, or keep it until the client takes it."""
        if self._is_gone or not data:
            return True
        if self._fits(data):
            self._send(data)
            return True
        self.outgoing.push(data)
        self._sending.ready(self)
        return self.outgoing.has_room

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        """Send the rest, or keep it likewise."""
        self._is_ending = True
        if self._is_gone:
            return True
        self._end = trailers if self.takes_trailers else None
        if not data and not self.outgoing:
            self._send_end()
            return True
        if self._fits(data):
            self._send(data, is_last=self._end is None)
            if self._end is not None:
                self._send_end()
            else:
                self._done()
            return True
        self.outgoing.push(data)
        self._sending.ready(self)
        return False

    async def wait(self) -> None:
        """Wait until the client has taken enough; after the end, all."""
        if not self._is_ending:
            await self.outgoing.wait(lambda: self.outgoing.has_room)
            return
        await self.outgoing.wait(lambda: not self.outgoing)
        if not self._is_gone:
            self._send_end()

    def break_off(self) -> None:
        """Reset the stream."""
        if not self._is_gone:
            self._owner.reset(self._stream_id, ErrorCodes.INTERNAL_ERROR)
            self._owner.drop(self._stream_id)

    @property
    def window(self) -> int:
        """How much the client would take now."""
        try:
            return max(0, self._state.local_flow_control_window(self._stream_id))
        except h2.exceptions.ProtocolError:
            return 0

    def send_a_frame(self) -> int:
        """Send a frame of what is to be sent; returns its size."""
        data = self.outgoing.pop(min(self.window, self._state.max_outbound_frame_size))
        if data:
            self._send(data)
        return len(data)

    @property
    def _is_gone(self) -> bool:
        return self.outgoing.is_closed or self._owner.is_over

    def _fits(self, data: bytes) -> bool:
        return (
            not self.outgoing
            and self._sending.has_room
            and len(data) <= min(self.window, self._state.max_outbound_frame_size)
        )

    def _send(self, data: bytes, *, is_last: bool = False) -> None:
        try:
            self._state.send_data(self._stream_id, data, end_stream=is_last)
        except h2.exceptions.ProtocolError:
            self._lost()
            return
        self._sending.note(len(data))

    def _send_end(self) -> None:
        try:
            if self._end is None:
                self._state.end_stream(self._stream_id)
            else:
                self._state.send_headers(self._stream_id, self._end, end_stream=True)
        except h2.exceptions.ProtocolError:
            self._lost()
            return
        self._sending.note(0)
        self._done()

    def _done(self) -> None:
        """The answer is complete."""
        if not self.request.body.is_whole:
            # The rest of the body is of no use.
            self._owner.reset(self._stream_id, ErrorCodes.NO_ERROR)
        self._owner.drop(self._stream_id)

    def _lost(self) -> None:
        """The client, or the connection, has ended the stream."""
        self._owner.drop(self._stream_id)
