"""HTTP/1.1 of one connection, by h11's state machine, without a socket.

A request for an upgrade to WebSocket or HTTP/2 is answered in HTTP/1.1 (RFC 9110, 7.8). A client
that starts with HTTP/2's preface gets HTTP/2. Requests that arrive before the last one is answered
wait in h11's buffer, and the connection is not read until then.
"""

from __future__ import annotations

from typing import Final

import h11
import trio

from etcd_actions.web.asgi import Headers
from etcd_actions.web.context import Context
from etcd_actions.web.request import Request
from etcd_actions.web.wakeup import Wakeup

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"
# Events that are parsed before other tasks run.
_MOST_EVENTS: Final = 100


class Http1:
    """The protocol of one connection.

    Attributes:
        assumed: The bytes from HTTP/2's preface on; None for a client of HTTP/1.1.
        has_ended: Whether it ignores further bytes.
        parsed: The number of parsed events.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._state = h11.Connection(
            h11.SERVER, max_incomplete_event_size=context.answering.limits.header_bytes
        )
        self._exchange: _Exchange | None = None
        self._is_paused = False
        self._answered = Wakeup()
        self.assumed: bytes | None = None
        self.has_ended = False
        self.parsed = 0

    @property
    def is_partial(self) -> bool:
        """Whether a request is incomplete."""
        return bool(self._state.trailing_data[0])

    def initiate(self) -> None:
        """Do nothing: HTTP/1.1 has no settings."""

    def goodbye(self) -> None:
        """Do nothing: HTTP/1.1 has no announcement of the end."""

    def send_now(self) -> None:
        """Do nothing: each part was sent at once."""

    def receive(self, data: bytes) -> None:
        """Add bytes of the client; an empty part stands for its end."""
        if not self.has_ended:
            self._state.receive_data(data)

    def parse(self) -> bool:
        """Parse some of the bytes; returns whether there are more."""
        for _ in range(_MOST_EVENTS):
            if self.has_ended or not self._has_capacity:
                return False
            try:
                event = self._state.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error, error.error_status_hint)
                return False
            self.parsed += 1
            if isinstance(event, h11.Request):
                self._start(event)
            elif isinstance(event, h11.Data):
                if self._exchange is not None:
                    self._exchange.request.body.put(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._exchange is not None:
                    self._exchange.request.body.end()
            else:
                self._is_paused = event is h11.PAUSED and self.is_partial
                return False
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether nothing may be read: too many bytes are not processed yet."""
        return (self._is_paused and self._exchange is not None) or not self._has_capacity

    async def ready(self) -> None:
        """Wait until :attr:`is_waiting` may have changed."""
        if (exchange := self._exchange) is None:
            await trio.lowlevel.checkpoint()
        elif self._is_paused:
            await self._answered.wait()
        else:
            await exchange.request.body.changed()

    def closed(self) -> None:
        """Disconnect the request: the connection is closed."""
        self.has_ended = True
        if self._exchange is not None:
            self._exchange.request.disconnect()

    @property
    def _has_capacity(self) -> bool:
        return self._exchange is None or self._exchange.request.body.has_capacity

    def _start(self, event: h11.Request) -> None:
        method = event.method
        if method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            self.assumed = _PREFACE + self._state.trailing_data[0]
            self.has_ended = True
            return
        headers = list(event.headers)
        most = self._context.answering.limits.header_bytes
        if (refusal := _refusal(event, headers, most)) is not None:
            self._refuse(ValueError(refusal[1]), refusal[0])
            return
        scope = self._context.scope(
            event.http_version.decode("ascii"),
            method.decode("ascii"),
            event.target,
            headers,
            has_trailers=False,
        )
        exchange = _Exchange(self, self._context, self._state, is_head=method == b"HEAD")
        self._exchange = exchange
        exchange.request = self._context.requests.start(scope, exchange)

    def _refuse(self, error: Exception, status: int) -> None:
        """Respond to an invalid request, unless a response has started, and ignore the rest."""
        self.has_ended = True
        if self._exchange is not None:
            self._exchange.request.disconnect()
        self._context.answering.protocol_error(error)
        if self._state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [
            (b"content-length", b"0"),
            (b"connection", b"close"),
            self._context.answering.date,
        ]
        response = self._state.send(h11.Response(status_code=status, headers=headers))
        self._context.wire.write((response or b"") + (self._state.send(h11.EndOfMessage()) or b""))

    def is_done(self, exchange: _Exchange) -> bool:
        """Prepare for the next request after a response; returns whether one may follow."""
        if self._exchange is exchange:
            self._exchange = None
        continues = (
            not (self.has_ended or self._context.is_leaving())
            and self._state.our_state is h11.DONE
            and self._state.their_state is h11.DONE
        )
        if continues:
            self._state.start_next_cycle()
        else:
            self.has_ended = True
        self._answered.send()
        return continues


