"""HTTP/2 of one connection, by h2's state machine, without a socket.

All that has arrived is looked at before the first of its requests goes on, so that what they
write can go together. What requests send in one turn of the loop is sent at once. Streams take
turns where there is more than the client takes: priorities are deprecated (RFC 9113, 5.3), and
PRIORITY frames change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import h2.config
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes

from etcd_actions.web.asgi import Headers
from etcd_actions.web.context import Context, Scopes
from etcd_actions.web.counting import CountingConnection
from etcd_actions.web.encoding import PlainEncoder
from etcd_actions.web.frame_position import Frames
from etcd_actions.web.http2_response import Exchange, Held
from etcd_actions.web.wakeup import Signal

# What is parsed without a look at how much that was.
_BATCH: Final = 2**13
# Requests that are taken back at once cost the client nothing and the server much
# (CVE-2023-44487): so many more than were answered are too many.
_MOST_HASTY: Final = 200
_HASTE: Final = 1.0
# Each setting is remembered, and each frame of them may change the windows of all streams: so
# many at once, and so many a second after that. A frame counts once more for so many streams.
_MOST_SETTINGS: Final = 1_000
_SETTINGS_PER_SECOND: Final = 20.0
_STREAMS_PER_SETTING: Final = 200
# What the bodies of all streams together may have on the way. The default of 64 KiB would have
# requests trickle in that could be written together.
_WINDOW: Final = 2**20
# To these h2 has nothing to say at once.
_UNANSWERED: Final = (h2.events.RequestReceived, h2.events.DataReceived, h2.events.StreamEnded)
# Of answers that the client does not take: where there is more, new requests are refused.
_MOST_HELD: Final = 2**25
# What may wait for the system before no more is read.
_MOST_UNSENT: Final = 2**16


class Http2:
    """The protocol of one connection.

    Args:
        context: What it needs of the connection.
        scopes: Makes the scopes of requests.

    Attributes:
        is_over: Whether nothing that comes is looked at any more.
        parsed: How many events there were.
    """

    assumed: bytes | None = None

    def __init__(self, context: Context, scopes: Scopes) -> None:
        self._context = context
        self._scopes = scopes
        codes = h2.settings.SettingCodes
        limits = context.answering.limits
        self._most_streams = limits.streams_per_connection
        self._state = CountingConnection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                # request.py has done that.
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
        self.is_over = False
        self.parsed = 0

    @property
    def is_partial(self) -> bool:
        """Whether the client is in the middle of something that it should finish soon."""
        return not self._greeted or self._frames.is_partial

    @property
    def is_waiting(self) -> bool:
        """Whether nothing more may be read: the client takes too little of what is sent."""
        return self._context.wire.unsent > _MOST_UNSENT

    async def ready(self) -> None:
        """Wait until that may have changed."""
        await self._context.wire.flush()

    def initiate(self) -> None:
        """Greet the client."""
        self._state.initiate_connection()
        self._state.increment_flow_control_window(_WINDOW - 2**16 + 1)
        self._sending.wake()
        self._context.requests.spawn(self._send_in_turn)

    def goodbye(self) -> None:
        """Tell the client that no more requests are taken."""
        if not self.is_over:
            self._state.close_connection()
            self._sending.send_now()

    def send_now(self) -> None:
        """Send what is not sent yet, in this turn of the loop."""
        self._sending.send_now()

    def closed(self) -> None:
        """The connection is closed."""
        self.is_over = True
        for stream_id in list(self._exchanges):
            self.drop(stream_id)
        self._sending.close()

    def receive(self, data: bytes) -> None:
        """Take what the client sent; nothing at its end."""
        if not self.is_over:
            self._received += data

    def parse(self) -> bool:
        """Look at some of what came; returns whether there is more to look at now."""
        data = bytes(self._received[:_BATCH])
        del self._received[:_BATCH]
        if data and not self.is_over:
            self._take(data)
        return bool(self._received) and not self.is_over

    async def _send_in_turn(self) -> None:
        await self._sending.run()

    def _take(self, data: bytes) -> None:
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
                self._sending.all_ready(self._exchanges)
            if (abuse := self._abuse.of_requests) is not None:
                raise self._enough(abuse)
        except h2.exceptions.ProtocolError as error:
            self._context.answering.protocol_error(error)
            self.is_over = True
        if not (events and all(isinstance(event, _UNANSWERED) for event in events)):
            self._sending.wake()
        if self.is_over:
            # What h2 has to say of it goes before the end.
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
            self.is_over = True

    def _request_received(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        is_full = (
            len(self._context.requests) >= self._most_streams
            or self._sending.held.size > _MOST_HELD
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
            scope = self._scopes.make("2", method.decode("ascii"), path, headers, has_trailers=True)
            exchange = Exchange(self, self._context, self._state, self._sending, stream_id)
            exchange.takes_trailers = (b"te", b"trailers") in headers
            self._exchanges[stream_id] = exchange
            exchange.request = self._context.requests.begin(scope, exchange)
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
            # It was sent before its client knew that nobody wants it.
            self.acknowledge(stream_id, size)
            return
        if padding := size - len(data):
            self.acknowledge(stream_id, padding)
        exchange.untaken += len(data)
        exchange.request.body.put(data)

    def _stream_reset(self, stream_id: int) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None:
            if not exchange.is_begun:
                self._abuse.note_reset(exchange.began_at)
            self.drop(stream_id)

    def _window_updated(self, stream_id: int) -> None:
        if not stream_id:
            self._sending.opened()
        elif (exchange := self._exchanges.get(stream_id)) is not None and exchange.outgoing:
            self._sending.ready(exchange)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """So many bytes of a body were taken, or dropped: the client may send as many more."""
        if count and not self.is_over:
            self._state.acknowledge_received_data(count, stream_id)
            self._sending.wake()

    def note_answer(self) -> None:
        """A request that was not taken back has its answer."""
        self._abuse.note_answer()

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream at once."""
        if not self.is_over:
            try:
                self._state.reset_stream(stream_id, code)
            except h2.exceptions.ProtocolError as error:
                # The client was faster.
                self._context.answering.protocol_error(error)
            self._sending.wake()

    def drop(self, stream_id: int) -> None:
        """A stream is over: nothing more goes there, or comes from there."""
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is None:
            return
        self._sending.forget(exchange)
        self.acknowledge(stream_id, exchange.untaken)
        exchange.untaken = 0
        exchange.request.disconnect()


