"""HTTP/2 of one connection, by h2's state machine, without a socket.

All bytes that have arrived are parsed before the first of their requests runs. The parts that
requests send in one turn of the event loop are written together. If the client accepts less than
there is to send, streams take turns: priorities are deprecated (RFC 9113, 5.3), and PRIORITY frames
have no effect.
"""

from __future__ import annotations

from typing import Final

import h2.config
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes

from etcd_actions.web.asgi import Headers
from etcd_actions.web.client_frames import Frames
from etcd_actions.web.context import Context
from etcd_actions.web.counting import CountingConnection
from etcd_actions.web.encoding import PlainEncoder
from etcd_actions.web.http2_sending import MOST_UNSENT, Exchange, Sending

# Bytes that are parsed before the number of events is checked.
_BATCH: Final = 2**13
# Requests that are reset at once cost the client little and the server much (CVE-2023-44487). This
# is the most by which their number may exceed that of the responses.
_MOST_HASTY: Final = 200
# Seconds; a request that is reset sooner counts.
_HASTE: Final = 1.0
# Each setting takes memory, and each SETTINGS frame may change the windows of all streams. These
# are the most at once, and for each second after that; a frame counts once more for each 200
# streams.
_MOST_SETTINGS: Final = 1_000
_SETTINGS_PER_SECOND: Final = 20.0
_STREAMS_PER_SETTING: Final = 200
# The window of all request bodies of a connection. With the default of 64 KiB, requests that could
# be answered together arrive one by one.
_WINDOW: Final = 2**20
# Events after which h2 has nothing to send.
_UNANSWERED: Final = (h2.events.RequestReceived, h2.events.DataReceived, h2.events.StreamEnded)
# Bytes of responses that the client does not accept: above it, new requests are refused.
_MOST_HELD: Final = 2**25


