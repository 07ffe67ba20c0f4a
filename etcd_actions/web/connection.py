"""One connection: reads it, limits what its client may use, and ends it in order."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final

import trio

from etcd_actions.web.answering import Answering
from etcd_actions.web.context import Context
from etcd_actions.web.deadline import Deadline
from etcd_actions.web.http1_protocol import Http1
from etcd_actions.web.http2_protocol import Http2
from etcd_actions.web.open_connections import Slot
from etcd_actions.web.peers import Address
from etcd_actions.web.requests import Requests
from etcd_actions.web.sockets import Stream, Wire
from etcd_actions.web.wakeup import Wakeup

# Seconds in which a client can receive the last bytes. If a socket is closed before it was read to
# its end, the system discards them.
_LINGER: Final = 1.0
# Seconds between two checks of a client that sends no more.
_CHECK_EVERY: Final = 0.25
# Events that are handled before other tasks run.
_TURN: Final = 400


@dataclass
class Shared:
    """The parts that all connections of a listener share.

    Attributes:
        answering: Answers requests.
        context: The TLS context; None for plain text.
        is_leaving: Whether requests are refused.
    """

    answering: Answering
    context: ssl.SSLContext | None
    is_leaving: bool = False


class Connection:
    """One connection. Without a request it ends after the idle timeout.

    Args:
        stream: Its TLS stream, or trio's stream of the socket.
        sock: The socket.
        slot: Its slot in the budget.
        ends: The addresses of the client and of the listener.
        shared: The parts that all connections share.
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
        self._ends = ends
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
        # Cancelled when the socket is closed, also while the protocol waits for a request.
        self._lifetime = trio.CancelScope()
        self._deadline = Deadline(
            trio.current_time() + self._limits.header_timeout, "header_timeout"
        )
        self._has_data = False
        self._is_partial = True
        self._answered = Wakeup()

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            alpn = await self._handshake()
            if alpn is None:
                return
            async with trio.open_nursery() as nursery:
                self._requests = Requests(
                    nursery, self._shared.answering, self._slot.peer, self._changed
                )
                self._context = Context(
                    answering=self._shared.answering,
                    wire=self._wire,
                    requests=self._requests,
                    scheme="http" if self._shared.context is None else "https",
                    client=self._ends[0],
                    server=self._ends[1],
                    peer=self._slot.peer,
                    is_leaving=lambda: self._shared.is_leaving,
                    end=self._end,
                )
                kind = Http2 if alpn == "h2" else Http1
                self._protocol = kind(self._context)
                self._protocol.initiate()
                with self._lifetime:
                    await self._serve()
                # From here on the requests in progress end without the socket.
                self._protocol.send_now()
                await self._wire.close_in_order()
                self._protocol.closed()
        finally:
            self.abort()

    def leave(self) -> None:
        """End as soon as no request is in progress."""
        if not self._is_busy:
            self._deadline.move(trio.current_time(), "leaving")

    def abort(self) -> None:
        """Close it at once."""
        self._wire.close()

    def replace(self) -> None:
        """Close it at once: a new connection needs its slot."""
        self._count("replaced")
        self.abort()

    def _count(self, reason: str) -> None:
        self._shared.answering.counts.closed[reason] += 1

    @property
    def _is_busy(self) -> bool:
        return bool(self._requests)

    async def _handshake(self) -> str | None:
        """The negotiated protocol; None if the handshake failed."""
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
        """Read until the end, or until the deadline."""
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
            self._note_progress()
            try:
                data = await self._wire.receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if self._is_busy and not self._wire.is_closed:
                    self._shared.answering.protocol_error(error)
                self.abort()
                return
            if not data:
                return
            self._has_data = True
            self._protocol.receive(data)

    async def _parse(self) -> None:
        """Parse all that has arrived."""
        since = self._protocol.parsed
        while True:
            while self._protocol.parse():
                if self._protocol.parsed - since > _TURN:
                    await trio.lowlevel.checkpoint()
                    since = self._protocol.parsed
            if self._protocol.assumed is not None:
                self._assume()
                continue
            if self._protocol.has_ended:
                await self._end()
                return
            if not self._protocol.is_waiting:
                return
            await self._protocol.ready()

    def _assume(self) -> None:
        """Change to HTTP/2: the client started with its preface."""
        data = self._protocol.assumed or b""
        self._protocol = Http2(self._context)
        self._protocol.initiate()
        self._is_partial = True
        self._protocol.receive(data)

    async def _ended_here(self) -> bool:
        """End the connection at its deadline; returns whether nothing more has to be read."""
        reason = self._deadline.reason
        if self._wire.is_ended or (reason == "leaving" and isinstance(self._protocol, Http1)):
            return True
        if reason != "leaving":
            self._count(reason)
            # An incomplete request gets no response.
            if self._is_partial:
                return True
        self._protocol.goodbye()
        await self._end()
        return self._wire.is_closed

    async def _end_of_client(self) -> None:
        """Handle a client that sends no more; it may still wait for responses."""
        if self._wire.is_ended:
            return
        requests = self._context.requests
        if self._is_busy:
            since = trio.current_time()
            if not isinstance(self._protocol, Http1) or not requests.wait_for_bodies:
                while not self._is_abandoned() and requests.end_of_client(since):
                    with trio.move_on_after(_CHECK_EVERY):
                        await self._answered.wait()
                return
            # A truncated body gets a response.
            requests.end_of_client(since)
        self._protocol.receive(b"")
        self._protocol.parse()
        if self._protocol.has_ended:
            await self._end()

    def _is_abandoned(self) -> bool:
        """Whether all requests are answered, or the client has reset the connection."""
        return not self._is_busy or self._wire.is_reset()

    def _note_progress(self) -> None:
        if not self._has_data or self._is_busy or self._wire.is_ended:
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
        """Send no more, and give the client time to receive the rest."""
        if self._wire.is_ended or self._wire.is_closed:
            return
        await self._wire.end()
        self._protocol.closed()
        self._deadline.move(trio.current_time() + _LINGER, "idle")