class _Abuse:
    """Counts what costs the server more than the client."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._hasty = 0
        self._frames_of_settings = 0
        self._cost_of_streams = 0.0

    def of_settings(self, frames: Frames, streams: int) -> str | None:
        """What there is too much of; None for nothing.

        Args:
            frames: What has come.
            streams: How many there are now.
        """
        new = frames.frames_of_settings - self._frames_of_settings
        if not new:
            return None
        self._frames_of_settings += new
        self._cost_of_streams += new * streams / _STREAMS_PER_SETTING
        lived = trio.current_time() - self._began
        cost = frames.settings + self._cost_of_streams
        return "settings" if cost > _MOST_SETTINGS + _SETTINGS_PER_SECOND * lived else None

    @property
    def of_requests(self) -> str | None:
        """What there is too much of; None for nothing."""
        return "requests that are reset at once" if self._hasty > _MOST_HASTY else None

    def note_reset(self, began_at: float) -> None:
        """A request was taken back before its answer began."""
        self._hasty += trio.current_time() - began_at < _HASTE

    def note_answer(self) -> None:
        """An answer has begun."""
        self._hasty = max(0, self._hasty - 1)


class Sending:
    """What the streams of one connection send, in turn.

    Args:
        state: The state machine.
        context: Where the bytes go.

    Attributes:
        held: What streams have yet to send.
    """

    def __init__(self, state: CountingConnection, context: Context) -> None:
        self._state = state
        self._wire = context.wire
        self.held = Held()
        self._ready: OrderedDict[Exchange, None] = OrderedDict()
        self._unsent = 0
        self._has_output = False
        self._is_over = False
        self._signal = Signal()

    @property
    def has_room(self) -> bool:
        """Whether the client and the system take what there is."""
        return not (self._ready or self._unsent > _MOST_UNSENT or self._wire.unsent)

    def note(self, size: int) -> None:
        """So much was given to the state machine."""
        self._unsent += size
        self.wake()

    def wake(self) -> None:
        """Send what the state machine has, in this turn of the loop."""
        self._has_output = True
        self._signal.send()

    def ready(self, exchange: Exchange) -> None:
        """A stream has something to send, and may be able to."""
        self._ready[exchange] = None
        self._signal.send()

    def opened(self) -> None:
        """The window that all streams share has grown."""
        if self._ready:
            self._signal.send()

    def all_ready(self, exchanges: dict[int, Exchange]) -> None:
        """All of these that have something to send may be able to."""
        for exchange in exchanges.values():
            if exchange.outgoing:
                self.ready(exchange)

    def forget(self, exchange: Exchange) -> None:
        """A stream sends nothing more."""
        self._ready.pop(exchange, None)
        exchange.outgoing.close()

    def close(self) -> None:
        """Nothing more is sent."""
        self._is_over = True
        self._signal.send()

    def send_now(self) -> None:
        """Send what the state machine has at once, as far as the system takes it."""
        self._wire.write(self._state.data_to_send())

    @property
    def _is_open(self) -> bool:
        """Whether the window that all streams share has room."""
        return self._state.outbound_flow_control_window > 0

    async def run(self) -> None:
        """Send until it is closed: a frame of each stream in turn.

        Those that only the shared window holds back keep their turn: a client may let it grow
        by one byte at a time, and that is no reason to look at all of them.
        """
        while not self._is_over:
            if not (self._has_output or (self._ready and self._is_open)):
                await self._signal.wait()
                continue
            while self._ready and self._is_open and self._unsent <= _MOST_UNSENT:
                exchange, _ = self._ready.popitem(last=False)
                self._unsent += exchange.send_a_frame()
                if exchange.outgoing and (exchange.window or not self._is_open):
                    self._ready[exchange] = None
            self._has_output, self._unsent = False, 0
            data = self._state.data_to_send()
            if data and not self._wire.write(data):
                await self._wire.flush()
            elif self._ready and self._is_open:
                await trio.lowlevel.checkpoint()
