"""The client's side of one HTTP/2 connection, without I/O (RFC 9113).

Bytes go in by :meth:`ClientConnection.receive`, and come out by :meth:`ClientConnection.take`.
In between are streams: each is opened with a header block and bytes, and gathers what the
server sends. After each ``receive`` the streams in :attr:`ClientConnection.woken` have ended or
got something.

What arrives is bounded whatever the server sends: by the windows of the streams, the size of
frames and header blocks, and the number of replies that wait to be written.
"""

from __future__ import annotations

from typing import Final

from etcd_actions.http2 import frames
from etcd_actions.http2.errors import CallFailed, Code, ErrorCode, ProtocolError, error_name
from etcd_actions.http2.headers import LARGEST_BLOCK, NO_TABLE, HeaderDecoder
from etcd_actions.http2.stream import Stream

STREAM_WINDOW: Final = 16 * 1024 * 1024
"""Bytes that the server may send on a stream whose reader does not read."""

_WINDOW_STEP: Final = 16 * 1024 * 1024
"""Bytes after which the connection's window is given back, all at once."""

_MAX_FRAME_SIZE: Final = 64 * 1024
_MOST_BLOCK_FRAMES: Final = 64
_MOST_REPLIES: Final = 1_000
"""Answers to pings and settings that may wait to be written."""
_LONGEST_DEBUG: Final = 200

_BY_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}
"""As gRPC maps them (PROTOCOL-HTTP2.md, "Errors"); all others are INTERNAL."""


