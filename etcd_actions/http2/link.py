"""One HTTP/2 connection on trio: what reads, what writes, and what keeps time.

Callers write: from their own task, without waiting, as long as the socket has room. What is
left goes to a writer. One task reads; it wakes those whose streams got something, and while it
does so, what they send is gathered, and is written once for all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from etcd_actions._internal.containment import describe
from etcd_actions.http2.connection import ClientConnection
from etcd_actions.http2.errors import CallFailed, Code, ErrorCode, ProtocolError
from etcd_actions.http2.sockets import Wire
from etcd_actions.http2.stream import Stream

_GATHERED: Final = 64 * 1024
"""Bytes that are not held back for others."""
CLOSED: Final = "the server closed the connection"
_SILENT: Final = 0.02
"""Seconds without a byte after which it is worth a look whether the connection still stands."""
_TURNS: Final = 2
"""Of the event loop, in which those who were woken have run."""


@dataclass(frozen=True, kw_only=True)
class KeepAlive:
    """How a connection that has gone silent is found. Seconds.

    Attributes:
        time: After so long a silence, while a call is under way, the server is asked for life.
        timeout: So long its answer may take.
    """

    time: float = math.inf
    timeout: float = math.inf


class Link:
    """A connection that is ready: the server's settings are to come, or have come.

    Args:
        wire: The socket.
        keepalive: How silence is found.
        on_end: Called once, when no stream can be opened on it any more.

    Attributes:
        connection: Its streams.
        usable: Whether streams can be opened on it, now or later.
    """

    def __init__(self, wire: Wire, keepalive: KeepAlive, on_end: Callable[[Link], None]) -> None:
        self.connection = ClientConnection()
        self.usable = True
        self._wire = wire
        self._keepalive = keepalive
        self._on_end = on_end
        self._gathering = False
        self._writable = True
        self._writer: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._lost = False
        self._heard = trio.current_time()
        self._pinged_at: float | None = None
        self._pings = itertools.count(1)
        self._deadlines: dict[Stream, float] = {}
        self._waiting: dict[trio.lowlevel.Task, None] = {}
        self._looks_again = False
        self._senders: dict[trio.lowlevel.Task, Stream] = {}
        self._drainers: dict[Stream, Callable[[], None]] = {}
        self._ready = trio.Event()
        self._clock = trio.CancelScope()

    async def settled(self) -> None:
        """Wait for the server's settings: until then it may be anything.

        Raises:
            CallFailed: It is gone, or the server ended it with its first words.
        """
        await self._ready.wait()
        if not (self.connection.ready and self.usable):
            raise CallFailed(Code.UNAVAILABLE, self._why(), not_done=True, connected=False)

    async def run(self) -> None:
        """Read, write and keep time until the connection is at its end."""
        reason = "the connection was closed"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
                    self.flush()
                    reason = await self._read()
                    nursery.cancel_scope.cancel("the connection is at its end")
        finally:
            self.lose(reason)
            self._wire.close()

    def close(self, reason: str = "the connection was closed") -> None:
        """End it now; what is under way fails."""
        self.lose(reason)

    # For calls

    def look_before_use(self) -> None:
        """Find out whether the server ended a connection that has been silent for a while.

        The reader finds that, too, but perhaps only after a call was written: its outcome would
        be unknown then, though the server certainly did nothing.
        """
        if trio.current_time() - self._heard > _SILENT and self._wire.ended:
            self.lose(CLOSED)

    async def room(self) -> None:
        """Wait until one more stream may be opened.

        Raises:
            CallFailed: None may be any more.
        """
        while not self.connection.can_open:
            if not self.usable:
                raise CallFailed(Code.UNAVAILABLE, self._why(), not_done=True)
            task = trio.lowlevel.current_task()
            self._waiting[task] = None

            def abort(_: object, waiting: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._waiting.pop(waiting, None)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def limit(self, stream: Stream, deadline: float) -> None:
        """End a stream at a time, unless it has ended by then."""
        self._deadlines[stream] = deadline
        self._look_by(deadline)

    def opened(self) -> None:
        """A stream was opened: write it, and see to it that silence is found."""
        self._look_by(self._heard + self._keepalive.time)
        self.flush()

    def is_held_back(self, stream: Stream) -> bool:
        """Whether windows or the socket hold back what was sent on a stream."""
        return bool(stream.unsent) or self._wire.pending or not self._writable

    async def all_sent(self, stream: Stream) -> None:
        """Wait until nothing of a stream is held back, or it has ended."""
        while not stream.ended and self.is_held_back(stream):
            task = trio.lowlevel.current_task()
            self._senders[task] = stream

            def abort(_: object, waiting: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._senders.pop(waiting, None)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def when_draining(self, stream: Stream, callback: Callable[[], None]) -> None:
        """Call a function, once, when the server ends the connection in order, or now."""
        if self.usable:
            self._drainers[stream] = callback
        else:
            callback()

    def forget(self, stream: Stream) -> None:
        """A stream has ended, or its caller does not want it any more."""
        self._deadlines.pop(stream, None)
        self._drainers.pop(stream, None)
        if not stream.ended:
            self.connection.reset(stream)
            self.flush()
        if self.connection.draining is not None and not self.connection.streams:
            self.lose(self.connection.draining)
        self._next()
        self._wake_senders()

    def flush(self) -> None:
        """Write what is to be written, as far as there is room now."""
        if self._wire.pending or not self._writable:
            return
        if self._gathering and self.connection.unwritten < _GATHERED:
            return
        data = self.connection.take()
        if not data:
            return
        try:
            self._wire.send(data)
        except OSError as error:
            self._not_written(error)
            return
        if self._wire.pending and self._writer is not None:
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)

    def lose(self, reason: str, code: Code = Code.UNAVAILABLE) -> None:
        """The connection is gone. Twice is harmless."""
        if self._lost:
            return
        self._lost = True
        self.connection.lost(reason, written=self._wire.written, code=code)
        self._end()
        self._ready.set()
        self._wake()
        self._wake_senders()
        self._scope.cancel(reason)

    # Tasks

    async def _read(self) -> str:
        """Read until the end; why it is there."""
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
                self._heard = trio.current_time()
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
                    # The server may allow more.
                    self._next()
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
        """Write what there was no room for."""
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
            self._writer = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._no_writer)

    def _not_written(self, error: OSError) -> None:
        if isinstance(error, (BrokenPipeError, ConnectionResetError)):
            # The reader finds the end, and before it what the server said, such as a GOAWAY.
            self._writable = False
        else:
            self.lose(f"the connection broke: {describe(error)}")

    def _no_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _keep_time(self) -> None:
        """End streams at their deadlines, and find a server that is silent."""
        while True:
            with trio.CancelScope() as self._clock:
                self._set_clock()
                await trio.sleep_forever()
            # What arrived while this process did something else is read before it is judged.
            for _ in range(_TURNS + 1):
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            for stream in [each for each, until in self._deadlines.items() if until <= now]:
                del self._deadlines[stream]
                self._end_late(stream)
            self.flush()
            self._wake_senders()
            self._looks_again = False
            self._next()
            if not self.connection.streams:
                continue
            if self._pinged_at is not None and self._pinged_at >= self._heard:
                if now >= self._pinged_at + self._keepalive.timeout:
                    self.lose(
                        f"the server has been silent for {now - self._heard:.3g} s",
                        Code.UNAVAILABLE,
                    )
            elif now >= self._heard + self._keepalive.time:
                self._pinged_at = now
                self.connection.ping(next(self._pings).to_bytes(8, "big"))
                self.flush()

    def _look_by(self, deadline: float) -> None:
        # Setting it costs more than asking, and nearly always it is early enough.
        if deadline < self._clock.deadline:  # noqa: PLR1730
            self._clock.deadline = deadline

    def _set_clock(self) -> None:
        deadline = min(self._deadlines.values(), default=math.inf)
        if self.connection.streams:
            if self._pinged_at is not None and self._pinged_at >= self._heard:
                deadline = min(deadline, self._pinged_at + self._keepalive.timeout)
            else:
                deadline = min(deadline, self._heard + self._keepalive.time)
        self._clock.deadline = -math.inf if self._looks_again else deadline

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
        self._next()

    def _next(self) -> None:
        """Let those in who wait for a stream."""
        if not self._waiting:
            return
        count = self.connection.room if self.usable else len(self._waiting)
        for task in list(itertools.islice(self._waiting, count)):
            del self._waiting[task]
            trio.lowlevel.reschedule(task)
        if self._waiting and count:
            # One of them may have been cancelled, or be too late, and leave its turn unused.
            self._looks_again = True
            self._look_by(-math.inf)

    def _wake_senders(self) -> None:
        """Let those look again who wait until all is sent."""
        if not self._senders:
            return
        for task, stream in list(self._senders.items()):
            if stream.ended or not self.is_held_back(stream):
                del self._senders[task]
                trio.lowlevel.reschedule(task)

    def _end(self) -> None:
        if self.usable:
            self.usable = False
            self._on_end(self)
            self._next()
            drainers, self._drainers = self._drainers, {}
            if not self._lost:
                for callback in drainers.values():
                    callback()

    def _why(self) -> str:
        return self.connection.draining or "the connection is gone"
