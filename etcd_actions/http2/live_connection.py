"""One HTTP/2 connection on trio: a reader, a writer, and a task that enforces deadlines.

Callers write from their own task, without waiting, while the socket has capacity; a writer sends
the rest. One task reads. It wakes the tasks whose streams received something, and what these send
in their turn is gathered and written once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from etcd_actions._internal.containment import describe
from etcd_actions._internal.parking import Parking
from etcd_actions.http2.connection import STREAM_WINDOW, ClientConnection
from etcd_actions.http2.errors import CallFailed, Code, ErrorCode, ProtocolError
from etcd_actions.http2.sockets import Wire
from etcd_actions.http2.stream import Stream

_GATHERED: Final = 64 * 1024
"""Bytes of gathered data from which on they are written at once."""
CLOSED: Final = "the server closed the connection"
_SILENT: Final = 0.02
"""Seconds without a byte after which a call first checks that the connection is still open."""
_TURNS: Final = 2
"""Turns of the event loop after which the tasks that were woken have run."""


@dataclass(frozen=True, kw_only=True)
class KeepAlive:
    """How a silent server is detected. Times are in seconds.

    Attributes:
        time: The silence during a call after which a ping is sent.
        timeout: The time that the response to a ping may take.
    """

    time: float = math.inf
    timeout: float = math.inf


class LiveConnection:
    """A connected socket with its streams.

    Args:
        wire: The socket.
        keepalive: See :class:`KeepAlive`.
        on_end: Called once, when no stream can be opened any more.
        stream_window: See :class:`~etcd_actions.http2.channel.ChannelSettings`.

    Attributes:
        connection: The state of the connection, without I/O.
        usable: Whether a stream can be opened, now or when another one has ended.
    """

    def __init__(
        self,
        wire: Wire,
        keepalive: KeepAlive,
        on_end: Callable[[LiveConnection], None],
        stream_window: int = STREAM_WINDOW,
    ) -> None:
        self.connection = ClientConnection(stream_window=stream_window)
        self.usable = True
        self._wire = wire
        self._on_end = on_end
        self._gathering = False
        self._writable = True
        self._writer = Parking()
        self._scope = trio.CancelScope()
        self._lost = False
        self._ready = trio.Event()
        self._time = _Deadlines(keepalive)
        self._waiting = trio.lowlevel.ParkingLot()
        self._senders: dict[Stream, Parking] = {}
        self._drainers: dict[Stream, Callable[[], None]] = {}

    async def wait_ready(self) -> None:
        """Wait for the server's settings: before them the server may be anything.

        Raises:
            CallFailed: The connection ended before.
        """
        await self._ready.wait()
        if not (self.connection.ready and self.usable):
            raise CallFailed(Code.UNAVAILABLE, self._reason(), not_done=True, connected=False)

    async def run(self) -> None:
        """Read, write and enforce deadlines until the connection ends."""
        reason = "the connection was closed"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch_deadlines)
                    self.flush()
                    reason = await self._read()
                    nursery.cancel_scope.cancel("the connection ended")
        finally:
            self.close(reason)
            self._wire.close()

    # For calls

    def check_before_use(self) -> None:
        """Open no more streams if the server has closed a connection that was silent for a while.

        The reader detects that, too, but perhaps only after a call was written. The outcome of that
        call would be unknown, though the server certainly did nothing. The reader still receives
        the bytes before the end, such as responses and a GOAWAY.
        """
        if trio.current_time() - self._time.last_byte_at > _SILENT and self._wire.closing:
            self._end()

    async def wait_for_capacity(self) -> None:
        """Wait until one more stream can be opened.

        Raises:
            CallFailed: The connection ended.
        """
        while not self.connection.can_open:
            if not self.usable:
                raise CallFailed(Code.UNAVAILABLE, self._reason(), not_done=True)
            await self._waiting.park()

    def limit(self, stream: Stream, deadline: float) -> None:
        """End a stream at a time of trio's clock, unless it has ended by then."""
        self._time.by_stream[stream] = deadline
        self._time.wake_by(deadline)

    def opened(self) -> None:
        """Write a stream that was opened, and detect a silent server from now on."""
        self._time.wake_by(self._time.last_byte_at + self._time.keepalive.time)
        self.flush()

    def is_held_back(self, stream: Stream) -> bool:
        """Whether windows or the socket hold back data of a stream."""
        return bool(stream.unsent) or self._wire.pending or not self._writable

    async def all_sent(self, stream: Stream) -> None:
        """Wait until nothing of a stream is held back, or it has ended. For one task."""
        parking = self._senders.setdefault(stream, Parking())
        try:
            while not stream.ended and self.is_held_back(stream):
                await parking.park()
        finally:
            self._senders.pop(stream, None)

    def when_draining(self, stream: Stream, callback: Callable[[], None]) -> None:
        """Call a function, once, when the server ends the connection in order, or now."""
        if self.usable:
            self._drainers[stream] = callback
        else:
            callback()

    def forget(self, stream: Stream) -> None:
        """Release a stream; one that has not ended is reset."""
        self._time.by_stream.pop(stream, None)
        self._drainers.pop(stream, None)
        if not stream.ended:
            self.connection.reset(stream)
            self.flush()
        if self.connection.draining is not None and not self.connection.streams:
            self.close(self.connection.draining)
        self._admit()
        self._wake_senders()

    def flush(self) -> None:
        """Write the queued frames, as far as the socket has capacity."""
        if self._wire.pending or not self._writable:
            return
        sending = self.connection.sending
        if self._gathering and sending.unwritten < _GATHERED:
            return
        data = sending.take()
        if not data:
            return
        try:
            self._wire.send(data)
        except OSError as error:
            self._not_written(error)
            return
        if self._wire.pending:
            self._writer.wake()

    def close(self, reason: str) -> None:
        """End the connection now: its streams fail. Idempotent."""
        if self._lost:
            return
        self._lost = True
        self.connection.fail(reason, written=self._wire.written)
        self._end()
        self._ready.set()
        self._wake()
        self._wake_senders()
        self._scope.cancel(reason)

    # Tasks

    async def _read(self) -> str:
        """Read until the end; returns its reason."""
        wire, connection = self._wire, self.connection
        while True:
            await wire.readable()
            while True:
                try:
                    data = wire.receive()
                except OSError as error:
                    return f"the connection broke: {describe(error)}"
                if data is None:
                    break
                if not data:
                    return connection.draining or CLOSED
                self._time.last_byte_at = trio.current_time()
                try:
                    connection.receive(data)
                except ProtocolError as error:
                    self._wake()
                    self.flush()
                    return f"the server broke HTTP/2: {error}"
                if connection.ready and not self._ready.is_set():
                    self._ready.set()
                if connection.draining is not None:
                    self._end()
                    if not connection.streams:
                        self._wake()
                        return connection.draining
                if connection.woken:
                    await self._wake_gathering()
                elif self._waiting:
                    # The server may allow more streams.
                    self._admit()
                self.flush()
                self._wake_senders()
                if wire.drained:
                    break
                await trio.lowlevel.checkpoint()

    async def _wake_gathering(self) -> None:
        if len(self.connection.woken) <= _TURNS:
            self._wake()
            return
        self._gathering = True
        try:
            self._wake()
            for _ in range(_TURNS):
                await trio.lowlevel.checkpoint()
        finally:
            self._gathering = False

    async def _write(self) -> None:
        """Write the frames for which the socket had no capacity, once it has."""
        while True:
            if not self._wire.pending:
                self.flush()
            if self._wire.pending and self._writable:
                await self._wire.writable()
                try:
                    self._wire.push()
                except OSError as error:
                    self._not_written(error)
                self._wake_senders()
                continue
            await self._writer.park()

    def _not_written(self, error: OSError) -> None:
        if isinstance(error, (BrokenPipeError, ConnectionResetError)):
            # The reader receives the bytes before the end, such as a GOAWAY, and then the end.
            self._writable = False
        else:
            self.close(f"the connection broke: {describe(error)}")

    async def _watch_deadlines(self) -> None:
        """End streams at their deadlines, and detect a silent server."""
        time = self._time
        while True:
            await time.wait(has_streams=self.connection.streams > 0)
            # The reader runs first: bytes may have arrived while this process was suspended.
            for _ in range(_TURNS + 1):
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            for stream in time.pop_expired(now):
                self._end_late(stream)
            self.flush()
            self._wake_senders()
            time.admits_again = False
            self._admit()
            if not self.connection.streams:
                continue
            if time.is_pinged:
                if now >= time.alive_until:
                    self.close(f"the server has been silent for {now - time.last_byte_at:.3g} s")
            elif now >= time.alive_until:
                self.connection.ping(time.next_ping(now))
                self.flush()

    def _end_late(self, stream: Stream) -> None:
        if stream.ended:
            return
        written = stream.offset < self._wire.written
        self.connection.reset(stream, ErrorCode.CANCEL)
        stream.failure = CallFailed(
            Code.DEADLINE_EXCEEDED, "no answer in time", not_done=not written
        )
        if stream.wake is not None:
            stream.wake()

    # Waking

    def _wake(self) -> None:
        woken = self.connection.woken
        for stream in woken:
            if stream.wake is not None:
                stream.wake()
        woken.clear()
        self._admit()

    def _admit(self) -> None:
        """Wake as many tasks that wait for a stream as the server allows."""
        if not self._waiting:
            return
        count = self.connection.stream_capacity if self.usable else len(self._waiting)
        self._waiting.unpark(count=count)
        if self._waiting and count:
            # A woken task may be cancelled, or too late, and not use its stream.
            self._time.admits_again = True
            self._time.wake_by(-math.inf)

    def _wake_senders(self) -> None:
        for stream, parking in self._senders.items():
            if stream.ended or not self.is_held_back(stream):
                parking.wake()

    def _end(self) -> None:
        if self.usable:
            self.usable = False
            self._on_end(self)
            self._admit()
            drainers, self._drainers = self._drainers, {}
            if not self._lost:
                for callback in drainers.values():
                    callback()

    def _reason(self) -> str:
        return self.connection.draining or "the connection is closed"