class ClientConnection:
    """Frames, streams, settings and both flow-control windows in both directions.

    Attributes:
        ready: Whether the server's settings have come, so that it is one that speaks HTTP/2.
        draining: Why no stream may be opened any more; None while they may.
        queued: Bytes that were ever made to be sent.
        woken: The streams that have ended or got something; its user empties it.
        pinged: The payload of the newest answer to a ping.
    """

    def __init__(self, *, stream_window: int = STREAM_WINDOW) -> None:
        self.ready = False
        self.draining: str | None = None
        self.woken: list[Stream] = []
        self.pinged: bytes | None = None
        self._failed: ProtocolError | None = None
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._decoder = HeaderDecoder()
        # What arrives.
        self._pieces: list[bytes] = []
        self._have = 0
        self._needed = frames.HEADER_LENGTH
        self._block: _Block | None = None
        self._received = 0
        self._stream_window = stream_window
        # What leaves.
        self._replies = 0
        self._blocked: dict[int, Stream] = {}
        self._window = frames.FIRST_WINDOW
        self._peer_window = frames.FIRST_WINDOW
        self._peer_frame = frames.LEAST_MAX_FRAME_SIZE
        self._peer_streams = frames.LAST_STREAM
        self._out: list[bytes] = [
            frames.PREFACE,
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: 0,
                    frames.ENABLE_PUSH: 0,
                    frames.INITIAL_WINDOW_SIZE: stream_window,
                    frames.MAX_FRAME_SIZE: _MAX_FRAME_SIZE,
                }
            ),
            frames.window_update(0, frames.LARGEST_WINDOW - frames.FIRST_WINDOW),
        ]
        self.queued = sum(map(len, self._out))
        self._taken = 0

    @property
    def unwritten(self) -> int:
        """Bytes that :meth:`take` has to give."""
        return self.queued - self._taken

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Whether the server allows one more stream now."""
        return self.draining is None and len(self._streams) < self._peer_streams

    @property
    def room(self) -> int:
        """How many more streams the server allows now."""
        return max(0, self._peer_streams - len(self._streams)) if self.draining is None else 0

    # Towards the server

    def open(
        self, head: bytes, body: bytes = b"", *, end: bool, largest: int, gathers: bool
    ) -> Stream:
        """Open a stream; to be asked only where :attr:`can_open` says so.

        Args:
            head: The header block.
            body: What follows at once.
            end: Whether that is all.
            largest: Bytes of a message that are taken.
            gathers: See :class:`~etcd_actions.http2.stream.Stream`.
        """
        number = self._next_id
        self._next_id = number + 2
        if self._next_id > frames.LAST_STREAM:
            self.draining = "all numbers of streams are used up"
        stream = self._streams[number] = Stream(
            number,
            offset=self.queued,
            send_window=self._peer_window,
            receive_window=self._stream_window,
            largest=largest,
            gathers=gathers,
        )
        if number == 1:
            head = NO_TABLE + head
        self._put_head(number, head, end=end and not body)
        if body:
            self.send(stream, body, end=end)
        else:
            stream.sent_end = end
        return stream

    def send(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Send more on a stream, as far as the windows allow; the rest follows by itself."""
        if stream.ended or stream.sent_end or stream.unsent_end:
            return
        size = len(data)
        if (
            size <= self._peer_frame
            and size <= self._window
            and size <= stream.send_window
            and not stream.unsent
        ):
            self._window -= size
            stream.send_window -= size
            stream.sent_end = end
            self._put(
                frames.HEADER.pack(size << 8 | frames.DATA, frames.END_STREAM * end, stream.id)
                + data
            )
            return
        if data:
            stream.unsent.append(memoryview(data))
        stream.unsent_end = end
        self._blocked[stream.id] = stream
        self._pump()

    def reset(self, stream: Stream, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End a stream and forget it; what still comes for it is dropped."""
        if self._streams.pop(stream.id, None) is not None:
            self._blocked.pop(stream.id, None)
            self._put(frames.rst_stream(stream.id, code))
        stream.ended = True
        stream.unsent.clear()

    def taken(self, stream: Stream, size: int) -> None:
        """The reader took so many bytes of a stream that does not gather."""
        stream.taken += size
        if stream.taken >= self._stream_window // 2 and not stream.ended:
            stream.receive_window += stream.taken
            self._put(frames.window_update(stream.id, stream.taken))
            stream.taken = 0

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; eight bytes come back in :attr:`pinged`."""
        self._put(frames.frame(frames.PING, 0, 0, payload))

    def take(self) -> bytes:
        """All bytes that are to be written, once."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._taken = self.queued
        self._replies = 0
        return data

    # From the server

    def receive(self, data: bytes) -> None:
        """Take in what has arrived, cut anywhere.

        Raises:
            ProtocolError: It breaks the rules; so does everything after it. What came
                before counts.
        """
        if self._failed is not None:
            raise self._failed
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._needed:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            position = self._read_frames(data)
        except ProtocolError as error:
            self._failed = error
            self._put(frames.goaway(error.code, str(error).encode()[:_LONGEST_DEBUG]))
            raise
        if position < len(data):
            self._pieces.append(data[position:])
            self._have = len(data) - position

    def lost(self, reason: str, *, written: int, code: Code = Code.UNAVAILABLE) -> None:
        """The connection is gone: all streams fail.

        Args:
            reason: Why.
            written: How many of the :attr:`queued` bytes may have left this machine. Streams
                that begin behind them were certainly not seen by the server.
            code: The status that they fail with.
        """
        self.draining = self.draining or reason
        for stream in list(self._streams.values()):
            self._fail(stream, CallFailed(code, reason, not_done=stream.offset >= written))
        self._out.clear()

    def _read_frames(self, data: bytes) -> int:
        """Handle all complete frames; where the first incomplete one begins."""
        position, end = 0, len(data)
        unpack = frames.HEADER.unpack_from
        while end - position >= frames.HEADER_LENGTH:
            word, flags, number = unpack(data, position)
            start = position + frames.HEADER_LENGTH
            stop = start + (word >> 8)
            kind = word & 0xFF
            if not self.ready:
                _check_first(data, kind, flags)
            if stop - start > _MAX_FRAME_SIZE:
                raise ProtocolError(
                    f"a frame of {stop - start} bytes, above {_MAX_FRAME_SIZE}",
                    ErrorCode.FRAME_SIZE_ERROR,
                )
            if stop > end:
                self._needed = stop - position
                return position
            number &= frames.LAST_STREAM
            if self._block is not None and kind != frames.CONTINUATION:
                raise ProtocolError("a header block was not continued")
            if kind == frames.DATA:
                self._on_data(data, start, stop, flags, number)
            elif kind == frames.HEADERS:
                self._on_headers(data, start, stop, flags, number)
            else:
                self._on_other(kind, flags, number, data[start:stop])
            position = stop
        self._needed = frames.HEADER_LENGTH
        return position

    def _on_data(self, data: bytes, start: int, stop: int, flags: int, number: int) -> None:
        length = stop - start
        self._received += length
        if self._received >= _WINDOW_STEP:
            self._put(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "DATA")
            return
        if flags & frames.PADDED:
            start, stop = _without_padding(data, start, stop)
        stream.receive_window -= length
        if stream.receive_window < 0:
            self._break(stream, "more data than the window allows", ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.headers is None:
            self._break(stream, "data before the headers", ErrorCode.PROTOCOL_ERROR)
            return
        size = stop - start
        if size:
            stream.chunks.append(data[start:stop])
            stream.size += size
        if flags & frames.END_STREAM:
            self._end(stream)
        elif stream.gathers:
            # Five bytes of gRPC's are before the message.
            if stream.size > stream.largest + 5:
                self._break(
                    stream,
                    f"an answer of more than {stream.largest} bytes",
                    ErrorCode.CANCEL,
                    Code.RESOURCE_EXHAUSTED,
                )
            else:
                self.taken(stream, length)
        else:
            if size < length:
                self.taken(stream, length - size)
            if size and (not self.woken or self.woken[-1] is not stream):
                self.woken.append(stream)

    def _on_headers(self, data: bytes, start: int, stop: int, flags: int, number: int) -> None:
        if flags & frames.PADDED:
            start, stop = _without_padding(data, start, stop)
        if flags & frames.WITH_PRIORITY:
            start += 5
            if start > stop:
                raise ProtocolError("a HEADERS frame is too short", ErrorCode.FRAME_SIZE_ERROR)
        block = data[start:stop]
        if flags & frames.END_HEADERS:
            self._on_block(number, block, end=flags & frames.END_STREAM != 0)
        else:
            self._block = _Block(number, block, end=flags & frames.END_STREAM != 0)

    def _on_block(self, number: int, data: bytes, *, end: bool) -> None:
        fields = self._decoder.decode(data)
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "HEADERS")
            return
        if stream.headers is None:
            if ":status" not in fields:
                self._break(stream, "headers without a status", ErrorCode.PROTOCOL_ERROR)
                return
            if not end and fields[":status"].startswith("1"):
                return
            stream.headers = fields
        elif not end:
            self._break(stream, "headers in the middle of a stream", ErrorCode.PROTOCOL_ERROR)
            return
        if end:
            stream.trailers = fields
            self._end(stream)

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == frames.PING:
            self._on_ping(flags, number, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == frames.GOAWAY:
            self._on_goaway(number, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError("PUSH_PROMISE, which the settings forbid")
        elif kind == frames.PRIORITY:
            _check_size("PRIORITY", payload, 5)
        # Frames of other kinds are to be ignored (RFC 9113, section 4.1).

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream != number:
            raise ProtocolError("CONTINUATION without a header block")
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(number, b"".join(block.parts), end=block.end)

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        _check_size("RST_STREAM", payload, 4)
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "RST_STREAM")
            return
        code = frames.NUMBER.unpack(payload)[0]
        self._fail(
            stream,
            CallFailed(
                _BY_RESET.get(code, Code.INTERNAL),
                f"the server reset the stream: {error_name(code)}",
                # Who has answered has begun, whatever is said after that.
                not_done=code == ErrorCode.REFUSED_STREAM and stream.headers is None,
            ),
        )

    def _on_goaway(self, number: int, payload: bytes) -> None:
        _check_connection("GOAWAY", number)
        if len(payload) < 8:
            raise ProtocolError("a GOAWAY frame is too short", ErrorCode.FRAME_SIZE_ERROR)
        last = frames.NUMBER.unpack_from(payload, 0)[0] & frames.LAST_STREAM
        code = frames.NUMBER.unpack_from(payload, 4)[0]
        debug = payload[8 : 8 + _LONGEST_DEBUG].decode(errors="backslashreplace")
        reason = f"the server ends the connection: {error_name(code)}"
        if debug:
            reason += f" ({debug})"
        self.draining = reason
        for stream in [each for each in self._streams.values() if each.id > last]:
            not_done = stream.headers is None
            self._fail(stream, CallFailed(Code.UNAVAILABLE, reason, not_done=not_done))

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        _check_connection("PING", number)
        _check_size("PING", payload, 8)
        if flags & frames.ACK:
            self.pinged = payload
        else:
            self._reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        _check_connection("SETTINGS", number)
        if flags & frames.ACK:
            _check_size("SETTINGS", payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise ProtocolError("a SETTINGS frame is cut", ErrorCode.FRAME_SIZE_ERROR)
        for name, value in frames.SETTING.iter_unpack(payload):
            self._on_setting(name, value)
        self.ready = True
        self._reply(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._pump()

    def _on_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise ProtocolError(
                    f"an initial window of {value} bytes", ErrorCode.FLOW_CONTROL_ERROR
                )
            change = value - self._peer_window
            self._peer_window = value
            for stream in self._streams.values():
                # It may come to be below zero.
                stream.send_window += change
                if stream.send_window > frames.LARGEST_WINDOW:
                    raise ProtocolError(
                        "an initial window that makes another one too large",
                        ErrorCode.FLOW_CONTROL_ERROR,
                    )
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.LEAST_MAX_FRAME_SIZE <= value <= frames.LARGEST_MAX_FRAME_SIZE:
                raise ProtocolError(f"a largest frame of {value} bytes")
            self._peer_frame = value
        elif name == frames.MAX_CONCURRENT_STREAMS:
            self._peer_streams = value
        elif name == frames.ENABLE_PUSH and value:
            raise ProtocolError("a server that wants pushes")

    def _on_window_update(self, number: int, payload: bytes) -> None:
        _check_size("WINDOW_UPDATE", payload, 4)
        increment = frames.NUMBER.unpack(payload)[0] & frames.LARGEST_WINDOW
        if number == 0:
            self._window += increment
            if not increment or self._window > frames.LARGEST_WINDOW:
                raise ProtocolError(
                    f"the window of the connection grew by {increment}",
                    ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR,
                )
        else:
            stream = self._streams.get(number)
            if stream is None:
                self._check_known(number, "WINDOW_UPDATE")
                return
            stream.send_window += increment
            if not increment or stream.send_window > frames.LARGEST_WINDOW:
                self._break(
                    stream,
                    f"the window grew by {increment}",
                    ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR,
                )
                return
        if self._blocked:
            self._pump()

    def _check_known(self, number: int, what: str) -> None:
        """A stream that is not open must be one of ours that is over."""
        if number % 2 == 0 or number >= self._next_id:
            raise ProtocolError(f"{what} for stream {number}, which was never opened")

    def _end(self, stream: Stream) -> None:
        """The server ended it by itself."""
        del self._streams[stream.id]
        if not stream.sent_end:
            # It does not want the rest.
            self._blocked.pop(stream.id, None)
            stream.unsent.clear()
            self._put(frames.rst_stream(stream.id, ErrorCode.CANCEL))
        stream.ended = True
        self.woken.append(stream)

    def _break(
        self, stream: Stream, problem: str, code: ErrorCode, status: Code = Code.INTERNAL
    ) -> None:
        """End a stream on which the server broke a rule."""
        self._put(frames.rst_stream(stream.id, code))
        self._fail(stream, CallFailed(status, f"the server sent {problem}"))

    def _fail(self, stream: Stream, failure: CallFailed) -> None:
        del self._streams[stream.id]
        self._blocked.pop(stream.id, None)
        stream.unsent.clear()
        stream.failure = failure
        stream.ended = True
        self.woken.append(stream)

    def _pump(self) -> None:
        """Send what waits for windows, one frame of each stream in turn."""
        while self._blocked:
            progress = False
            for stream in list(self._blocked.values()):
                progress |= self._pump_stream(stream)
            if not progress:
                return

    def _pump_stream(self, stream: Stream) -> bool:
        """Send one frame of a stream; whether it could."""
        if not stream.unsent:
            # Only the end is left.
            del self._blocked[stream.id]
            if stream.unsent_end and not stream.sent_end:
                stream.sent_end = True
                self._put(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
            return True
        data = stream.unsent[0]
        size = min(len(data), self._peer_frame, self._window, stream.send_window)
        if size <= 0:
            return False
        self._window -= size
        stream.send_window -= size
        if size == len(data):
            del stream.unsent[0]
        else:
            stream.unsent[0] = data[size:]
        last = not stream.unsent
        stream.sent_end = last and stream.unsent_end
        if last:
            del self._blocked[stream.id]
        self._put(
            frames.frame(
                frames.DATA, frames.END_STREAM * stream.sent_end, stream.id, bytes(data[:size])
            )
        )
        return True

    def _put_head(self, number: int, head: bytes, *, end: bool) -> None:
        flags = frames.END_STREAM * end
        most = self._peer_frame
        if len(head) <= most:
            self._put(frames.frame(frames.HEADERS, flags | frames.END_HEADERS, number, head))
            return
        # Nothing may come in between.
        parts = [head[start : start + most] for start in range(0, len(head), most)]
        made = [frames.frame(frames.HEADERS, flags, number, parts[0])]
        made += [frames.frame(frames.CONTINUATION, 0, number, part) for part in parts[1:-1]]
        made.append(frames.frame(frames.CONTINUATION, frames.END_HEADERS, number, parts[-1]))
        self._put(b"".join(made))

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self.queued += len(data)

    def _reply(self, data: bytes) -> None:
        self._replies += 1
        if self._replies > _MOST_REPLIES:
            raise ProtocolError(
                "pings or settings come faster than their answers can be written",
                ErrorCode.ENHANCE_YOUR_CALM,
            )
        self._put(data)


class _Block:
    """A header block that is not complete."""

    __slots__ = ("end", "parts", "size", "stream")

    def __init__(self, stream: int, first: bytes, *, end: bool) -> None:
        self.stream = stream
        self.parts: list[bytes] = []
        self.size = 0
        self.end = end
        self.add(first)

    def add(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)
        if self.size > LARGEST_BLOCK or len(self.parts) > _MOST_BLOCK_FRAMES:
            raise ProtocolError(
                f"a header block of more than {LARGEST_BLOCK} bytes or {_MOST_BLOCK_FRAMES} frames",
                ErrorCode.ENHANCE_YOUR_CALM,
            )


def _check_first(data: bytes, kind: int, flags: int) -> None:
    """The first frame of a server is its settings (RFC 9113, section 3.4)."""
    if kind == frames.SETTINGS and not flags & frames.ACK:
        return
    if data.startswith(b"HTTP/1"):
        raise ProtocolError("the server speaks HTTP/1.1 only", ErrorCode.HTTP_1_1_REQUIRED)
    raise ProtocolError("the server's first bytes are no HTTP/2")


def _without_padding(data: bytes, start: int, stop: int) -> tuple[int, int]:
    if start >= stop:
        raise ProtocolError("a padded frame is empty", ErrorCode.FRAME_SIZE_ERROR)
    unpadded = stop - data[start]
    if unpadded < start + 1:
        raise ProtocolError("more padding than the frame has bytes")
    return start + 1, unpadded


def _check_size(what: str, payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise ProtocolError(
            f"a {what} frame of {len(payload)} bytes, not {size}", ErrorCode.FRAME_SIZE_ERROR
        )


def _check_connection(what: str, number: int) -> None:
    if number:
        raise ProtocolError(f"{what} on a stream")