class _Exchange:
    """The response to one request."""

    has_trailers = False
    request: Request

    def __init__(
        self, protocol: Http1, context: Context, state: h11.Connection, *, is_head: bool
    ) -> None:
        self._protocol = protocol
        self._context = context
        self._state = state
        self._is_head = is_head
        # Headers wait for the next part: if that is the complete body, its length is known.
        self._waiting: tuple[int, Headers] | None = None
        self._ends_connection = False

    def request_body(self) -> None:
        if self._state.they_are_waiting_for_100_continue and not self._protocol.has_ended:
            proceed = h11.InformationalResponse(status_code=100, headers=[])
            self._context.wire.write(self._state.send(proceed) or b"")

    def consumed(self, count: int) -> None:
        """Do nothing: the reader of the connection checks the capacity of the body."""

    def start(self, status: int, headers: Headers) -> None:
        self._waiting = status, headers

    def body(self, data: bytes) -> bool:
        return self._is_broken or self._send(data, None)

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        is_sent = self._is_broken or self._send(data, len(data), h11.EndOfMessage())
        self._ends_connection = not self._protocol.is_done(self)
        return is_sent and not self._ends_connection

    async def wait(self) -> None:
        await self._context.wire.flush()
        if self._ends_connection:
            await self._context.end()

    def break_off(self) -> None:
        self._protocol.is_done(self)
        self._ends_connection = True

    @property
    def _is_broken(self) -> bool:
        """Whether the client broke the protocol, or left: nothing more is sent."""
        return self._protocol.has_ended or self._context.wire.is_closed

    def _waiting_headers(self, length: int | None) -> list[h11.Event]:
        """The headers, if they were not sent; ``length`` is the body's, if it is known."""
        if self._waiting is None:
            return []
        (status, headers), self._waiting = self._waiting, None
        names = {name for name, _ in headers}
        has_length = names & {b"content-length", b"transfer-encoding"}
        if length is not None and not (has_length or self._is_head or status in (204, 304)):
            headers.append((b"content-length", b"%d" % length))
        if b"date" not in names:
            headers.append(self._context.answering.date)
        if self._context.is_leaving() and b"connection" not in names:
            headers.append((b"connection", b"close"))
        return [h11.Response(status_code=status, headers=headers)]

    def _send(self, data: bytes, length: int | None, *end: h11.Event) -> bool:
        """Send waiting headers, data and the end; returns whether the socket accepted all."""
        try:
            events = self._waiting_headers(length)
            if data:
                events.append(h11.Data(data=data))
            sent = b"".join([self._state.send(event) or b"" for event in (*events, *end)])
        except h11.LocalProtocolError as error:
            # h11 reports errors of the client when it parses: this one is the application's.
            raise RuntimeError(f"this answer cannot be sent: {error}") from error
        return self._context.wire.write(sent)


def _refusal(request: h11.Request, headers: Headers, most: int) -> tuple[int, str] | None:
    """The status and the reason if a request is refused; None if it is answered.

    It is refused if its headers are too large, which h11 checks only while they arrive; if a proxy
    may find another end of its body than h11 (RFC 9112, 6.1 and 6.3); or if it requests a tunnel,
    for which h11 would wait.
    """
    if len(request.target) + sum(len(name) + len(value) + 4 for name, value in headers) > most:
        return 431, "a request with too large headers"
    if request.method == b"CONNECT":
        return 400, "a request for a tunnel"
    names = [name for name, _ in headers]
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return 400, "a request with Content-Length and Transfer-Encoding"
    if request.http_version != b"1.1":
        return 400, "a request of HTTP/1.0 with Transfer-Encoding"
    return None
