"""Sends the responses of one HTTP/2 connection, as far as the client accepts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import h2.exceptions
import trio
from h2.errors import ErrorCodes

from etcd_actions.web.asgi import ClientDisconnected, Headers
from etcd_actions.web.context import Context
from etcd_actions.web.counting import CountingConnection
from etcd_actions.web.request import Request
from etcd_actions.web.wakeup import Wakeup

# Headers that a response cannot have in HTTP/2 (RFC 9113, 8.2.2).
_OF_HTTP1: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# Two frames of the default size.
_HIGH_WATER: Final = 2 * 2**14
MOST_UNSENT: Final = 2**16
"""Bytes that may wait for the socket before nothing more is read."""


class Owner(Protocol):
    """The connection of a response."""

    has_ended: bool

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Let the client send ``count`` more bytes of the body."""

    def note_response(self) -> None:
        """Note that a response started."""

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream at once."""

    def drop(self, stream_id: int) -> None:
        """Forget a stream that has ended."""


class SendBuffer:
    """The part of a response that its client does not accept yet.

    Args:
        patience: Seconds in which its client must accept some of it.
        sending: Counts the bytes of all streams.
    """

    def __init__(self, patience: float, sending: Sending) -> None:
        self._sending = sending
        self._data = bytearray()
        self._patience = patience
        self._changed = Wakeup()
        self._stuck_since: float | None = None
        self.is_closed = False

    def __bool__(self) -> bool:
        return bool(self._data)

    @property
    def has_capacity(self) -> bool:
        """Whether less than 32 KiB waits, or the stream has ended."""
        return len(self._data) < _HIGH_WATER or self.is_closed

    def push(self, data: bytes) -> None:
        """Add data; it is dropped if the stream has ended.

        Raises:
            ClientDisconnected: The client has accepted nothing for too long.
        """
        if self.is_closed:
            return
        now = trio.current_time()
        if self._data and self._stuck_since is not None:
            if now - self._stuck_since > self._patience:
                raise self._stalled()
        else:
            self._stuck_since = now
        self._data += data
        self._sending.held_bytes += len(data)

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or for the end of the stream, at most ``patience``.

        Raises:
            ClientDisconnected: The client has accepted too little for too long.
        """
        with trio.move_on_after(self._patience) as scope:
            while not (condition() or self.is_closed):
                await self._changed.wait()
        if scope.cancelled_caught:
            raise self._stalled()

    def pop(self, most: int) -> bytes:
        """Remove and return bytes that can be sent now."""
        data = bytes(self._data[:most])
        if data:
            del self._data[:most]
            self._sending.held_bytes -= len(data)
            self._stuck_since = trio.current_time()
            self._changed.send()
        return data

    def close(self) -> None:
        """Drop the rest: the stream has ended."""
        self.is_closed = True
        self._sending.held_bytes -= len(self._data)
        self._data.clear()
        self._changed.send()

    def _stalled(self) -> ClientDisconnected:
        return ClientDisconnected(f"it has read nothing for {self._patience:g} s")


