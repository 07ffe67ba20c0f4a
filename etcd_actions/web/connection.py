"""One connection: reads it, bounds what its client may take, and ends it in order."""

from __future__ import annotations

import socket
import ssl
from typing import Final

import trio

from etcd_actions.web.answering import Answering
from etcd_actions.web.context import Context, Scopes
from etcd_actions.web.deadline import Deadline
from etcd_actions.web.http1_protocol import Http1
from etcd_actions.web.http2_protocol import Http2
from etcd_actions.web.open_connections import Slot
from etcd_actions.web.peers import Address
from etcd_actions.web.requests import Requests
from etcd_actions.web.sockets import Stream, Wire
from etcd_actions.web.wakeup import Signal

# How long a client may take to see the last that it was sent. A socket that is closed before
# it has been read to its end takes that away from it.
_LINGER: Final = 1.0
# How often to look whether a client that sends no more is still there.
_LOOK_EVERY: Final = 0.25
# Events that are looked at before others have their turn.
_TURN: Final = 400


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
        self.is_leaving = False


class Connection:
    """One connection. Without a request it ends when it has been idle for too long.

    Args:
        stream: Its bytes.
        sock: What they go through.
        slot: Its place in the budget.
        ends: Where its client and the listener are.
        shared: What the listener's connections share.
    """

    def __init__(
        self,
        stream: Stream,
        sock: socket.socket,
        slot: Slot,
        ends: tuple[Address, Address],
        shared: Shared,
    ) -> None:
        self._stream = stream
        self._slot = slot
        self._shared = shared
        self._limits = shared.answering.limits
        self._scopes = Scopes("http" if shared.context is None else "https", *ends)
        self._wire = Wire(
            stream,
            sock,
            self._limits.stall_timeout,
            lambda: self._count("stalled"),
            shared.answering.protocol_error,
            lambda: self._lifetime.cancel("the connection is closed"),
        )
        self._requests: Requests | None = None
        self._context: Context
        self._protocol: Http1 | Http2
        # The protocol may wait for a request's end before it goes on to read.
        self._lifetime = trio.CancelScope()
        self._deadline = Deadline(
            trio.current_time() + self._limits.header_timeout, "header_timeout"
        )
        self._has_begun = False
        self._is_partial = True
        self._answered = Signal()

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
                self._context = Context(
                    self._shared.answering,
                    self._wire,
                    self._requests,
                    self._slot.peer,
                    is_leaving=lambda: self._shared.is_leaving,
                    end=self._end,
                )
                kind = Http2 if alpn == "h2" else Http1
                self._protocol = kind(self._context, self._scopes)
                self._protocol.initiate()
                with self._lifetime:
                    await self._serve()
                # Requests that nobody waits for may end without the socket.
                self._protocol.send_now()
                await self._wire.close_in_order()
                self._protocol.closed()
        finally:
            self.abort()

    def leave(self) -> None:
        """End once no request is under way."""
        if not self._is_busy:
            self._deadline.move(trio.current_time(), "leaving")

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self._wire.close()

    def replace(self) -> None:
        """Close it at once, since another one needs its place."""
        self._count("replaced")
        self.abort()

    def _count(self, reason: str) -> None:
        self._shared.answering.counts.closed[reason] += 1

    @property
    def _is_busy(self) -> bool:
        return bool(self._requests)

    async def _handshake(self) -> str | None:
        """The protocol that was agreed upon; None for a client that did not get that far."""
        if not isinstance(self._stream, trio.SSLStream):
            return "http/1.1"
        try:
            with trio.fail_after(self._limits.handshake_timeout):
                await self._stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._count("handshake")
            return None
        if self._shared.is_leaving:
            return None
        self._deadline.move(trio.current_time() + self._limits.header_timeout, "header_timeout")
        return self._stream.selected_alpn_protocol() or "http/1.1"

    async def _serve(self) -> None:
        """Read until the end, or until the deadline that nobody moved in time."""
        is_at_end = False
        while not is_at_end:
            with self._deadline.scope() as scope:
                await self._read()
                is_at_end = True
            if not scope.cancelled_caught:
                break
            if not self._deadline.is_reached or (self._is_busy and not self._wire.is_ended):
                continue
            if await self._ended_here():
                return
        await self._end_of_client()

    async def _read(self) -> None:
        """Read until the client's end. Nothing is lost by cancellation."""
        while True:
            await self._parse()
            self._note_what_has_begun()
            try:
                data = await self._wire.receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if self._is_busy and not self._wire.is_closed:
                    self._shared.answering.protocol_error(error)
                self.abort()
                return
            if not data:
                return
            self._has_begun = True
            self._protocol.receive(data)

    async def _parse(self) -> None:
        """Look at all that has arrived, of the socket, too."""
        since = self._protocol.parsed
        while True:
            while self._protocol.parse():
                if self._protocol.parsed - since > _TURN:
                    await trio.lowlevel.checkpoint()
                    since = self._protocol.parsed
            if self._protocol.assumed is not None:
                self._assume()
                continue
            if self._protocol.is_over:
                await self._end()
                return
            if not self._protocol.is_waiting:
                return
            await self._protocol.ready()

    def _assume(self) -> None:
        """The client speaks HTTP/2, and has said so by its first bytes."""
        data = self._protocol.assumed or b""
        self._protocol = Http2(self._context, self._scopes)
        self._protocol.initiate()
        self._is_partial = True
        self._protocol.receive(data)

    async def _ended_here(self) -> bool:
        """Say goodbye at the deadline; returns whether that was said before."""
        reason = self._deadline.reason
        if self._wire.is_ended or (reason == "leaving" and isinstance(self._protocol, Http1)):
            return True
        if reason != "leaving":
            self._count(reason)
            # Half a request gets no answer that a client could take for one.
            if self._is_partial:
                return True
        self._protocol.goodbye()
        await self._end()
        return self._wire.is_closed

    async def _end_of_client(self) -> None:
        """The client sends no more; it may still wait for answers."""
        if self._wire.is_ended:
            return
        requests = self._context.requests
        if self._is_busy:
            since = trio.current_time()
            if not isinstance(self._protocol, Http1) or not requests.wait_for_bodies:
                while not self._is_left() and requests.end_of_client(since):
                    with trio.move_on_after(_LOOK_EVERY):
                        await self._answered.wait()
                return
            # A body that ends too early gets its answer.
            requests.end_of_client(since)
        self._protocol.receive(b"")
        self._protocol.parse()
        if self._protocol.is_over:
            await self._end()

    def _is_left(self) -> bool:
        """Whether all is answered, or a client that sends no more takes no more, either."""
        return not self._is_busy or self._wire.takes_nothing()

    def _note_what_has_begun(self) -> None:
        if not self._has_begun or self._is_busy or self._wire.is_ended:
            return
        was_partial, self._is_partial = self._is_partial, self._protocol.is_partial
        now = trio.current_time()
        if self._is_partial and not was_partial:
            at = min(self._deadline.at, now + self._limits.header_timeout)
            self._deadline.move(at, "header_timeout")
        elif was_partial and not self._is_partial:
            self._deadline.move(now + self._limits.idle_timeout, "idle")

    def _changed(self, is_busy: bool) -> None:
        if is_busy:
            self._slot.busy()
            self._deadline.move(float("inf"), "idle")
            return
        self._slot.idle()
        self._answered.send()
        self._is_partial = self._protocol.is_partial
        now = trio.current_time()
        if self._wire.is_ended:
            self._deadline.move(now + _LINGER, "idle")
        elif self._shared.is_leaving:
            self._deadline.move(now, "leaving")
        elif self._is_partial:
            self._deadline.move(now + self._limits.header_timeout, "header_timeout")
        else:
            self._deadline.move(now + self._limits.idle_timeout, "idle")

    async def _end(self) -> None:
        """Send no more, and give the client time to take what was sent."""
        if self._wire.is_ended or self._wire.is_closed:
            return
        await self._wire.end()
        self._protocol.closed()
        self._deadline.move(trio.current_time() + _LINGER, "idle")