class _Deadlines:
    """The times at which a connection has something to do.

    Attributes:
        by_stream: The deadlines of streams.
        last_byte_at: When the last byte arrived.
        admits_again: Whether tasks that wait for a stream are to be woken again.
    """

    def __init__(self, keepalive: KeepAlive) -> None:
        self.keepalive = keepalive
        self.by_stream: dict[Stream, float] = {}
        self.last_byte_at = trio.current_time()
        self.admits_again = False
        self._pings = itertools.count(1)
        self._pinged_at = -math.inf
        self._scope = trio.CancelScope()

    @property
    def is_pinged(self) -> bool:
        """Whether a ping was sent, and nothing has arrived since."""
        return self._pinged_at >= self.last_byte_at

    @property
    def alive_until(self) -> float:
        """The end of the accepted silence: of the time before a ping, or of its timeout."""
        if self.is_pinged:
            return self._pinged_at + self.keepalive.timeout
        return self.last_byte_at + self.keepalive.time

    def next_ping(self, now: float) -> bytes:
        """The payload of a ping that is sent now."""
        self._pinged_at = now
        return next(self._pings).to_bytes(8, "big")

    def pop_expired(self, now: float) -> list[Stream]:
        """Remove and return the streams whose deadline has passed."""
        expired = [stream for stream, until in self.by_stream.items() if until <= now]
        for stream in expired:
            del self.by_stream[stream]
        return expired

    def wake_by(self, deadline: float) -> None:
        """End :meth:`wait` at a time, or before."""
        # To set the deadline of a scope costs more than to compare, and is seldom necessary.
        if deadline < self._scope.deadline:  # noqa: PLR1730
            self._scope.deadline = deadline

    async def wait(self, *, has_streams: bool) -> None:
        """Wait until the first of these times."""
        deadline = min(self.by_stream.values(), default=math.inf)
        if has_streams:
            deadline = min(deadline, self.alive_until)
        self._scope = trio.CancelScope(deadline=-math.inf if self.admits_again else deadline)
        with self._scope:
            await trio.sleep_forever()