class Exchange:
    """The response to one request.

    Attributes:
        started_at: When the request arrived.
        has_started: Whether the response has started.
        buffer: The part of the response that the client does not accept yet.
        accepts_trailers: Whether the client accepts headers after the body.
        unread: Bytes of the request's body that the application has not read.
    """

    has_trailers = True
    request: Request

    def __init__(
        self, owner: Owner, context: Context, sending: Sending, stream_id: int, *, trailers: bool
    ) -> None:
        self._owner = owner
        self._answering = context.answering
        self._state = sending.state
        self._sending = sending
        self._stream_id = stream_id
        self._end: Headers | None = None
        self._is_last = False
        self.buffer = SendBuffer(context.answering.limits.stall_timeout, sending)
        self.started_at = trio.current_time()
        self.has_started = False
        self.accepts_trailers = trailers
        self.unread = 0

    def request_body(self) -> None:
        """Do nothing: an HTTP/2 client sends the body without a request."""

    def consumed(self, count: int) -> None:
        """Let the client send as many more bytes as the application has read."""
        count = min(count, self.unread)
        self.unread -= count
        self._owner.acknowledge(self._stream_id, count)

    def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        if self._has_ended:
            return
        sent = [(b":status", b"%d" % status)]
        sent += [field for field in headers if field[0] not in _OF_HTTP1]
        if all(name != b"date" for name, _ in headers):
            sent.append(self._answering.date)
        try:
            self._state.send_headers(self._stream_id, sent)
        except h2.exceptions.ProtocolError:
            # The client, or the connection, has ended the stream.
            self._owner.drop(self._stream_id)
            return
        self.has_started = True
        self._owner.note_response()
        self._sending.note(0)

    def body(self, data: bytes) -> bool:
        """Send a part of the body, or keep it until the client accepts it."""
        if self._has_ended or not data:
            return True
        if self._fits(data):
            self._send(data)
            return True
        self.buffer.push(data)
        self._sending.ready(self)
        return self.buffer.has_capacity

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        """Send the last part and the end, or keep them until the client accepts them."""
        self._is_last = True
        if self._has_ended:
            return True
        self._end = trailers if self.accepts_trailers else None
        if not data and not self.buffer:
            self._send_end()
            return True
        if self._fits(data):
            self._send(data, is_last=self._end is None)
            if self._end is not None:
                self._send_end()
            else:
                self._finish()
            return True
        self.buffer.push(data)
        self._sending.ready(self)
        return False

    async def wait(self) -> None:
        """Wait until the client has accepted enough; after the end, until it has accepted all."""
        if not self._is_last:
            await self.buffer.wait(lambda: self.buffer.has_capacity)
            return
        await self.buffer.wait(lambda: not self.buffer)
        if not self._has_ended:
            self._send_end()

    def break_off(self) -> None:
        """Reset the stream."""
        if not self._has_ended:
            self._owner.reset(self._stream_id, ErrorCodes.INTERNAL_ERROR)
            self._owner.drop(self._stream_id)

    @property
    def window(self) -> int:
        """The number of bytes that the client accepts now."""
        try:
            return max(0, self._state.local_flow_control_window(self._stream_id))
        except h2.exceptions.ProtocolError:
            return 0

    def send_a_frame(self) -> int:
        """Send a frame of the buffer; returns its size."""
        data = self.buffer.pop(min(self.window, self._state.max_outbound_frame_size))
        if data:
            self._send(data)
        return len(data)

    @property
    def _has_ended(self) -> bool:
        return self.buffer.is_closed or self._owner.has_ended

    def _fits(self, data: bytes) -> bool:
        return (
            not self.buffer
            and self._sending.has_capacity
            and len(data) <= min(self.window, self._state.max_outbound_frame_size)
        )

    def _send(self, data: bytes, *, is_last: bool = False) -> None:
        try:
            self._state.send_data(self._stream_id, data, end_stream=is_last)
        except h2.exceptions.ProtocolError:
            self._owner.drop(self._stream_id)
            return
        self._sending.note(len(data))

    def _send_end(self) -> None:
        try:
            if self._end is None:
                self._state.end_stream(self._stream_id)
            else:
                self._state.send_headers(self._stream_id, self._end, end_stream=True)
        except h2.exceptions.ProtocolError:
            self._owner.drop(self._stream_id)
            return
        self._sending.note(0)
        self._finish()

    def _finish(self) -> None:
        """End the stream after the response."""
        if not self.request.body.is_complete:
            # The rest of the body is not needed.
            self._owner.reset(self._stream_id, ErrorCodes.NO_ERROR)
        self._owner.drop(self._stream_id)


class Sending:
    """Sends the data of the streams of one connection, in turn.

    Attributes:
        state: The state machine.
        held_bytes: Bytes of responses that the client does not accept yet.
    """

    def __init__(self, state: CountingConnection, context: Context) -> None:
        self.state = state
        self.held_bytes = 0
        self._wire = context.wire
        self._ready: OrderedDict[Exchange, None] = OrderedDict()
        self._unsent = 0
        self._has_output = False
        self._is_closed = False
        self._wakeup = Wakeup()

    @property
    def has_capacity(self) -> bool:
        """Whether no data waits for the client or the socket."""
        return not (self._ready or self._unsent > MOST_UNSENT or self._wire.unsent)

    def note(self, size: int) -> None:
        """Note that the state machine has ``size`` more bytes."""
        self._unsent += size
        self.wake()

    def wake(self) -> None:
        """Send the state machine's bytes in this turn of the loop."""
        self._has_output = True
        self._wakeup.send()

    def ready(self, exchange: Exchange) -> None:
        """Queue a stream that has data, and may be able to send it."""
        self._ready[exchange] = None
        self._wakeup.send()

    def opened(self) -> None:
        """Send again: the window of the connection has grown."""
        if self._ready:
            self._wakeup.send()

    def all_ready(self, exchanges: Iterable[Exchange]) -> None:
        """Queue all streams that have data: their windows have changed."""
        for exchange in exchanges:
            if exchange.buffer:
                self.ready(exchange)

    def forget(self, exchange: Exchange) -> None:
        """Remove a stream that sends nothing more."""
        self._ready.pop(exchange, None)
        exchange.buffer.close()

    def close(self) -> None:
        """End :meth:`run`."""
        self._is_closed = True
        self._wakeup.send()

    def send_now(self) -> None:
        """Send the state machine's bytes at once, as far as the socket accepts them."""
        self._wire.write(self.state.data_to_send())

    @property
    def _is_open(self) -> bool:
        """Whether the window of the connection allows more data."""
        return self.state.outbound_flow_control_window > 0

    async def run(self) -> None:
        """Send until it is closed: a frame of each stream in turn.

        Streams that wait for the connection's window keep their turn: a client may enlarge it by
        one byte at a time, and that must not cost a check of all streams.
        """
        while not self._is_closed:
            if not (self._has_output or (self._ready and self._is_open)):
                await self._wakeup.wait()
                continue
            while self._ready and self._is_open and self._unsent <= MOST_UNSENT:
                exchange, _ = self._ready.popitem(last=False)
                self._unsent += exchange.send_a_frame()
                if exchange.buffer and (exchange.window or not self._is_open):
                    self._ready[exchange] = None
            self._has_output, self._unsent = False, 0
            data = self.state.data_to_send()
            if data and not self._wire.write(data):
                await self._wire.flush()
            elif self._ready and self._is_open:
                await trio.lowlevel.checkpoint()