class Http2:
    """The protocol of one connection.

    Attributes:
        has_ended: Whether it ignores further bytes.
        parsed: The number of parsed events.
    """

    assumed: bytes | None = None

    def __init__(self, context: Context) -> None:
        self._context = context
        codes = h2.settings.SettingCodes
        limits = context.answering.limits
        self._most_streams = limits.streams_per_connection
        self._state = CountingConnection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                # request.py validates and normalizes them.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._state.encoder = PlainEncoder()  # type: ignore[assignment]
        self._state.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: self._most_streams,
                codes.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            },
        )
        self._received = bytearray()
        self._sending = Sending(self._state, context)
        self._abuse = _Abuse()
        self._frames = Frames()
        self._greeted = False
        self._windows_changed = False
        self._exchanges: dict[int, Exchange] = {}
        self.has_ended = False
        self.parsed = 0

    @property
    def is_partial(self) -> bool:
        """Whether the client has to finish a preface, a frame or headers soon."""
        return not self._greeted or self._frames.is_partial

    @property
    def is_waiting(self) -> bool:
        """Whether nothing may be read: the client reads too little of the responses."""
        return self._context.wire.unsent > MOST_UNSENT

    async def ready(self) -> None:
        """Wait until :attr:`is_waiting` may have changed."""
        await self._context.wire.flush()

    def initiate(self) -> None:
        """Send the settings."""
        self._state.initiate_connection()
        self._state.increment_flow_control_window(_WINDOW - 2**16 + 1)
        self._sending.wake()
        self._context.requests.spawn(self._send_in_turn)

    def goodbye(self) -> None:
        """Announce that no more requests are accepted."""
        if not self.has_ended:
            self._state.close_connection()
            self._sending.send_now()

    def send_now(self) -> None:
        """Send the rest, in this turn of the loop."""
        self._sending.send_now()

    def closed(self) -> None:
        """Drop all streams: the connection is closed."""
        self.has_ended = True
        for stream_id in list(self._exchanges):
            self.drop(stream_id)
        self._sending.close()

    def receive(self, data: bytes) -> None:
        """Add bytes of the client; an empty part stands for its end."""
        if not self.has_ended:
            self._received += data

    def parse(self) -> bool:
        """Parse some of the bytes; returns whether there are more."""
        data = bytes(self._received[:_BATCH])
        del self._received[:_BATCH]
        if data and not self.has_ended:
            self._parse(data)
        return bool(self._received) and not self.has_ended

    async def _send_in_turn(self) -> None:
        await self._sending.run()

    def _parse(self, data: bytes) -> None:
        self._frames.feed(data)
        events: list[h2.events.Event] = []
        try:
            if self._frames.is_too_large:
                self._state.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
                raise h2.exceptions.FrameTooLargeError("a frame is too large")
            if (
                abuse := self._abuse.of_settings(self._frames, len(self._state.streams))
            ) is not None:
                raise self._enough(abuse)
            events = self._state.receive_data(data)
            self.parsed += len(events)
            for event in events:
                self._handle(event)
            if self._windows_changed:
                self._windows_changed = False
                self._sending.all_ready(self._exchanges.values())
            if (abuse := self._abuse.of_requests) is not None:
                raise self._enough(abuse)
        except h2.exceptions.ProtocolError as error:
            self._context.answering.protocol_error(error)
            self.has_ended = True
        if not (events and all(isinstance(event, _UNANSWERED) for event in events)):
            self._sending.wake()
        if self.has_ended:
            # Send h2's reason before the end.
            self._sending.send_now()
            self.closed()

    def _enough(self, what: str) -> h2.exceptions.ProtocolError:
        self._state.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        return h2.exceptions.ProtocolError(f"too many {what}")

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._request_received(event)
        elif isinstance(event, h2.events.DataReceived):
            self._data_received(event)
        elif isinstance(event, h2.events.StreamEnded):
            if (exchange := self._exchanges.get(event.stream_id or 0)) is not None:
                exchange.request.body.end()
        elif isinstance(event, h2.events.StreamReset):
            self._stream_reset(event.stream_id or 0)
        elif isinstance(event, h2.events.WindowUpdated):
            self._window_updated(event.stream_id or 0)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._greeted = True
            if h2.settings.SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                self._windows_changed = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.has_ended = True

    def _request_received(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        is_full = (
            len(self._context.requests) >= self._most_streams
            or self._sending.held_bytes > _MOST_HELD
        )
        if is_full or self._context.is_leaving():
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        headers: Headers = []
        fields: dict[bytes, bytes] = {}
        for name, value in event.headers or ():
            if name.startswith(b":"):
                fields[name] = value
            else:
                headers.append((name, value))
        if b":authority" in fields:
            headers.insert(0, (b"host", fields[b":authority"]))
        method, path = fields.get(b":method", b""), fields.get(b":path", b"")
        if not (method.isascii() and path.isascii() and method and path):
            self._context.answering.protocol_error(
                ValueError(f"a request for {method[:100]!r} {path[:100]!r}")
            )
            self.reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        with self._context.answering.containment.unit(
            "request", f"a request of {self._context.peer}"
        ) as unit:
            scope = self._context.scope(
                "2", method.decode("ascii"), path, headers, has_trailers=True
            )
            trailers = (b"te", b"trailers") in headers
            exchange = Exchange(self, self._context, self._sending, stream_id, trailers=trailers)
            self._exchanges[stream_id] = exchange
            exchange.request = self._context.requests.start(scope, exchange)
        if unit.failed:
            self._exchanges.pop(stream_id, None)
            self.reset(stream_id, ErrorCodes.INTERNAL_ERROR)

    def _data_received(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        data = event.data or b""
        exchange = self._exchanges.get(stream_id)
        size = event.flow_controlled_length or 0
        if exchange is None:
            # The client sent it before it received the reset.
            self.acknowledge(stream_id, size)
            return
        if padding := size - len(data):
            self.acknowledge(stream_id, padding)
        exchange.unread += len(data)
        exchange.request.body.put(data)

    def _stream_reset(self, stream_id: int) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None:
            if not exchange.has_started:
                self._abuse.note_reset(exchange.started_at)
            self.drop(stream_id)

    def _window_updated(self, stream_id: int) -> None:
        if not stream_id:
            self._sending.opened()
        elif (exchange := self._exchanges.get(stream_id)) is not None and exchange.buffer:
            self._sending.ready(exchange)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Let the client send more bytes, as many as were read or dropped."""
        if count and not self.has_ended:
            self._state.acknowledge_received_data(count, stream_id)
            self._sending.wake()

    def note_response(self) -> None:
        """Note that a response started."""
        self._abuse.note_response()

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream at once."""
        if not self.has_ended:
            try:
                self._state.reset_stream(stream_id, code)
            except h2.exceptions.ProtocolError as error:
                # The client ended it first.
                self._context.answering.protocol_error(error)
            self._sending.wake()

    def drop(self, stream_id: int) -> None:
        """Forget a stream that has ended."""
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is None:
            return
        self._sending.forget(exchange)
        self.acknowledge(stream_id, exchange.unread)
        exchange.unread = 0
        exchange.request.disconnect()


class _Abuse:
    """Counts actions of a client that cost the server more than the client."""

    def __init__(self) -> None:
        self._started_at = trio.current_time()
        self._hasty = 0
        self._frames_of_settings = 0
        self._cost_of_streams = 0.0

    def of_settings(self, frames: Frames, streams: int) -> str | None:
        """The name of the excess if there are too many settings; None if not."""
        new = frames.frames_of_settings - self._frames_of_settings
        if not new:
            return None
        self._frames_of_settings += new
        self._cost_of_streams += new * streams / _STREAMS_PER_SETTING
        lived = trio.current_time() - self._started_at
        cost = frames.settings + self._cost_of_streams
        return "settings" if cost > _MOST_SETTINGS + _SETTINGS_PER_SECOND * lived else None

    @property
    def of_requests(self) -> str | None:
        """The name of the excess if too many requests were reset; None if not."""
        return "requests that are reset at once" if self._hasty > _MOST_HASTY else None

    def note_reset(self, started_at: float) -> None:
        """Note that a request was reset before its response started."""
        self._hasty += trio.current_time() - started_at < _HASTE

    def note_response(self) -> None:
        """Note that a response has started."""
        self._hasty = max(0, self._hasty - 1)
