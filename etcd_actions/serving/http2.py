"""HTTP/2 of one connection, without a socket; what each stream means is hypercorn's.

It takes the place of hypercorn's own class, whose priority tree has room for 1,000 streams and
which lets the exceptions of one stream end the connection. Streams take turns here: priorities
are deprecated (RFC 9113, 5.3), and PRIORITY frames change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import h2.config
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import events as of_stream
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import filter_pseudo_headers

from etcd_actions.serving.asgi import ClientGone
from etcd_actions.serving.counting import CountingConnection
from etcd_actions.serving.frames import Frames

if TYPE_CHECKING:
    from etcd_actions.serving.connection import Context

# What is read at once, so that others have their turn between some hundred frames.
_BATCH: Final = 2**13
# Requests that are taken back at once cost the client nothing and the server much
# (CVE-2023-44487): so many more than were answered are too many.
_MOST_HASTY: Final = 200
_HASTE: Final = 1.0
# Each may change the windows of all streams: so many at once, and so many a second after that.
_MOST_SETTINGS: Final = 1_000
_SETTINGS_PER_SECOND: Final = 10.0
# Two frames of the default size.
_HIGH_WATER: Final = 2 * 2**14


class Outgoing:
    """What a stream has yet to send.

    Attributes:
        began_at: When its request came.
        is_answered: Whether its answer has begun.
        is_complete: Whether nothing more will come.
    """

    def __init__(self, patience: float) -> None:
        self._data = bytearray()
        self._patience = patience
        self._taken = trio.Event()
        self.began_at = trio.current_time()
        self.is_answered = False
        self._stuck_since: float | None = None
        self._closed = False
        self.is_complete = False

    def __bool__(self) -> bool:
        return bool(self._data)

    async def push(self, data: bytes) -> None:
        """Add data; waits while there is much.

        What a client would get that has left is dropped.

        Raises:
            ClientGone: The client has taken nothing for too long.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        now = trio.current_time()
        if self._data and self._stuck_since is not None:
            if now - self._stuck_since > self._patience:
                raise ClientGone(f"it has taken nothing for {self._patience:g} s")
        else:
            self._stuck_since = now
        self._data += data
        while len(self._data) >= _HIGH_WATER and not self._closed:
            await self._taken.wait()

    async def drain(self) -> None:
        """Wait until all is sent, or nothing can be sent any more."""
        while self._data and not self._closed:
            await self._taken.wait()

    def pop(self, most: int) -> bytes:
        """Take what is to be sent now."""
        data = bytes(self._data[:most])
        if data:
            del self._data[:most]
            self._stuck_since = trio.current_time()
            self._wake()
        return data

    def close(self) -> None:
        """Nothing can be sent any more."""
        self._closed = True
        self._data.clear()
        self._wake()

    def _wake(self) -> None:
        self._taken.set()
        self._taken = trio.Event()


