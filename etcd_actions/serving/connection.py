"""One connection: reads it, bounds what its client may take, and ends it in order."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from etcd_actions.serving.asgi import is_protocol_error
from etcd_actions.serving.connections import Slot
from etcd_actions.serving.http1 import Http1
from etcd_actions.serving.http2 import Http2
from etcd_actions.serving.peers import Address
from etcd_actions.serving.requests import Answering, Requests

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

_MOST_BYTES: Final = 2**16
# How long a client may take to see the last that it was sent. A socket that is closed before
# it has been read to its end takes that away from it.
_LINGER: Final = 1.0
# How often to look whether a client that sends no more is still there.
_LOOK_EVERY: Final = 0.25
_NO_LIMIT: Final = 1_000_000_000


class Shared:
    """What all connections of a listener share.

    Args:
        answering: What answers requests.
        context: How connections are encrypted; None for not at all.

    Attributes:
        is_leaving: Whether no more requests are taken.
    """

    def __init__(self, answering: Answering, context: ssl.SSLContext | None) -> None:
        self.answering = answering
        self.context = context
        self.worker = WorkerContext(None)
        self.config = _config(answering)

    @property
    def is_leaving(self) -> bool:
        """Whether no more requests are taken."""
        return self.worker.terminated.is_set()

    async def leave(self) -> None:
        """Take no more requests."""
        await self.worker.terminated.set()


def _config(answering: Answering) -> Config:
    limits = answering.limits
    config = Config()
    config.errorlog = None
    config.accesslog = None
    config.include_server_header = False
    # hypercorn's default ends a long-lived gRPC connection with an error at its 1,001st request.
    config.keep_alive_max_requests = _NO_LIMIT
    config.h11_max_incomplete_size = limits.header_bytes
    return config


class Context:
    """What the protocols of one connection need of it."""

    def __init__(
        self, shared: Shared, requests: Requests, peer: str, ends: tuple[Any, Any]
    ) -> None:
        self.answering = shared.answering
        self.config = shared.config
        self.worker = shared.worker
        self.is_encrypted = shared.context is not None
        self.requests = requests
        self.peer = peer
        self.client, self.server = ends
        self.state = ConnectionState({})
        self._shared = shared

    @property
    def is_leaving(self) -> bool:
        """Whether no more requests are taken."""
        return self._shared.is_leaving

    @property
    def application(self) -> AppWrapper:
        """What hypercorn would call: :class:`Requests` calls the application instead."""
        return self._nobody  # type: ignore[return-value]

    async def _nobody(self, *_: Any) -> None:
        raise AssertionError("applications are called by Requests")

    def stream(self, send: Callable[[Any], Awaitable[None]], stream_id: int) -> HTTPStream:
        """What turns the events of one request into messages of ASGI."""
        return HTTPStream(
            self.application,
            self.config,
            self.worker,
            self.requests,  # type: ignore[arg-type]
            self.is_encrypted,
            self.client,
            self.server,
            send,
            stream_id,
        )


class Connection:
    """One connection. Without a request it ends when it has been idle for too long.

    Args:
        stream: Its bytes.
        socket: What they go through.
        slot: Its place in the budget.
        ends: Where its client and the listener are.
        shared: What the listener's connections share.
    """

    def __init__(
        self,
        stream: Stream,
        sock: trio.socket.SocketType,
        slot: Slot,
        ends: tuple[Address, Address],
        shared: Shared,
    ) -> None:
        self._stream = stream
        self._socket = sock
        self._slot = slot
        self._ends = ends
        self._shared = shared
        self._limits = shared.answering.limits
        self._counts = shared.answering.counts
        self._protocol: Http1 | Http2
        self._requests: Requests
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        # The protocol may wait for a request's end before it goes on to read.
        self._lifetime = trio.CancelScope()
        self._deadline = trio.current_time() + self._limits.header_timeout
        # Why it ends at the deadline.
        self._reason = "header_timeout"
        self._is_partial = True
        self._is_busy = False
        self._is_ending = False
        self._is_closed = False
        self._answered = trio.Event()

    async def run(self) -> None:
        """Serve until either side has enough."""
        try:
            alpn = await self._handshake()
            if alpn is None:
                return
            async with trio.open_nursery() as nursery:
                self._requests = Requests(
                    nursery, self._shared.answering, self._slot.peer, self._changed
                )
                context = Context(self._shared, self._requests, self._slot.peer, self._ends)
                self._context = context
                kind = Http2 if alpn == "h2" else Http1
                self._protocol = kind(context, self._send)
                await self._protocol.initiate()
                with self._lifetime:
                    await self._read()
                # Requests that nobody waits for may end without the socket.
                await self._close()
                await self._protocol.handle(Closed())
        finally:
            self.abort()

    @property
    def is_closed(self) -> bool:
        """Whether its socket is closed."""
        return self._is_closed

    def leave(self) -> None:
        """End once no request is under way."""
        if not self._is_busy:
            self._end_at(trio.current_time(), "leaving")

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        if not self._is_closed:
            self._is_closed = True
            self._lifetime.cancel("the connection is closed")
            self._socket.close()

    def replace(self) -> None:
        """Close it at once, since another one needs its place."""
        self._counts.closed["replaced"] += 1
        self.abort()

    async def _handshake(self) -> str | None:
        """The protocol that was agreed upon; None for a client that did not get that far."""
        if not isinstance(self._stream, trio.SSLStream):
            return "http/1.1"
        try:
            with trio.fail_after(self._limits.handshake_timeout):
                await self._stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._counts.closed["handshake"] += 1
            return None
        if self._shared.is_leaving:
            return None
        self._deadline = trio.current_time() + self._limits.header_timeout
        return self._stream.selected_alpn_protocol() or "http/1.1"

    async def _read(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadline) as self._reading:
                try:
                    data = bytes(await self._stream.receive_some(_MOST_BYTES))
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    if self._is_busy and not self.is_closed:
                        self._shared.answering.protocol_error(error)
                    return
            if self._reading.cancelled_caught:
                if self._is_busy and not self._is_ending:
                    # A request came while it was to end.
                    continue
                if await self._ended_here():
                    return
                continue
            if not data:
                await self._end_of_client()
                return
            if self._is_ending:
                continue
            await self._handle(RawData(data))
            self._note_what_has_begun()

    async def _ended_here(self) -> bool:
        """Say goodbye at the deadline; returns whether that was said before."""
        if self._is_ending or (self._reason == "leaving" and isinstance(self._protocol, Http1)):
            return True
        if self._reason != "leaving":
            self._counts.closed[self._reason] += 1
            # Half a request gets no answer that a client could take for one.
            if self._is_partial:
                return True
        await self._protocol.goodbye()
        await self._end_in_order()
        return self._is_closed

    async def _end_of_client(self) -> None:
        """The client sends no more; it may still wait for answers."""
        if self._is_ending:
            return
        if not self._is_busy:
            await self._handle(RawData(b""))
            return
        since = trio.current_time()
        if isinstance(self._protocol, Http1) and self._requests.wait_for_bodies:
            # A body that ends too early gets its answer.
            self._requests.end_of_client(since)
            await self._handle(RawData(b""))
            return
        while not await self._is_left() and self._requests.end_of_client(since):
            with trio.move_on_after(_LOOK_EVERY):
                await self._answered.wait()

    async def _is_left(self) -> bool:
        """Whether all is answered, or a client that sends no more takes no more, either."""
        if not self._is_busy:
            return True
        try:
            await self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True
        return self._is_closed

    def _note_what_has_begun(self) -> None:
        if self._is_busy or self._is_ending:
            return
        was_partial, self._is_partial = self._is_partial, self._protocol.is_partial
        now = trio.current_time()
        if self._is_partial and not was_partial:
            self._end_at(min(self._deadline, now + self._limits.header_timeout), "header_timeout")
        elif was_partial and not self._is_partial:
            self._end_at(now + self._limits.idle_timeout, "idle")

    def _changed(self, is_busy: bool) -> None:
        self._is_busy = is_busy
        if is_busy:
            self._slot.busy()
            self._answered = trio.Event()
            self._end_at(float("inf"), "idle")
            return
        self._slot.idle()
        self._answered.set()
        self._is_partial = self._protocol.is_partial
        now = trio.current_time()
        if self._is_ending:
            self._end_at(now + _LINGER, "idle")
        elif self._shared.is_leaving:
            self._end_at(now, "leaving")
        elif self._is_partial:
            self._end_at(now + self._limits.header_timeout, "header_timeout")
        else:
            self._end_at(now + self._limits.idle_timeout, "idle")

    def _end_at(self, deadline: float, reason: str) -> None:
        self._deadline = self._reading.deadline = deadline
        self._reason = reason

    async def _handle(self, event: Event) -> None:
        try:
            await self._protocol.handle(event)
        except H2ProtocolAssumedError as assumed:
            self._protocol = Http2(self._context, self._send)
            await self._protocol.initiate()
            self._is_partial = True
            await self._protocol.handle(RawData(assumed.data))

    async def _send(self, event: Event) -> None:
        """Take an event of the protocol's."""
        if isinstance(event, RawData):
            async with self._sending:
                is_sent = await self._send_all(event.data)
            if not is_sent:
                await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            await self._end_in_order()
            await self._protocol.handle(Closed())

    async def _send_all(self, data: bytes) -> bool:
        """Send bytes, in whole or never again any; returns whether they are sent."""
        if self._is_closed or self._is_ending:
            await trio.lowlevel.checkpoint()
            return False
        for at in range(0, len(data), _MOST_BYTES):
            part = data[at : at + _MOST_BYTES]
            # A request that is cancelled must not leave half a frame behind.
            with trio.CancelScope(
                shield=True, deadline=trio.current_time() + self._limits.stall_timeout
            ) as scope:
                try:
                    await self._stream.send_all(part)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    if not (self.is_closed or self._is_ending):
                        self._shared.answering.protocol_error(error)
                    self.abort()
                    return False
            if scope.cancelled_caught:
                self._counts.closed["stalled"] += 1
                self.abort()
                return False
        return True

    async def _end_in_order(self) -> None:
        """Send no more, and give the client time to take what was sent."""
        if self._is_ending or self._is_closed:
            return
        self._is_ending = True
        if isinstance(self._stream, trio.SSLStream):
            await self._close()
            return
        try:
            async with self._sending:
                await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.abort()
            return
        self._end_at(trio.current_time() + _LINGER, "idle")

    async def _close(self) -> None:
        if self._is_closed:
            return
        if isinstance(self._stream, trio.SSLStream):
            with trio.move_on_after(_LINGER):
                try:
                    async with self._sending:
                        await self._stream.aclose()
                except BaseException as error:
                    if not is_protocol_error(error):
                        raise
        self.abort()