class Http2:
    """The protocol of one connection.

    Args:
        context: What it shares with the other protocol.
        send: Takes what is to be sent.
    """

    def __init__(self, context: Context, send: Callable[[Event], Awaitable[None]]) -> None:
        self._context = context
        self._send = send
        self._connection = CountingConnection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        codes = h2.settings.SettingCodes
        limits = context.answering.limits
        self._most_streams = limits.streams_per_connection
        self._connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: self._most_streams,
                codes.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            },
        )
        self._hasty = 0
        self._began = trio.current_time()
        self._frames = Frames()
        self._greeted = False
        self._closed = False
        self._streams: dict[int, HTTPStream] = {}
        self._outgoing: dict[int, Outgoing] = {}
        # The streams whose body has not arrived.
        self._arriving: set[int] = set()
        self._ready: OrderedDict[int, None] = OrderedDict()
        self._has_data = trio.Event()

    @property
    def is_partial(self) -> bool:
        """Whether the client is in the middle of something that it should finish soon."""
        return not self._greeted or self._frames.is_partial

    async def initiate(self) -> None:
        """Greet the client."""
        self._connection.initiate_connection()
        await self._flush()
        self._context.requests.spawn(self._send_in_turn)

    async def goodbye(self) -> None:
        """Tell the client that no more requests are taken."""
        if not self._closed:
            self._connection.close_connection()
            await self._flush()

    async def handle(self, event: Event) -> None:
        """Take what the client sent, or that it is gone."""
        if isinstance(event, RawData):
            await self._received(event.data)
        elif isinstance(event, Closed):
            self._closed = True
            for stream_id in list(self._streams):
                await self._close_stream(stream_id)
            for outgoing in self._outgoing.values():
                outgoing.close()
            self._outgoing.clear()
            self._has_data.set()

    async def _received(self, data: bytes) -> None:
        for at in range(0, len(data), _BATCH) or (0,):
            if at:
                await trio.lowlevel.checkpoint()
            if self._closed or not await self._taken_in(data[at : at + _BATCH]):
                return

    async def _taken_in(self, data: bytes) -> bool:
        """Take some bytes; returns whether the connection goes on."""
        self._frames.feed(data)
        try:
            if self._frames.is_too_large:
                self._connection.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
                raise h2.exceptions.FrameTooLargeError("a frame is too large")
            lived = trio.current_time() - self._began
            if self._frames.settings > _MOST_SETTINGS + _SETTINGS_PER_SECOND * lived:
                raise self._enough("settings")
            events = self._connection.receive_data(data)
            await self._handle_events(events)
            if self._hasty > _MOST_HASTY:
                raise self._enough("requests that are reset at once")
        except h2.exceptions.ProtocolError as error:
            self._context.answering.protocol_error(error)
            await self._flush()
            await self._send(Closed())
            return False
        return True

    def _enough(self, what: str) -> h2.exceptions.ProtocolError:
        self._connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        return h2.exceptions.ProtocolError(f"too many {what}")

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        wider: set[int | None] = set()
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                await self._request_received(event)
            elif isinstance(event, h2.events.DataReceived):
                await self._data_received(event)
            elif isinstance(event, h2.events.StreamEnded):
                self._arriving.discard(event.stream_id)
                if (stream := self._streams.get(event.stream_id)) is not None:
                    await stream.handle(of_stream.EndBody(event.stream_id))
            elif isinstance(event, h2.events.StreamReset):
                self._arriving.discard(event.stream_id)
                self._note_haste(event.stream_id)
                await self._close_stream(event.stream_id)
                self._drop(event.stream_id)
            elif isinstance(event, h2.events.WindowUpdated):
                wider.add(event.stream_id or None)
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self._greeted = True
                if h2.settings.SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                    wider.add(None)
            elif isinstance(event, h2.events.ConnectionTerminated):
                await self._send(Closed())
        for stream_id in (None,) if None in wider else wider:
            self._window_updated(stream_id)
        await self._flush()

    def _note_haste(self, stream_id: int) -> None:
        outgoing = self._outgoing.get(stream_id)
        if outgoing is None or outgoing.is_answered:
            return
        if trio.current_time() - outgoing.began_at < _HASTE:
            self._hasty += 1

    async def _request_received(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        headers = list(event.headers or ())
        if event.stream_ended is None:
            self._arriving.add(stream_id)
        if self._context.is_leaving or len(self._context.requests) >= self._most_streams:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        fields = dict(headers)
        method, path = fields.get(b":method", b""), fields.get(b":path", b"")
        if not (method.isascii() and path.isascii() and method and path):
            self._context.answering.protocol_error(
                ValueError(f"a request for {method[:100]!r} {path[:100]!r}")
            )
            self._reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        with self._context.answering.containment.unit(
            "request", f"a request of {self._context.peer}"
        ) as unit:
            self._outgoing[stream_id] = Outgoing(self._context.answering.limits.stall_timeout)
            stream = self._streams[stream_id] = self._context.stream(self._stream_send, stream_id)
            await stream.handle(
                of_stream.Request(
                    stream_id=stream_id,
                    headers=filter_pseudo_headers(headers),
                    http_version="2",
                    method=method.decode("ascii").upper(),
                    raw_path=path,
                    state=self._context.state,
                )
            )
        if unit.failed:
            self._streams.pop(stream_id, None)
            self._drop(stream_id)
            self._reset(stream_id, ErrorCodes.INTERNAL_ERROR)

    async def _data_received(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        if (stream := self._streams.get(stream_id)) is not None:
            await stream.handle(of_stream.Body(stream_id, event.data or b""))
        # What nobody wants any more was sent before its client knew: it counts as taken.
        self._connection.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)

    def _window_updated(self, stream_id: int | None) -> None:
        if stream_id:
            if self._outgoing.get(stream_id):
                self._ready_to_send(stream_id)
            return
        for each, outgoing in self._outgoing.items():
            if outgoing:
                self._ready_to_send(each)

    async def _stream_send(self, event: Any) -> None:
        stream_id: int = event.stream_id
        if self._closed:
            # Thousands of streams may end with their connection.
            await trio.lowlevel.checkpoint()
            return
        try:
            if isinstance(event, of_stream.Response | of_stream.InformationalResponse):
                self._connection.send_headers(
                    stream_id,
                    [
                        (b":status", b"%d" % event.status_code),
                        *event.headers,
                        *self._context.config.response_headers("h2"),
                    ],
                )
                self._note_answer(stream_id)
                await self._flush()
            elif isinstance(event, of_stream.StreamClosed):
                await self._stream_closed(stream_id)
            elif (outgoing := self._outgoing.get(stream_id)) is None:
                # The client left while the answer was made.
                return
            elif isinstance(event, of_stream.Body):
                self._ready_to_send(stream_id)
                await outgoing.push(event.data)
            elif isinstance(event, of_stream.EndBody):
                await outgoing.drain()
                outgoing.is_complete = True
                self._connection.end_stream(stream_id)
                await self._flush()
            elif isinstance(event, of_stream.Trailers):
                await outgoing.drain()
                outgoing.is_complete = True
                self._connection.send_headers(stream_id, event.headers, end_stream=True)
                await self._flush()
        except h2.exceptions.ProtocolError:
            # The stream, or the connection, is closed already.
            self._drop(stream_id)

    def _note_answer(self, stream_id: int) -> None:
        outgoing = self._outgoing.get(stream_id)
        if outgoing is not None and not outgoing.is_answered:
            outgoing.is_answered = True
            self._hasty = max(0, self._hasty - 1)

    async def _stream_closed(self, stream_id: int) -> None:
        """A request is answered, or its application gave up."""
        outgoing = self._outgoing.get(stream_id)
        await self._close_stream(stream_id)
        if outgoing is not None:
            if not outgoing.is_complete:
                self._reset(stream_id, ErrorCodes.INTERNAL_ERROR)
            elif stream_id in self._arriving:
                # The rest of the body is of no use.
                self._reset(stream_id, ErrorCodes.NO_ERROR)
            await self._flush()
        self._arriving.discard(stream_id)
        self._drop(stream_id)

    async def _close_stream(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            await stream.handle(of_stream.StreamClosed(stream_id))

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        self._arriving.discard(stream_id)
        if not self._closed:
            try:
                self._connection.reset_stream(stream_id, code)
            except h2.exceptions.ProtocolError as error:
                # The client was faster.
                self._context.answering.protocol_error(error)

    def _drop(self, stream_id: int) -> None:
        self._ready.pop(stream_id, None)
        outgoing = self._outgoing.pop(stream_id, None)
        if outgoing is not None:
            outgoing.close()

    def _ready_to_send(self, stream_id: int) -> None:
        self._ready[stream_id] = None
        self._has_data.set()

    async def _send_in_turn(self) -> None:
        """Send a frame of each stream that may send, in turn."""
        while not self._closed:
            if not self._ready:
                self._has_data = trio.Event()
                await self._has_data.wait()
                continue
            stream_id, _ = self._ready.popitem(last=False)
            outgoing = self._outgoing.get(stream_id)
            if outgoing is None:
                continue
            try:
                window = self._connection.local_flow_control_window(stream_id)
                data = outgoing.pop(max(0, min(window, self._connection.max_outbound_frame_size)))
                if data:
                    self._connection.send_data(stream_id, data)
                    if outgoing:
                        self._ready[stream_id] = None
            except h2.exceptions.ProtocolError:
                self._drop(stream_id)
            await self._flush()

    async def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            await self._send(RawData(data))
